"""`kit forward`: the services of the platform on this machine, by one ssh connection to the VM.

A service of Kubernetes is reached by `kubectl port-forward` on the VM, one at an address from the
VM itself. What is here is what to forward; `forward_connection.py` does it.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from kit.base import Busy, SSHHost, UsageError, to_text
from kit.base.ports import port_holders
from kit.base.settings import Port, Settings

TITLES = {
    "dashboard": "Kubeflow dashboard",
    "minio": "Kubeflow MinIO",
    "mlflow": "MLflow",
    "mlflow-minio": "MLflow MinIO",
    "prometheus": "Prometheus",
    "grafana": "Grafana",
    "forwarder": "forwarder face",
    "flower": "forwarder monitor",
    "worker": "forwarder backend",
    "ray": "Ray dashboard",
}
PATHS = {"forwarder": "/docs", "worker": "/metrics"}


@dataclass(frozen=True)
class Forward:
    """One forward: `bind:port` here leads to `host:target`, as the VM sees it, or to a service."""

    name: str
    bind: str
    port: int
    host: str
    target: int
    service: str = ""
    namespace: str = ""
    user: str = ""
    password: str = ""

    @property
    def title(self) -> str:
        """What the table calls it."""
        return TITLES.get(self.name, self.name)

    @property
    def local(self) -> str:
        """The option of ssh; kubectl listens on the VM's loopback at the port of here."""
        end = f"127.0.0.1:{self.port}" if self.service else f"{self.host}:{self.target}"
        return f"{self.bind}:{self.port}:{end}"

    @property
    def kubectl(self) -> list[str]:
        """The words after `kubectl`."""
        where = ["--namespace", self.namespace, "--address", "127.0.0.1"]
        return ["port-forward", *where, f"svc/{self.service}", f"{self.port}:{self.target}"]


def forwards(loaded: Settings, bind: str = "") -> list[Forward]:
    """List what the profile's [ports], and its URLs where it has no port, lead to.

    That is every service of Kubernetes, and of the addresses those that a person looks at.
    Raises UsageError that names an entry which cannot be forwarded.
    """
    cloud = loaded.cloud
    if cloud is None:
        return []
    found = dict(loaded.ports)
    for name, url, file in (
        ("mlflow", cloud.mlflow_url, cloud.mlflow_env_file),
        ("prometheus", cloud.prometheus_url, cloud.prometheus_env_file),
    ):
        parts = urlsplit(url)
        if name not in found and parts.hostname and parts.port:
            show = shlex.join(["cat", file]) if file else ""
            found[name] = Port(parts.port, address=parts.hostname, password=show)
    names = [name for name in TITLES if name in found]
    names += [name for name, port in found.items() if port.svc and name not in TITLES]
    _refuse_wrong(loaded.profile, {name: found[name] for name in names})
    address, inside = bind or cloud.forward_address, cloud.tunnel_address or "127.0.0.1"
    return [
        Forward(name, address, p.port, p.address or inside, p.target or p.port, p.svc,
                p.namespace, p.user, p.password)
        for name, p in ((name, found[name]) for name in names)
    ]  # fmt: skip


def _refuse_wrong(profile: str, ports: Mapping[str, Port]) -> None:
    """Raise UsageError for an entry that is half a service, both kinds, or shares its port."""
    seen: dict[int, str] = {}
    for name, port in ports.items():
        where = f"{profile}: [ports] {name}"
        if bool(port.svc) != bool(port.namespace):
            raise UsageError(f"{where} has one of svc and namespace", next_step="give both")
        if port.svc and port.address:
            step = "give svc and namespace, or address"
            raise UsageError(f"{where} has a svc and an address", next_step=step)
        for number in (port.port, port.target or port.port):
            if not 0 < number < 65536:
                raise UsageError(f"{where}: {number} is no port", next_step="1 to 65535")
        if port.port in seen:
            step = "give one of them another port"
            raise UsageError(f"{where} and {seen[port.port]}: port {port.port}", "twice", step)
        seen[port.port] = name


def text(rows: Sequence[Forward]) -> str:
    """Show them as a table: what, where, as whom, what shows the password."""
    return to_text(
        [
            {
                "what": each.title,
                "address": f"http://{each.bind}:{each.port}{PATHS.get(each.name, '')}",
                "user": each.user,
                "password shown by": each.password,
            }
            for each in rows
        ]
    )


def plain(host: SSHHost, rows: Sequence[Forward]) -> str:
    """Give the same as lines that a person could type: one ssh, one kubectl a service."""
    ssh = ["ssh", *(["-F", host.config] if host.config else [])]
    options = [word for each in rows for word in ("-L", each.local)]
    lines = [shlex.join([*ssh, "-N", *options, host.name])]
    lines += [shlex.join([*ssh, host.name, "kubectl", *r.kubectl]) for r in rows if r.service]
    return "\n".join(lines)


def vm_of(loaded: Settings, rows: Sequence[Forward]) -> SSHHost:
    """Give the VM with a connection of its own. Raises UsageError when the profile has none."""
    if loaded.cloud is None or not loaded.cloud.ssh_host or not rows:
        got = "it has no [cloud] ssh_host, or no [ports]"
        raise UsageError(f"forward the ports of {loaded.profile}", got, "use another profile")
    config = loaded.hpc.ssh_config if loaded.hpc else ""
    shared = SSHHost(loaded.cloud.ssh_host, config)
    folder = shared.folder / f"forward-{rows[0].bind}"  # as many as there are addresses
    return SSHHost(loaded.cloud.ssh_host, config, folder=folder)


def refuse_taken(rows: Sequence[Forward]) -> None:
    """Raise Busy that says who holds each port that is taken."""
    held = port_holders((row.bind, row.port) for row in rows)
    taken = [
        f"{row.port} ({row.title}) by {held[row.bind, row.port]}"
        for row in rows
        if (row.bind, row.port) in held
    ]
    if taken:
        step = "end that program, or listen elsewhere: kit port-forward --bind 127.0.0.2"
        raise Busy(f"{len(taken)} port(s) on {rows[0].bind} are taken", "; ".join(taken), step)
