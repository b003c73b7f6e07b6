"""The state folder of a sandbox: rendered configuration, secrets, keys, certificates."""

import hashlib
import os
import secrets
import shlex
import shutil
import socket
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt

from kit.base import ROOT, UsageError
from kit.base.settings import Settings
from kit_sandbox import keys, roots, supervisor
from kit_sandbox.folders import check_owner, own_folder
from kit_sandbox.keys import write_private
from kit_sandbox.sites import SITES, VM_ACCOUNTS

SOURCE = ROOT / "env" / "sandbox"
MARKER = ".kit-sandbox"  # in every state folder: `--wipe` removes nothing else
MAX_PATH_LENGTH = 60  # bytes; Unix sockets below the folder must stay under 108
PROJECTS = ("project_2001234", "project_2005678")
SLURM = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd-c1", "slurmd-c2", "slurmd-g1")
ALLAS = ("keystone", "ceph-mon", "ceph-osd", "rgw")
KIT = ("forwarder", "worker", "flower", "submitter")
SITE = (*SLURM, "sshd-login", "submitter")  # a second site uses the other services of the first
PROGRAMS = (*SLURM, "sshd-login", "sshd-vm", *ALLAS, "mlflow", "redis", "prometheus", *KIT)
# Nobody outside gets through the state folder; inside the root the other accounts pass through the
# first of these, read the second, and are kept out of the last
FOLDERS = {
    0o1777: ("tmp",),
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


def is_second(settings: Settings) -> bool:
    """Report whether a profile is that of a second site, which runs beside the sandbox."""
    return settings.profile != "sandbox"


def programs_of(settings: Settings) -> tuple[str, ...]:
    """List the programs that a profile's sandbox runs."""
    return SITE if is_second(settings) else PROGRAMS


def folder_of(settings: Settings) -> Path:
    """Return where a profile's state is; that of a second site is below the first one's."""
    folder = settings.sandbox_dir.absolute()
    return folder / settings.site.name if is_second(settings) else folder


def state_folder(settings: Settings) -> Path:
    """Return the state folder, created if needed.

    Raises UsageError if its path is too long for sockets, it is not this user's own folder, or
    it holds something else.
    """
    folder = folder_of(settings)
    step = "set KIT_SANDBOX_DIR to a folder of your own"
    check_length(folder)
    if folder.exists():
        check_owner(folder, os.getuid(), step)
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UsageError(
                f"{folder} holds files that are not a sandbox's",
                next_step="set KIT_SANDBOX_DIR to an empty or new folder",
            )
    own_folder(folder, 0o700, step)
    (folder / MARKER).touch(mode=0o600)
    return folder


def check_length(folder: Path) -> None:
    """Raise UsageError if the path of a state folder is too long for Unix sockets."""
    if len(os.fsencode(folder)) > MAX_PATH_LENGTH:
        raise UsageError(
            f"{folder} is too long for the sandbox's Unix sockets",
            f"{len(os.fsencode(folder))} bytes, at most {MAX_PATH_LENGTH}",
            "set KIT_SANDBOX_DIR to a shorter folder",
        )


def has_network() -> bool:
    """Report whether this machine has another address than those of the loopback interface."""
    try:
        socket.getaddrinfo("127.0.0.1", 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror:
        return False
    return True


def variables(settings: Settings, folder: Path) -> dict[str, str]:
    """Return every variable that a template of `env/sandbox/etc` or a shell script may use."""
    site, (cloud, tunnel) = SITES[settings.profile], VM_ACCOUNTS
    # Slurm looks up IPv4 addresses only, and finds none on a machine without a network
    both = "" if has_network() else "EnableIPv6"
    values = {
        "SBX": str(folder),
        "BASE": str(settings.sandbox_dir.absolute()),
        "PROFILE": settings.profile,
        "CLUSTER": settings.site.name,
        "CGROUP_PLUGIN": "disabled" if is_second(settings) else "autodetect",
        "ROOT": str(ROOT),
        "PYTHON": sys.executable,
        "KEYSTONE": str(settings.cache_dir / "sandbox" / "keystone" / "bin" / "python"),
        "OWNER_UID": str(os.getuid()),
        "DAEMON_USER": "root" if os.getuid() == 0 else site.user,
        "HPC_USER": site.user,
        "CLOUD_USER": cloud,
        "TUNNEL_USER": tunnel,
        "PROJECTS": " ".join(PROJECTS),  # the first becomes the user's default account
        "SLURM_CLIENTS": both and f"CommunicationParameters={both}",  # it takes no empty value
        "SLURM_DAEMONS": both and f",{both}",
        "TOKEN_SECONDS": os.environ.get("KIT_SANDBOX_TOKEN_SECONDS", "28800"),
        "MLFLOW_USER": "kit",
        "PROMETHEUS_USER": "kit",
        "TZ": site.zone,
        "SITE_LOCALE": site.locale,
        "LOGIN_KEYS": f"{folder}/etc/ssh/login_keys/%u" if site.takes_keys else "none",
        "SLURMCTLD": site.controller,
    }
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


def _templates(settings: Settings, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each configuration file of a site and its template: those of all, then its own."""
    for source in (SOURCE / "etc", SOURCE / f"etc_{'second' if is_second(settings) else 'first'}"):
        for template in sorted(source.rglob("*.in")):
            yield folder / "etc" / template.relative_to(source).with_suffix(""), template


def prepare(settings: Settings, folder: Path, root: Path) -> dict[str, str]:
    """Write folders, keys and every configuration file for services in `root`.

    Returns the variables used.
    """
    (folder / roots.LINK).unlink(missing_ok=True)
    (folder / roots.LINK).symlink_to(root)
    for mode, names in FOLDERS.items():
        for name in names:
            (folder / name).mkdir(mode=mode, exist_ok=True)
            (folder / name).chmod(mode)  # the folders above are this user's own
    for number in range(4):
        device = folder / "state" / "dev" / f"nvidia{number}"
        if not device.is_symlink():
            device.symlink_to("/dev/null")
    values = variables(settings, folder)
    if is_second(settings):  # one person, one key, one certificate for both sites
        shutil.copytree(folder.parent / "etc" / "ssh", folder / "etc" / "ssh", dirs_exist_ok=True)
    keys.create(folder, values)
    for target, template in _templates(settings, folder):
        text = string.Template(template.read_text()).substitute(values)
        write_private(target, text)
        if target.name in PUBLIC or "modules" in target.relative_to(folder).parts:
            target.chmod(0o755 if text.startswith("#!/") else 0o644)
    hosts = (folder / "etc" / "hosts").read_text() + Path("/etc/hosts").read_text()
    (folder / "etc" / "hosts").write_text(hosts)
    lines = [f"{key}={shlex.quote(value)}" for key, value in sorted(values.items())]
    write_private(folder / "etc" / "sandbox.env", "\n".join(lines) + "\n")
    (folder / "etc" / "supervisord.conf").write_text(
        supervisor.config(values, programs_of(settings))
    )
    return values
