"""What one run logs to MLflow, and the spool: a folder where it waits until MLflow has it.

An entry of the spool is a folder that appears whole, by one rename: `run.json` with the run and
the SHA-256 of each file, and copies of the files, so that nothing depends on the originals.
Entries are named by the time they were made, so a plain sort is oldest first.
"""

import dataclasses
import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.base import DataError

Point = tuple[str, float, int, int]


@dataclass(frozen=True)
class RunLog:
    """Everything one run logs. Times in ms since 1970; a point is (key, value, step, time).

    `status` is FINISHED or FAILED, `artifacts` are (local file, artifact folder), `model` is
    (registered name, local safetensors file) or None; the model's file goes to `model/`.
    """

    experiment: str
    run_name: str
    run_id: str
    start_ms: int
    end_ms: int
    status: str = "FINISHED"
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[Point, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[tuple[str, str], ...] = ()
    model: tuple[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the form that JSON keeps."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "RunLog":
        """Build from `to_dict`'s form; raises KeyError, TypeError or ValueError when it is not."""
        points = tuple((str(k), float(v), int(step), int(t)) for k, v, step, t in table["metrics"])
        files = tuple((str(path), str(folder)) for path, folder in table["artifacts"])
        model = tuple(table["model"]) if table["model"] else None
        return cls(**{**table, "metrics": points, "artifacts": files, "model": model})


def performance_metrics(
    performance: Mapping[str, Any], labels: Sequence[str], timestamp_ms: int
) -> tuple[Point, ...]:
    """Give the points of a performance record: three totals, then three for each label.

    Raises ValueError when the record has not one figure for each label.
    """
    kinds = ("accuracy", "precision", "recall")
    points = [(kind, float(performance[kind]), 0, timestamp_ms) for kind in kinds]
    for kind in kinds:
        values = performance[f"class-{kind}"]
        points += [
            (f"{label}-{kind}", float(value), 0, timestamp_ms)
            for label, value in zip(labels, values, strict=True)
        ]
    return tuple(points)


def hyperparameters(values: Mapping[str, object]) -> dict[str, str]:
    """Give MLflow parameters: `hp-` before each name, values as text."""
    return {f"hp-{name}": str(value) for name, value in values.items()}


def write_entry(spool_dir: Path, run: RunLog, now_ns: int) -> Path:
    """Copy a run and its files into the spool and give the entry's folder.

    Raises DataError when a file of the run cannot be read or the spool cannot be written.
    """
    unique = uuid.uuid4().hex[:8]
    entry = spool_dir / f"{now_ns:020d}-{run.run_id}-{unique}"
    making = spool_dir / f".new-{unique}"
    try:
        making.mkdir(parents=True)
        table = run.to_dict()
        table["artifacts"] = [
            [_copy(path, making, f"artifacts/{number}"), folder]
            for number, (path, folder) in enumerate(run.artifacts)
        ]
        if run.model:
            table["model"] = [run.model[0], _copy(run.model[1], making, "model")]
        files = sorted(path for path in making.rglob("*") if path.is_file())
        hashes = {str(path.relative_to(making)): _sha256(path) for path in files}
        text = json.dumps({"schema": 1, "run": table, "sha256": hashes}, indent=4)
        (making / "run.json").write_text(text, encoding="utf-8")
        making.rename(entry)
    except OSError as err:
        shutil.rmtree(making, ignore_errors=True)
        raise DataError(
            f"run {run.run_id} could not be kept in the spool {spool_dir}",
            f"{type(err).__name__}: {err}",
            "make the named path usable (rights, space), then log again",
        ) from err
    return entry


def read_entry(entry: Path) -> RunLog:
    """Read an entry back, its files named by absolute paths.

    Raises DataError when the entry is not whole: no valid JSON, a key missing, a file missing
    or not the file that was put there. An OSError (no right to read) goes through.
    """
    try:
        content = json.loads((entry / "run.json").read_text(encoding="utf-8"))
        run = RunLog.from_dict(content["run"])
        hashes = dict(content["sha256"])
    except (ValueError, KeyError, TypeError, FileNotFoundError) as err:
        raise DataError(
            f"{entry / 'run.json'} is not a spool entry", f"{type(err).__name__}: {err}"
        ) from err
    named = [path for path, _ in run.artifacts] + ([run.model[1]] if run.model else [])
    for name in {*named, *hashes}:
        path = entry / name
        if not path.is_file() or _sha256(path) != hashes.get(name):
            raise DataError(f"{path} is missing or not the file that was put there")
    return dataclasses.replace(
        run,
        artifacts=tuple((str(entry / path), folder) for path, folder in run.artifacts),
        model=(run.model[0], str(entry / run.model[1])) if run.model else None,
    )


def waiting(spool_dir: Path) -> list[Path]:
    """Name the entries of a spool, oldest first."""
    return sorted(path for path in spool_dir.glob("[0-9]*-*") if path.is_dir())


def set_aside(entry: Path, reason: str) -> Path:
    """Move a damaged entry out of the way, to `damaged/`, with the reason beside its files."""
    aside = entry.parent / "damaged" / entry.name
    aside.parent.mkdir(exist_ok=True)
    entry.rename(aside)
    (aside / "reason.txt").write_text(reason + "\n", encoding="utf-8")
    return aside


def discard(entry: Path) -> None:
    """Remove a sent entry: out of the list at once, then its files, and what a kill left over."""
    gone = entry.with_name(f".sent-{entry.name}")
    entry.rename(gone)
    for leftover in (gone, *entry.parent.glob(".sent-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def run_id_of(entry: Path) -> str:
    """Give the run id that an entry's name carries."""
    return entry.name.partition("-")[2].rpartition("-")[0]


def _copy(path: str, making: Path, folder: str) -> str:
    """Copy a file into the entry; give its path inside."""
    target = making / folder / Path(path).name
    target.parent.mkdir(parents=True)
    shutil.copyfile(path, target)
    return str(target.relative_to(making))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
