"""The checks of `kit doctor` on the cloud VM: ssh, tunnels, Docker, kind, the pods.

What these programs print is read by pure functions, which are tested on recorded texts.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kit.base import CommandFailed, CredentialRefused, Host, Unreachable, UsageError
from kit.base.settings import Settings
from kit.doctor import keys as doctor_keys
from kit.doctor.context import Check, Ground
from kit.doctor.findings import DIAGNOSES, Found, Known
from kit.doctor.hpc import SSH

REGISTRY = "kind-registry"
LIST = [
    "docker",
    "ps",
    "--all",
    "--no-trunc",
    "--format",
    "{{.ID}}|{{.Names}}|{{.Status}}|{{.Ports}}",
]
LISTENERS = ["sudo", "-n", "ss", "-Hltnp"]
LOG = ["journalctl", "--unit", "docker", "--since", "-1day", "--quiet", "--no-pager",
       "--output", "cat"]  # fmt: skip
PODS = ["kubectl", "get", "pods", "--all-namespaces", "--output", "json", "--request-timeout=10s"]
KNOCK = 'exec 3<>"/dev/tcp/$1/$2" && head -c 4 <&3'  # an sshd says SSH-2.0 first
UNPULLED = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName")
VM: Known = {**SSH, CredentialRefused: "vm-refused", Unreachable: "vm-away"}


@dataclass(frozen=True)
class Container:
    """A row of `docker ps`."""

    id: str
    name: str
    status: str
    ports: frozenset[int]


def checks(loaded: Settings) -> Iterable[Check]:
    """Name the checks that this profile has something for; the cluster's only where it has one."""
    if loaded.cloud is None or not loaded.cloud.ssh_host:
        return
    yield Check("VM", _vm, VM)
    if loaded.hpc is not None:
        yield Check("VM from the site", _from_site, {})
    yield Check("GatewayPorts", _gateway, {})
    if loaded.cloud.runner == "cluster":
        yield Check("Docker", _docker, {})
        yield Check("kind", _kind, {})
        yield Check("pods", _pods, {CommandFailed: "kubeconfig-nowhere"})


def _vm(ground: Ground) -> str:
    key = ground.vm_key.get()
    done = ground.vm.get().run(["hostname"], timeout=20)
    return f"{ground.cloud.ssh_host} is {done.out.strip()}, {done.seconds * 1000:.0f} ms, by {key}"


def _from_site(ground: Ground) -> str:
    host, told = ground.site.needed(), doctor_keys.ssh_settings(ground.vm_ssh())
    address, port = told["hostname"][0], told["port"][0]
    argv = ["timeout", "5", "bash", "-c", KNOCK, "knock", address, port]
    done = host.run(argv, timeout=15, check=False)
    if done.code or not done.out.startswith("SSH-"):
        said = done.err.strip().splitlines()[-1:] or ["no answer in 5 s"]
        raise Found("vm-port-closed", f"{address}:{port} from {ground.hpc.ssh_host}: {said[0]}")
    return f"an sshd answers {ground.hpc.ssh_host} at {address}:{port}"


def _gateway(ground: Ground) -> str:
    """Open a tunnel to the address that pods would use; without one, to the VM's first own."""
    host, wanted = ground.vm.needed(), ground.cloud.tunnel_address
    if not wanted:
        wanted = (host.run(["hostname", "-I"], timeout=10).out.split() or ["0.0.0.0"])[0]  # noqa: S104 - asked of the VM for a moment, nothing is behind it
    got, why = doctor_keys.bound(ground.vm_ssh(), wanted, host)
    if not got:
        raise Found("tunnel-barred", f"{ground.cloud.ssh_host}: {why}")
    if got != wanted:
        raise Found("gateway-ports", f"asked for {wanted}, got {got}")
    return f"a tunnel was opened on {got} and closed"


def _docker(ground: Ground) -> str:
    host = ground.vm.needed()
    listed = host.run(LIST, timeout=20, check=False)
    if listed.code == 127 or "not found" in listed.err:
        raise Found("docker-missing", listed.err.strip()[-300:])
    if listed.code:
        raise Found("docker-away", listed.err.strip()[-300:])
    found = containers(listed.out)
    left = proxies(host.run(LISTENERS, timeout=20, check=False).out, found)
    if left:
        raise Found("docker-proxy-left", f"port {', '.join(map(str, left))}")
    if not found:
        raise Found("docker-data-gone")
    stuck = registry_stuck(host.run(LOG, timeout=20, check=False).out, found)
    if stuck:
        raise Found("registry-stuck", stuck)
    return f"{len(found)} containers"


