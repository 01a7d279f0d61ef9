#!/bin/bash
# A real Kubernetes control plane on this machine's loopback, for tests: etcd, kube-apiserver, kube-controller-manager
# and kube-scheduler. There is no kubelet: nodes and the phases of pods are what a test writes to the status
# subresources, so nothing is ever run in a pod.
#
#   cluster.sh build           makes the three from Debian 12's source package (1.20, offline after the download);
#                              8 minutes and 4 GB on two cores, which `clean` gives back
#   cluster.sh clean           removes all of the build but the programs
#   cluster.sh has             succeeds if the programs are there
#   cluster.sh up FOLDER [NAMESPACE...]   starts a cluster of its own in FOLDER, in which the user `gateway` has what
#                              rights.yaml gives, in these namespaces
#   cluster.sh env FOLDER      what clients need, as lines for `export`
#   cluster.sh stop|start FOLDER DAEMON   etcd, apiserver, controllers or scheduler; or `pause`, `resume`
#   cluster.sh down FOLDER     ends the daemons and removes the folder
#
# In the environment:
#   KUBERNETES_HOME   where the programs are built and lie (bin/); default ~/.cache/entente-kubernetes
#   PORT=16440        the first of five for `up`
#   UNTIL=PID         ends the cluster when that process is gone
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ACT=${1:-help} F=${2:-}
HOME_OF=${KUBERNETES_HOME:-${HOME:-/root}/.cache/entente-kubernetes}
BIN=$HOME_OF/bin
PROGRAMS="kube-apiserver kube-controller-manager kube-scheduler"
DAEMONS="scheduler controllers apiserver etcd"

die() { echo "cluster.sh: $*" >&2; exit 1; }

has() {
  local it
  for it in etcd kubectl openssl curl; do command -v "$it" >/dev/null || return 1; done
  for it in $PROGRAMS; do [ -x "$BIN/$it" ] || return 1; done
}

# apt-get with this machine's own mirrors, but their source packages, and with lists of its own.
sources() {
  apt-get -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$HOME_OF/apt/parts" \
    -o Dir::State::lists="$HOME_OF/apt/lists" -o APT::Sandbox::User=root "$@"
}

