#!/bin/bash
# What the platform's VM (Ubuntu 24.04, amd64) needs, step by step; each can be run again.
#   setup.sh list | check STEP | do STEP | all
# `check` reports by its exit code whether the step is in order. Both need root: Docker's socket is
# root's, and nobody is put into the group docker, which would be the same.
# ROOT is a folder before the files that are written, for tests.
set -euo pipefail
STEPS="packages upgrades tools tunnel-user sshd registry cluster kubeconfig"
ROOT=${ROOT:-}
KUBECTL=v1.32.4 KIND=v0.20.0 KUSTOMIZE=v5.5.0 # article: kind 0.14 by upstream's own script
NODE=kindest/node:v1.24.15 # upstream was tried with Kubernetes 1.24
SSHD=$ROOT/etc/ssh/sshd_config.d/50-kit.conf
UPGRADES=$ROOT/etc/apt/apt.conf.d/52-kit-upgrades
CLUSTER=mlops-platform

check_packages() { command -v docker >/dev/null && command -v git >/dev/null && command -v curl >/dev/null; }
do_packages() {
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy docker.io git curl unattended-upgrades
}

check_upgrades() { grep -qs 'Unattended-Upgrade "1"' "$UPGRADES"; }
do_upgrades() {
  install -d "$(dirname "$UPGRADES")"
  printf 'APT::Periodic::Update-Package-Lists "1";\nAPT::Periodic::Unattended-Upgrade "1";\n' >"$UPGRADES"
}

check_tools() {
  kind version 2>/dev/null | grep -qF "$KIND" && kubectl version --client 2>/dev/null | grep -qF "$KUBECTL" &&
    kustomize version 2>/dev/null | grep -qF "$KUSTOMIZE"
}
do_tools() {
  local work; work=$(mktemp -d); cd "$work"
  fetch() { curl --fail --silent --show-error --location --remote-name "$1"; }
  fetch "https://dl.k8s.io/release/$KUBECTL/bin/linux/amd64/kubectl"
  fetch "https://dl.k8s.io/release/$KUBECTL/bin/linux/amd64/kubectl.sha256"
  echo "$(cat kubectl.sha256)  kubectl" | sha256sum --check --quiet
  fetch "https://github.com/kubernetes-sigs/kind/releases/download/$KIND/kind-linux-amd64"
  fetch "https://github.com/kubernetes-sigs/kind/releases/download/$KIND/kind-linux-amd64.sha256sum"
  sha256sum --check --quiet kind-linux-amd64.sha256sum
  local tar=kustomize_${KUSTOMIZE}_linux_amd64.tar.gz
  fetch "https://github.com/kubernetes-sigs/kustomize/releases/download/kustomize%2F$KUSTOMIZE/$tar"
  fetch "https://github.com/kubernetes-sigs/kustomize/releases/download/kustomize%2F$KUSTOMIZE/checksums.txt"
  grep -F "  $tar" checksums.txt | sha256sum --check --quiet
  tar -xzf "$tar"
  install kubectl kustomize "$ROOT/usr/local/bin/"
  install kind-linux-amd64 "$ROOT/usr/local/bin/kind"
  cd /; rm -r "$work"
}

# Only the ends of reverse tunnels log in as this user: no shell, no password.
check_tunnel-user() { getent passwd kit-tunnel >/dev/null; }
do_tunnel-user() {
  check_tunnel-user || useradd --create-home --shell /usr/sbin/nologin --password '*' kit-tunnel
  install -d -m 700 -o kit-tunnel -g kit-tunnel "$ROOT/home/kit-tunnel/.ssh"
}

check_sshd() { grep -qsx 'GatewayPorts no' "$SSHD" && grep -qsx 'GatewayPorts clientspecified' "$SSHD"; }
do_sshd() {
  install -d "$(dirname "$SSHD")"
  # only the tunnels' user opens ports for pods; no option of a key bars Unix sockets
  printf '%s\n' 'PasswordAuthentication no' 'KbdInteractiveAuthentication no' \
    'Match User kit-tunnel' 'GatewayPorts clientspecified' 'AllowStreamLocalForwarding no' \
    'Match User *,!kit-tunnel' 'GatewayPorts no' >"$SSHD"
  [ -n "$ROOT" ] || { sshd -t && systemctl reload ssh; }
}

check_registry() { [ "$(docker inspect -f '{{.State.Running}}' kind-registry 2>/dev/null)" = true ]; }
do_registry() {
  docker start kind-registry 2>/dev/null ||
    docker run --detach --restart=always --publish 127.0.0.1:5001:5000 --name kind-registry registry:2.8.3
}

cluster_config() {
  cat <<EOF
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
    kubeadmConfigPatches:
      - |
        kind: InitConfiguration
        nodeRegistration: {kubeletExtraArgs: {node-labels: "ingress-ready=true"}}
    extraPortMappings:
      - {containerPort: 80, hostPort: 80, listenAddress: 127.0.0.1}
      - {containerPort: 443, hostPort: 443, listenAddress: 127.0.0.1}
containerdConfigPatches:
  - |-
    [plugins."io.containerd.grpc.v1.cri".registry.mirrors."localhost:5001"]
      endpoint = ["http://kind-registry:5000"]
EOF
}
check_cluster() { kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; }
do_cluster() {
  check_cluster || cluster_config | kind create cluster --name "$CLUSTER" --image "$NODE" --config -
  docker network connect kind kind-registry 2>/dev/null ||
    docker network inspect kind --format '{{range .Containers}}{{.Name}} {{end}}' | grep -qw kind-registry
  sysctl --quiet --write fs.inotify.max_user_watches=1048576 fs.inotify.max_user_instances=512
}

# The cluster's kubeconfig for the person who logs in: kubectl and `kit port-forward` run as they.
owner() { echo "${SUDO_USER:-$(getent passwd 1000 | cut -d: -f1)}"; }
kubeconfig() { echo "$ROOT$(getent passwd "$(owner)" | cut -d: -f6)/.kube/config"; }
check_kubeconfig() {
  [ "$(stat -c '%U %a' "$(kubeconfig)" 2>/dev/null)" = "$(owner) 600" ] &&
    kubectl --kubeconfig "$(kubeconfig)" config get-contexts "kind-$CLUSTER" >/dev/null 2>&1
}
do_kubeconfig() { # as that person, who owns the folder: root follows no link in it
  # shellcheck disable=SC2016 # expanded by that shell
  kind get kubeconfig --name "$CLUSTER" |
    as_owner sh -c 'umask 077; mkdir -p "${1%/*}" && cat >"$1.new" && mv -f "$1.new" "$1"' sh "$(kubeconfig)"
}
as_owner() { if [ "$(id -un)" = "$(owner)" ]; then "$@"; else runuser -u "$(owner)" -- "$@"; fi; }

known() { [[ " $STEPS " == *" ${1:-} "* ]] || { echo "no step '${1:-}'; there are: $STEPS" >&2; exit 2; }; }
case "${1:-}" in
list) echo "$STEPS" ;;
config) cluster_config ;;
check) known "${2:-}"; "check_$2" ;;
do) known "$2"; "do_$2" ;;
all) for step in $STEPS; do echo "== $step"; "check_$step" || "do_$step"; done ;;
*) echo "usage: $0 list | config | check STEP | do STEP | all" >&2; exit 2 ;;
esac
