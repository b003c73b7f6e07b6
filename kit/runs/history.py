"""Runs: their ids, their folders, and how a finished run becomes the published files.

A run is one execution of one target. Its id is `<target>-<12 hex>-<n>`; the hex is a hash of
profile, target, parameters, data, code and the folder of the results: the store and the site are
shared with others and outlive that folder, and a new one must not find old results there. A run
that was broken off goes on under its id.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from kit.base import (
    ROOT,
    Busy,
    Json,
    KitError,
    Timeline,
    UsageError,
    append_history,
    code_hash,
    git_state,
    host_facts,
    read_history,
    read_json,
    sha256_of,
    versions,
    write_bytes,
    write_json,
    write_text,
)
from kit.base.settings import Settings

TARGETS = ("local", "cloud", "cloud-hpc")
LOCK_WAIT_S = 60.0


@dataclass
class Run:
    """One execution of a target and its folder `results/<profile>/runs/<id>/`."""

    id: str
    target: str
    folder: Path
    parameters: Json
    resumed: bool
    started: float
    settings: Settings
    lock: FileLock
    timeline: Timeline = field(default_factory=Timeline)

    def __repr__(self) -> str:
        """Name the run and say whether it goes on with an earlier start."""
        return f"run {self.id}" + (" (goes on where it was broken off)" if self.resumed else "")

    def save(self, name: str, value: object) -> Path:
        """Write a JSON file (or text, or bytes) into the run's folder."""
        path = self.folder / name
        if isinstance(value, bytes):
            write_bytes(path, value)
        elif isinstance(value, str):
            write_text(path, value)
        else:
            write_json(path, value)
        return path

    def finish(self, publish: Mapping[str, str], facts: Json) -> Json:
        """Publish files of the run, add it to the history, mark it finished.

        `publish` maps a path below `results/<profile>/` to a file name in the run's folder;
        `facts` are the times, metrics and bill of the history line. Returns that line. Killed
        at any point and started again it ends the same: one line, the files of this run.
        """
        line = {
            "run": self.id,
            "target": self.target,
            "profile": self.settings.profile,
            "parameters": self.parameters,
            "resumed": self.resumed,
            "started": self.started,
            "ended": time.time(),
            "git": git_state(ROOT),
            "versions": dict(versions()),
            "host": host_facts(),
            "seconds": self.timeline.seconds(),
            **facts,
        }
        with results_lock(self.settings):
            _publish(self, publish)
            history = self.settings.profile_dir / "history.jsonl"
            if self.id not in {row["run"] for row in read_history(history)[0]}:
                append_history(history, line)
            self.save("record.json", line)
        self.lock.release(force=True)
        return line


def start_run(
    settings: Settings,
    target: str,
    parameters: Json,
    data_hash: str,
    fresh: bool = False,
) -> Run:
    """Go on with the newest unfinished run of this kind, or begin a new one.

    Raises Busy when another process is executing that run, UsageError for an unknown target.
    """
    if target not in TARGETS:
        raise UsageError(f"no target {target!r}", next_step=f"use one of {', '.join(TARGETS)}")
    with results_lock(settings):
        stem = f"{target}-{_kind(settings, target, parameters, data_hash)}"
        number = _newest(settings, stem)
        folder = settings.profile_dir / "runs" / f"{stem}-{number}"
        unfinished = number > 0 and not (folder / "record.json").exists()
        if fresh or not unfinished:
            number += 1
            folder = settings.profile_dir / "runs" / f"{stem}-{number}"
            unfinished = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise KitError(f"cannot make {folder}", str(err), "set KIT_RESULTS_DIR") from err
        lock = _hold(folder)
        start = folder / "run.json"
        if not start.exists():
            first = {"run": folder.name, "started": time.time(), "parameters": parameters}
            write_json(start, first)
    started = float(read_json(start)["started"])
    return Run(folder.name, target, folder, parameters, unfinished, started, settings, lock)


def results_lock(settings: Settings) -> FileLock:
    """Give the lock under which published files and the history change."""
    folder = settings.profile_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise KitError(f"cannot make {folder}", str(err), "set KIT_RESULTS_DIR") from err
    return FileLock(folder / ".lock", timeout=LOCK_WAIT_S, is_singleton=True)


def _kind(settings: Settings, target: str, parameters: Json, data_hash: str) -> str:
    parts = [settings.profile, target, parameters, data_hash, code_hash()]
    parts.append(_origin(settings))
    return sha256_of(json.dumps(parts, sort_keys=True).encode())[:12]


def _origin(settings: Settings) -> str:
    """Name these results, at random and once: nobody else's runs have the ids of theirs."""
    path = settings.profile_dir / "origin"
    if not path.exists():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text()


def _newest(settings: Settings, stem: str) -> int:
    folders = (settings.profile_dir / "runs").glob(f"{stem}-*")
    numbers = [path.name.rsplit("-", 1)[1] for path in folders]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _hold(folder: Path) -> FileLock:
    """Take the run for this process; a killed process lets go by itself."""
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as err:
        step = "wait for it, stop it, or start a run of its own with --fresh"
        raise Busy(f"{folder.name} is being executed by another process", next_step=step) from err
    return lock


def _publish(run: Run, publish: Mapping[str, str]) -> None:
    """Replace the published files by this run's, then the manifest that names their run."""
    base = run.settings.profile_dir
    manifest_file = base / "manifest.json"
    manifest = read_json(manifest_file) if manifest_file.exists() else {}
    for published, name in publish.items():
        content = (run.folder / name).read_bytes()
        write_bytes(base / published, content)
        manifest[published] = {"run": run.id, "sha256": sha256_of(content)}
    write_json(manifest_file, manifest)
