"""The state folder of a sandbox: rendered configuration, secrets, keys, certificates."""

import hashlib
import os
import secrets
import shlex
import socket
import string
import subprocess
import sys
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from kit.base.errors import UsageError
from kit.base.settings import ROOT, Settings
from kit_sandbox import keys as sandbox_keys
from kit_sandbox import supervisor as sandbox_supervisor
from kit_sandbox.keys import private
from kit_sandbox.processes import user_name

SOURCE = ROOT / "env" / "sandbox"
MARK = ".kit-sandbox"  # in every state folder: `--wipe` removes nothing else
LONGEST = 60  # characters; Unix sockets below the folder must stay under 108
PROJECTS = ("project_2001234", "project_2005678")
SLURM = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-c1", "slurmd-c2", "slurmd-g1")
ALLAS = ("keystone", "ceph-mon", "ceph-osd", "rgw")
OURS = ("forwarder", "worker", "flower", "submitter")
PROGRAMS = (*SLURM, "sshd-login", "sshd-vm", *ALLAS, "mlflow", "redis", "prometheus", *OURS)
DIRECTORIES = (
    *(
        "etc/ssh/login_keys",
        "etc/ssh/cloud_keys",
        "etc/modules/pytorch",
        "etc/daemon",
        "run/pids",
        "log",
    ),
    *("home", "projappl", "state/slurmctld", "state/slurmd.c1", "state/slurmd.c2"),
    *("state/slurmd.g1", "state/dev", "state/mlflow", "state/redis", "state/prometheus"),
)
PUBLIC = ("slurm.conf", "hosts", "known_hosts", "task_prolog")  # read by other users as well
PASSWORDS = [
    *("redis", "mlflow", "prometheus", "forwarder", "face", "flower", "submitter"),
    *("keystone_admin", "rgw_service", "platform", "csc"),
]


def place_of(settings: Settings, name: str) -> tuple[str, int]:
    """Where a service listens, (address, port), as the profile says."""
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


PLACES = {  # program -> name in the profile; the others listen nowhere or on Unix sockets
    **{name: name for name in ("keystone", "rgw", "mlflow", "redis", "prometheus", "ceph-mon")},
    **{name: name for name in ("slurmdbd", "slurmctld", *OURS)},
    **{f"slurmd-{node}": node for node in ("c1", "c2", "g1")},
    **{"sshd-login": "login", "sshd-vm": "cloud"},
}


def folder_of(settings: Settings) -> Path:
    """Give the state folder, made if needed.

    Raises UsageError when it is too long for sockets, not ours, or holds something else.
    """
    folder = settings.sandbox_dir.absolute()
    if len(str(folder)) > LONGEST:
        raise UsageError(
            f"{folder} is too long for the sandbox's Unix sockets",
            f"{len(str(folder))} characters, at most {LONGEST}",
            "set KIT_SANDBOX_DIR to a shorter folder",
        )
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise UsageError(
            f"{folder} cannot be the sandbox's folder",
            f"it is a link or belongs to {user_name(folder.lstat().st_uid)}",
            "set KIT_SANDBOX_DIR to a folder of your own",
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise UsageError(
            f"{folder} holds files that are not a sandbox's",
            next_step="set KIT_SANDBOX_DIR to an empty or new folder",
        )
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder


def users() -> tuple[str, str, str]:
    """Who runs jobs, administers the VM, opens tunnels: accounts of their own only under root."""
    if os.getuid() == 0:
        return "hpcuser", "clouduser", "kit-tunnel"
    return (user_name(os.getuid()),) * 3


def apps_folder() -> Path:
    """Where the install step puts Python software: one's own folder, else that of root."""
    own = Path(f"/var/tmp/kit-{os.getuid()}-apps")  # noqa: S108 - the owner is checked
    shared = Path("/var/tmp/kit-0-apps")  # noqa: S108 - the owner is checked
    if not own.exists() and shared.exists() and shared.stat().st_uid == 0:
        return shared
    return own


def _namespaces() -> str:
    """The command that gives a program a host name of its own; empty where it is not allowed."""
    ours = "unshare --uts --mount --propagation slave"
    if os.getuid() != 0:
        ours = "unshare --user --map-current-user --keep-caps --uts --mount"
    trial = [*ours.split(), "sh", "-c", "hostname kit && mount --bind /etc/hosts /etc/hosts"]
    return ours if subprocess.run(trial, capture_output=True).returncode == 0 else ""


def variables(settings: Settings, folder: Path) -> dict[str, str]:
    """Everything that a template of `env/sandbox/etc` or a shell script may name."""
    hpc, cloud, tunnel = users()
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
        "TUNNEL_KEYS_OF": "kit-tunnel" if tunnel == cloud else "%u",  # its key lets nobody else in
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
    """Read a password made at the first start, or make it."""
    (folder / "etc" / "secrets").mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "etc" / "secrets" / name
    if not path.exists():
        private(path, secrets.token_urlsafe(24))
    path.chmod(0o600)
    return path.read_text()


def _bcrypt(folder: Path, password: str) -> str:
    """Hash a password as Prometheus's web configuration wants it; cost 4, for it is random."""
    path = folder / "etc" / "secrets" / "prometheus.bcrypt"
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # gone in 3.13; we are on 3.11
            import crypt
        salt = crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=1 << 4)  # noqa: S324 - it is bcrypt
        private(path, crypt.crypt(password, salt))
    return path.read_text()


def prepare(settings: Settings, folder: Path) -> dict[str, str]:
    """Make folders, keys and every configuration file anew; gives the variables used."""
    for name in DIRECTORIES:
        (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    for number in range(4):
        device = folder / "state" / "dev" / f"nvidia{number}"
        if not device.is_symlink():
            device.symlink_to("/dev/null")
    values = variables(settings, folder)
    sandbox_keys.make(folder, values)
    for template in sorted((SOURCE / "etc").rglob("*.in")):
        target = folder / "etc" / template.relative_to(SOURCE / "etc").with_suffix("")
        text = string.Template(template.read_text()).substitute(values)
        private(target, text)
        if target.name in PUBLIC or target.suffix == ".lua":
            target.chmod(0o755 if text.startswith("#!") else 0o644)
    hosts = (folder / "etc" / "hosts").read_text() + Path("/etc/hosts").read_text()
    (folder / "etc" / "hosts").write_text(hosts)
    lines = [f"{key}={shlex.quote(value)}" for key, value in sorted(values.items())]
    private(folder / "etc" / "sandbox.env", "\n".join(lines) + "\n")
    (folder / "etc" / "supervisord.conf").write_text(sandbox_supervisor.config(values, PROGRAMS))
    return values
