#!/bin/bash
# What the platform's VM (Ubuntu 24.04, amd64) needs, step by step; each can be run again.
#   setup.sh list | check STEP | do STEP | all
# `check` reports by its exit code whether the step is in order. Both need root: Docker's socket is
# root's, and nobody is put into the group docker, which would be the same.
# ROOT is a folder before the files that are written, for tests.
set -euo pipefail
STEPS="packages upgrades tools tunnel-user sshd registry cluster kubeconfig"
ROOT=${ROOT:-}
# Raised together: the node image is one that this kind was released with, kubectl has its minor
# version. From 0.24 on kind's network enforces NetworkPolicies. Article: kind 0.14, Kubernetes 1.24.
KIND=v0.33.0 KIND_SHA256=aee6151561422756b764a4ae28e7f44cda5af5a9eead3cc9985112b1de8d8e0d
NODE=kindest/node:v1.35.8@sha256:07b2536e30b803ed61d1677a79df6115f798ce64c80f9e22f6ed45afd09323c0
KUBECTL=v1.35.8 KUBECTL_SHA256=874d5e72dbb819f43cff16bcd1e4f8bac5b7f2361fe1e55049b0a6c676fb0cbf
KUSTOMIZE=v5.5.0 KUSTOMIZE_SHA256=6703a3a70a0c47cf0b37694030b54f1175a9dfeb17b3818b623ed58b9dbc2a77
REGISTRY=registry:2.8.3@sha256:a3d8aaa63ed8681a604f1dea0aa03f100d5895b6a58ace528858a7b332415373
SSHD=$ROOT/etc/ssh/sshd_config.d/50-kit.conf
UPGRADES=$ROOT/etc/apt/apt.conf.d/52-kit-upgrades
CLUSTER=mlops-platform

check_packages() { command -v docker >/dev/null && command -v git >/dev/null && command -v curl >/dev/null; }
do_packages() {
  apt-get update -q
  export DEBIAN_FRONTEND=noninteractive
  apt-get upgrade -qy
  apt-get install -qy docker.io git curl unattended-upgrades
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
  # the checksums are pinned above: one from the place of the file says nothing about that place
  fetch() { curl --fail --silent --show-error --location --output "$1" "$2" && echo "$3  $1" | sha256sum --check --quiet; }
  fetch kubectl "https://dl.k8s.io/release/$KUBECTL/bin/linux/amd64/kubectl" "$KUBECTL_SHA256"
  fetch kind "https://github.com/kubernetes-sigs/kind/releases/download/$KIND/kind-linux-amd64" "$KIND_SHA256"
  local tar=kustomize_${KUSTOMIZE}_linux_amd64.tar.gz
  fetch "$tar" "https://github.com/kubernetes-sigs/kustomize/releases/download/kustomize%2F$KUSTOMIZE/$tar" "$KUSTOMIZE_SHA256"
  tar -xzf "$tar"
  install -D --target-directory "$ROOT/usr/local/bin" kubectl kind kustomize
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
  # a client that vanished keeps no port: its session ends after a minute
  printf '%s\n' 'PasswordAuthentication no' 'KbdInteractiveAuthentication no' \
    'ClientAliveInterval 20' 'ClientAliveCountMax 3' \
    'Match User kit-tunnel' 'GatewayPorts clientspecified' 'AllowStreamLocalForwarding no' \
    'Match User *,!kit-tunnel' 'GatewayPorts no' >"$SSHD"
  [ -n "$ROOT" ] || { sshd -t && systemctl reload ssh; }
}

check_registry() { [ "$(docker inspect -f '{{.State.Running}}' kind-registry 2>/dev/null)" = true ]; }
do_registry() {
  docker start kind-registry 2>/dev/null ||
    docker run --detach --restart=always --publish 127.0.0.1:5001:5000 --name kind-registry "$REGISTRY"
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
EOF
}
# containerd 2 reads where a registry is from this file; kind's nodes look there from 0.27 on.
HOSTS=/etc/containerd/certs.d/localhost:5001/hosts.toml
check_cluster() { [[ $(node_image) == *"${NODE#*@}" ]] && docker exec "$CLUSTER-control-plane" test -s "$HOSTS"; }
node_image() { docker inspect -f '{{.Config.Image}}' "$CLUSTER-control-plane" 2>/dev/null || :; }
do_cluster() {
  case $(node_image) in
  '') cluster_config | kind create cluster --name "$CLUSTER" --image "$NODE" --config - ;;
  *"${NODE#*@}") ;;
  *) # its contents go with it: not ours to decide
    echo "the cluster is $(node_image), not $NODE; kind delete cluster --name $CLUSTER removes it" >&2
    return 1 ;;
  esac
  # shellcheck disable=SC2016 # expanded on the node
  echo '[host."http://kind-registry:5000"]' | docker exec --interactive "$CLUSTER-control-plane" \
    sh -c 'mkdir -p "${1%/*}" && cat >"$1"' sh "$HOSTS"
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
