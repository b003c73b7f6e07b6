"""Which ports `kit port-forward` brings to this machine, and the table that shows them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from kit.base import SSHHost, UsageError, to_text
from kit.base.settings import Port, Settings

TITLES = {
    "dashboard": "Kubeflow dashboard",
    "minio": "Kubeflow MinIO",
    "mlflow": "MLflow",
    "mlflow-minio": "MLflow MinIO",
    "prometheus": "Prometheus",
    "grafana": "Grafana",
    "forwarder": "forwarder API",
    "flower": "forwarder monitor",
    "worker": "forwarder backend",
    "ray": "Ray dashboard",
}
PATHS = {"forwarder": "/docs", "worker": "/metrics"}


@dataclass(frozen=True)
class Forward:
    """One forward: a port of `bind` here leads to `host`, as the VM sees it, or to a service."""

    name: str
    bind: str
    to: Port
    host: str = "127.0.0.1"

    @property
    def target(self) -> int:
        """The port at its end."""
        return self.to.target or self.to.port

    @property
    def title(self) -> str:
        """Its name in the table."""
        return TITLES.get(self.name, self.name)

    @property
    def option(self) -> str:
        """The value of ssh's -L; kubectl listens on the VM's loopback at the local port."""
        here = self.to.port
        end = f"127.0.0.1:{here}" if self.to.svc else f"{self.host}:{self.target}"
        return f"{self.bind}:{here}:{end}"

    @property
    def kubectl(self) -> list[str]:
        """The words after `kubectl`."""
        where = ["--namespace", self.to.namespace, "--address", "127.0.0.1"]
        ports = f"{self.to.port}:{self.target}"
        return ["port-forward", *where, f"svc/{self.to.svc}", ports]


def list_forwards(settings: Settings, bind: str = "") -> list[Forward]:
    """List the forwards of a profile: its [ports], and its URLs that have no port there.

    These are all services of Kubernetes, and of the addresses those that a person looks at.
    Raises UsageError that names an entry which cannot be forwarded.
    """
    cloud = settings.cloud
    if cloud is None:
        return []
    ports = dict(settings.ports)
    for name, url, file in (
        ("mlflow", cloud.mlflow_url, cloud.mlflow_env_file),
        ("prometheus", cloud.prometheus_url, cloud.prometheus_env_file),
    ):
        parts = urlsplit(url)
        if name not in ports and parts.hostname and parts.port:
            show = shlex.join(["cat", file]) if file else ""
            ports[name] = Port(port=parts.port, address=parts.hostname, password=show)
    names = [name for name in TITLES if name in ports]
    names += [name for name, port in ports.items() if port.svc and name not in TITLES]
    rows = {name: ports[name] for name in names}
    _refuse_wrong(settings.profile, rows)
    address, here = cloud.tunnel_address or "127.0.0.1", bind or cloud.forward_address
    return [Forward(name, here, row, row.address or address) for name, row in rows.items()]


def _refuse_wrong(profile: str, ports: Mapping[str, Port]) -> None:
    """Raise UsageError for an entry that is half a service, of both kinds, or shares its port."""
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
                step = "choose one from 1 to 65535"
                raise UsageError(f"{where}: {number} is not a valid port", next_step=step)
        if port.port in seen:
            step = "give one of them another port"
            raise UsageError(f"{where} and {seen[port.port]}: port {port.port}", "twice", step)
        seen[port.port] = name


def as_table(rows: Sequence[Forward]) -> str:
    """Return the forwards as a table: title, address, user, the command that shows the password."""
    return to_text(
        [
            {
                "what": row.title,
                "address": f"http://{row.bind}:{row.to.port}{PATHS.get(row.name, '')}",
                "user": row.to.user,
                "password shown by": row.to.password,
            }
            for row in rows
        ]
    )


def plain_commands(host: SSHHost, rows: Sequence[Forward]) -> str:
    """Return commands that a person could type: one ssh, and one kubectl for each service."""
    options = [word for row in rows for word in ("-L", row.option)]
    lines = [shlex.join([*host.argv, "-N", *options, host.name])]
    lines += [shlex.join([*host.argv, host.name, "kubectl", *r.kubectl]) for r in rows if r.to.svc]
    return "\n".join(lines)
