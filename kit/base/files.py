"""The files that runs leave: time files, metric files, and where they came from.

Shapes are those of the published files of DOI 10.1145/3672608.3707866. Every write goes to a
temporary file beside the target and arrives by rename, so a reader sees a file whole or not at all.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.base.errors import Busy, DataError, KitError

PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = PACKAGE / "_files"  # made by setup.py for a wheel
ROOT = _INSTALLED if _INSTALLED.is_dir() else PACKAGE.parent  # env/, notebooks/, the lock
SCHEMA = 1
# Another repository than a folder's own, as git tells its hooks.
GIT_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
MAX_TEMPDIR_CHARACTERS = 60  # a socket's path may have 107 bytes
NEW_FOLDER_S = 60.0  # younger than that, a folder may not be locked yet
PACKAGES = ("kit", "torch", "numpy", "mlflow", "ray", "kfp")

Json = dict[str, Any]


def work_dir() -> Path:
    """Return where results and `.env` are: the checkout, else the working folder (from a wheel)."""
    return Path.cwd() if ROOT == _INSTALLED else ROOT


def copy_whole(source: Path, target: Path) -> None:
    """Copy a folder; killed at any point, `target` is whole or not there."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    part.rename(target)


def time_record(name: str, start: float, end: float, seconds: float | None = None) -> Json:
    """Return one record of a time file: epoch seconds and their difference, 5 digits.

    `seconds` replaces the difference if the work was interrupted and resumed.
    """
    total = round(end - start if seconds is None else seconds, 5)
    return {"name": name, "start-time": start, "end-time": end, "total-seconds": total}


def time_file(records: Iterable[Json]) -> Json:
    """Number time records from "1", in order."""
    return {str(number): record for number, record in enumerate(records, start=1)}


@dataclass
class Timeline:
    """Named stretches of one run: where the seconds went."""

    spans: list[Json] = field(default_factory=list)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the block and record it, also if it ends with an error."""
        start = time.time()
        try:
            yield
        finally:
            self.spans.append(time_record(name, start, time.time()))

    def split(self, before: str, at: float) -> None:
        """Divide the last span at a time within it, such as when the work itself began.

        The part before that time gets the name `before`.
        """
        last = self.spans[-1]
        start, end = last["start-time"], last["end-time"]
        if start < at < end:
            self.spans[-1:] = [time_record(before, start, at), time_record(last["name"], at, end)]

    def seconds(self) -> dict[str, float]:
        """Sum the seconds by name, in the order of first appearance."""
        totals: dict[str, float] = {}
        for span in self.spans:
            totals[span["name"]] = totals.get(span["name"], 0.0) + span["total-seconds"]
        return totals


def process_began() -> float:
    """Return when this process was started, in seconds since 1970; without /proc about when."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.time() - time.process_time()
    # psutil's create_time rests on the boot time in whole seconds, a second too coarse for a span.
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))


def dumps(value: Any) -> str:
    """Return the text of a JSON file: indent 4; raises ValueError for not-a-number."""
    return json.dumps(value, indent=4, allow_nan=False, ensure_ascii=False)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file whole or not at all; raise DataError (disk full, no permission)."""
    write_bytes(path, text.encode(), mode)


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all; raise DataError (disk full, no permission).

    The process' umask is taken from `mode`. With mode 600 it is the way to write a secret: others
    cannot read the file at any time.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with whole_file(path) as new, os.fdopen(os.open(new, flags, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def unwritable(path: Path, err: OSError) -> DataError:
    """Return the error for a file that cannot be written."""
    step = "free some space or set KIT_RESULTS_DIR to a folder you can write; then run again"
    return DataError(f"cannot write {path}", err.strerror or str(err), step)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to; it becomes `path` when the block ends without an error.

    Raises DataError if the folder is not writable or the disk is full.
    """
    new = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield new
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as err:
        raise unwritable(path, err) from err


@contextmanager
def file_lock(path: Path, timeout_s: float, busy: Busy, setting: str) -> Iterator[None]:
    """Hold a lock file for the block. Raises `busy` if another process keeps it that long.

    Raises KitError on a file system without locks; `setting` is what can be changed then.
    """
    import filelock  # late: it is not needed on the site

    lock = filelock.FileLock(path, timeout_s)
    try:
        lock.acquire()
    except filelock.Timeout as err:
        raise busy from err
    except (OSError, NotImplementedError) as err:
        raise KitError(f"lock {path}", str(err), setting) from err
    try:
        yield
    finally:
        lock.release()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder of this process with a short path, for sockets; remove it afterwards.

    A process that was killed leaves its folder behind: the next one removes it.
    """
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > MAX_TEMPDIR_CHARACTERS:
        parent = Path("/tmp")  # noqa: S108 - a new folder of mode 700 with a random name
    for path in parent.glob("kit-tmp-*"):
        with suppress(OSError), _locked_folder(path) as status:
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > NEW_FOLDER_S:
                shutil.rmtree(path)  # does not follow symbolic links
    folder = Path(tempfile.mkdtemp(prefix="kit-tmp-", dir=parent))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with suppress(OSError):  # a file system without locks: then nobody else can lock it either
            stack.enter_context(_locked_folder(folder))
        yield folder


@contextmanager
def _locked_folder(folder: Path) -> Iterator[os.stat_result]:
    """Lock a folder itself for the block. Raises OSError while another process has the lock.

    The lock ends with its process. A process id would not do: a container that shares the
    folder, or a sandbox, has process ids of its own.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, dumps(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; raise DataError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise DataError(f"cannot read {path}", err.strerror or str(err)) from err
    except ValueError as err:
        raise DataError(
            f"{path} is not a JSON document", str(err), "remove it and run again"
        ) from err


def parse_json(content: bytes | str, name: str) -> Json:
    """Parse a JSON document of the kit, which has the current `schema`. Raises DataError."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise DataError(f"read {name}", "it is not a JSON document", "remove it") from err
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise DataError(f"read {name}", f"it has not the schema {SCHEMA}", "remove it")
    return document


def sha256_of(source: bytes | Path) -> str:
    """Return the hex SHA-256 of some bytes or of a file. Raises DataError."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise DataError(f"cannot read {source}", err.strerror or str(err)) from err


def git_state(root: Path) -> Json:
    """Return the commit of the checkout and whether its tree is clean (None: unknown)."""
    commit, status = (
        done.stdout.strip() if done is not None and done.returncode == 0 else None
        for done in (git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain"))
    )
    return {"commit": commit, "clean": None if status is None else not status}


def git(folder: Path, *words: str) -> "subprocess.CompletedProcess[str] | None":
    """Ask git about a folder, in English; 127 without git, None without an answer in time.

    The repository is the folder's own: a git hook has another one in the environment.
    """
    argv = ["git", "-C", str(folder), *words]
    environ = {name: value for name, value in os.environ.items() if name not in GIT_ELSEWHERE}
    environ["LC_ALL"] = "C"
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, env=environ)
    except FileNotFoundError:
        return subprocess.CompletedProcess(argv, 127, "", "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def host_facts() -> Json:
    """Describe the machine: name of the CPU, cores this process may use, system, Python."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(packages: Iterable[str] = PACKAGES) -> Mapping[str, str]:
    """Return the version of each package that is installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
