"""What the sandbox needs of the machine, of the person's account and of the file systems.

Each check raises before anything is made, and its message has the way out.
"""

import os
import platform
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kit.base import KitError, UsageError

MACHINE = "x86_64"  # the machine of the locks, as uname says it; "amd64" in Debian's words
PROC = Path("/proc")
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse.sshfs")
STATE_BYTES = 500_000_000  # three times what a first start writes
LOW_BYTES = 20_000_000  # services fail below this


class Mount(NamedTuple):
    """A mounted file system: where, of which kind (`ext4`), with which options."""

    point: str
    kind: str
    options: tuple[str, ...]


def parse_mounts(text: str) -> list[Mount]:
    """Parse /proc/PID/mountinfo (man 5 proc_pid_mountinfo); a line in another form is left out."""
    rows = []
    for line in text.splitlines():
        own, separator, rest = line.partition(" - ")
        words, more = own.split(" "), rest.split(" ")
        if separator and len(words) >= 6 and len(more) >= 3:
            options = (*words[5].split(","), *more[2].split(","))
            rows.append(Mount(_unescape(words[4]), more[0], options))
    return rows


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _existing(folder: Path) -> Path:
    """Return the folder, or the one above it that it will be created in."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def mount_of(folder: Path) -> Mount:
    """Return the file system that a folder is on, or will be when it is created."""
    real = Path(os.path.realpath(_existing(folder)))
    found = Mount("/", "unknown", ())
    for mount in parse_mounts((PROC / "self" / "mountinfo").read_text(errors="replace")):
        # of two on one point the later one is seen
        if real.is_relative_to(mount.point) and len(mount.point) >= len(found.point):
            found = mount
    return found


def check_file_system(folder: Path, variable: str) -> Mount:
    """Return what a folder is on. Raises UsageError if it is read-only or forbids programs."""
    mount = mount_of(folder)
    for option, step in (
        ("noexec", "a folder where programs may run"),
        ("ro", "a folder that you can write to"),
    ):
        if option in mount.options:
            word = {"ro": "read-only"}.get(option, option)
            raise UsageError(
                f"{folder} cannot be used by the sandbox",
                f"it is on a file system that is mounted {word} ({mount.point})",
                f"set {variable} to {step}",
            )
    return mount


def check_state(folder: Path) -> None:
    """Raise UsageError unless a new state folder is on a local file system with enough space."""
    mount = check_file_system(folder, "KIT_SANDBOX_DIR")
    if mount.kind in NETWORK:
        raise UsageError(
            f"{folder} cannot be used by the sandbox",
            f"it is on a network file system ({mount.kind}, {mount.point}), which has no place for "
            "Unix sockets and databases",
            "set KIT_SANDBOX_DIR to a folder on a local disk, such as /var/tmp/NAME",
        )
    if (free := shutil.disk_usage(_existing(folder)).free) < STATE_BYTES:
        raise UsageError(
            f"{mount.point} has too little free space for the sandbox in {folder}",
            f"{free / 1e6:.0f} MB are free, it needs {STATE_BYTES / 1e6:.0f} MB",
            "free some space, or set KIT_SANDBOX_DIR to a folder on another disk",
        )


def check_not_full(folder: Path) -> None:
    """Raise KitError if the disk of a state folder has no space left to work with."""
    if (free := shutil.disk_usage(folder).free) < LOW_BYTES:
        raise KitError(
            f"the disk of {folder} is full, so services fail",
            f"{free / 1e6:.0f} MB are free",
            "free some space, then kit sandbox down and kit sandbox up",
        )


def check_cache(folder: Path, report: Callable[[str], None]) -> None:
    """Check the folder for software; a network file system is reported, not refused."""
    mount = check_file_system(folder, "KIT_CACHE_DIR")
    if mount.kind in NETWORK:
        report(
            f"{folder} is on a network file system ({mount.kind}), which is slow for 30,000 files; "
            "KIT_CACHE_DIR names a folder on a local disk"
        )


def check_person() -> None:
    """Raise UsageError unless this user has an account, which OpenSSH looks up."""
    uid, gid = os.getuid(), os.getgid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise UsageError(
            f"find the account of uid {uid}",
            "it has no entry in /etc/passwd, and OpenSSH runs for nobody without one",
            f"add one as root: echo 'kit:x:{uid}:{gid}::/home/kit:/bin/bash' >>/etc/passwd, or "
            "start the container as a user that its image has",
        ) from None


def check_machine(enter: Path) -> None:
    """Raise UsageError unless this user can make a Debian root and enter it with `enter`."""
    step = "use the container of env/sandbox/Dockerfile"
    if platform.machine() != MACHINE:
        got = f"this machine is {platform.machine()}, the locked packages are for {MACHINE}"
        raise UsageError("make a Debian root", got, "use an x86_64 machine")
    for program in ("apt-get", "dpkg-deb", "unshare"):
        if not shutil.which(program):
            raise UsageError("make a Debian root", f"this machine has no {program}", step)
    done = subprocess.run([enter, "--try"], capture_output=True, text=True)
    if done.returncode != 0:
        who = "root" if os.getuid() == 0 else "an ordinary user"
        cause, step = _what_forbids()
        raise UsageError(
            f"mount in a namespace of one's own as {who}, which a Debian root needs",
            f"{done.stderr.strip()}{cause and f' ({cause})'}",
            step,
        )


def _what_forbids() -> tuple[str, str]:
    """Return what forbids namespaces here, empty if unknown, and the ways out."""
    root = "run the sandbox as root"
    container = (
        "use a container started with --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined"
    )
    if os.getuid() != 0:
        for setting, bad, good in (
            ("user.max_user_namespaces", "0", "10000"),
            ("kernel.unprivileged_userns_clone", "0", "1"),  # Debian before 11
            ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu from 24.04 on
        ):
            file = PROC / "sys" / setting.replace(".", "/")
            if file.exists() and file.read_text().strip() == bad:
                change = f"sudo sysctl {setting}={good}"
                return f"{setting} is {bad}", f"{change}, {root}, or {container}"
    status = PROC / "self" / "status"
    if status.exists() and re.search(r"^Seccomp:\s*2$", status.read_text(), re.M):
        return "a seccomp filter, as container engines set it, is on", container
    return "", (
        "allow user namespaces (sysctl user.max_user_namespaces, or on Ubuntu 24.04 "
        f"kernel.apparmor_restrict_unprivileged_userns=0), {root}, or {container}"
    )
