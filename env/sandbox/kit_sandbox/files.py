"""The state folder of a sandbox: rendered configuration, secrets, keys, certificates."""

import hashlib
import os
import secrets
import shlex
import socket
import string
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt

from kit.base import ROOT, UsageError
from kit.base.settings import Settings
from kit_sandbox import keys, supervisor
from kit_sandbox.folders import check_owner, own_folder
from kit_sandbox.keys import write_private
from kit_sandbox.processes import user_name

SOURCE = ROOT / "env" / "sandbox"
MARKER = ".kit-sandbox"  # in every state folder: `--wipe` removes nothing else
MAX_PATH_LENGTH = 60  # characters; Unix sockets below the folder must stay under 108
PROJECTS = ("project_2001234", "project_2005678")
SLURM = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-c1", "slurmd-c2", "slurmd-g1")
ALLAS = ("keystone", "ceph-mon", "ceph-osd", "rgw")
KIT = ("forwarder", "worker", "flower", "submitter")
PROGRAMS = (*SLURM, "sshd-login", "sshd-vm", *ALLAS, "mlflow", "redis", "prometheus", *KIT)
FOLDERS = {  # the other accounts pass through the first ones; the second ones are closed to them
    0o711: (
        "state",
        "state/slurmctld",
        "state/slurmd.c1",
        "state/slurmd.c2",
        "state/slurmd.g1",
        "state/dev",
    ),
    0o755: (
        "etc",
        "etc/ssh",
        "etc/ssh/login_keys",
        "etc/ssh/cloud_keys",
        "etc/modules",
        "etc/modules/pytorch",
        "etc/daemon",
        "run",
        "run/pids",
        "home",
        "projappl",
    ),
    0o700: ("log", "etc/secrets", "state/mlflow", "state/redis", "state/prometheus"),
}
PUBLIC = ("slurm.conf", "hosts", "known_hosts", "task_prolog")  # read by other users as well
PASSWORDS = (
    "redis",
    "mlflow",
    "prometheus",
    "forwarder",
    "face",
    "flower",
    "submitter",
    "keystone_admin",
    "rgw_service",
    "platform",
    "csc",
)
PLACES = {  # program -> name in the profile; the others listen nowhere or on Unix sockets
    **{name: name for name in ("keystone", "rgw", "mlflow", "redis", "prometheus", "ceph-mon")},
    **{name: name for name in ("slurmdbd", "slurmctld", *KIT)},
    **{f"slurmd-{node}": node for node in ("c1", "c2", "g1")},
    "sshd-login": "login",
    "sshd-vm": "cloud",
}


def place_of(settings: Settings, name: str) -> tuple[str, int]:
    """Return where a service listens, (address, port), as the profile says."""
    urls = {}
    if settings.store and settings.cloud:
        urls = {
            "keystone": settings.store.auth_url,
            "rgw": settings.store.url,
            "mlflow": settings.cloud.mlflow_url,
            "prometheus": settings.cloud.prometheus_url,
        }
    if urls.get(name):
        parts = urlsplit(urls[name])
        return parts.hostname or "", parts.port or 0
    port = settings.ports.get(name)
    if port is None:
        raise UsageError(
            f"profile {settings.profile} does not say where {name} is",
            next_step="use the profile sandbox for `kit sandbox`",
        )
    return port.address, port.port


def state_folder(settings: Settings) -> Path:
    """Return the state folder, created if needed.

    Raises UsageError if its path is too long for sockets, it is not this user's own folder, or
    it holds something else.
    """
    folder = settings.sandbox_dir.absolute()
    step = "set KIT_SANDBOX_DIR to a folder of your own"
    if len(str(folder)) > MAX_PATH_LENGTH:
        raise UsageError(
            f"{folder} is too long for the sandbox's Unix sockets",
            f"{len(str(folder))} characters, at most {MAX_PATH_LENGTH}",
            "set KIT_SANDBOX_DIR to a shorter folder",
        )
    if folder.exists():
        check_owner(folder, os.getuid(), step)
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UsageError(
                f"{folder} holds files that are not a sandbox's",
                next_step="set KIT_SANDBOX_DIR to an empty or new folder",
            )
    # the sandbox's own accounts, which only root has, reach their homes below it
    own_folder(folder, 0o711 if os.getuid() == 0 else 0o700, step)
    (folder / MARKER).touch(mode=0o600)
    return folder


def account_names() -> tuple[str, str, str]:
    """Return who runs jobs, administers the VM, opens tunnels; other accounts only under root."""
    if os.getuid() == 0:
        return "hpcuser", "clouduser", "kit-tunnel"
    return (user_name(os.getuid()),) * 3


