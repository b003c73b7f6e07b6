"""The driver of the Ray job: trains in a Ray worker and leaves files in the try's folder.

Runs on the HPC side, started through Ray's Jobs API in an environment that has `KIT_TASK`. The
training is `kit.training`, the same as on the other targets, so that it gives the same bits.
"""

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from kit import records
from kit.errors import DataError
from kit.fashion_mnist import Dataset
from kit.hyperparameters import Hyperparameters
from kit.records import Json, Timeline

if TYPE_CHECKING:
    from kit.progress import Progress

FAILED = 1


def work(task: Json, folder: Path) -> None:
    """Train and evaluate, in a Ray worker; the last epoch stays there for a later try."""
    import numpy as np

    from kit import training

    hp, timeline = Hyperparameters(**task["hyperparameters"]), Timeline()
    with timeline.span("data"):
        data = load_data(Path(task["data"]), task["data_hash"])
    checkpoints = folder / "checkpoint"
    earlier = Path(task["previous"] or "/nowhere") / "checkpoint"
    if earlier.is_dir() and not checkpoints.exists():
        shutil.copytree(earlier, checkpoints)
    with timeline.span("training"):
        trained = training.train(data, hp, checkpoints, Reporter(folder / "progress.json"))
        training.save_model(trained.model, folder / "model.safetensors")
    with timeline.span("evaluation"):
        result = training.evaluate(trained.model, data, hp)
        np.save(folder / "predictions.npy", result.predictions, allow_pickle=False)
    records.write_json(folder / "losses.json", trained.losses)
    confusion = result.confusion.tolist()
    metrics = {"performance": result.performance, "confusion": confusion}
    records.write_json(folder / "metrics.json", metrics)
    times = {
        "training": records.time_record(
            "remote-model-training", trained.start, trained.end, trained.seconds
        ),
        "epochs_resumed": trained.epochs_resumed,
        "spans": timeline.seconds(),
        "host": records.host_facts() | {"node": os.environ.get("SLURMD_NODENAME", "")},
        "versions": dict(records.versions()),
    }
    records.write_json(folder / "times.json", times)


def load_data(path: Path, data_hash: str) -> Dataset:
    """Read the data set that the submitter put on the site. Raises DataError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        data = Dataset(**load_file(path), source="staged", files={})
    except (OSError, TypeError, SafetensorError) as err:
        raise DataError(f"read {path}", str(err), "run again: it is staged anew") from err
    if data.hash != data_hash:
        raise DataError(f"read {path}", f"the data set {data.hash}", f"{data_hash} is expected")
    return data


class Reporter:
    """Writes where the training is into a file, once a second at most."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, 0.0

    def __call__(self, now: "Progress") -> None:
        """Take the training's progress."""
        if time.monotonic() - self.last >= 1 or now.step == now.steps:
            self.last = time.monotonic()
            records.write_json(self.path, now._asdict())


def main() -> int:
    """Be the driver: hand the work to one Ray worker and wait for it."""
    import ray

    from kit import ray_driver  # by its own name, so that the workers import it

    task, folder = json.loads(os.environ["KIT_TASK"]), Path(os.environ["KIT_TRY"])
    ray.init()
    gpus = 1 if task["hyperparameters"]["device"] == "cuda" else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(ray_driver.work)
    try:
        ray.get(remote.remote(task, folder))
    except ray.exceptions.RayError as err:
        cause = err.cause if isinstance(err, ray.exceptions.RayTaskError) else err
        known = {"cause": "the training failed", "got": str(cause), "next": "", "code": FAILED}
        text = traceback.format_exc()
        records.write_json(folder / "failure.json", {**known, "traceback": text})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
