"""Processes and listening ports as /proc shows them (Linux; see proc(5))."""

import os
import pwd
import signal
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTEN = "0A"  # the state column of /proc/net/tcp


@dataclass(frozen=True)
class Process:
    """One process; its start (clock ticks after boot) tells it from a later one with its pid."""

    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return process(self.pid) == self


@dataclass(frozen=True)
class Supervisor:
    """A supervisord that runs a sandbox in `folder`; `user` may be somebody else."""

    process: Process
    folder: Path
    user: str


def process(pid: int) -> Process | None:
    """Look a pid up; None when there is no such process or only its zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else Process(pid, int(fields[19]))


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(PROC) if entry.isdigit())


def _families() -> dict[int, list[Process]]:
    """The live children of every process that has some."""
    families: dict[int, list[Process]] = {}
    for pid in _pids():
        fields, found = _stat(pid), process(pid)
        if fields and found:
            families.setdefault(int(fields[1]), []).append(found)
    return families


def children(pid: int) -> list[Process]:
    """Name the live children of `pid`."""
    return _families().get(pid, [])


def descendants(pid: int) -> list[Process]:
    """Name all live processes below `pid`, children before grandchildren."""
    families = _families()
    below = list(families.get(pid, []))
    for parent in below:  # the list grows while it is walked
        below.extend(families.get(parent.pid, []))
    return below


def owned_by(uids: Iterable[int]) -> list[Process]:
    """Name the live processes of these users."""
    wanted, found = set(uids), []
    for pid in _pids():
        try:
            if (PROC / str(pid)).stat().st_uid in wanted:
                found.append(process(pid))
        except FileNotFoundError:
            continue
    return [one for one in found if one is not None]


def resident(processes: Iterable[Process]) -> int:
    """Add up the resident memory, in bytes (shared pages count in each process)."""
    pages = 0
    for one in processes:
        fields = _stat(one.pid)
        pages += int(fields[21]) if fields else 0
    return pages * os.sysconf("SC_PAGESIZE")


def end(processes: Iterable[Process], grace_s: float = 5.0) -> None:
    """Send TERM, wait up to `grace_s` for all of them, send KILL to what is left."""
    left = [one for one in processes if one.alive]
    for signum, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        for one in left:
            _signal(one, signum)
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            left = [one for one in left if one.alive]
            time.sleep(0.02)


def _signal(one: Process, signum: int) -> None:
    try:
        if one.alive:
            os.kill(one.pid, signum)
    except (ProcessLookupError, PermissionError):
        return


def started_at(one: Process) -> float:
    """When it started, in seconds since the epoch."""
    boot = next(
        float(line.split()[1])
        for line in (PROC / "stat").read_text().splitlines()
        if line.startswith("btime ")
    )
    return boot + one.start / os.sysconf("SC_CLK_TCK")


def supervisors() -> list[Supervisor]:
    """Name every sandbox that runs on this machine, whoever started it.

    Command lines are readable by everybody, so this sees the sandbox of another user too.
    """
    found = []
    for pid in _pids():
        argv = _argv(pid)
        one = process(pid)
        if one and argv[1:3] == ["-m", "kit_sandbox.supervisor"]:
            user = user_name((PROC / str(pid)).stat().st_uid)
            found.append(Supervisor(one, Path(argv[-1]).parent.parent, user))
    return found


def _argv(pid: int) -> list[str]:
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return raw.decode(errors="replace").rstrip("\0").split("\0")


def user_name(uid: int) -> str:
    """Give a user's name, or the number when there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def holder(address: str, port: int) -> str:
    """Say who listens where `address:port` would; empty when nobody does."""
    for local, uid, inode in _listeners():
        if local[1] == port and local[0] in (address, "0.0.0.0", "::"):  # noqa: S104 - compared
            owner = _owner_of_socket(inode)
            if owner or os.getuid() != 0:  # root sees every holder: none means it is just closing
                return owner or f"a process of user {user_name(uid)}"
    return ""


def _listeners() -> Iterator[tuple[tuple[str, int], int, str]]:
    """Every listening TCP socket: ((address, port), uid, inode)."""
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        table = PROC / "net" / name
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            columns = line.split()
            if columns[3] == LISTEN and columns[9] != "0":  # 0: closed, on its way out
                host, port = columns[1].split(":")
                words = (int(host[i : i + 8], 16) for i in range(0, len(host), 8))
                address = socket.inet_ntop(family, b"".join(struct.pack("=I", w) for w in words))
                yield (address, int(port, 16)), int(columns[7]), columns[9]


def _owner_of_socket(inode: str) -> str:
    """Find the process that has this socket open, as far as this user may look."""
    for pid in _pids():
        try:
            links = [os.readlink(entry) for entry in os.scandir(PROC / str(pid) / "fd")]
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue
        if f"socket:[{inode}]" in links:
            name = (PROC / str(pid) / "comm").read_text().strip()
            return f"pid {pid} ({name})"
    return ""
