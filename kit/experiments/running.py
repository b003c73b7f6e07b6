"""Carry out the functions of an experiment and check what they return and leave.

An error of the experiment's own code passes as it is: its traceback names the line.
"""

import math
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kit.base import DataError, Timeline, UsageError
from kit.experiments.contract import (
    MAX_OUT_BYTES,
    Context,
    DataInfo,
    Experiment,
    files_below,
    foreign_code,
    hash_of,
)

OUT = "out/"  # before the names of the experiment's own files, where others are beside them
METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")  # what every tracking server takes


@dataclass(frozen=True)
class Data:
    """A data set on this machine: the folder with its files, their hash, and what it is."""

    folder: Path
    hash: str
    info: DataInfo


@dataclass(frozen=True)
class Trained:
    """How a training went: seconds since 1970, its seconds over all starts, the step it resumed."""

    start: float
    end: float
    seconds: float
    resumed_step: int


def make_data(experiment: Experiment, cache: Path, source: Path | None) -> Data:
    """Have the experiment write its data set into a folder of the cache, named by its hash.

    `source` is the person's own folder, None for wherever the experiment gets its data. Raises
    DataError when it leaves no file.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
    try:
        with foreign_code():
            info = experiment.module.data(folder, source)
        tried = f"prepare the data set of {experiment.name}"
        if not isinstance(info, DataInfo):
            got = f"its function data returned {type(info).__name__}"
            raise UsageError(tried, got, "return kit.DataInfo(title=…, test_items=…)")
        files = files_below(folder)
        if not files:
            raise DataError(tried, "its function data wrote no file", "write files into `folder`")
        data_hash = hash_of(files)
        final = cache / f"{experiment.name}-{data_hash[:16]}"
        if final.exists() and hash_of(files_below(final)) != data_hash:
            shutil.rmtree(final)
        if not final.exists():
            folder.rename(final)
        return Data(final, data_hash, info)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train(experiment: Experiment, ctx: Context) -> Trained:
    """Train; a killed training resumes from its checkpoint.

    Raises DataError if it left no file; only the first of several ranks has to.
    """
    start = time.time()
    with ctx.opened():
        experiment.module.train(ctx)
        ctx.load_losses()
    end = time.time()
    if not out_files(ctx.out) and ctx.rank == 0:
        got = "its function train wrote no file into ctx.out"
        raise DataError(f"train {experiment.name}", got, "write the model into ctx.out")
    return Trained(*(ctx.times or (start, end, end - start)), ctx.resumed_step)


def train_timed(timeline: Timeline, experiment: Experiment, ctx: Context) -> Trained:
    """Train in the span `training`.

    Where the experiment records when the training itself began, what came before it (packages,
    data) is the span `loading`.
    """
    with timeline.span("training"):
        trained = train(experiment, ctx)
    if ctx.times:
        timeline.split("loading", trained.start)
    return trained


def evaluate(experiment: Experiment, ctx: Context) -> dict[str, float]:
    """Measure; return the metrics by name. Raises UsageError for one that is not a number."""
    with ctx.opened():
        metrics = experiment.module.evaluate(ctx)
    tried = f"evaluate {experiment.name}"
    if not isinstance(metrics, dict) or not metrics:
        got = f"its function evaluate returned {metrics!r:.80}"
        raise UsageError(tried, got, "return the metrics as {name: number}")
    for name, value in metrics.items():
        if not isinstance(name, str) or not METRIC.fullmatch(name):
            step = "use letters, digits, and _ . - for the name of a metric"
            raise UsageError(tried, f"{name!r:.80} is not the name of a metric", step)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            got = f"the metric {name} is {value!r:.80}, which is not a finite number"
            raise UsageError(tried, got, "return float(…) of a finite number")
    out_files(ctx.out)
    if experiment.primary and experiment.primary not in metrics:
        got = f"PRIMARY is {experiment.primary!r}; it measured {', '.join(metrics)}"
        raise UsageError(tried, got, "set PRIMARY to one of these")
    return {name: float(value) for name, value in metrics.items()}


def out_files(folder: Path) -> dict[str, Path]:
    """Return the results by name. Raises DataError for links, too many files, too many bytes."""
    files = files_below(folder)
    size = sum(path.stat().st_size for path in files.values())
    if size > MAX_OUT_BYTES:
        got = f"{size / 2**30:.1f} GiB, at most {MAX_OUT_BYTES / 2**30:.0f} GiB can be stored"
        raise DataError(f"read the results in {folder}", got, "write less into ctx.out")
    return files


def check_name(name: str) -> str:
    """Return the name of a file below a folder. Raises DataError for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or path.as_posix() != name:
        raise DataError(
            f"use the file name {name!r:.80}", "it leads out of its folder", "remove it"
        )
    return name


def out_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of stored files that the experiment wrote, by the names that it gave them."""
    return {n.removeprefix(OUT): value for n, value in stored.items() if n.startswith(OUT)}


def model_file(names: Iterable[str]) -> str:
    """Return the file of the results that is the model; empty where there is none."""
    return next((name for name in sorted(names) if Path(name).stem == "model"), "")
