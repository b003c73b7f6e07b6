"""The install step of the sandbox: Debian packages, accounts, Python software."""

import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from kit.base import ROOT, CommandFailed, UsageError
from kit_sandbox.files import SOURCE, account_names, apps_folder
from kit_sandbox.folders import check_owner

Report = Callable[[str], None]
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# Written by `kit sandbox up` while it installs packages.\nexit 101\n"
# the links in these are what systemd or a System V init starts at boot
ENABLED = (Path("/etc/systemd/system"), *(Path(f"/etc/rc{level}.d") for level in "2345"))
APPS = ("pytorch", "keystone")
ACCOUNT_MARK = "Cloud-HPC kit sandbox"
# RFC 5737: an address for examples; on the loopback interface it leads nowhere
LENT_ADDRESS = "192.0.2.1/32"
PYTHON = "/usr/bin/python3"  # other users cannot run a Python that lives in a private home


def missing_packages() -> list[str]:
    """List the packages of apt.txt that are not installed."""
    lines = (SOURCE / "apt.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    if not shutil.which("dpkg-query"):
        raise UsageError(
            "the sandbox is made of Debian packages",
            "this machine has no dpkg",
            "use the image of env/sandbox/Dockerfile",
        )
    argv = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted]
    done = subprocess.run(argv, capture_output=True, text=True)
    present = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in wanted if name not in present]


def missing_accounts() -> list[str]:
    """List the accounts to create, which only root can; an ordinary user needs none.

    Raises UsageError for an account of that name that the sandbox did not create.
    """
    names = []
    for name in account_names() if os.getuid() == 0 else ():
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            names.append(name)
            continue
        if entry.pw_gecos != ACCOUNT_MARK:
            raise UsageError(
                f"the account {name} exists and is not the sandbox's",
                f"its comment is {entry.pw_gecos!r}",
                "run the sandbox as an ordinary user, who needs no accounts",
            )
    return names


def missing_apps() -> list[str]:
    """List the Python environments that are absent or were made from another list of packages.

    Raises UsageError for one that somebody else could have written: it would be executed.
    """
    apps = apps_folder()
    return [name for name in APPS if _stamp(apps, name) != _expected_stamp(name)]


def _expected_stamp(name: str) -> str:
    source = _requirements(name)
    return hashlib.sha256(source.read_bytes()).hexdigest() if source.exists() else ""


def _requirements(name: str) -> Path:
    return SOURCE / ("pytorch.txt" if name == "pytorch" else f"{name}.lock")


def _stamp(apps: Path, name: str) -> str:
    if os.path.lexists(apps / name):
        step = f"remove {apps / name}, then start the sandbox again"
        check_owner(apps / name, apps.lstat().st_uid, step)
    stamp = apps / name / ".complete"
    return stamp.read_text() if stamp.exists() else ""


def install(report: Report) -> None:
    """Install what is missing, after asking (unless CI or KIT_SANDBOX_INSTALL=yes is set).

    Raises UsageError if packages are missing and this is not root.
    """
    packages, accounts, apps = missing_packages(), missing_accounts(), missing_apps()
    if packages and os.getuid() != 0:
        raise UsageError(
            "the sandbox needs Debian packages that are not there",
            ", ".join(packages),
            f"sudo KIT_SANDBOX_INSTALL=yes {ROOT}/.venv/bin/kit sandbox install",
        )
    if packages or accounts:
        _ask(packages, accounts)
    if packages:
        report(f"installing {len(packages)} Debian packages: {' '.join(packages)}")
        _packages(packages)
    for name in accounts:
        report(f"creating the account {name}")
        _call(["useradd", "--no-create-home", "--shell", "/bin/bash", "-c", ACCOUNT_MARK, name])
        _call(["usermod", "-p", "*", name])  # sshd without PAM refuses a locked account
    for name in apps:
        report(f"installing the Python packages of {name} into {apps_folder() / name} …")
        _environment(name)


