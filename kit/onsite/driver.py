"""The driver of the Ray job: trains in a Ray worker and leaves files in the attempt's folder.

Runs on the site, started through Ray's Jobs API in an environment that has `KIT_TASK`. The
experiment is the one that came with the code of this job, carried out as on the other targets, so
that its results have the same bits.
"""

import json
import os
import shutil
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.base import DataError, Json, Timeline, host_facts, time_record, versions, write_json
from kit.experiments import Context, imported_experiment, running
from kit.experiments.contract import files_below, hash_of
from kit.onsite.names import DRIVER_FAILED, FAILURE, METRICS, PROGRESS, TIMES

REPORT_INTERVAL_S = 1.0


def work(task: Json, folder: Path) -> None:
    """Train and evaluate, in a Ray worker; a later attempt continues from the checkpoint."""
    experiment, timeline = imported_experiment(task["module"]), Timeline()
    with timeline.span("data"):
        unpack_data(Path(task["data"]), folder / "data", task["data_hash"])
    checkpoint = folder / "checkpoint"
    earlier = Path(task["previous"] or "/nowhere") / "checkpoint"
    if earlier.is_dir() and not checkpoint.exists():
        shutil.copytree(earlier, checkpoint)
    ctx = Context(
        folder / "data",
        folder,
        experiment.parameters(**task["hyperparameters"]),
        task["workers"],
        Reporter(folder / PROGRESS),
        _submit(task),
    )
    with timeline.span("training"):
        trained = running.train(experiment, ctx)
    with timeline.span("evaluation"):
        metrics = running.evaluate(experiment, ctx)
    shutil.rmtree(folder / "data")  # the site's project folder has a quota
    write_json(folder / "losses.json", ctx.losses)
    write_json(folder / METRICS, {"metrics": metrics})
    times = {
        "training": time_record(
            "remote-model-training", trained.start, trained.end, trained.seconds
        ),
        "workers": ctx.workers,
        "resumed_step": trained.resumed_step,
        "spans": timeline.seconds(),
        "host": host_facts() | {"node": os.environ.get("SLURMD_NODENAME", "")},
        "versions": dict(versions()),
    }
    write_json(folder / TIMES, times)


def unpack_data(archive: Path, folder: Path, data_hash: str) -> None:
    """Unpack the data set that the submitter put on the site. Raises DataError."""
    try:
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                running.check_name(name)
            file.extractall(folder)
    except (OSError, zipfile.BadZipFile) as err:
        raise DataError(f"read {archive}", str(err), "run again: it is staged again") from err
    found = hash_of(files_below(folder))
    if found != data_hash:
        raise DataError(f"read {archive}", f"the data set {found}", f"{data_hash} is expected")


def _submit(task: Json) -> Callable[..., Callable[[], Any]]:
    """Return how `Context.submit` begins a call in another Ray worker; a lost one fails the run."""

    def begin(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Begin a call; calling the result waits for it."""
        import ray

        remote = ray.remote(**_needs(task), scheduling_strategy="SPREAD")(function)
        reference = remote.remote(*arguments)
        return lambda: ray.get(reference)

    return begin


def _needs(task: Json) -> dict[str, int]:
    """Return what each Ray worker of the training reserves; none is retried."""
    gpus = 1 if task["hyperparameters"].get("device") == "cuda" else 0
    return {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0}


class Reporter:
    """Writes the training's progress into a file, once a second at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = 0.0

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """Take the training's progress."""
        if time.monotonic() - self.last >= REPORT_INTERVAL_S or step == steps:
            self.last = time.monotonic()
            write_json(self.path, {"step": step, "steps": steps, "loss": loss})


def main() -> int:
    """Run the training in a Ray worker, the first of them, and wait for it."""
    import ray

    from kit.onsite import driver  # by its own name, so that the workers import it

    task, folder = json.loads(os.environ["KIT_TASK"]), Path(os.environ["KIT_ATTEMPT"])
    ray.init()
    remote = ray.remote(**_needs(task))(driver.work)
    try:
        ray.get(remote.remote(task, folder))
    except ray.exceptions.RayError as err:
        cause = err.cause if isinstance(err, ray.exceptions.RayTaskError) else err
        known = {
            "cause": "the training failed",
            "got": str(cause),
            "next": "",
            "code": DRIVER_FAILED,
        }
        text = traceback.format_exc()
        write_json(folder / FAILURE, {**known, "traceback": text})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
