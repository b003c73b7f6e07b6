"""Runs: their ids, their folders, and how a finished run becomes the published files.

A run is one execution of one target. Its id is `<target>-<12 hex>-<n>`; the hex is a hash of
profile, target, experiment, parameters, data, the experiment's own source files, the format of
this room and the folder of the results: the store and the site are shared and outlive that
folder, and a new folder must not find old results there. An interrupted run resumes under its id.
"""

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kit.base import (
    ROOT,
    Busy,
    DataError,
    Json,
    KitError,
    Timeline,
    UsageError,
    append_history,
    file_lock,
    git_state,
    host_facts,
    read_history,
    read_json,
    sha256_of,
    time_record,
    versions,
    work_dir,
    write_bytes,
    write_json,
    write_text,
)
from kit.base.settings import Settings
from kit.experiments import DEFAULT, Experiment, load_experiment

TARGETS = ("local", "cloud", "cloud-hpc")
TRIAL_LINES = "trials.jsonl"  # below results/<profile>/: a line for each trial of a sweep
FORMAT = 2  # part of every run id: raised when folders of an older kit must not be resumed
LOCK_WAIT_S = 60.0
# What is judged, shown or refused after the training, and so is not part of a run's id.
NOT_IN_THE_ID = ("gates", "strict", "tunnel", "min_accuracy", "min_precision", "min_recall")
_NO_LOCKS = "set KIT_RESULTS_DIR to a folder on a file system with locks, such as a local disk"


class RunTimeline(Timeline):
    """A timeline that is stored at each change, so that a resumed run keeps earlier seconds.

    `background` is the name of what happens outside of the spans; with one they leave no gap.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.background = ""
        self._earlier = 0  # spans of earlier starts

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the block; also store that it has begun, for a process that is killed in it."""
        start = time.time()
        self._fill(start)
        self._store({"name": name, "start-time": start})
        try:
            yield
        finally:
            self.spans.append(time_record(name, start, time.time()))
            self._store()

    def add(self, other: Timeline) -> None:
        """Add the spans that were measured before the run had a folder."""
        self.spans += other.spans
        self._store()

    def split(self, before: str, at: float) -> None:
        """See `Timeline.split`."""
        super().split(before, at)
        self._store()

    def enter(self, background: str) -> None:
        """End what happens outside of the spans, and begin something else of that name."""
        self._fill(time.time())
        self.background = background
        if self.path.parent.is_dir():  # the person may have removed the run
            self._store()

    def other(self, earlier_s: float) -> float:
        """Return the seconds without a name: of `earlier_s`, those of earlier starts, and since."""
        earlier, now = self.spans[: self._earlier], self.spans[self._earlier :]
        since = time.time() - now[0]["start-time"] if now else 0.0
        return max(0.0, earlier_s - _sum(earlier)) + max(0.0, since - _sum(now))

    def load(self, last_active: float) -> None:
        """Read the spans of earlier starts; a span that was cut ends at `last_active`."""
        if not self.path.exists():
            return
        for span in read_json(self.path):
            if "end-time" not in span:
                end = max(last_active, span["start-time"])
                span = time_record(span["name"], span["start-time"], end)
            self.spans.append(span)
        self._earlier = len(self.spans)

    def _fill(self, until: float) -> None:
        """Add the time since the last span under the name of the background."""
        if self.background and len(self.spans) > self._earlier:
            end = self.spans[-1]["end-time"]
            if until > end:
                self.spans.append(time_record(self.background, end, until))

    def _store(self, *unfinished: Json) -> None:
        write_json(self.path, [*self.spans, *unfinished])


def _sum(spans: Iterable[Json]) -> float:
    return sum(float(span["total-seconds"]) for span in spans)


