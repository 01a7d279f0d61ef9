#!/bin/bash
# Tries the federation in containers: brings it up, runs a French researcher's task on FR's Slurm through DE's gateway, reads
# its log, cancels another, and takes everything down again. Prints `ok`.
#
# Where there is no engine it says so and ends well, unless ENTENTE_TEST_REQUIRE has `containers` in it.
set -euo pipefail
cd "$(dirname "$0")/.."
READY_S=120 TASK_S=60
# Beside a federation that is already up: names and ports of its own.
export COMPOSE_PROJECT_NAME=entente-try ENTENTE_PORT_FR='' ENTENTE_PORT_DE='' ENTENTE_PORT_FI=''

skip() {
  case ,${ENTENTE_TEST_REQUIRE:-}, in *,containers,*) echo "try.sh: required, but $1" >&2; exit 1 ;; esac
  echo "skipped the federation in containers: $1"
  exit 0
}
die() { echo "try.sh: $*" >&2; exit 1; }

command -v docker >/dev/null || skip "there is no docker"
docker version --format '{{.Server.Version}}' >/dev/null 2>&1 || skip "no container engine answers"
if docker compose version >/dev/null 2>&1; then COMPOSE=(docker compose)
elif command -v docker-compose >/dev/null; then COMPOSE=(docker-compose)
else skip "there is neither docker compose nor docker-compose"; fi
[ -x target/release/entente ] || die "target/release/entente is missing: cargo build --release makes it"

log=$(mktemp)
compose() { "${COMPOSE[@]}" "$@"; }
desk() { compose run --rm -T desk "$@" 2>>"$log"; }
end() {
  code=$?
  if [ $code != 0 ]; then
    { tail -n 20 "$log"; compose ps; compose logs --tail=30; } >&2 || true
  fi
  compose down --volumes --timeout 20 >>"$log" 2>&1 || code=1
  rm -f "$log"
  exit $code
}
trap end EXIT

health() { docker inspect --format '{{.State.Health.Status}}' "$(compose ps -q "$1")"; }
# Until a condition holds: seconds, what is waited for, and a command.
until_true() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $deadline ] || die "$what: not within the time"
    sleep 0.5
  done
}
is_healthy() { [ "$(health "$1")" = healthy ]; }
is_in_state() { desk FR DE tasks -o json "$1" | grep -q "\"state\":\"$2\""; }
slurm_says() { compose exec -T slurm-fr scontrol show job --oneliner 2>>"$log" | grep "JobName=ent-$1\.1 " | grep -q "JobState=$2 "; }

docker/base-image.sh
compose down --volumes >>"$log" 2>&1 || true
compose build >>"$log" 2>&1 || die "the images cannot be built"
compose up -d >>"$log" 2>&1 || die "the federation does not start"
for service in slurm-fr gateway-fr gateway-de gateway-fi; do until_true $READY_S "$service becomes healthy" is_healthy $service; done
echo "three gateways and Slurm are healthy after $SECONDS s"

desk FR DE capacity
task=$(desk FR DE submit --zone FR --gpus 2 --model H100 --walltime-s 60 -- sh -c 'echo "hello from $(hostname) as $(id -u)"')
desk FR DE tasks --wait "$task" || die "$task failed"
said=$(desk FR DE logs "$task")
echo "$task said: $said"
# As the account that FR's operator gave the researcher.
[ "$said" = "hello from slurm as 10011" ] || die "this is not what the task says on Slurm"
slurm_says "$task" COMPLETED || die "Slurm knows nothing of $task"

task=$(desk FR DE submit --zone FR --gpus 2 --model H100 --walltime-s 600 -- sleep 600)
until_true $TASK_S "$task runs" is_in_state "$task" RUNNING
slurm_says "$task" RUNNING || die "Slurm does not run $task"
desk FR DE cancel "$task"
until_true $TASK_S "$task is canceled" is_in_state "$task" CANCELED
compose exec -T slurm-fr squeue --noheader | grep -q . && die "Slurm still runs what was canceled"

desk DE FI submit --zone FI --wait -- true || die "DE's researcher cannot run in FI"
echo ok
