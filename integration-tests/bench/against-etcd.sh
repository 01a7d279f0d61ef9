#!/usr/bin/env bash
# Placements per second of three durable gateways against puts per second of three etcd servers.
#
# Both run on this machine, in alternation and never at once, with the same number of clients. Every
# round starts with fresh servers and empty folders on the same disk. etcd has its durable defaults
# and is spoken to in plain text without accounts; entente pays for TLS, tokens and decisions.

set -euo pipefail

usage() {
    cat <<'END'
usage: against-etcd.sh [--clients N] [--placements M] [--rounds R]

  --clients N      concurrent clients, spread over the three servers   [env: CLIENTS, default 64]
  --placements M   placements, and puts, per round                     [env: PLACEMENTS, default 20000]
  --rounds R       rounds of each                                      [env: ROUNDS, default 3]

Exits with 0 when measured, 1 when something failed, 2 when it cannot run here.
END
}

cannot_run() {
    echo "against-etcd: $1" >&2
    exit 2
}

clients=${CLIENTS:-64}
placements=${PLACEMENTS:-20000}
rounds=${ROUNDS:-3}
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --clients | --placements | --rounds) [ $# -ge 2 ] || cannot_run "$1 needs a value" ;;&
        --clients) clients=$2 ;;
        --placements) placements=$2 ;;
        --rounds) rounds=$2 ;;
        *) usage >&2; cannot_run "$1 is not an option" ;;
    esac
    shift 2
done
for number in "$clients" "$placements" "$rounds"; do
    [[ $number =~ ^[1-9][0-9]{0,5}$ ]] || cannot_run "'$number' is not a number between 1 and 999999"
done

for program in etcd etcdctl; do
    command -v "$program" >/dev/null ||
        cannot_run "$program is missing. On Debian: apt-get install etcd-server etcd-client"
done
for program in python3 setsid; do
    command -v "$program" >/dev/null || cannot_run "$program is missing. On Debian: apt-get install python3 util-linux"
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
release=${CARGO_TARGET_DIR:-$root/target}/release
entente=$release/entente
etcd_puts=$release/examples/etcd-puts
[ -x "$entente" ] || cannot_run "$entente is missing. Build it: cargo build --release"
[ -x "$etcd_puts" ] ||
    cannot_run "$etcd_puts is missing. Build it: cargo build --release -p entente-integration-tests --example etcd-puts"
# etcdctl refuses to work when a flag and its variable disagree.
unset "${!ETCDCTL@}"

work=$(mktemp -d -t against-etcd.XXXXXXXX)
# Process groups that run now; entente's holds its gateways too.
running=()

