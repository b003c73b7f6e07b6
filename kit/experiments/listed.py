"""The files of a person's own experiments that the submitters of this machine may run.

A request names an experiment and the hash of its source files; no code and no path comes out of a
bucket. A submitter that was started before the run, by the sandbox or in another terminal, finds
the file here, because the person's run has listed it. There is one small file for each experiment,
in folders that only the person can write to: in the cache, and in the state of a sandbox, whose
services have another home and so another cache.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kit.base import DataError, sha256_of, write_text
from kit.base.settings import cache_dir, sandbox_dir
from kit.experiments.contract import Experiment

FOLDER = "experiments"


def list_experiment(experiment: Experiment) -> None:
    """List the file of an experiment, and remove the files that are gone from the list.

    A built-in or installed experiment is found without. Raises DataError if the list cannot be
    written.
    """
    if os.sep not in experiment.reference:
        return
    text = json.dumps(experiment.reference)
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            tried, step = f"list {experiment.reference} in {folder}", "set KIT_CACHE_DIR"
            raise DataError(tried, str(err), f"{step} to a folder that you can write to") from err
        for entry, path in _entries(folder):
            if not path.exists():
                entry.unlink(missing_ok=True)
        write_text(folder / f"{sha256_of(text.encode())[:16]}.json", text, 0o600)


def listed_files(name: str) -> list[Path]:
    """Return the files and packages of that name that this person's runs have listed."""
    paths = [path for folder in _folders() for _, path in _entries(folder)]
    return [path for path in dict.fromkeys(paths) if path.stem == name and path.exists()]


def _folders() -> list[Path]:
    """Return the folders of the list: that of the cache, and of a sandbox that was set up."""
    base = sandbox_dir()
    state = base / "state"
    own = _is_private(base) and _is_private(state)
    return [cache_dir() / FOLDER, *([state / FOLDER] if own else [])]


def _is_private(folder: Path) -> bool:
    """Return whether this is a folder of this user, no symlink, that nobody else can write to."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return own and not stat.S_IMODE(status.st_mode) & 0o022


def _entries(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each entry and the path that it lists; one that is damaged lists nothing."""
    if not _is_private(folder):
        return
    for entry in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            listed = json.loads(entry.read_text(encoding="utf-8"))
            if isinstance(listed, str) and Path(listed).is_absolute():
                yield entry, Path(listed)
