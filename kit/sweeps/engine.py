"""Carry out the trials of a sweep: in slots, each trial once, resumable, halved where asked.

Each trial has a folder `trials/<id>/`. What it has reached is a file there that is written last:
`rung-0.json`, with halving also `rung-1.json` and so on. A trial with that file is never run
again. A sweep that was killed is run again with the same folder: finished trials are left alone,
begun ones resume from their checkpoint, missing ones are run.
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kit.base import (
    DataError,
    Json,
    KitError,
    UsageError,
    copy_whole,
    sha256_of,
    time_record,
    write_json,
)
from kit.experiments import Context, Experiment, Goal, running
from kit.sweeps.live import last_trials
from kit.sweeps.space import Sweep, Trial, named

TRIALS = "trials.json"  # the table of all trials, beside the results of the best one
FOLDER = "trials"
LOSSES = "losses.json"
HALVING = 2
POLL_S = 1.0
MAX_TRIALS_BYTES = 50 * 2**30  # of the results of all trials together
DONE, STOPPED, FAILED, MISSING = "done", "stopped early", "failed", "not run"
FROM_RUN = "from_run"  # of a trial that an earlier run has finished: the id of that run
CUT_OFF = "the sweep was cancelled before it was trained to its end"
KILLED_CAUSE = "its process was killed: most often it used more memory than there is"
REMOVED = f"its files were removed: those of all trials are over {MAX_TRIALS_BYTES >> 30} GiB"

Show = Callable[[Json], None]


class Slots(Protocol):
    """Where trials run: at most `count` at once, each in a process of its own."""

    count: int

    def start(self, trial: str, parameters: Mapping[str, Any], folder: Path, rung: str) -> None:
        """Start a trial; it ends with `carry_out`."""

    def ended(self, timeout_s: float) -> dict[str, str]:
        """Return the trials that have ended since, with why they failed ("" if they did not)."""

    def kill(self, trial: str) -> None:
        """End a trial that runs."""


def carry_out(
    experiment: Experiment, data: Path, parameters: Mapping[str, Any], folder: Path, rung: str
) -> None:
    """Train and evaluate one trial in this process; its result is written last.

    An error of the experiment's own code passes as it is.
    """
    begun = time.time()
    ctx = Context(data, folder, experiment.parameters(**parameters))
    trained = running.train(experiment, ctx)
    metrics = running.evaluate(experiment, ctx)
    write_json(folder / LOSSES, ctx.losses)
    files = running.out_files(ctx.out)
    hashes = {name: sha256_of(path) for name, path in files.items()}
    size = sum(path.stat().st_size for path in files.values())
    times = time_record("trial-training", trained.start, trained.end, trained.seconds)
    result = {"state": DONE, "metrics": metrics, "training": times, "files": hashes, "bytes": size}
    write_json(folder / rung, {**result, "start": begun, "end": time.time()})


def rungs_of(experiment: Experiment, sweep: Sweep, trials: Sequence[Trial]) -> list[int]:
    """Return how much of its budget a trial has reached at each halving; [0] without halving.

    The last one is the whole budget, the parameter that BUDGET of the experiment names; each is
    about half of the next. Raises UsageError where the experiment has no such parameter, or the
    trials have different ones.
    """
    if not sweep.stop_early:
        return [0]
    name, tried = experiment.budget, "stop trials early"
    if not name:
        step = "name the parameter that says how long it trains: BUDGET = 'steps'"
        raise UsageError(tried, f"{experiment.name} has no BUDGET", step)
    whole = trials[0].parameters.get(name)
    if not isinstance(whole, int) or isinstance(whole, bool) or whole < 1:
        step = "let BUDGET name a parameter that is a whole number"
        raise UsageError(tried, f"BUDGET of {experiment.name} is {name!r}: {whole!r}", step)
    if any(trial.parameters[name] != whole for trial in trials):
        got = f"{name} differs between the trials"
        raise UsageError(tried, got, f"give {name} one value, or leave out --stop-early")
    halvings = int(math.log(max(1, min(len(trials), whole)), HALVING))
    return [max(1, whole // HALVING ** (halvings - n)) for n in range(halvings + 1)]


def trained_share(experiment: Experiment, sweep: Sweep, trials: Sequence[Trial]) -> float:
    """Return how much of a whole training a trial is on average: less than 1 with halving."""
    rungs, alive = rungs_of(experiment, sweep, trials), len(trials)
    if not sweep.stop_early:
        return 1.0
    trained, before = 0, 0
    for reached in rungs:
        trained += alive * (reached - before)
        alive, before = alive // HALVING or 1, reached
    return trained / (rungs[-1] * len(trials))


def run_sweep(
    experiment: Experiment,
    sweep: Sweep,
    trials: Sequence[Trial],
    folder: Path,
    slots: Slots,
    show: Show = lambda progress: None,
    end_requested: Callable[[], bool] = lambda: False,
) -> list[Json]:
    """Run what is missing of a sweep and return the table of its trials; `show` gets its progress.

    Once `end_requested` returns true, what runs is ended and no further trial is begun. Raises
    DataError when no trial has a result.
    """
    goal = experiment.goal
    rungs = rungs_of(experiment, sweep, trials)
    work = _Work(experiment, sweep, trials, folder / FOLDER, slots, show, rungs, end_requested)
    alive = list(trials)
    for number in range(len(rungs)):
        work.run(alive, number)
        if end_requested():
            break
        alive = best_of(folder, alive, number, goal, len(alive) // HALVING or 1)
    rows = table_of(experiment, sweep, trials, folder)
    left = {trial.id for trial in alive}
    for row in rows:
        if row["state"] == STOPPED and row["trial"] in left:  # not by a halving
            row |= {"state": MISSING, "why": CUT_OFF}
    if not any(row["state"] == DONE for row in rows):
        why = next((row["why"] for row in rows if row["state"] == FAILED), "")
        got = f"all failed; the first one: {why}" if why else "it was ended before one was done"
        raise DataError(f"run the {len(trials)} trials", got)
    return rows


def best_of(folder: Path, trials: Sequence[Trial], rung: int, goal: Goal, keep: int) -> list[Trial]:
    """Return the trials that are best at a halving, in their order; the first wins a tie."""
    results = {trial.id: _result(folder / FOLDER / trial.id, rung) for trial in trials}
    done = [t for t in trials if (results[t.id] or {}).get("state") == DONE]
    ranked = sorted(done, key=lambda t: -goal.worth((results[t.id] or {})["metrics"]))
    kept = {trial.id for trial in ranked[:keep]}
    return [trial for trial in trials if trial.id in kept]


def table_of(
    experiment: Experiment, sweep: Sweep, trials: Sequence[Trial], folder: Path
) -> list[Json]:
    """Return a row for each trial: state, metrics, seconds in its slot, hashes of its files.

    A trial that an earlier run has finished names it (FROM_RUN) and has no seconds of this one.
    """
    rungs, rows = rungs_of(experiment, sweep, trials), []
    for trial in trials:
        results = [_result(folder / FOLDER / trial.id, number) for number in range(len(rungs))]
        reached = [result for result in results if result]
        own = [result for result in reached if FROM_RUN not in result]
        last: Json = reached[-1] if reached else {"state": MISSING}
        state = last["state"]
        if state == DONE and len(reached) < len(rungs):
            state = STOPPED
        seconds = sum(result["end"] - result["start"] for result in own)
        row = {"trial": trial.id, "values": dict(trial.values), "state": state}
        why = last.get("why") or (f"from {last[FROM_RUN]}" if FROM_RUN in last else "")
        row |= {"metrics": last.get("metrics", {}), "why": why}
        row |= {"slot_seconds": round(seconds, 5), "training": last.get("training", {})}
        row |= {"start": (own or reached)[0]["start"], "end": last["end"]} if reached else {}
        row |= {FROM_RUN: last[FROM_RUN]} if FROM_RUN in last else {}
        rows.append({**row, "files": last.get("files", {})})
    return rows


def best_row(rows: Sequence[Json], goal: Goal) -> Json | None:
    """Return the row of the best trial that was trained to its end; None without one."""
    done = [row for row in rows if row["state"] == DONE]
    return max(done, key=lambda row: goal.worth(row["metrics"]), default=None)


def training_of(rows: Sequence[Json]) -> tuple[float, float, float]:
    """Return start and end of all trials that trained, and the sum of their training seconds.

    Those of earlier runs are left out, unless all are.
    """
    trained = [row for row in rows if row["training"]]
    done = [row for row in trained if FROM_RUN not in row] or trained
    seconds = sum(row["training"]["total-seconds"] for row in done)
    return min(row["start"] for row in done), max(row["end"] for row in done), seconds


def publish_best(folder: Path, rows: Sequence[Json], goal: Goal) -> Json:
    """Put the files of the best trial beside the trials, as a run's own; return its row.

    `out/` and `losses.json` are then those of a run that trained with these parameters only.
    """
    best = best_row(rows, goal)
    if best is None:
        raise DataError("find the best trial", "none was trained to its end")
    source, out = folder / FOLDER / best["trial"], folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source / "out", out)
    shutil.copyfile(source / LOSSES, folder / LOSSES)
    write_json(folder / TRIALS, list(rows))
    return best


def stored_results(earlier: Sequence[Path], folder: Path, run: str = "") -> None:
    """Take over what earlier attempts have left, newest first: the last state of each trial.

    A trial that failed there because its process was killed is run again. `run` is the id of the
    run of these attempts, where it is another one: the results say so, as it has paid for them.
    """
    for attempt in earlier:
        for source in sorted((attempt / FOLDER).glob("*")):
            target = folder / FOLDER / source.name
            if target.exists() or not source.is_dir() or source.suffix:  # .part: a cut copy
                continue
            taken = target.with_name(f"{target.name}.taken")
            shutil.rmtree(taken, ignore_errors=True)
            copy_whole(source, taken)
            for path in taken.glob("rung-*.json"):
                result = _read(path)
                if result.get("again"):
                    path.unlink()
                elif result and run:
                    write_json(path, {FROM_RUN: run, **result})
            taken.rename(target)


def progress_of(rows: Sequence[Json], begun: Mapping[str, float], goal: Goal) -> Json:
    """Return the progress of a sweep: counts, the best trial so far in words, the last trials.

    `begun` says since when a trial runs.
    """
    ended = [row for row in rows if row["state"] != MISSING]
    done, primary = [row for row in ended if row["metrics"]], goal.metric
    best = max(done, key=lambda row: goal.worth(row["metrics"]), default=None)
    words = f"{primary} {best['metrics'][primary]:.4f}: {named(best['values'])}" if best else ""
    failed = sum(row["state"] == FAILED for row in rows)
    counts = {"done": len(ended) - failed, "failed": failed, "running": len(begun), "best": words}
    counts |= {"primary": primary, "last": last_trials(rows, begun, time.time(), primary)}
    return {"step": len(ended), "steps": len(rows), "trials": counts}


@dataclass(frozen=True)
class _Stored:
    """A trial that is done: its last halving with how good it is there, and bytes of its files."""

    rank: tuple[int, float]
    size: int


class _Work:
    """One sweep at work: the folder of its trials, the slots, what runs in them."""

    def __init__(
        self,
        experiment: Experiment,
        sweep: Sweep,
        trials: Sequence[Trial],
        folder: Path,
        slots: Slots,
        show: Show,
        rungs: list[int],
        end_requested: Callable[[], bool],
    ) -> None:
        self.experiment, self.sweep, self.trials = experiment, sweep, trials
        self.folder, self.slots, self.show, self.rungs = folder, slots, show, rungs
        self.end_requested = end_requested
        self.begun: dict[str, float] = {}
        self.stored: dict[str, _Stored] = {}
        self.shown_at = 0.0

    def run(self, alive: Sequence[Trial], number: int) -> None:
        """Run the trials that have no result of this halving yet."""
        results = {trial.id: _result(self.folder / trial.id, number) for trial in alive}
        todo = [trial for trial in reversed(alive) if not results[trial.id]]
        for name, result in results.items():
            self._store(name, number, result or {})
        try:
            while (todo or self.begun) and not self.end_requested():
                while todo and len(self.begun) < self.slots.count:
                    self._start(todo.pop(), number)
                self._report()
                for trial, why in self.slots.ended(POLL_S).items():
                    self._end(trial, number, why)
                self._end_overdue(number)
            self._report(always=True)
        finally:
            for trial in list(self.begun):
                self.slots.kill(trial)
            self.begun.clear()

    def _start(self, trial: Trial, number: int) -> None:
        folder, parameters = self.folder / trial.id, dict(trial.parameters)
        folder.mkdir(parents=True, exist_ok=True)
        if self.sweep.stop_early:
            parameters[self.experiment.budget] = self.rungs[number]
        self.begun[trial.id] = time.time()
        self.slots.start(trial.id, parameters, folder, _rung(number))

    def _end(self, trial: str, number: int, why: str, again: bool = False) -> None:
        """Note how a trial ended: its own result, or why it has none."""
        begun, result = self.begun.pop(trial), _result(self.folder / trial, number)
        if result:
            self._store(trial, number, result)
            self._free_room()
        else:
            failed: Json = {"state": FAILED, "why": why or "it left no result", "metrics": {}}
            failed |= {"again": again or why == KILLED_CAUSE, "start": begun, "end": time.time()}
            write_json(self.folder / trial / _rung(number), failed)

    def _store(self, trial: str, number: int, result: Json) -> None:
        """Remember how good a trial is and how large its results are."""
        if result.get("state") == DONE:
            worth = self.experiment.goal.worth(result["metrics"])
            self.stored[trial] = _Stored((number, worth), int(result.get("bytes", 0)))

    def _free_room(self) -> None:
        """Remove the files of the worst trials while those of all are too many; never the best's.

        Their metrics, and the rest of their results, stay.
        """
        size = sum(stored.size for stored in self.stored.values())
        if size <= MAX_TRIALS_BYTES:
            return
        best = max(stored.rank for stored in self.stored.values())
        for trial in sorted(self.stored, key=lambda name: self.stored[name].rank):
            stored = self.stored[trial]
            if size <= MAX_TRIALS_BYTES or stored.rank == best:
                return
            path = self.folder / trial / _rung(stored.rank[0])
            write_json(path, {**_read(path), "files": {}, "bytes": 0, "why": REMOVED})
            shutil.rmtree(self.folder / trial / "out", ignore_errors=True)
            self.stored[trial] = _Stored(stored.rank, 0)
            size -= stored.size

    def _end_overdue(self, number: int) -> None:
        limit = self.sweep.trial_limit_s
        for trial, begun in list(self.begun.items()):
            if limit and time.time() - begun > limit:
                self.slots.kill(trial)
                self._end(trial, number, f"it was ended after its limit of {limit:g} s")

    def _report(self, always: bool = False) -> None:
        """Show how far the sweep is, once a second at most: that reads every trial's result."""
        if not always and time.monotonic() - self.shown_at < POLL_S:
            return
        self.shown_at = time.monotonic()
        rows = table_of(self.experiment, self.sweep, self.trials, self.folder.parent)
        self.show(progress_of(rows, self.begun, self.experiment.goal))


def _rung(number: int) -> str:
    return f"rung-{number}.json"


def _result(folder: Path, number: int) -> Json | None:
    """Return the result of a trial at a halving; a damaged file is as good as none."""
    path = folder / _rung(number)
    return _read(path) or None


def _read(path: Path) -> Json:
    with contextlib.suppress(OSError, ValueError, KitError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and {"state", "start", "end"} <= content.keys():
            return content
    return {}