# Ends one process group: asks, waits ten seconds, then insists.
end_group() {
    kill -TERM -- "-$1" 2>/dev/null || return 0
    for _ in $(seq 100); do
        kill -0 -- "-$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

end_all() {
    local group
    for group in ${running[@]+"${running[@]}"}; do
        end_group "$group"
        wait "$group" 2>/dev/null || true
    done
    running=()
    end_attempts
}

# A running job outlives its gateway, in a session of its own, and so does the one that fills the
# pool. Its supervisor names our folder on its command line, and ends the job when it is told to stop.
end_attempts() {
    local file id left
    for _ in $(seq 100); do
        left=false
        for file in /proc/[0-9]*/cmdline; do
            grep -qsF "$work/entente-" "$file" || continue
            id=${file#/proc/}
            kill -TERM "${id%/cmdline}" 2>/dev/null || continue
            left=true
        done
        $left || return 0
        sleep 0.1
    done
    echo "against-etcd: some job of the benchmark does not end: see ps -ef | grep $work" >&2
}

clean_up() {
    trap '' INT TERM HUP
    end_all
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

failed() {
    echo "against-etcd: $1" >&2
    shift
    for log in "$@"; do
        echo "--- the end of $(basename "$log")" >&2
        tail -n 20 "$log" >&2
    done
    exit 1
}

# Runs the rest as a process group of its own; the trap ends it, also while this script waits.
start() {
    local log=$1
    shift
    setsid "$@" >>"$log" 2>&1 </dev/null &
    running+=($!)
}

# One round of entente; the figures go to entente.jsonl.
round_of_entente() {
    TMPDIR=$work setsid "$entente" bench place --clients "$clients" --placements "$placements" \
        >"$work/figures" 2>"$work/entente.log" </dev/null &
    running+=($!)
    wait $! || failed "entente bench place failed" "$work/entente.log"
    end_all
    cat "$work/figures" >>"$work/entente.jsonl"
    show entente "$work/figures"
}

# One round of etcd; the figures go to etcd.jsonl.
round_of_etcd() {
    local number cluster="" endpoints="" ports
    # All are held at once, so that they differ.
    read -r -a ports < <(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
print(*(it.getsockname()[1] for it in held))')
    mkdir "$work/etcd"
    for number in 0 1 2; do
        endpoints+=${endpoints:+,}127.0.0.1:${ports[number]}
        cluster+=${cluster:+,}etcd-$number=http://127.0.0.1:${ports[number + 3]}
    done
    for number in 0 1 2; do
        local client=http://127.0.0.1:${ports[number]} peer=http://127.0.0.1:${ports[number + 3]}
        start "$work/etcd/$number.log" etcd --name "etcd-$number" --data-dir "$work/etcd/$number" \
            --listen-client-urls "$client" --advertise-client-urls "$client" \
            --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
            --initial-cluster "$cluster" --initial-cluster-state new
    done
    await_health "$endpoints"
    start_puts "$endpoints"
    wait $! || failed "etcd-puts failed" "$work/etcd-puts.log" "$work"/etcd/*.log
    end_all
    cat "$work/figures" >>"$work/etcd.jsonl"
    rm -rf "$work/etcd"
    show etcd "$work/figures"
}

# Healthy means that a server answers a linearizable read, so that there is a leader.
await_health() {
    local deadline=$((SECONDS + 30)) group
    until etcdctl --endpoints "$1" endpoint health >"$work/etcd/health.log" 2>&1; do
        for group in "${running[@]}"; do
            kill -0 "$group" 2>/dev/null || failed "an etcd server ended" "$work"/etcd/*.log
        done
        [ "$SECONDS" -lt "$deadline" ] || failed "etcd is not healthy after 30 s" "$work"/etcd/*.log
        sleep 0.2
    done
}

start_puts() {
    setsid "$etcd_puts" --endpoints "$1" --clients "$clients" --puts "$placements" \
        >"$work/figures" 2>"$work/etcd-puts.log" </dev/null &
    running+=($!)
}

show() {
    python3 - "$1" "$2" <<'END'
import json, sys
it = json.load(open(sys.argv[2]))
print(f"  {sys.argv[1]:<8} {it['per_second']:>9.0f}/s   p50 {it['p50_ms']:>8.2f} ms   p99 {it['p99_ms']:>8.2f} ms", flush=True)
END
}

filesystem=$(stat -f -c %T "$work")
echo "$clients clients, $placements placements and puts per round, $rounds rounds"
echo "$(etcd --version | head -n 1), $(nproc) cores, load $(cut -d ' ' -f 1 /proc/loadavg), $filesystem"
if [ "$filesystem" = tmpfs ]; then
    echo "against-etcd: $work is in memory, where nothing is durable; set TMPDIR to a folder on a disk" >&2
fi
for round in $(seq "$rounds"); do
    echo "round $round"
    # What the round before has left to write must not slow this one.
    sync -f "$work"
    round_of_entente
    sync -f "$work"
    round_of_etcd
done

python3 - "$work/entente.jsonl" "$work/etcd.jsonl" <<'END'
import json, statistics, sys
entente, etcd = ([json.loads(line) for line in open(path)] for path in sys.argv[1:])
median = lambda of, name: statistics.median(it[name] for it in of)
print("median")
for name, of in ("entente", entente), ("etcd", etcd):
    rate, p50, p99 = (median(of, part) for part in ("per_second", "p50_ms", "p99_ms"))
    print(f"  {name:<8} {rate:>9.0f}/s   p50 {p50:>8.2f} ms   p99 {p99:>8.2f} ms")
ratio = lambda name: median(entente, name) / median(etcd, name)
print("ratio of medians, entente / etcd")
print(f"  placements per second / puts per second   {ratio('per_second'):.2f}   (higher is better)")
print(f"  p99 of a placement / p99 of a put         {ratio('p99_ms'):.2f}   (lower is better)")
END