def _kind(ground: Ground) -> str:
    done = ground.vm.needed().run(["kind", "get", "clusters"], timeout=20, check=False)
    named = done.out.split()
    if done.code or not named:
        raise Found("kind-missing", (done.err or done.out).strip()[-300:])
    return f"cluster {', '.join(named)}"


def _pods(ground: Ground) -> str:
    done = ground.vm.needed().run(PODS, timeout=30, check=False)
    if done.code:
        said = done.err.strip().splitlines()[-1:] or [f"kubectl ended with {done.code}"]
        raise Found("kubeconfig-nowhere", said[0][-300:])
    ready, unpulled, waiting = pods(done.out)
    if unpulled:
        raise Found("image-not-pulled", "; ".join(unpulled))
    if waiting or not ready:
        raise Found("pod-not-ready", "; ".join(waiting) or "there is no pod at all")
    return f"{ready} pods are ready, every image is there"


def containers(text: str) -> list[Container]:
    """Read the answer to LIST: every container, also those that have ended."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return [
        Container(key, name, status, frozenset(map(int, re.findall(r":(\d+)->", ports))))
        for key, name, status, ports in rows
    ]


def proxies(text: str, known: Iterable[Container]) -> list[int]:
    """Read the answer to LISTENERS: ports that docker-proxy holds for no container."""
    held = re.findall(r":(\d+)\s+\S+\s+users:\(\(\"docker-proxy\"", text)
    return sorted({int(port) for port in held} - {port for each in known for port in each.ports})


def registry_stuck(log: str, known: Iterable[Container]) -> str:
    """Say how the registry's container hangs; "" when it does not. `log` is the answer to LOG."""
    for each in known:
        if each.name != REGISTRY:
            continue
        if re.match(r"Dead|Removal In Progress", each.status):
            return f"its status is {each.status}"
        names = f"{REGISTRY}|{each.id[:12]}"
        refused = re.findall(rf"^.*(?:{names}).*permission denied.*$", log, re.M | re.I)
        if refused:
            return str(refused[-1])[-300:]
    return ""


def pods(text: str) -> tuple[int, list[str], list[str]]:
    """Read the answer to PODS: how many are ready, whose image is missing, what waits and why."""
    ready, unpulled, waiting = 0, [], []
    for item in json.loads(text)["items"]:
        status = item["status"]
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        why = [s["state"]["waiting"].get("reason", "") for s in states if "waiting" in s["state"]]
        if status["phase"] == "Succeeded":
            continue
        if any(reason in UNPULLED for reason in why):
            images = [s["image"] for s in states if "waiting" in s["state"]]
            unpulled.append(f"{name}: {images[0]}")
        elif all(s["ready"] for s in status.get("containerStatuses", [])) and states:
            ready += 1
        else:
            waiting.append(f"{name}: {(why or [status['phase']])[0] or status['phase']}")
    return ready, unpulled, waiting


def fix(ground: Ground, diagnosis: str, say: Callable[[str], None]) -> None:
    """Mend one of FIXES on the VM, if the check sees it now; each command is said first.

    Raises UsageError for what cannot be mended so, or is not there, and what is found afterwards.
    """
    if diagnosis not in FIXES:
        raise UsageError(f"there is no fix for {diagnosis!r}", next_step=", ".join(FIXES))
    host = ground.vm.get()
    try:
        seen = _docker(ground)
    except Found as err:
        if err.diagnosis == diagnosis:
            for argv in FIXES[diagnosis](host):
                say(" ".join(argv))
                host.run(argv, timeout=120, check="pkill" not in argv)  # none may be left to kill
            say(f"mended: {_docker(ground)}")
            return
        seen = str(err)
    raise UsageError(f"mend {diagnosis}", f"it is not there: {seen}", DIAGNOSES[diagnosis].cause)


def _fix_proxy(_: Host) -> list[list[str]]:
    """Docker forgets its networks' ports and makes those of running containers anew."""
    return [
        ["sudo", "-n", "systemctl", "stop", "docker.socket", "docker"],
        ["sudo", "-n", "rm", "-rf", "/var/lib/docker/network/files"],
        ["sudo", "-n", "systemctl", "start", "docker"],
    ]


def _fix_registry(host: Host) -> list[list[str]]:
    found = next(each for each in containers(host.run(LIST).out) if each.name == REGISTRY)
    return [
        ["sudo", "-n", "pkill", "-KILL", "-f", f"[c]ontainerd-shim.*{found.id}"],
        ["docker", "rm", "--force", REGISTRY],
    ]


FIXES: dict[str, Callable[[Host], list[list[str]]]] = {
    "docker-proxy-left": _fix_proxy,
    "registry-stuck": _fix_registry,
}
