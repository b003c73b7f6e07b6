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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kit.base import (
    DataError,
    Json,
    KitError,
    Timeline,
    copy_whole,
    host_facts,
    time_record,
    versions,
    write_json,
)
from kit.experiments import Context, imported_experiment, running
from kit.experiments.contract import Experiment, files_below, hash_of, ignore_progress
from kit.onsite.names import DRIVER_FAILED, FAILURE, METRICS, PROGRESS, TIMES
from kit.onsite.ranks import joined, rank_folder, wait_for_all

REPORT_INTERVAL_S = 1.0
CAUSE_S = 5.0
NODES_POLL_S = 0.1


def work(task: Json, folder: Path, rank: int = 0) -> None:
    """Train and evaluate, in a Ray worker; a later attempt continues from the checkpoint.

    A distributed training is carried out by one worker for each rank; the first one evaluates.
    """
    experiment, timeline = imported_experiment(task["module"]), Timeline()
    ranks = ranks_of(experiment, task)
    parameters = experiment.parameters(**task["hyperparameters"])
    device = str(getattr(parameters, "device", "cpu"))
    with joined(folder, rank, ranks, device):
        if rank == 0:
            with timeline.span("data"):
                stage(task, folder)
        wait_for_nodes(task)
        wait_for_all(ranks)
        own = rank_folder(folder, rank)
        ctx = Context(
            folder / "data",
            own,
            parameters,
            task["workers"],
            Reporter(folder / PROGRESS) if rank == 0 else ignore_progress,
            _map(task),
            rank,
            ranks,
        )
        wait_for_all(ranks)  # no checkpoint is written before all have a copy of the last
        trained = running.train_timed(timeline, experiment, ctx)
        wait_for_all(ranks)
    if rank:
        shutil.rmtree(own)
        return
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


def wait_for_nodes(task: Json) -> None:
    """Wait until Ray runs on as many nodes as the task says; the main program sets the limit.

    The driver and its worker are started while Ray starts on the other nodes of the job.
    """
    import ray

    while ray.is_initialized() and alive_nodes() < task.get("nodes", 1):
        time.sleep(NODES_POLL_S)


def alive_nodes() -> int:
    """Return on how many nodes Ray runs."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def ranks_of(experiment: Experiment, task: Json) -> int:
    """Return how many workers carry out the training, each as a rank."""
    return int(task["workers"]) if experiment.distributed else 1


def stage(task: Json, folder: Path) -> None:
    """Put the data set and the newest checkpoint of earlier attempts into the folder."""
    stage_data(task, folder)
    checkpoint = folder / "checkpoint"
    found = [Path(name) / "checkpoint" for name in task["earlier"]]
    if (newest := next(filter(Path.is_dir, found), None)) and not checkpoint.exists():
        copy_whole(newest, checkpoint)


def stage_data(task: Json, folder: Path) -> None:
    """Put the data set into the folder."""
    unpack_data(Path(task["data"]), folder / "data", task["data_hash"])


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


def _map(task: Json) -> Callable[..., Iterable[Any]]:
    """Return how `Context.map` calls a function in other Ray workers; a lost one fails the run."""
    if task["workers"] == 1:
        return map

    def in_workers(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Call the function with each item, spread over the nodes."""
        import ray

        remote = ray.remote(**needs(task), scheduling_strategy="SPREAD")(function)
        results: list[Any] = ray.get([remote.remote(item) for item in items])
        return results

    return in_workers


def needs(task: Json) -> dict[str, int]:
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


def wait_for_ranks(calls: list[Any]) -> None:
    """Wait for all ranks. Raises the error of the first one that fails.

    The ranks that a lost one has left fail too, by an error of the network that says less: they
    are given a moment for the cause to appear.
    """
    import ray

    left = calls
    failures: list[Exception] = []
    while left and not failures:
        done, left = ray.wait(left)
        failures = [err for err in map(_failure, done) if err]
    if failures:
        late, _ = ray.wait(left, num_returns=len(left), timeout=CAUSE_S) if left else ([], [])
        failures += [err for err in map(_failure, late) if err]
        lost = [err for err in failures if not isinstance(err, ray.exceptions.RayTaskError)]
        raise (lost or failures)[0]


def _failure(call: Any) -> Exception | None:
    """Return how a call that has ended failed, if it did."""
    import ray

    try:
        ray.get(call)
    except ray.exceptions.RayError as err:
        return err  # type: ignore[no-any-return]
    return None


def train_in_workers(task: Json, folder: Path) -> None:
    """Run the training in a Ray worker for each rank, and wait for them. Raises RayError."""
    import ray

    from kit.onsite import driver  # by its own name, so that the workers import it

    ranks = ranks_of(imported_experiment(task["module"]), task)
    if ranks > 1:  # so that they are spread over all nodes
        wait_for_nodes(task)
    spread = {"scheduling_strategy": "SPREAD"} if ranks > 1 else {}
    remote = ray.remote(**needs(task), **spread)(driver.work)
    wait_for_ranks([remote.remote(task, folder, rank) for rank in range(ranks)])


def main() -> int:
    """Do the work of the task, a training or a sweep; note why it failed.

    The argument is the number of the job's nodes.
    """
    import ray

    from kit.onsite import sweep

    task, folder = json.loads(os.environ["KIT_TASK"]), Path(os.environ["KIT_ATTEMPT"])
    task["nodes"] = int(sys.argv[1])
    ray.init()
    try:
        if task.get("sweep"):
            sweep.run_trials(task, folder)
        else:
            train_in_workers(task, folder)
    except (ray.exceptions.RayError, KitError) as err:
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
