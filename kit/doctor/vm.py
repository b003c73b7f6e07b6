"""The checks of `kit doctor` on the cloud VM: ssh, tunnels, Docker, kind, the pods.

What these programs print is read by pure functions, which are tested on recorded texts.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kit.base import CommandFailed, Completed, CredentialRefused, Host, Unreachable
from kit.base.settings import Settings
from kit.doctor import keys
from kit.doctor.context import Check, CheckContext, shell_file
from kit.doctor.diagnosis import DiagnosisError, Known, diagnoses
from kit.doctor.hpc import SSH

REGISTRY = "kind-registry"
ROW = "{{.ID}}|{{.Names}}|{{.Status}}|{{.Ports}}"
LIST = ["docker", "ps", "--all", "--no-trunc", "--format", ROW]
LISTENERS = ["sudo", "-n", "ss", "-Hltnp"]
LOG = ["journalctl", "--unit", "docker", "--since", "-1day", "--quiet", "--no-pager"]
LOG += ["--output", "cat"]
PODS = ["kubectl", "get", "pods", "--all-namespaces", "--output", "json", "--request-timeout=10s"]
NOT_PULLED = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName")

VM: Known = {**SSH, CredentialRefused: "vm-refused", Unreachable: "vm-away"}


@dataclass(frozen=True)
class Container:
    """A row of `docker ps`."""

    id: str
    name: str
    status: str
    ports: frozenset[int]


def checks(settings: Settings) -> Iterable[Check]:
    """Yield the checks that this profile has something for; a cluster's only if it has one."""
    if settings.cloud is None or not settings.cloud.ssh_host:
        return
    yield Check("VM", _vm, VM)
    if settings.hpc is not None:
        yield Check("VM from the site", _from_site, {})
    yield Check("GatewayPorts", _gateway_ports, {})
    if settings.cloud.runner == "cluster":
        yield Check("Docker", _docker, {})
        yield Check("kind", _kind, {})
        yield Check("pods", _pods, {CommandFailed: "kubeconfig-nowhere"})


def _vm(context: CheckContext) -> str:
    key = context.vm_key.get()
    done = context.vm.get().run(["hostname"], timeout=20)
    return f"{context.cloud.ssh_host} is {done.out.strip()}, {done.seconds * 1000:.0f} ms, by {key}"


def _from_site(context: CheckContext) -> str:
    host, options = context.site.needed(), keys.ssh_settings(context.vm_ssh())
    address, port = options["hostname"][0], options["port"][0]
    argv = ["timeout", "5", "bash", "-s", "--", address, port]
    done = host.run(argv, shell_file("ssh_banner"), timeout=15, check=False)
    if done.code or not done.out.startswith("SSH-"):
        reason = done.err.strip().splitlines()[-1:] or ["no answer in 5 s"]
        got = f"{address}:{port} from {context.hpc.ssh_host}: {reason[0]}"
        raise DiagnosisError("vm-port-closed", got)
    return f"an sshd answers {context.hpc.ssh_host} at {address}:{port}"


def _gateway_ports(context: CheckContext) -> str:
    """Open a tunnel to the address that pods use; without one, to the VM's own first address."""
    host, wanted = context.vm.needed(), context.cloud.tunnel_address
    if not wanted:
        addresses = host.run(["hostname", "-I"], timeout=10).out.split()
        wanted = (addresses or ["0.0.0.0"])[0]  # noqa: S104 - on the VM, for a moment, nothing behind it
    address, reason = keys.tunnel_address(context.vm_ssh(), wanted, host)
    if not address:
        raise DiagnosisError("tunnel-barred", f"{context.cloud.ssh_host}: {reason}")
    if address != wanted and not _allowed_for_tunnels(host):
        raise DiagnosisError("gateway-ports", f"asked for {wanted}, got {address}")
    return f"a tunnel was opened on {address} and closed; kit-tunnel may choose the address"


def _allowed_for_tunnels(host: Host) -> bool:
    """Report whether the tunnels' own user may choose the address, as `kit vm bootstrap` sets it.

    The person who asks logs in as the VM's administrator, who may not.
    """
    argv = ["sudo", "-n", "sshd", "-T", "-C", "user=kit-tunnel,host=localhost,addr=127.0.0.1"]
    done = host.run(argv, timeout=10, check=False)
    return "gatewayports clientspecified" in done.out.lower()


