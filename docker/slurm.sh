#!/bin/bash
# FR's factory in docker-compose.yml: munge, slurmctld, two slurmd and slurmrestd. It ends when one of them does.
#
#   slurm.sh          runs them
#   slurm.sh health   says whether jobs can be run
#
# It also does what the site's operator does for the gateway: a folder in the spool for each account that may run jobs of the
# federation, and fresh tokens. The key that makes tokens stays here.
set -euo pipefail
NODES=(n1 n2)
GATEWAY=entente
ACCOUNTS=(x-fr-curie x-de-noether x-fi-ahlfors)
KEEP=/var/lib/factory SPOOL=/var/spool/entente TOKENS=/run/slurm-tokens
TOKEN_LIFE_S=3600 TOKEN_EVERY_S=600

health() {
  local able
  able=$(sinfo --noheader --Node --partition=federated --format=%T | grep -cE '^(idle|mixed|allocated|completing)$') || true
  [ "$able" = ${#NODES[@]} ] || { echo "$able of ${#NODES[@]} nodes"; exit 1; }
  (: >/dev/tcp/127.0.0.1/6820) 2>/dev/null || { echo "slurmrestd does not answer"; exit 1; }
  [ -s "$TOKENS/$GATEWAY" ] || { echo "no tokens yet"; exit 1; }
}

key() {
  local file=$KEEP/$1 bytes=$2 owner=$3
  if [ ! -s "$file" ]; then (umask 077; head -c "$bytes" /dev/urandom >"$file.new"); mv "$file.new" "$file"; fi
  chown "$owner" "$file"; chmod 400 "$file"
}

prepare() {
  local account node
  mkdir -p "$KEEP"/state "$KEEP"/spool /run/munge /run/slurm
  key munge.key 1024 munge; key jwt.key 32 slurm
  chown slurm "$KEEP/state" /run/slurm; chown munge /run/munge
  rm -rf "$KEEP/spool"
  for node in "${NODES[@]}"; do mkdir -p "$KEEP/spool/$node"; done
  # The gateway's, and of the user's own group.
  chmod 755 "$SPOOL"
  for account in "${ACCOUNTS[@]}"; do
    mkdir -p "$SPOOL/$account"
    chown "$GATEWAY:$account" "$SPOOL/$account"
    chmod 2770 "$SPOOL/$account"
  done
  chown "root:$GATEWAY" "$TOKENS"; chmod 750 "$TOKENS"
}

tokens() {
  local account token
  for account in "$GATEWAY" "${ACCOUNTS[@]}"; do
    token=$(scontrol token "username=$account" "lifespan=$TOKEN_LIFE_S") || return 1
    (umask 027; echo "$token" >"$TOKENS/.new"; chgrp "$GATEWAY" "$TOKENS/.new")
    mv "$TOKENS/.new" "$TOKENS/$account"
  done
}

as() { local account=$1; shift; setpriv --reuid "$account" --regid "$account" --init-groups "$@"; }

run() {
  local node
  prepare
  # Pids of a container that was stopped mean nothing in this one.
  trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
  trap 'exit 0' TERM INT
  as munge munged --foreground --key-file="$KEEP/munge.key" --pid-file=/run/munge/munged.pid --log-file=/run/munge/munged.log \
    --seed-file=/run/munge/munged.seed &
  for _ in $(seq 100); do [ -S /run/munge/munge.socket.2 ] && break; sleep 0.1; done
  slurmctld -D &
  # What an earlier container ran is gone. Slurm is told so before the nodes return, as it would take minutes to find out.
  for _ in $(seq 100); do scontrol ping | grep -q UP && break; sleep 0.1; done
  for node in "${NODES[@]}"; do
    scontrol update "nodename=$node" state=down reason="the container is a new one"
    slurmd -D -N "$node" &
  done
  # `daemon` makes it take each caller's token; without it, it refuses all of them. A container has namespaces of its own
  # and no right to make more.
  as slurmrest env SLURM_JWT=daemon SLURMRESTD_SECURITY=disable_unshare_sysv,disable_unshare_files \
    slurmrestd -a rest_auth/jwt -s openapi/v0.0.38 0.0.0.0:6820 2> >(grep --line-buffered -vE 'operations_router|rest_auth' >&2) &
  while true; do
    if tokens; then sleep "$TOKEN_EVERY_S"; else sleep 1; fi
  done &
  wait -n
  echo "slurm.sh: one of the daemons has ended" >&2
  exit 1
}

case ${1:-run} in
  run) run ;;
  health) health ;;
  *) echo "slurm.sh [health]" >&2; exit 2 ;;
esac
