#!/bin/bash
# A real Slurm cluster on this machine's loopback, for tests: no systemd, no containers, up in seconds, gone without a trace.
# It makes local accounts and starts daemons as root: use it on machines that may be thrown away (Debian 12).
#
#   cluster.sh install                      the packages, if they are missing
#   cluster.sh up FOLDER NODE...            NODE is type:gpus, such as h100:4, or - for a node without GPUs
#   cluster.sh env FOLDER                   what clients need, as lines for `export`
#   cluster.sh token FOLDER USER [SECONDS]  a JWT of a user
#   cluster.sh stop|start FOLDER DAEMON     slurmctld, slurmrestd or a node's slurmd (n1, n2, ...)
#   cluster.sh down FOLDER                  ends the daemons and removes the folder
#
# Before `up`, in the environment:
#   NAME=c1            of the cluster; its nodes are c1-n1, c1-n2, ...
#   PORT=17800         the first of 100: slurmctld, then one per node; +90 and +91 are slurmrestd with tokens
#   MIN_JOB_AGE=300    seconds for which slurmctld remembers a finished job
#   CGROUPS=1          limits and tracking by cgroup v1; without, by polling and by the tree of processes
#   CPUS=16 MEMORY_MIB=64000  what every node claims to have
#   MAX_TIME=04:00:00  of the partition `federated`
#   CONF=              more lines of slurm.conf
#   ACCOUNTS="ent-alice ent-bob ent-carol"  local accounts that are made where they are missing
#   SOCKET_OF=ent-alice  whose slurmrestd listens on FOLDER/rest.sock without tokens
#   UNTIL=PID          ends the cluster when that process is gone
set -euo pipefail
# In the environment it would make every Slurm command use a token instead of munge.
unset SLURM_JWT SLURM_CONF
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ACT=${1:-help} F=${2:-}
PACKAGES="slurmctld slurmd slurm-client slurmrestd slurm-wlm-basic-plugins slurm-wlm-jwt-plugin munge"

die() { echo "cluster.sh: $*" >&2; exit 1; }

