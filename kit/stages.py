"""What the two components of the cloud pipeline do; they hold no state but the object store's.

A stage whose record is in the store is done: started again it gives the same answer at once.
A training that was killed goes on from its checkpoint when it is on the same machine.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock
import numpy as np

from kit import records, settings, training
from kit.errors import DataError
from kit.gates import Gates, GatesNotPassed
from kit.hyperparameters import Hyperparameters
from kit.profiles import Cloud
from kit.progress import Progress
from kit.records import Json, Timeline
from kit.settings import Settings
from kit.stage_log import run_log
from kit.stage_store import EVALUATE, PREPROCESS_TRAIN, StageStore
from kit.store import open_store
from kit.tracking import Tracking, tracking_for

KINDS = ("accuracy", "precision", "recall")

log = logging.getLogger(__name__)


def preprocess_train(
    profile: str, run_id: str, bucket: str, data_hash: str, **hyperparameters: float | str
) -> str:
    """Train on the data set in the bucket; give the hash of the stage's record."""
    hp = Hyperparameters(**hyperparameters)  # type: ignore[arg-type]
    with _stage(profile, run_id, bucket, PREPROCESS_TRAIN) as (_, objects, work):
        done = objects.record(PREPROCESS_TRAIN)
        if done:
            log.info("already done, its record is in the store")
            return done[1]
        return objects.commit(PREPROCESS_TRAIN, _train(objects, work, data_hash, hp))


def _train(objects: StageStore, work: Path, data_hash: str, hp: Hyperparameters) -> Json:
    start, timeline, model_file = time.time(), Timeline(), work / "model.safetensors"
    with timeline.span("download"):
        data, about = objects.get_data(data_hash)
    log.info("%s training and %s test images", len(data.train_labels), len(data.test_labels))
    with timeline.span("training"):
        trained = training.train(data, hp, work / "checkpoint", _say)
        training.save_model(trained.model, model_file)
    losses = records.dumps(trained.losses).encode()
    with timeline.span("upload"):
        kept = {
            "model": objects.keep(model_file.name, model_file.read_bytes()),
            "losses": objects.keep("losses.json", losses),
        }
    return {
        "objects": kept,
        "data": about,
        "hyperparameters": dataclasses.asdict(hp),
        "training": records.time_record(
            "cloud-model-training", trained.start, trained.end, trained.seconds
        ),
        "epochs_resumed": trained.epochs_resumed,
        "time": records.time_record(PREPROCESS_TRAIN, start, time.time()),
        "spans": timeline.seconds(),
        "host": records.host_facts(),
    }


def evaluate(
    profile: str,
    run_id: str,
    bucket: str,
    trained: str,
    *,
    min_accuracy: float,
    min_precision: float,
    min_recall: float,
    strict: bool = False,
    commit: str = "",
    mlflow_url: str = "",
) -> tuple[str, dict[str, float]]:
    """Evaluate the model of the record with hash `trained`; give this record's hash, figures.

    Raises GatesNotPassed with `strict`, after everything is recorded.
    """
    gates = Gates(min_accuracy, min_precision, min_recall)
    with _stage(profile, run_id, bucket, EVALUATE) as (chosen, objects, work):
        done = objects.record(EVALUATE)
        if done:
            log.info("already done, its record is in the store")
            record, record_hash = done
        else:
            tags = {"kit.profile": profile, "mlflow.source.git.commit": commit or "unknown"}
            place = tracking_for(_with_mlflow(chosen, mlflow_url), "cloud")
            record = _evaluate(objects, work, trained, gates, place, tags)
            record_hash = objects.commit(EVALUATE, record)
    if strict and not record["gates"]["passed"]:
        raise GatesNotPassed(
            "the model did not pass the gates, and the run is strict",
            "; ".join(record["gates"]["missed"]),
            "train longer, or lower min_accuracy, min_precision, min_recall",
        )
    return record_hash, {kind: record["performance"][kind] for kind in KINDS}