@dataclass
class StoredRun:
    """One execution of a target and its folder `results/<profile>/runs/<id>/`.

    `first` is what was true when the run started: time, git commit, versions, host, the runs that
    it `continues`. `earlier_s` are the seconds of earlier starts that were interrupted, `more` is
    what the line of the history has of its own, such as the counts of a sweep.
    """

    id: str
    target: str
    experiment: Experiment
    folder: Path
    parameters: Json
    resumed: bool
    started: float
    settings: Settings
    lock: FileLock
    first: Json
    timeline: RunTimeline
    earlier_s: float = 0.0
    more: Json = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the run's id and whether it resumes an earlier start."""
        return f"run {self.id}" + (" (resumed where it was interrupted)" if self.resumed else "")

    @property
    def commit(self) -> str:
        """The git commit of the checkout when the run started; empty where it is not known."""
        return self.first["git"]["commit"] or ""

    def seconds(self) -> dict[str, float]:
        """Return where the seconds of all starts went, by name; `other` is what has no name."""
        return {**self.timeline.seconds(), "other": round(self.timeline.other(self.earlier_s), 5)}

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
        """Publish files of the run, add it to the history, mark it finished; return the line.

        `publish` maps a path below `results/<profile>/` to a file name in the run's folder;
        `facts` are the times, metrics and bill of the history line. Killed at any point and
        started again the result is the same: one line, the files of this run.
        """
        line = {
            "run": self.id,
            "target": self.target,
            "experiment": self.experiment.name,
            "profile": self.settings.profile,
            "parameters": self.parameters,
            "resumed": self.resumed,
            "started": self.started,
            "ended": time.time(),
            **self.first,
            "seconds": self.seconds(),
            **facts,
            **self.more,
        }
        if (state := git_state(work_dir())) != line["git"]:
            line["git_at_end"] = state
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
    experiment: Experiment | None = None,
    was_cancelled: Callable[[str], bool] = lambda run: False,
) -> StoredRun:
    """Resume the newest unfinished run of this kind, or begin a new one.

    Without `experiment` it is a run of the article's. A run that `was_cancelled` is not resumed:
    the next one continues it, as it does a sweep of which a cancel has left trials. Raises Busy
    when another process is executing that run, UsageError for an unknown target.
    """
    if target not in TARGETS:
        raise UsageError(f"no target {target!r}", next_step=f"use one of {', '.join(TARGETS)}")
    experiment = experiment or load_experiment(DEFAULT)
    with results_lock(settings):
        stem = f"{target}-{_kind(settings, target, experiment, parameters, data_hash)}"
        runs, newest = settings.profile_dir / "runs", _newest(settings, stem)
        folder = runs / f"{stem}-{newest}"
        ended = fresh or not newest or (folder / "record.json").exists()
        ended = ended or was_cancelled(folder.name)
        folder, before = (runs / f"{stem}-{newest + ended - n}" for n in (0, 1))
        continues = [] if fresh else _continued(before, was_cancelled)
        _make_folder(folder)
        lock = _hold(folder)
        last_active = _last_active(folder)
        first = _first_start(settings, folder, target, experiment, parameters, continues)
    timeline = RunTimeline(folder / "timeline.json")
    timeline.load(last_active)
    started = float(first.pop("started"))
    earlier_s = _earlier_seconds(folder, last_active)
    return StoredRun(
        id=folder.name,
        target=target,
        experiment=experiment,
        folder=folder,
        parameters=parameters,
        resumed=not ended,
        started=started,
        settings=settings,
        lock=lock,
        first=first,
        timeline=timeline,
        earlier_s=earlier_s,
    )


def _continued(before: Path, was_cancelled: Callable[[str], bool]) -> list[str]:
    """Return the run before, if a cancel has left trials of it, and what that one continues."""
    record, start = before / "record.json", before / "run.json"
    if not start.exists():
        return []
    sweep = read_json(record).get("sweep", {}) if record.exists() else None
    left = was_cancelled(before.name) if sweep is None else sweep.get("not_run")
    return [before.name, *read_json(start).get("continues", [])] if left else []