def account_uids() -> list[int]:
    """List the uids of the sandbox's own accounts; an ordinary user has none."""
    return [pwd.getpwnam(name).pw_uid for name in account_names()] if os.getuid() == 0 else []


def adopt_homes(folder: Path) -> None:
    """Move the accounts' homes below this state folder (root only)."""
    for name in account_names() if os.getuid() == 0 else ():
        home = str(folder / "home" / name)
        if pwd.getpwnam(name).pw_dir != home:
            _call(["usermod", "-d", home, name])


def lend_address(folder: Path, report: Report) -> None:
    """Add an address to a machine without a network, so that Slurm can look up its own.

    Slurm 22.05 asks with AI_ADDRCONFIG, and getaddrinfo(3) then returns nothing while there are
    loopback addresses only. Raises UsageError if that needs root.
    """
    try:
        socket.getaddrinfo("127.0.0.1", 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as err:
        argv = ["ip", "address", "add", LENT_ADDRESS, "dev", "lo"]
        if os.getuid() != 0:
            tried = "Slurm finds no host by its address on a machine without a network"
            raise UsageError(tried, str(err), f"sudo {' '.join(argv)}") from err
        report(f"no network: {LENT_ADDRESS} is added to the loopback interface until `down`")
        (folder / "run" / "lent-address").touch()
        _call(argv)


def take_back_address(folder: Path) -> None:
    """Remove what `lend_address` added."""
    mark = folder / "run" / "lent-address"
    if mark.exists():
        # it may be gone: the machine was restarted since
        subprocess.run(["ip", "address", "del", LENT_ADDRESS, "dev", "lo"], capture_output=True)
        mark.unlink()


def _ask(packages: list[str], accounts: list[str]) -> None:
    if os.environ.get("CI") == "true" or os.environ.get("KIT_SANDBOX_INSTALL") == "yes":
        return
    what = f"packages {', '.join(packages) or 'none'}; accounts {', '.join(accounts) or 'none'}"
    if not sys.stdin.isatty():
        raise UsageError(
            "the sandbox has to install something and nobody can be asked",
            what,
            "set KIT_SANDBOX_INSTALL=yes to allow it",
        )
    click.confirm(f"Install for the sandbox: {what}?", abort=True, err=True)


def _call(argv: list[str]) -> None:
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stdout, done.stderr)


def _packages(names: list[str]) -> None:
    """Run apt-get; no daemon is started, and no unit stays enabled that was not before."""
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=150"]
    before = _boot_links()
    with no_daemon_starts(POLICY):
        try:
            _call([*apt, "update"])
            _call([*apt, "install", "--no-install-recommends", *names])
        finally:
            for link in _boot_links() - before:
                link.unlink()


def _boot_links() -> set[Path]:
    return {path for folder in ENABLED for path in folder.rglob("*") if path.is_symlink()}


@contextmanager
def no_daemon_starts(policy: Path) -> Iterator[None]:
    """Forbid daemon starts by packages in a block; an existing policy is left alone."""
    if policy.exists():
        yield
        return
    policy.write_text(POLICY_TEXT)
    policy.chmod(0o755)
    try:
        yield
    finally:
        if policy.read_text() == POLICY_TEXT:
            policy.unlink()


def _environment(name: str) -> None:
    """Create a venv with exactly the packages of a list; an unfinished one is created again."""
    target = apps_folder() / name
    shutil.rmtree(target, ignore_errors=True)
    _call([PYTHON, "-m", "venv", str(target)])
    pip = [str(target / "bin" / "python"), "-m", "pip", "install", "-q"]
    pip += ["--disable-pip-version-check", "--no-deps", "-r", str(_requirements(name))]
    if name == "pytorch":
        pip += ["-c", str(ROOT / "requirements.lock")]
    _call(pip)
    target.chmod(0o755)
    (target / ".complete").write_text(_expected_stamp(name))
