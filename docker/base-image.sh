#!/bin/bash
# Makes the images that ours are built on, from Debian's packages: no registry is asked. About a minute, once.
#
#   docker/base-image.sh           makes what is missing
#   docker/base-image.sh --again   makes all of them, to take up Debian's security updates
#
# `entente` is built on the host, so the host's C library may be older than Debian 12's, but not newer.
set -euo pipefail
SUITE=bookworm
# Programs need neither manuals nor other people's character sets.
LEAN=(doc man info locale bash-completion)
# A shell and its tools are for the tasks of the local driver.
GATEWAY=base-files,coreutils,dash,libc6,libgcc-s1
declare -A PACKAGES=(
  [gateway]=$GATEWAY
  [authority]=$GATEWAY,openssl
  [slurm]=slurmctld,slurmd,slurm-client,slurmrestd,slurm-wlm-basic-plugins,slurm-wlm-jwt-plugin,munge
)
# Slurm's packages make accounts as they are configured; the others are only unpacked.
declare -A VARIANTS=([gateway]=extract [authority]=extract [slurm]=essential)

wanted=()
for name in gateway authority slurm; do
  if [ "${1:-}" = --again ] || ! docker image inspect "entente-base:$name" >/dev/null 2>&1; then wanted+=("$name"); fi
done
[ ${#wanted[@]} -gt 0 ] || exit 0

if ! command -v mmdebstrap >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "base-image.sh: the Debian package mmdebstrap is missing" >&2; exit 1; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
fi
excluded=(--dpkgopt="path-exclude=/usr/lib/*/gconv/*")
for folder in "${LEAN[@]}"; do excluded+=(--dpkgopt="path-exclude=/usr/share/$folder/*"); done
file=$(mktemp)
trap 'rm -f "$file"' EXIT
for name in "${wanted[@]}"; do
  echo "making entente-base:$name from Debian's packages" >&2
  mmdebstrap --quiet --variant="${VARIANTS[$name]}" "${excluded[@]}" --include="${PACKAGES[$name]}" "$SUITE" - >"$file"
  docker import --message "Debian $SUITE: ${PACKAGES[$name]}" "$file" "entente-base:$name" >/dev/null
done