def _first_start(
    settings: Settings,
    folder: Path,
    target: str,
    experiment: Experiment,
    parameters: Json,
    continues: Sequence[str],
) -> Json:
    """Return what was true at the first start of a run; record it if this is the first start.

    The notebook, the experiment and the list of package versions are copied: all may be edited.
    """
    path = folder / "run.json"
    if not path.exists():
        notebook = "sweep" if "sweep" in parameters else target
        for source in (ROOT / "notebooks" / f"{notebook}.ipynb", ROOT / "requirements.lock"):
            if source.is_file():
                (folder / "source").mkdir(exist_ok=True)
                shutil.copyfile(source, folder / "source" / source.name)
        for name, content in experiment.read_sources().items():
            write_bytes(folder / "source" / "experiment" / name, content)
        write_json(
            path,
            {
                "run": folder.name,
                "started": time.time(),
                "parameters": parameters,
                "profile": settings.profile,
                "git": git_state(work_dir()),
                "versions": dict(versions()),
                "host": host_facts(),
                "code": experiment.code,
                **({"continues": list(continues)} if continues else {}),
            },
        )
    names = ("started", "git", "versions", "host", "code")
    first = read_json(path)
    if not isinstance(first, dict) or any(name not in first for name in names):
        raise DataError(f"read {path}", "it does not hold the start of a run", "use --fresh")
    return {name: first[name] for name in (*names, "continues") if name in first}


def _earlier_seconds(folder: Path, last_active: float) -> float:
    """Return the seconds of earlier starts, and record that another start begins now."""
    path = folder / "starts.json"
    starts: list[list[float]] = read_json(path) if path.exists() else []
    if starts and len(starts[-1]) == 1:
        starts[-1].append(max(last_active, starts[-1][0]))
    earlier_s = sum(end - start for start, end in starts)
    write_json(path, [*starts, [time.time()]])
    return earlier_s


def _last_active(folder: Path) -> float:
    """Return when a file of the run was last written: an interrupted start leaves no other sign."""
    times = [0.0]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.name != ".lock":
                times.append(path.stat().st_mtime)
    return max(times)


def results_lock(settings: Settings) -> contextlib.AbstractContextManager[object]:
    """Hold the lock under which published files and the history change. Raises Busy, KitError."""
    folder = settings.profile_dir
    _make_folder(folder)
    path = folder / ".lock"
    busy = Busy(
        f"lock {folder}",
        f"another process has held {path.name} for {LOCK_WAIT_S:.0f} s",
        f"wait for it; if no other run is active, remove {path}",
    )
    return file_lock(path, LOCK_WAIT_S, busy, _NO_LOCKS)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise KitError(f"cannot make {folder}", str(err), "set KIT_RESULTS_DIR") from err


def _kind(
    settings: Settings, target: str, experiment: Experiment, parameters: Json, data_hash: str
) -> str:
    trained = {name: value for name, value in parameters.items() if name not in NOT_IN_THE_ID}
    parts: list[Any] = [FORMAT, settings.profile, target, experiment.name, trained, data_hash]
    parts += [experiment.code, _origin(settings)]
    return sha256_of(json.dumps(parts, sort_keys=True).encode())[:12]


def _origin(settings: Settings) -> str:
    """Return a random name of these results, made once: nobody else's runs have their ids."""
    path = settings.profile_dir / "origin"
    if not path.exists():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text()


def _newest(settings: Settings, stem: str) -> int:
    folders = (settings.profile_dir / "runs").glob(f"{stem}-*")
    numbers = [path.name.rsplit("-", 1)[1] for path in folders]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _hold(folder: Path) -> FileLock:
    """Take the run for this process, which may start it again; a killed process releases it."""
    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as err:
        next_step = "wait for it, stop it, or start another run with --fresh"
        raise Busy(f"{folder.name} is being executed by another process", "", next_step) from err
    except (OSError, NotImplementedError) as err:
        raise KitError(f"lock {lock.lock_file}", str(err), _NO_LOCKS) from err
    return lock


def _publish(run: StoredRun, publish: Mapping[str, str]) -> None:
    """Replace the published files by this run's, then the manifest that names their run."""
    base = run.settings.profile_dir
    manifest_file = base / "manifest.json"
    manifest: Json = {}
    with contextlib.suppress(DataError):  # without it, or damaged: it is written again
        manifest = read_json(manifest_file)
    manifest = manifest if isinstance(manifest, dict) else {}
    for published, name in publish.items():
        content = (run.folder / name).read_bytes()
        write_bytes(base / published, content)
        manifest[published] = {"run": run.id, "sha256": sha256_of(content)}
    write_json(manifest_file, manifest)