build() {
  has && return
  [ "$(id -u)" = 0 ] || die "only root can install what the build needs"
  local it src=$HOME_OF/go/src/k8s.io/kubernetes packages
  packages="golang-go etcd-server dpkg-dev rsync openssl curl golang-github-modern-go-reflect2-dev"
  # Another package may have brought kubectl, and Debian's would overwrite it.
  command -v kubectl >/dev/null || packages+=" kubernetes-client"
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
  mkdir -p "$BIN" "$HOME_OF"/apt/{parts,lists/partial} "$HOME_OF/go/src/k8s.io"
  rm -f "$HOME_OF"/apt/parts/*
  for it in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    [ -f "$it" ] || continue
    case $it in
      *.sources) sed 's/^Types:.*/Types: deb-src/' "$it" ;;
      *.list) sed -n 's/^deb /deb-src /p' "$it" ;;
    esac >"$HOME_OF/apt/parts/$(basename "$it")"
  done
  if [ ! -d "$src" ]; then
    sources update -qq
    (cd "$HOME_OF/go/src/k8s.io" && rm -rf kubernetes-1.20* && sources source -qq kubernetes >/dev/null 2>&1 && mv kubernetes-1.20*/ kubernetes)
  fi
  cd "$src"
  # The vendored reflect2 1.0.1 walks maps as Go did before 1.18 and crashes; Debian's 1.0.2 does not.
  rm -rf vendor/github.com/modern-go/reflect2
  cp -rL /usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/
  rm -f vendor/github.com/modern-go/reflect2/*_test.go
  export GOPATH=$HOME_OF/go GO111MODULE=off GOPROXY=off GOFLAGS="" GOCACHE=$HOME_OF/cache
  # Debian's package generates this file as it is built; without it the apiserver does not compile.
  go build -o "$HOME_OF/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  packages=$(grep -rl --include='*.go' '+k8s:openapi-gen=true' staging/src/k8s.io pkg |
    grep -v 'zz_generated\|/testdata/\|/code-generator/\|sample-\|/_examples/\|openapi-gen' | xargs -n1 dirname | sort -u |
    sed -e 's#^staging/src/#k8s.io/kubernetes/vendor/#' -e 's#^pkg/#k8s.io/kubernetes/pkg/#' | paste -sd,)
  "$HOME_OF/openapi-gen" --v 0 --logtostderr -O zz_generated.openapi -p k8s.io/kubernetes/pkg/generated/openapi \
    -i "$packages" -r "$HOME_OF/openapi.report" --go-header-file hack/boilerplate/boilerplate.generatego.txt \
    --output-base "$GOPATH/src"
  for it in $PROGRAMS; do
    go build -p 2 -ldflags="-s -w" -o "$BIN/$it.new" "./cmd/$it"
    mv "$BIN/$it.new" "$BIN/$it"
  done
}

clean() {
  chmod -R u+w "$HOME_OF/go" "$HOME_OF/cache" 2>/dev/null || true
  rm -rf "$HOME_OF"/{go,cache,apt,openapi-gen,openapi.report}
}

# A process that nobody has collected yet does not run.
runs() { [ -d "/proc/$1" ] && ! grep -qs '^State:.Z' "/proc/$1/status"; }

program_of() {
  case $1 in
    etcd) echo etcd ;;
    apiserver) echo kube-apiserver ;;
    controllers) echo kube-controller-manager ;;
    scheduler) echo kube-scheduler ;;
    *) die "no such daemon: $1" ;;
  esac
}

# Its process, if it still is that program.
pid_of() {
  local pid
  pid=$(cat "$F/$1.pid" 2>/dev/null) || return 1
  [ "$(readlink "/proc/$pid/exe" | xargs -r basename)" = "$(program_of "$1")" ] && echo "$pid"
}

end() {
  local pid
  if pid=$(pid_of "$1"); then
    kill -CONT "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 250); do runs "$pid" || break; sleep 0.02; done
    ! runs "$pid" || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$F/$1.pid"
}

background() {
  local name=$1; shift
  ( cd "$F"; exec setsid nice "$@" </dev/null >>"$F/$name.log" 2>&1 & echo $! >"$F/$name.pid" )
}

answers() { curl -sk -m 2 -H "Authorization: Bearer $(head -1 "$F/tokens.csv" | cut -d, -f1)" "$@"; }

start() {
  local port; port=$(cat "$F/port")
  case $1 in
    etcd)
      background etcd etcd --data-dir "$F/etcd" --unsafe-no-fsync \
        --listen-client-urls "http://127.0.0.1:$((port + 1))" --advertise-client-urls "http://127.0.0.1:$((port + 1))" \
        --listen-peer-urls "http://127.0.0.1:$((port + 2))"
      for _ in $(seq 600); do curl -s -m 1 "http://127.0.0.1:$((port + 1))/health" | grep -q true && return; sleep 0.1; done ;;
    apiserver)
      background apiserver "$BIN/kube-apiserver" --etcd-servers="http://127.0.0.1:$((port + 1))" \
        --bind-address=127.0.0.1 --secure-port="$port" --advertise-address=127.0.0.1 --cert-dir="$F/certs" \
        --token-auth-file="$F/tokens.csv" --authorization-mode=RBAC --service-cluster-ip-range=10.96.0.0/24 \
        --service-account-key-file="$F/accounts.pub" --service-account-signing-key-file="$F/accounts.key" \
        --service-account-issuer=https://kubernetes.default.svc --disable-admission-plugins=ServiceAccount \
        --kubelet-preferred-address-types=InternalIP --endpoint-reconciler-type=none
      for _ in $(seq 600); do answers "https://127.0.0.1:$port/readyz" | grep -q '^ok' && return; sleep 0.1; done ;;
    controllers)
      background controllers "$BIN/kube-controller-manager" --kubeconfig="$F/admin.kubeconfig" --bind-address=127.0.0.1 \
        --secure-port="$((port + 3))" --port=0 --service-account-private-key-file="$F/accounts.key" \
        --controllers=job,garbagecollector,namespace,podgc --leader-elect=false
      return ;;
    scheduler)
      background scheduler "$BIN/kube-scheduler" --kubeconfig="$F/admin.kubeconfig" --bind-address=127.0.0.1 \
        --secure-port="$((port + 4))" --port=0 --leader-elect=false
      return ;;
    *) die "no such daemon: $1" ;;
  esac
  tail -5 "$F/$1.log" >&2
  die "$1 does not answer"
}

admin() { kubectl --kubeconfig "$F/admin.kubeconfig" "$@" >/dev/null; }

kubeconfig() {
  local token; token=$(grep ",$1," "$F/tokens.csv" | cut -d, -f1)
  cat >"$F/$1.kubeconfig" <<CONF
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:$(cat "$F/port")", certificate-authority: $F/certs/apiserver.crt}}]
users: [{name: u, user: {token: "$token"}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
CONF
}

up() {
  has || die "the programs are not in $BIN: build them with '$0 build'"
  [ ! -e "$F" ] || [ -z "$(ls -A "$F")" ] || die "$F is not empty"
  mkdir -p "$F/certs"; chmod 700 "$F"
  echo "${PORT:-16440}" >"$F/port"
  ( umask 077
    openssl genrsa -out "$F/accounts.key" 2048 2>/dev/null
    for it in admin,1,system:masters gateway,2,gateways; do echo "$(openssl rand -hex 16),$it"; done >"$F/tokens.csv" )
  openssl rsa -in "$F/accounts.key" -pubout -out "$F/accounts.pub" 2>/dev/null
  start etcd
  start apiserver
  kubeconfig admin
  kubeconfig gateway
  start controllers
  start scheduler
  admin apply -f "$(dirname "$0")/rights.yaml"
  for it in "${@:3}"; do
    admin create namespace "$it"
    admin create rolebinding entente-runs --namespace "$it" --clusterrole entente-runs --group gateways
  done
  if [ -n "${UNTIL:-}" ]; then
    setsid "$0" until "$F" "$UNTIL" </dev/null >/dev/null 2>&1 &
  fi
  env_of
}

env_of() {
  echo "KUBECONFIG=$F/admin.kubeconfig"
  echo "GATEWAY_KUBECONFIG=$F/gateway.kubeconfig"
}

down() {
  local it
  for it in $DAEMONS; do end "$it"; done
  # Only a folder that `up` made.
  [ ! -f "$F/tokens.csv" ] || rm -rf "$F"
}

needs_folder() { case $F in /*) ;; *) die "FOLDER must be an absolute path" ;; esac; }

case $ACT in
  build | clean | has) "$ACT" ;;
  up) needs_folder; up "$@" ;;
  down) needs_folder; down ;;
  env) needs_folder; env_of ;;
  stop) needs_folder; end "$3" ;;
  start) needs_folder; start "$3" ;;
  pause) needs_folder; kill -STOP "$(pid_of "$3")" ;;
  resume) needs_folder; kill -CONT "$(pid_of "$3")" ;;
  until) needs_folder; while runs "$3"; do sleep 1; done; down ;;
  *) sed -n '2,21s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
