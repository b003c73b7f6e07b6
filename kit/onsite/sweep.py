"""A sweep inside the job: trials as plain Ray tasks, a process each, spread over the job's nodes.

Each trial leaves its result in its own folder. When all have an end, the best one's files become
those of the attempt, with a table of all trials beside them, and the attempt is committed. That
happens at once, with what is finished, when the submitter writes the file `END_TRIALS`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.base import DataError, Json, Timeline, host_facts, time_record, versions, write_json
from kit.experiments import Experiment, imported_experiment
from kit.onsite.driver import needs, stage_data, wait_for_nodes
from kit.onsite.names import END_TRIALS, METRICS, PROGRESS, TIMES
from kit.sweeps import Sweep, carry_out, run_sweep, stored_results, trials_of
from kit.sweeps.engine import DONE, KILLED_CAUSE, publish_best, training_of


def run_trials(task: Json, folder: Path) -> None:
    """Run the trials of a task and leave the results of the best. Ray is connected.

    Raises DataError when no trial has a result.
    """
    experiment, timeline = imported_experiment(task["module"]), Timeline()
    sweep = Sweep(**task["sweep"])
    trials = trials_of(experiment, task["hyperparameters"], sweep)
    with timeline.span("data"):
        stage_data(task, folder)
        _take_over(task, folder)
    wait_for_nodes(task)
    slots = RaySlots(task, folder)

    def show(progress: Json) -> None:
        """Write the progress for the submitter to read."""
        write_json(folder / PROGRESS, progress)

    with timeline.span("training"):
        end = folder / END_TRIALS
        rows = run_sweep(experiment, sweep, trials, folder, slots, show, end.exists)
    _publish(experiment, task, folder, rows, timeline)


def _take_over(task: Json, folder: Path) -> None:
    """Copy the trials of earlier attempts, then those of the cancelled runs that are continued.

    Raises DataError where a folder of these is gone: their trials would be paid for twice.
    """
    stored_results([Path(name) for name in task["earlier"]], folder)
    for run, name in task["continued"]:
        if not Path(name).is_dir():
            step = "start the sweep with --fresh: all its trials are run"
            raise DataError(f"take over the trials of {run}", f"{name} is gone", step)
        stored_results([Path(name)], folder, run)


def _publish(
    experiment: Experiment, task: Json, folder: Path, rows: list[Json], timeline: Timeline
) -> None:
    best = publish_best(folder, rows, experiment.goal)
    write_json(folder / METRICS, {"metrics": best["metrics"]})
    times = {
        "training": time_record("remote-model-training", *training_of(rows)),
        "workers": task["workers"],
        "resumed_step": 0,
        "spans": timeline.seconds(),
        "host": host_facts() | {"node": os.environ.get("SLURMD_NODENAME", "")},
        "versions": dict(versions()),
        "trials": sum(row["state"] == DONE for row in rows),
        "best": best["values"],
    }
    write_json(folder / TIMES, times)


def work_trial(task: Json, parameters: Json, folder: Path, trial: Path, rung: str) -> None:
    """Carry out one trial, in a Ray worker."""
    carry_out(imported_experiment(task["module"]), folder / "data", parameters, trial, rung)


class RaySlots:
    """Runs trials as Ray tasks, as many at once as the task has workers; none is retried."""

    def __init__(self, task: Json, folder: Path) -> None:
        import ray

        from kit.onsite import sweep  # by its own name, so that the workers import it

        self.count = int(task["workers"])
        self._task, self._folder, self._ray = task, folder, ray
        self._remote = ray.remote(**needs(task), scheduling_strategy="SPREAD")(sweep.work_trial)
        self._running: dict[Any, str] = {}

    def start(self, trial: str, parameters: Mapping[str, Any], folder: Path, rung: str) -> None:
        """Start a trial in a Ray worker."""
        what = self._task, dict(parameters), self._folder, folder, rung
        self._running[self._remote.remote(*what)] = trial

    def ended(self, timeout_s: float) -> dict[str, str]:
        """Return the trials that have ended since, with why they failed."""
        done, _ = self._ray.wait(list(self._running), timeout=timeout_s)
        return {self._running.pop(call): self._why(call) for call in done}

    def kill(self, trial: str) -> None:
        """End the worker of a trial."""
        for call in [call for call, name in self._running.items() if name == trial]:
            del self._running[call]
            self._ray.cancel(call, force=True)

    def _why(self, call: Any) -> str:
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayTaskError as err:
            return f"{type(err.cause).__name__}: {err.cause}"[:500]
        except self._ray.exceptions.RayError:
            return KILLED_CAUSE
        return ""
