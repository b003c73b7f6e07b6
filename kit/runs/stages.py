"""What the two components of the cloud pipeline do; they hold no state but the object store's.

A training that was killed goes on from its checkpoint when it is on the same machine.
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from kit.base import Json, Timeline, dumps, host_facts, time_record
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.objects import EVALUATE, PREPROCESS_TRAIN, StageStore
from kit.runs.stage_work import Evaluation, stage

log = logging.getLogger(__name__)


def preprocess_train(profile: str, run_id: str, bucket: str, data_hash: str, **given: Any) -> str:
    """Train on the data set in the bucket; give the hash of the stage's record.

    `given` are the fields of `Parameters`.
    """
    hp = Parameters(**given)
    with stage(profile, run_id, bucket, PREPROCESS_TRAIN) as (_, objects, work):
        if done := objects.record(PREPROCESS_TRAIN):
            log.info("already done, its record is in the store")
            return done[1]
        return objects.commit(PREPROCESS_TRAIN, _train(objects, work, data_hash, hp))


def _train(objects: StageStore, work: Path, data_hash: str, hp: Parameters) -> Json:
    start, timeline, model_file = time.time(), Timeline(), work / "model.safetensors"
    with timeline.span("download"):
        data, about = objects.get_data(data_hash)
    log.info("%s training and %s test images", len(data.train_labels), len(data.test_labels))
    with timeline.span("training"):
        trained = training.train(data, hp, work / "checkpoint", _log_progress)
        training.save_model(trained.model, model_file)
    losses = dumps(trained.losses).encode()
    with timeline.span("upload"):
        kept = {
            model_file.name: objects.keep(model_file.name, model_file.read_bytes()),
            "losses.json": objects.keep("losses.json", losses),
        }
    return {
        "objects": kept,
        "data": about,
        "hyperparameters": hp.model_dump(),
        "training": time_record(
            "cloud-model-training", trained.start, trained.end, trained.seconds
        ),
        "epochs_resumed": trained.epochs_resumed,
        "time": time_record(PREPROCESS_TRAIN, start, time.time()),
        "spans": timeline.seconds(),
        "host": host_facts(),
    }


def _measure(objects: StageStore, work: Path, before: Json, timeline: Timeline) -> Json:
    """Load the model that was trained and let it predict the test images."""
    model_file, predictions = work / "model.safetensors", work / "predictions.npy"
    with timeline.span("download"):
        data = objects.get_test_data(before["data"])
        model_file.write_bytes(objects.get(before["objects"][model_file.name]))
    with timeline.span("evaluation"):
        hp = Parameters(**before["hyperparameters"])
        result = training.evaluate(training.load_model(model_file), data, hp)
        np.save(predictions, result.predictions, allow_pickle=False)
    with timeline.span("upload"):
        kept = objects.keep(predictions.name, predictions.read_bytes())
    return {
        "objects": {predictions.name: kept},
        "performance": result.performance,
        "confusion": result.confusion.tolist(),
    }


evaluate = Evaluation(EVALUATE, PREPROCESS_TRAIN, _measure)


def _log_progress(step: int, steps: int, loss: float) -> None:
    log.info("step %s/%s, loss %.4f", step, steps, loss)
