"""The contract of an experiment: a module with five names, and what its functions receive.

    NAME = "digits"                                # small letters, digits, underscores
    class Parameters(kit.Parameters): ...          # types, ranges, defaults, one description each
    def data(folder, source) -> kit.DataInfo       # puts the files of the data set into `folder`
    def train(ctx) -> None                         # reads ctx.data, writes files into ctx.out
    def evaluate(ctx) -> dict[str, float]          # metrics by name; may write more files

Optional: `figures(ctx)` returns pictures by title, drawn from the files that exist so far;
`PRIMARY` names the metric of the tables, and `BEST = "lowest"` says that less of it is better;
`GATES` are the bounds of the metrics of a model that is registered:
`{"score": 0.85, "loss": "<= 0.3"}` is at least 0.85 and at most 0.3;
`REQUIREMENTS` lists packages that the site's environment needs beside the kit's own;
`BUDGET` names the whole-number parameter that says how long it trains: a training with more of it
resumes from the checkpoint of one with less, so that a sweep can stop the worse trials early;
`DISTRIBUTED = True` says that `train` uses `ctx.prepare` and `ctx.batches` or `ctx.order`, so that
several workers can each carry it out as a rank of torch.distributed;
`LABEL` and `MODEL` are the names in pipelines and MLflow, where they differ from `NAME`;
`published(target, facts)` returns the files to publish, where these have a shape of their own. The
file `model.*` in ctx.out is the one that is registered, and `LOADING` the lines
that load it, with `{!r}` for its path.
"""

import contextlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from kit.base import DataError, Json, UsageError, sha256_of
from kit.experiments.gates import Thresholds
from kit.experiments.parameters import Parameters

Report = Callable[[int, int, float], None]  # step, steps in all, mean loss since the last call
MAX_FILES = 10_000
MAX_OUT_BYTES = 5 * 2**30  # an object store takes no larger object in one piece
FORKED = "a copy of this process (os.fork) came back from the experiment and was ended"
LOSSES = "losses.jsonl"  # in the checkpoint's folder: the points reported so far