install() {
  local missing=()
  for it in $PACKAGES; do dpkg -s "$it" >/dev/null 2>&1 || missing+=("$it"); done
  [ ${#missing[@]} = 0 ] && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A process that nobody has collected yet does not run.
runs() { [ -d "/proc/$1" ] && ! grep -qs '^State:.Z' "/proc/$1/status"; }

# Ends the process that a pid file names, if it still is that program.
end() {
  local pid; pid=$(cat "$1" 2>/dev/null) || return 0
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || { rm -f "$1"; return 0; }
  kill "${3:--TERM}" "$pid" 2>/dev/null || true
  for _ in $(seq 1000); do runs "$pid" || break; sleep 0.02; done
  ! runs "$pid" || kill -KILL "$pid" 2>/dev/null || true
  rm -f "$1"
}

# A daemon that does not go to the background by itself: account, name of its pid file, words.
background() {
  local account=$1 name=$2; shift 2
  ( cd /; exec setsid setpriv --reuid "$account" --regid "$account" --init-groups "$@" \
      </dev/null >>"$F/log/$name.log" 2>&1 & echo $! >"$F/run/$name.pid" )
}

start_slurmctld() { slurmctld -f "$F/etc/slurm.conf"; }
start_slurmd() { slurmd -f "$F/etc/slurm.conf" -N "$NAME-$1"; }
start_slurmrestd() {
  # `daemon` makes it take each caller's token; without it, it refuses all of them.
  background entente-rest slurmrestd env SLURM_CONF="$F/etc/slurm.conf" SLURM_JWT=daemon \
    slurmrestd -a rest_auth/jwt -s openapi/v0.0.38 "127.0.0.1:$((PORT + 90))"
  rm -f "$F/run/socket/rest.sock"
  # By the socket it takes only its own account, and needs no token.
  background "$SOCKET_OF" slurmrestd-socket env SLURM_CONF="$F/etc/slurm.conf" \
    slurmrestd -a rest_auth/local -s openapi/v0.0.38 "unix:$F/run/socket/rest.sock"
}

configure() {
  local line device number=0 type count gres nodes="" hosts="$NAME-n[1-$#]"
  echo "AutoDetect=off" >"$F/etc/gres.conf"
  for it in "$@"; do
    number=$((number + 1)) gres=""
    if [ "$it" != - ]; then
      type=${it%:*} count=${it#*:}
      # Each GPU needs a device file of its own, and a link to /dev/null is one.
      mkdir -p "$F/dev/n$number"
      for device in $(seq 0 $((count - 1))); do ln -sfn /dev/null "$F/dev/n$number/gpu$device"; done
      line="$F/dev/n$number/gpu[0-$((count - 1))]"
      [ "$count" -gt 1 ] || line="$F/dev/n$number/gpu0"
      echo "NodeName=$NAME-n$number Name=gpu Type=$type File=$line" >>"$F/etc/gres.conf"
      gres="Gres=gpu:$type:$count"
    fi
    nodes+="NodeName=$NAME-n$number NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + number))"
    nodes+=" CPUs=$CPUS RealMemory=$MEMORY_MIB $gres State=UNKNOWN"$'\n'
  done
  local track=linuxproc task=none gather=linux limit=OverMemoryKill
  [ "$CGROUPS" = 1 ] && track=cgroup task=cgroup gather=cgroup limit=UsePss
  printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no ConstrainRAMSpace=yes ConstrainCores=no ConstrainDevices=no \
    >"$F/etc/cgroup.conf"
  cat >"$F/etc/slurm.conf" <<CONF
ClusterName=$NAME
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=slurm
SlurmdUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$F/run/munge.socket
CredType=cred/munge
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key=$F/etc/jwt.key
StateSaveLocation=$F/state
SlurmdSpoolDir=$F/spool/%n
SlurmctldPidFile=$F/run/slurmctld.pid
SlurmdPidFile=$F/run/slurmd-%n.pid
SlurmctldLogFile=$F/log/slurmctld.log
SlurmdLogFile=$F/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/$track
TaskPlugin=task/$task
JobAcctGatherType=jobacct_gather/$gather
JobAcctGatherParams=$limit
JobAcctGatherFrequency=1
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,default_queue_depth=1000
PriorityType=priority/basic
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$F/log/jobcomp.txt
MinJobAge=$MIN_JOB_AGE
MaxJobCount=20000
KillWait=8
TCPTimeout=5
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
ReturnToService=2
${CONF:-}
$nodes
PartitionName=local Nodes=$hosts Default=YES MaxTime=24:00:00 DefaultTime=00:10:00 State=UP
PartitionName=federated Nodes=$hosts Default=NO MaxTime=$MAX_TIME DefaultTime=00:10:00 State=UP
CONF
}

up() {
  [ $# -gt 0 ] || die "a cluster needs nodes"
  [ "$(id -u)" = 0 ] || die "only root can start a cluster's daemons"
  NAME=${NAME:-c1} PORT=${PORT:-17800} MIN_JOB_AGE=${MIN_JOB_AGE:-300} CGROUPS=${CGROUPS:-0} CPUS=${CPUS:-16}
  MEMORY_MIB=${MEMORY_MIB:-64000} MAX_TIME=${MAX_TIME:-04:00:00} ACCOUNTS=${ACCOUNTS:-ent-alice ent-bob ent-carol}
  SOCKET_OF=${SOCKET_OF:-ent-alice}
  # Clusters that start side by side make the same accounts: one after the other.
  (
    flock 9
    for it in $ACCOUNTS "$SOCKET_OF"; do getent passwd "$it" >/dev/null || useradd -M -d /nonexistent -s /bin/sh "$it"; done
    getent passwd entente-rest >/dev/null || useradd -r -s /usr/sbin/nologin entente-rest
  ) 9<"$0"
  mkdir -p "$F"/{etc/munge,run/socket,state,spool,log}
  declare -p NAME PORT SOCKET_OF | sed 's/^declare -- //' >"$F/etc/cluster"
  chmod 755 "$F" "$F"/{etc,run,log}
  # Keys of its own: no two clusters trust each other.
  head -c 1024 /dev/urandom >"$F/etc/munge/key"; head -c 32 /dev/urandom >"$F/etc/jwt.key"
  chmod 700 "$F/etc/munge"; chmod 400 "$F/etc/munge/key" "$F/etc/jwt.key"; chown -R munge: "$F/etc/munge"
  chown slurm: "$F/etc/jwt.key" "$F/state" "$F/log"
  chown "$SOCKET_OF" "$F/run/socket"
  configure "$@"
  chown munge: "$F/run"
  setpriv --reuid munge --regid munge --clear-groups munged --force --key-file="$F/etc/munge/key" \
    --socket="$F/run/munge.socket" --pid-file="$F/run/munged.pid" --log-file="$F/run/munged.log" \
    --seed-file="$F/run/munged.seed"
  chown slurm: "$F/run"
  start_slurmctld
  for number in $(seq $#); do mkdir -p "$F/spool/$NAME-n$number"; start_slurmd "n$number"; done
  start_slurmrestd
  if [ -n "${UNTIL:-}" ]; then
    # Not even what is killed leaves daemons behind.
    setsid bash -c 'while [ -d "/proc/$1" ]; do sleep 1; done; exec bash "$2" down "$3"' - \
      "$UNTIL" "$(readlink -f "$0")" "$F" </dev/null >/dev/null 2>&1 &
  fi
  for _ in $(seq 600); do
    grep -h fatal "$F/log/slurmctld.log" >&2 && exit 1
    local idle; idle=$(SLURM_CONF=$F/etc/slurm.conf timeout 5 sinfo -h -p local -N -o %T 2>/dev/null | grep -c '^idle') || true
    [ "$idle" = $# ] && [ -S "$F/run/socket/rest.sock" ] && (: >"/dev/tcp/127.0.0.1/$((PORT + 90))") 2>/dev/null && return
    sleep 0.1
  done
  tail -n 20 "$F"/log/*.log >&2
  die "the nodes did not become idle"
}

# Processes of jobs, and what watches them: a node's daemon that ends leaves them alone.
of_jobs() {
  local it pid
  for it in $(grep -lzx "SLURM_CONF=$F/etc/slurm.conf" /proc/[0-9]*/environ 2>/dev/null); do
    pid=${it#/proc/} pid=${pid%/environ}
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = slurmstepd ] || grep -qz '^SLURM_JOB_ID=' "$it" 2>/dev/null || continue
    echo "$pid"
  done
}

down() {
  [ -f "$F/etc/slurm.conf" ] || return 0
  local it pid
  # Nothing of it is needed any more, so nobody is asked politely.
  for it in slurmrestd slurmrestd-socket; do end "$F/run/$it.pid" slurmrestd -KILL; done
  end "$F/run/slurmctld.pid" slurmctld -KILL
  for it in "$F"/run/slurmd-*.pid; do end "$it" slurmd -KILL; done
  for _ in $(seq 50); do
    pid=$(of_jobs); [ -n "$pid" ] || break
    # shellcheck disable=SC2086
    kill -KILL $pid 2>/dev/null || true
    sleep 0.1
  done
  end "$F/run/munged.pid" munged -KILL
  rm -rf "$F"
}

[ "$ACT" = install ] && { install; exit; }
case $ACT in up|down|env|token|start|stop|kill) ;; *) sed -n '2,/^set /p' "$0" | sed '/^set /d; s/^# \?//'; exit 2 ;; esac
[ -n "$F" ] || die "which folder?"
F=$(realpath -m "$F")
# shellcheck source=/dev/null
[ "$ACT" = up ] || [ ! -f "$F/etc/cluster" ] || . "$F/etc/cluster"
case $ACT in
  up) shift 2; up "$@" ;;
  down) down ;;
  env)
    echo "SLURM_CONF=$F/etc/slurm.conf"
    echo "REST_URL=http://127.0.0.1:$((PORT + 90))"
    echo "REST_SOCKET=$F/run/socket/rest.sock" ;;
  token)
    SLURM_CONF=$F/etc/slurm.conf scontrol token "username=${3:?a user}" "lifespan=${4:-3600}" | sed 's/^SLURM_JWT=//' ;;
  start|stop|kill)
    signal=-TERM; [ "$ACT" = kill ] && signal=-KILL
    case ${3:?a daemon} in
      slurmctld|slurmrestd) end "$F/run/$3.pid" "$3" $signal; [ "$3" = slurmctld ] || end "$F/run/$3-socket.pid" "$3" $signal ;;
      *) end "$F/run/slurmd-$NAME-$3.pid" slurmd $signal ;;
    esac
    [ "$ACT" != start ] || case $3 in slurmctld|slurmrestd) "start_$3" ;; *) start_slurmd "$3" ;; esac ;;
esac