def _evaluate(
    objects: StageStore,
    work: Path,
    trained: str,
    gates: Gates,
    place: Tracking,
    tags: Mapping[str, str],
) -> Json:
    start, timeline = time.time(), Timeline()
    with timeline.span("download"):
        before = trained_record(objects, trained)
        data = objects.get_test_data(before["data"])
        model_file, predictions = work / "model.safetensors", work / "predictions.npy"
        model_file.write_bytes(objects.get(before["objects"]["model"]))
    with timeline.span("evaluation"):
        hp = Hyperparameters(**before["hyperparameters"])
        result = training.evaluate(training.load_model(model_file), data, hp)
        np.save(predictions, result.predictions, allow_pickle=False)
    with timeline.span("upload"):
        kept = objects.keep(predictions.name, predictions.read_bytes())
    record = {
        "objects": {"predictions": kept},
        "trained": trained,
        "performance": result.performance,
        "confusion": result.confusion.tolist(),
        "gates": gates.outcome(result.performance),
        "tags": dict(tags),
    }
    log.info("gates: %s", "; ".join(record["gates"]["missed"]) or "passed")
    losses = json.loads(objects.get(before["objects"]["losses"]))
    with timeline.span("mlflow"):
        run = run_log(objects.run_id, before, record, losses, work)
        record["mlflow"] = dataclasses.asdict(place.log(run))
    log.info("mlflow: %s %s", record["mlflow"]["state"], record["mlflow"]["reason"])
    times = records.time_record(EVALUATE, start, time.time())
    return {**record, "time": times, "spans": timeline.seconds()}


def trained_record(objects: StageStore, trained: str) -> Json:
    """Give the record of the training stage; raises DataError when it is not that one."""
    found = objects.record(PREPROCESS_TRAIN)
    if found is None or found[1] != trained:
        raise DataError(
            f"the training of {objects.run_id} in the bucket is not the one to be evaluated",
            "its record or its model was removed or changed",
            "run again: what is missing is made anew",
        )
    return found[0]


@contextlib.contextmanager
def _stage(
    profile: str, run_id: str, bucket: str, stage: str
) -> Iterator[tuple[Settings, StageStore, Path]]:
    """Open what a stage needs: settings, the run's objects, a folder to work in.

    The folder is this run's own, locked (a component that outlived its killed pipeline is
    waited for), and removed when the stage is done; it stays for the next try when it failed.
    """
    _talk()
    chosen = settings.load(profile)
    objects = StageStore(open_store(chosen, bucket), run_id)
    work = chosen.cache_dir / "stages" / run_id / stage
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work), objects.reporting(stage):
        yield chosen, objects, work
        shutil.rmtree(work)
    if _in_component():
        gc.freeze()  # nothing is collected at exit: that takes a second with PyTorch and MLflow


def _in_component() -> bool:
    """Tell whether KFP's executor runs this process."""
    return os.environ.get("_KFP_RUNTIME") == "true"


def _talk() -> None:
    """Let the kit's messages come out plainly inside a component (KFP would mark them its own)."""
    kit = logging.getLogger("kit")
    if _in_component() and not kit.handlers:
        kit.addHandler(logging.StreamHandler(sys.stdout))
        kit.setLevel(logging.INFO)
        kit.propagate = False


def _alone(work: Path) -> contextlib.AbstractContextManager[object]:
    """Take the lock of a folder, and say so when that means waiting."""
    lock = filelock.FileLock(work.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("waiting: an earlier try of this stage is still at work")
        return lock.acquire()


def _with_mlflow(chosen: Settings, url: str) -> Settings:
    """Put another MLflow address into the settings: inside a cluster it has another name."""
    if not url:
        return chosen
    cloud = dataclasses.replace(chosen.cloud or Cloud(), mlflow_url=url)
    return dataclasses.replace(chosen, cloud=cloud)


def _say(now: Progress) -> None:
    log.info("epoch %s/%s, step %s/%s, loss %.4f", *now[:5])