def ignore_progress(step: int, steps: int, loss: float) -> None:
    """Report nothing."""


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Restore the working directory and the handler of SIGTERM after an experiment's function.

    A copy of the process that comes back from the function is ended: the kit continues in one
    process only, and a run is recorded once.
    """
    before, process = os.getcwd(), os.getpid()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if os.getpid() != process:
            os.write(2, f"{FORKED}\n".encode())
            os._exit(1)
        os.chdir(before)
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and handler is not None and signal.getsignal(signal.SIGTERM) != handler:
            signal.signal(signal.SIGTERM, handler)


HIGHEST, LOWEST = "highest", "lowest"  # values of the primary metric that are best


@dataclass(frozen=True)
class Goal:
    """How trainings of an experiment are compared: its primary metric, and which end is best."""

    metric: str
    lowest: bool = False

    def worth(self, metrics: Mapping[str, float]) -> float:
        """Return a number that is greater for a better training; the least one without metric."""
        if self.metric not in metrics:
            return -math.inf
        return -metrics[self.metric] if self.lowest else metrics[self.metric]


@dataclass(frozen=True)
class DataInfo:
    """Description of a data set, as tables and records show it.

    `test_items` is the number of items that the metrics are measured on; with `balanced` (each
    class has as many of them) the primary metric gets an interval. A `warning` is shown wherever
    the data are.
    """

    title: str
    test_items: int = 0
    train_items: int = 0
    source: str = ""
    balanced: bool = False
    warning: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def facts(self, data_hash: str) -> Json:
        """Return what a record holds about the data."""
        return {**vars(self), "files": dict(self.files), "hash": data_hash}


class Context:
    """Folders, parameters and progress of one run, the same on every target.

    `data` is the folder that the experiment's `data` filled, `out` the folder for the results,
    `checkpoint` a folder that a killed training finds again when it is started again. `device` is
    cpu or cuda. `workers` is how many processes share the training: those of a distributed
    experiment all carry out `train`, each with its `rank`, and what others than rank 0 write is
    discarded; any other experiment may share work by `map`.
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        parameters: Any,
        workers: int = 1,
        show: Report = ignore_progress,
        map_calls: Callable[..., Iterable[Any]] = map,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data, self.out, self.checkpoint = data, folder / "out", folder / "checkpoint"
        self.parameters, self.workers = parameters, workers
        self.device: str = getattr(parameters, "device", "cpu")
        self.losses: list[tuple[int, float]] = []
        self.resumed_step = 0
        self.times: tuple[float, float, float] | None = None
        self.rank, self._ranks = rank, ranks
        self._show, self._map = show, map_calls
        self._file: Any = None

    def report(self, step: int, steps: int, loss: float) -> None:
        """Report the progress: steps done, steps in all, mean loss since the last report.

        The points survive a kill. A training that was resumed and repeats steps replaces theirs.
        Raises UsageError for a loss that is not a finite number.
        """
        if not math.isfinite(loss):
            got = f"the loss is {loss} by step {step}"
            raise UsageError("the training diverged", got, "change the parameters of the training")
        if self._file is None:
            self._resume(before=step)
        while self.losses and self.losses[-1][0] >= step:
            self.losses.pop()
        self.losses.append((int(step), float(loss)))
        self._file.write(json.dumps(self.losses[-1]) + "\n")
        self._file.flush()
        self._show(int(step), int(steps), float(loss))

    def prepare(self, model: Any) -> Any:
        """Return a PyTorch model on the run's device, to be trained.

        With several ranks its gradients are the mean over all ranks (DistributedDataParallel);
        `model` has the same weights, and is what to save.
        """
        model = model.to(self.device)
        if self._ranks == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def batches(self, items: Any, size: int) -> list[Any]:
        """Return this rank's share of each batch of `size` items of an epoch.

        `items` is an array or a tensor in a new order; the last batch may be smaller. A
        step of all ranks takes one batch, so that the training is that of one worker with batches
        of that size. Every rank gets as many items of a batch: where the ranks do not divide it,
        its first items fill up the last shares and count twice. All ranks must give the same order,
        as from a generator with the same seed. Raises UsageError for a size below 1.
        """
        if size < 1:
            raise UsageError(f"divide the items into batches of {size}", "", "give at least 1")
        return [self.order(items[start : start + size]) for start in range(0, len(items), size)]

    def order(self, items: Any) -> Any:
        """Return this rank's share of items of which one step takes all, as of a single batch.

        `items` is an array or a tensor, in the same order on all ranks. Every rank gets as many:
        the first items fill up the last shares.
        """
        if self._ranks == 1:
            return items
        count = -(-len(items) // self._ranks)
        return items[[(self.rank + i * self._ranks) % len(items) for i in range(count)]]

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Call a function with each item, in the workers where there are several; results in order.

        `function` is one of a module's own, items and results are arrays, numbers or texts. An
        error of one call is raised.
        """
        return list(self._map(function, items))

    def record_time(self, start: float, end: float, seconds: float) -> None:
        """Record when the training began and ended and how long it took, over all its starts.

        Without it the time of this start of `train` is recorded.
        """
        self.times = start, end, seconds

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folders for the block, which calls a function of the experiment."""
        for folder in (self.out, self.checkpoint):
            folder.mkdir(parents=True, exist_ok=True)
        with foreign_code():
            try:
                yield
            finally:
                if self._file is not None:
                    self._file.close()
                    self._file = None

    def load_losses(self) -> None:
        """Read the points of earlier starts: a training that was done reports none."""
        if not self.losses:
            self._resume(before=None)

    def _resume(self, before: int | None) -> None:
        """Read the stored points up to the step `before`, write them again, and go on."""
        path = self.checkpoint / LOSSES
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # the last one may be cut
                step, loss = json.loads(line)
                if (before is None or step < before) and step > self.resumed_step:
                    self.losses.append((int(step), float(loss)))
                    self.resumed_step = int(step)
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(json.dumps(point) + "\n" for point in self.losses)


@dataclass(frozen=True)
class Experiment:
    """An experiment that was loaded and checked; `reference` finds it again on this machine.

    `sources` are its own files by the name that they have beside or below the module, `code` is
    the hash of these. `reference` is its name, or the path of its file.
    """

    module: ModuleType
    reference: str
    sources: Mapping[str, Path]
    code: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Load it again where it is unpickled."""
        from kit.experiments.loader import load_experiment

        return load_experiment, (self.reference,)

    @cached_property
    def name(self) -> str:
        """Its name in records, tables and keys."""
        return str(self.module.NAME)

    @property
    def label(self) -> str:
        """Its name in pipelines and in MLflow's experiments."""
        return str(getattr(self.module, "LABEL", self.name.replace("_", "-")))

    @property
    def model_name(self) -> str:
        """The name under which MLflow registers its models, less the target."""
        return str(getattr(self.module, "MODEL", self.label.upper()))

    def loading(self, model: Path) -> str:
        """Return the lines that load a model from its file."""
        lines: str = getattr(self.module, "LOADING", "as its evaluate does, from {!r}")
        return lines.format(str(model))

    def read_sources(self) -> dict[str, bytes]:
        """Return its source files by name. Raises DataError if one was changed since it was loaded.

        What is copied, to the folder of a run or to a site, is what was loaded and checked.
        """
        tried = f"copy the source files of {self.name}"
        step = "start again: a run has one version of them"
        try:
            sources = {name: path.read_bytes() for name, path in self.sources.items()}
        except OSError as err:
            raise DataError(tried, f"{err.filename}: {err.strerror}", step) from err
        if (found := hash_of(sources)) != self.code:
            got = f"they had the hash {self.code[:12]} when they were loaded, now {found[:12]}"
            raise DataError(tried, got, step)
        return sources

    def facts(self) -> Json:
        """Return what records hold about it: enough to log a run without loading it again."""
        return {"name": self.name, "code": self.code, "label": self.label, "model": self.model_name}

    @property
    def parameters(self) -> type[Parameters]:
        """The class of its parameters."""
        kind: type[Parameters] = self.module.Parameters
        return kind

    @property
    def primary(self) -> str:
        """The metric of its tables; empty where it names none."""
        return str(getattr(self.module, "PRIMARY", ""))

    @property
    def goal(self) -> Goal:
        """How trainings are compared; raises UsageError where it names no metric."""
        if not self.primary:
            step = "name the metric by which trials are compared: PRIMARY = 'score'"
            raise UsageError("compare trainings", f"{self.name} has no PRIMARY", step)
        return Goal(self.primary, getattr(self.module, "BEST", HIGHEST) == LOWEST)

    @property
    def gates(self) -> Thresholds:
        """The bounds of the metrics of a model that is registered."""
        return Thresholds(getattr(self.module, "GATES", {}))

    @property
    def budget(self) -> str:
        """The parameter that says how long it trains; empty where it names none."""
        return str(getattr(self.module, "BUDGET", ""))

    @property
    def distributed(self) -> bool:
        """Whether several workers train as ranks of torch.distributed."""
        return bool(getattr(self.module, "DISTRIBUTED", False))

    @property
    def requirements(self) -> tuple[str, ...]:
        """Packages that the environment on a site needs beside the kit's own."""
        return tuple(getattr(self.module, "REQUIREMENTS", ()))

    def published(self, target: str, facts: Json) -> dict[str, Json]:
        """Return the files to publish by path: by default metrics and time of each target.

        `facts` are `metrics` and `time`; of a pipeline also `components`, the times of the stages;
        of a job also `ray_job`, `sacct`, `seff` and whether the environment was `configured`.
        """
        if hasattr(self.module, "published"):
            return dict(self.module.published(target, facts))
        content = {"metrics": facts["metrics"], "time": facts["time"]}
        return {f"{target}/artifacts/{self.name}-metrics.json": content}

    def figures(self, ctx: Context) -> dict[str, Any]:
        """Return the pictures that can be drawn from the files that exist so far, by title."""
        draw = getattr(self.module, "figures", None)
        return dict(draw(ctx)) if draw else {}


def files_below(folder: Path) -> dict[str, Path]:
    """Return the plain files of a folder by their name below it, sorted.

    Raises DataError for a symbolic link or a special file, and for more than MAX_FILES.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            got = f"{name} is a symbolic link or a special file"
            raise DataError(f"read the files of {folder}", got, "write plain files only")
        if path.is_file():
            files[name] = path
    if len(files) > MAX_FILES:
        got = f"{len(files)} files, at most {MAX_FILES} can be carried"
        raise DataError(f"read the files of {folder}", got, "pack them into a few archives")
    return files


def hash_of(files: Mapping[str, Path | bytes]) -> str:
    """Return the SHA-256 over names and contents of files."""
    lines = [f"{name}\0{sha256_of(path)}\n" for name, path in sorted(files.items())]
    return sha256_of("".join(lines).encode())
