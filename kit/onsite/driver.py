"""The driver of the Ray job: trains in a Ray worker and leaves files in the attempt's folder.

Runs on the site, started through Ray's Jobs API in an environment that has `KIT_TASK`. The
training is `kit.experiments.fashion_mnist.training`, the same as on the other targets, so that
its results have the same bits.
"""

import functools
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.base import DataError, Json, Timeline, host_facts, time_record, versions, write_json
from kit.experiments.fashion_mnist.images import Dataset
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite.names import DRIVER_FAILED, FAILURE, METRICS, PROGRESS, TIMES

if TYPE_CHECKING:
    from kit.experiments.fashion_mnist.training import ShardRunner

REPORT_INTERVAL_S = 1.0


def work(task: Json, folder: Path) -> None:
    """Train and evaluate, in a Ray worker; a later attempt continues from the last epoch."""
    import numpy as np

    from kit.experiments.fashion_mnist import training

    hp, timeline = Parameters(**task["hyperparameters"]), Timeline()
    with timeline.span("data"):
        data = load_data(Path(task["data"]), task["data_hash"])
    checkpoints = folder / "checkpoint"
    earlier = Path(task["previous"] or "/nowhere") / "checkpoint"
    if earlier.is_dir() and not checkpoints.exists():
        shutil.copytree(earlier, checkpoints)
    with timeline.span("training"):
        report, workers = Reporter(folder / PROGRESS, hp.epochs), task["workers"]
        others = _others(task) if workers > 1 else None
        trained = training.train(data, hp, checkpoints, report, workers, others)
        training.save_model(trained.model, folder / "model.safetensors")
    with timeline.span("evaluation"):
        result = training.evaluate(trained.model, data, hp)
        np.save(folder / "predictions.npy", result.predictions, allow_pickle=False)
    write_json(folder / "losses.json", trained.losses)
    confusion = result.confusion.tolist()
    metrics = {"performance": result.performance, "confusion": confusion}
    write_json(folder / METRICS, metrics)
    times = {
        "training": time_record(
            "remote-model-training", trained.start, trained.end, trained.seconds
        ),
        "workers": workers,
        "epochs_resumed": trained.epochs_resumed,
        "spans": timeline.seconds(),
        "host": host_facts() | {"node": os.environ.get("SLURMD_NODENAME", "")},
        "versions": dict(versions()),
    }
    write_json(folder / TIMES, times)


def share(task: Json, vectors: Any, order: Any) -> Any:
    """Compute another worker's share of an epoch in its own Ray worker; arrays in, an array out."""
    import torch

    from kit.experiments.fashion_mnist import training

    hp = Parameters(**task["hyperparameters"])
    data = load_data(Path(task["data"]), task["data_hash"])
    return training.train_shard(data, hp, torch.tensor(vectors), torch.tensor(order)).numpy()


def _others(task: Json) -> "ShardRunner":
    """Return how Ray computes the other workers' shares; a lost worker fails the training."""
    import ray
    import torch

    from kit.onsite import driver

    remote = ray.remote(**_needs(task), scheduling_strategy="SPREAD")(driver.share)

    def begin(vectors: torch.Tensor, order: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `training.ShardRunner`."""
        reference = remote.remote(task, vectors.numpy(), order.numpy())
        return lambda: torch.tensor(ray.get(reference))

    return begin


def _needs(task: Json) -> dict[str, int]:
    """Return what each Ray worker of the training reserves; none is retried."""
    gpus = 1 if task["hyperparameters"]["device"] == "cuda" else 0
    return {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0}


@functools.lru_cache(1)  # a worker computes a share of every epoch
def load_data(path: Path, data_hash: str) -> Dataset:
    """Read the data set that the submitter put on the site. Raises DataError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        data = Dataset(**load_file(path), source="staged", files={})
    except (OSError, TypeError, SafetensorError) as err:
        raise DataError(f"read {path}", str(err), "run again: it is staged again") from err
    if data.hash != data_hash:
        raise DataError(f"read {path}", f"the data set {data.hash}", f"{data_hash} is expected")
    return data


class Reporter:
    """Writes the training's progress into a file, once a second at most."""

    def __init__(self, path: Path, epochs: int) -> None:
        self.path = path
        self.epochs = epochs
        self.last = 0.0

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """Take the training's progress; the epoch is counted from 1."""
        if time.monotonic() - self.last >= REPORT_INTERVAL_S or step == steps:
            self.last = time.monotonic()
            epoch = -(-step * self.epochs // steps)
            progress = {"epoch": epoch, "epochs": self.epochs, "step": step, "steps": steps}
            write_json(self.path, {**progress, "loss": loss})


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