def _docker(context: CheckContext) -> str:
    host = context.vm.needed()
    done = _maybe_as_root(host, LIST)
    if done.code == 127 or "not found" in done.err:
        raise DiagnosisError("docker-missing", done.err.strip()[-300:])
    if done.code:
        raise DiagnosisError("docker-away", done.err.strip()[-300:])
    rows = containers(done.out)
    left = orphaned_ports(host.run(LISTENERS, timeout=20, check=False).out, rows)
    if left:
        raise DiagnosisError("docker-proxy-left", f"port {', '.join(map(str, left))}")
    if not rows:
        raise DiagnosisError("docker-data-gone")
    stuck = registry_problem(host.run(LOG, timeout=20, check=False).out, rows)
    if stuck:
        identity = next(row.id for row in rows if row.name == REGISTRY)
        usual = diagnoses()["registry-stuck"].next_step
        step = usual.replace("ID'` with its ID", f"{identity[:12]}'`")
        raise DiagnosisError("registry-stuck", stuck, step)
    return f"{len(rows)} containers"


def _maybe_as_root(host: Host, argv: list[str]) -> Completed:
    """Run a command, by sudo if it fails: on a VM of the kit Docker's socket is root's alone."""
    done = host.run(argv, timeout=20, check=False)
    root = host.run(["sudo", "-n", *argv], timeout=20, check=False) if done.code else done
    return done if root.code else root


def _kind(context: CheckContext) -> str:
    done = _maybe_as_root(context.vm.needed(), ["kind", "get", "clusters"])
    names = done.out.split()
    if done.code or not names:
        raise DiagnosisError("kind-missing", (done.err or done.out).strip()[-300:])
    return f"cluster {', '.join(names)}"


def _pods(context: CheckContext) -> str:
    done = context.vm.needed().run(PODS, timeout=30, check=False)
    if done.code:
        reason = done.err.strip().splitlines()[-1:] or [f"kubectl ended with {done.code}"]
        raise DiagnosisError("kubeconfig-nowhere", reason[0][-300:])
    ready, not_pulled, waiting = pods(done.out)
    if not_pulled:
        raise DiagnosisError("image-not-pulled", "; ".join(not_pulled))
    if waiting or not ready:
        raise DiagnosisError("pod-not-ready", "; ".join(waiting) or "the cluster has no pods")
    return f"{ready} pods are ready, every image is there"


def containers(text: str) -> list[Container]:
    """Parse the answer to LIST: every container, also those that have ended."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return [
        Container(identity, name, status, frozenset(map(int, re.findall(r":(\d+)->", ports))))
        for identity, name, status, ports in rows
    ]


def orphaned_ports(text: str, rows: Sequence[Container]) -> list[int]:
    """Parse the answer to LISTENERS: ports that docker-proxy holds for no container."""
    held = re.findall(r":(\d+)\s+\S+\s+users:\(\(\"docker-proxy\"", text)
    return sorted({int(port) for port in held} - {port for row in rows for port in row.ports})


def registry_problem(log: str, rows: Sequence[Container]) -> str:
    """Return how the registry's container hangs, or ""; `log` is the answer to LOG."""
    for row in rows:
        if row.name != REGISTRY:
            continue
        if re.match(r"Dead|Removal In Progress", row.status):
            return f"its status is {row.status}"
        names = f"{REGISTRY}|{row.id[:12]}"
        refused = re.findall(rf"^.*(?:{names}).*permission denied.*$", log, re.M | re.I)
        if refused:
            return str(refused[-1])[-300:]
    return ""


def pods(text: str) -> tuple[int, list[str], list[str]]:
    """Parse the answer to PODS: number of ready pods, missing images, waiting pods with reason."""
    ready, not_pulled, waiting = 0, [], []
    for item in json.loads(text)["items"]:
        status = item["status"]
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        stopped = [state for state in states if "waiting" in state["state"]]
        reasons = [state["state"]["waiting"].get("reason", "") for state in stopped]
        if status["phase"] == "Succeeded":
            continue
        if any(reason in NOT_PULLED for reason in reasons):
            not_pulled.append(f"{name}: {stopped[0]['image']}")
        elif states and all(state["ready"] for state in status.get("containerStatuses", [])):
            ready += 1
        else:
            waiting.append(f"{name}: {(reasons or [status['phase']])[0] or status['phase']}")
    return ready, not_pulled, waiting
