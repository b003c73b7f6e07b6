"""Processes of this machine: finding those of a sandbox, and ending them."""

import contextlib
import os
import pwd
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

MODULE = ["-m", "kit_sandbox.supervisor"]  # how `services.start_supervisor` calls it


@dataclass(frozen=True)
class Supervisor:
    """A supervisord that runs a sandbox in `folder`; `user` may be somebody else."""

    process: psutil.Process
    folder: Path
    user: str


def live_process(pid: int) -> psutil.Process | None:
    """Return the process of a pid, or None if there is none or only its zombie.

    The number may be that of a thread by now: Linux counts both in one row.
    """
    if not psutil.pid_exists(pid):
        return None
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if is_alive(process) else None


def is_alive(process: psutil.Process) -> bool:
    """Report whether this very process runs; a zombie or a later one with its pid does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def start_ticks(process: psutil.Process) -> int:
    """Return its start in clock ticks after boot, as /proc/PID/stat has it in field 22."""
    after_boot: float = process.create_time() - psutil.boot_time()
    return round(after_boot * os.sysconf("SC_CLK_TCK"))


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """List all live processes below one."""
    try:
        return [child for child in process.children(recursive=True) if is_alive(child)]
    except psutil.NoSuchProcess:
        return []


def of_sandbox(folder: Path, stamp: str) -> list[psutil.Process]:
    """List the live processes of any user that entered a Debian root for this sandbox's folder.

    Sandboxes of one user share the root's tree; `enter.sh` mounts the folder's own parts there.
    `stamp` is a file of the kit's roots alone: a container may have the same folder mounted.
    """
    rows = []
    for process in psutil.process_iter():
        root = f"/proc/{process.pid}/root"
        with contextlib.suppress(OSError):  # another user's, or gone, or without that folder
            ours = os.path.samefile(f"{root}{folder}/run", folder / "run")
            if ours and os.path.exists(f"{root}/{stamp}") and not os.path.samefile(root, "/"):
                rows.append(process)
    return rows


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Add up the resident memory; a page that several processes share counts once (PSS).

    Where the kernel does not show that of another user's process, its pages count whole.
    """
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            try:
                total += process.memory_full_info().pss
            except psutil.AccessDenied:
                total += process.memory_info().rss
    return total


def end(processes: Iterable[psutil.Process], grace_s: float = 5.0) -> None:
    """Send TERM, wait up to `grace_s` for all of them, send KILL to the rest.

    psutil's own wait is not used: it would take the exit code of a child from its owner.
    """
    left = [process for process in processes if is_alive(process)]
    for signum, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.send_signal(signum)
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            left = [process for process in left if is_alive(process)]
            time.sleep(0.02)


def supervisors() -> list[Supervisor]:
    """List every sandbox that runs on this machine.

    Command lines are readable by everybody, so the sandbox of another user is found as well.
    """
    rows = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        argv = process.info["cmdline"] or []
        if argv[1:3] == MODULE and is_alive(process):
            user = user_name(process.info["uids"].real)
            rows.append(Supervisor(process, Path(argv[-1]).parent.parent, user))
    return rows


def user_name(uid: int) -> str:
    """Return a user's name, or the number if it is unknown."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