def apps_folder() -> Path:
    """Return where the install step puts Python software: one's own folder, else that of root.

    Its programs are executed, so nobody else may own it or write to it. Raises UsageError.
    """
    uid = os.getuid()
    own, shared = Path(f"/var/tmp/kit-{uid}-apps"), Path("/var/tmp/kit-0-apps")  # noqa: S108 - checked
    step = "look at what is in it, then remove it or have it removed by its owner"
    if not os.path.lexists(own) and os.path.lexists(shared):
        check_owner(shared, 0, step)
        return shared
    return own_folder(own, 0o755, step)


def _namespaces() -> str:
    """Return the command that gives a program its own host name; empty if that is not allowed."""
    command = "unshare --uts --mount --propagation slave"
    if os.getuid() != 0:
        command = "unshare --user --map-current-user --keep-caps --uts --mount"
    trial = [*command.split(), "sh", "-c", "hostname kit && mount --bind /etc/hosts /etc/hosts"]
    return command if subprocess.run(trial, capture_output=True).returncode == 0 else ""


def variables(settings: Settings, folder: Path) -> dict[str, str]:
    """Return every variable that a template of `env/sandbox/etc` or a shell script may use."""
    hpc, cloud, tunnel = account_names()
    unshare = _namespaces()
    here = socket.gethostname().split(".")[0]
    values = {
        "SBX": str(folder),
        "APPS": str(apps_folder()),
        "ROOT": str(ROOT),
        "PYTHON": sys.executable,
        "SYS_PYTHON": "/usr/bin/python3",
        "DAEMON_USER": user_name(os.getuid()),
        "HPC_USER": hpc,
        "CLOUD_USER": cloud,
        "TUNNEL_USER": tunnel,
        "TUNNEL_HOME": "kit-tunnel",
        "TUNNEL_KEYS_OF": "kit-tunnel" if tunnel == cloud else "%u",  # only its key
        "PROJECTS": " ".join(PROJECTS),  # the first becomes the user's default account
        "UNSHARE": unshare,
        "SLURM_HOST": "slurm" if unshare else here,
        "SLURM_COMMUNICATION": "NoInAddrAny,NoCtldInAddrAny" if unshare else "",
        "TOKEN_SECONDS": os.environ.get("KIT_SANDBOX_TOKEN_SECONDS", "28800"),
        "MLFLOW_USER": "kit",
        "PROMETHEUS_USER": "kit",
        "TZ": "UTC",
    }
    for node in ("c1", "c2", "g1"):
        values[f"HOST_{node.upper()}"] = node if unshare else here
    for name in PLACES.values():
        address, port = place_of(settings, name)
        key = name.upper().replace("-", "_")
        values |= {f"ADDR_{key}": address, f"PORT_{key}": str(port)}
    for name in PASSWORDS:
        values[f"{name.upper()}_PASSWORD"] = _password(folder, name)
    values["FACE_HASH"] = hashlib.sha256(values["FACE_PASSWORD"].encode()).hexdigest()
    values["PROMETHEUS_HASH"] = _bcrypt(folder, values["PROMETHEUS_PASSWORD"])
    return values


def _password(folder: Path, name: str) -> str:
    """Read a password of the first start, or create it."""
    path = folder / "etc" / "secrets" / name
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    path.chmod(0o600)
    return path.read_text()


def _bcrypt(folder: Path, password: str) -> str:
    """Hash a random password as Prometheus's web configuration wants it; cost 4 is enough."""
    path = folder / "etc" / "secrets" / "prometheus.bcrypt"
    if not path.exists():
        write_private(path, bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)))
    return path.read_text()


def prepare(settings: Settings, folder: Path) -> dict[str, str]:
    """Write folders, keys and every configuration file; return the variables used."""
    for mode, names in FOLDERS.items():
        for name in names:
            (folder / name).mkdir(mode=mode, exist_ok=True)
            (folder / name).chmod(mode)  # the folders above are this user's own
    for number in range(4):
        device = folder / "state" / "dev" / f"nvidia{number}"
        if not device.is_symlink():
            device.symlink_to("/dev/null")
    values = variables(settings, folder)
    keys.create(folder, values)
    for template in sorted((SOURCE / "etc").rglob("*.in")):
        target = folder / "etc" / template.relative_to(SOURCE / "etc").with_suffix("")
        text = string.Template(template.read_text()).substitute(values)
        write_private(target, text)
        if target.name in PUBLIC or target.suffix == ".lua":
            target.chmod(0o755 if text.startswith("#!") else 0o644)
    hosts = (folder / "etc" / "hosts").read_text() + Path("/etc/hosts").read_text()
    (folder / "etc" / "hosts").write_text(hosts)
    lines = [f"{key}={shlex.quote(value)}" for key, value in sorted(values.items())]
    write_private(folder / "etc" / "sandbox.env", "\n".join(lines) + "\n")
    (folder / "etc" / "supervisord.conf").write_text(supervisor.config(values, PROGRAMS))
    return values
