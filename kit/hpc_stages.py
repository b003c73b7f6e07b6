"""What the three components of the cloud-hpc pipeline do; they hold no state and no ssh key.

`cloud-hpc-train` asks for the training and follows it: killed and started again it finds the same
request and goes on following. A stage whose record is in the store is done.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kit import fashion_mnist, records, settings
from kit.errors import DataError, KitError
from kit.gates import Gates, GatesNotPassed
from kit.hpc_follow import follow
from kit.hpc_log import run_log
from kit.hyperparameters import Hyperparameters
from kit.jobs import Jobs, Request
from kit.profiles import Cloud
from kit.records import Json
from kit.run_bill import job_units
from kit.settings import Settings
from kit.stage_store import StageStore
from kit.store import open_store
from kit.tracking import tracking_for

PREPROCESS, TRAIN, EVALUATE = "cloud-hpc-preprocess", "cloud-hpc-train", "cloud-hpc-evaluate"
KINDS = ("accuracy", "precision", "recall")

log = logging.getLogger(__name__)


def preprocess(profile: str, run_id: str, bucket: str, data_hash: str) -> str:
    """See to it that the data set is in the bucket; give the hash of this stage's record."""
    with _stage(profile, run_id, bucket, PREPROCESS) as (chosen, objects):
        if done := objects.record(PREPROCESS):
            return done[1]
        start, fresh = time.time(), False
        data = fashion_mnist.load(chosen.data_dir, chosen.cache_dir)
        if data.hash == data_hash:
            fresh = objects.put_data(data)
        elif not list(objects.store.list(f"data/{data_hash}")):
            got = f"here is {data.hash} ({data.source})"
            raise DataError(f"upload the data set {data_hash}", got, "upload it from the notebook")
        log.info("the data set %s", "is uploaded" if fresh else "was there, same hash")
        times = records.time_record(PREPROCESS, start, time.time())
        spans = {"preprocess": times["total-seconds"]}
        return objects.commit(PREPROCESS, {"objects": {}, "time": times, "spans": spans})


def train(
    profile: str,
    run_id: str,
    bucket: str,
    jobs_bucket: str,
    data_hash: str,
    configured: bool,
    workers: int,
    follow_timeout_s: float,
    **hyperparameters: float | str,
) -> str:
    """Have the model trained on the site; give the hash of this stage's record."""
    hp = Hyperparameters(**hyperparameters)  # type: ignore[arg-type]
    with _stage(profile, run_id, bucket, TRAIN) as (chosen, objects):
        if done := objects.record(TRAIN):
            log.info("already done, its record is in the store")
            return done[1]
        start = time.time()
        jobs = Jobs(open_store(chosen, jobs_bucket))
        request = Request(run_id, data_hash, configured, hp, workers)
        jobs.ask(request)
        result = follow(jobs, run_id, follow_timeout_s, log.info)
        result["seff"] = _priced(chosen, result, objects)
        record = _record(objects, result, start, request)
        return objects.commit(TRAIN, record)


def _priced(chosen: Settings, result: Json, objects: StageStore) -> Json:
    """Give seff's values; where they were computed, with the units at the profile's rates."""
    seff = dict(result["seff"])
    if source := seff.pop("Source", None):
        with contextlib.suppress(KitError):  # no rate: the run has no price, and is recorded
            text = objects.get(result["files"]["sacct.txt"]).decode()
            seff["Non-Interactive BUs"] = f"{job_units(chosen, text):.2f}"
        seff["Source"] = source
    return seff


def _record(objects: StageStore, result: Json, start: float, request: Request) -> Json:
    """Make the record of the training stage from the run's result."""
    times = json.loads(objects.get(result["files"]["times.json"]))
    about = json.loads(objects.store.get(f"data/{request.data_hash}.json"))
    whole = records.time_record(TRAIN, start, time.time())
    job_s, queued = float(result["elapsed_s"] or 0), float(result["queued_s"] or 0)
    spans = {"queue": queued, "environment": max(0.0, job_s - sum(times["spans"].values()))}
    rest = whole["total-seconds"] - queued - job_s
    known = ("try", "token", "job", "sacct", "seff", "elapsed_s", "queued_s", "nodes", "cores")
    return {
        "objects": result["files"],
        "data": {"hash": request.data_hash, "source": about["source"], "warning": about["warning"]},
        "hyperparameters": dataclasses.asdict(request.hyperparameters),
        "configured": request.configured,
        "workers": times["workers"],
        "training": times["training"],
        "ray_job": times["job"],
        "epochs_resumed": times["epochs_resumed"],
        "site": {**times["host"], "nodes": times["nodes"], "versions": times["versions"]},
        "slurm": {name: result[name] for name in known},
        "time": whole,
        "spans": {**spans, **times["spans"], "submitting, collecting": max(0.0, rest)},
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
    """Apply the gates to what the site measured, log to MLflow; give the record's hash, figures.

    Raises GatesNotPassed with `strict`, after everything is recorded.
    """
    gates = Gates(min_accuracy, min_precision, min_recall)
    with _stage(profile, run_id, bucket, EVALUATE) as (chosen, objects):
        if done := objects.record(EVALUATE):
            record, record_hash = done
        else:
            tags = {"kit.profile": profile, "mlflow.source.git.commit": commit or "unknown"}
            record = _evaluate(_with_mlflow(chosen, mlflow_url), objects, trained, gates, tags)
            record_hash = objects.commit(EVALUATE, record)
    if strict and not record["gates"]["passed"]:
        raise GatesNotPassed(
            "the model did not pass the gates, and the run is strict",
            "; ".join(record["gates"]["missed"]),
            "train longer, or lower min_accuracy, min_precision, min_recall",
        )
    return record_hash, {kind: record["performance"][kind] for kind in KINDS}


def _evaluate(
    chosen: Settings, objects: StageStore, trained: str, gates: Gates, tags: dict[str, str]
) -> Json:
    start = time.time()
    found = objects.record(TRAIN)
    if found is None or found[1] != trained:
        raise DataError(
            f"the training of {objects.run_id} in the bucket is not the one to be evaluated",
            "its record or one of its files was removed or changed",
            "run again: what is missing is made anew",
        )
    before = found[0]
    metrics = json.loads(objects.get(before["objects"]["metrics.json"]))
    losses = json.loads(objects.get(before["objects"]["losses.json"]))
    record = {**metrics, "objects": {}, "trained": trained, "tags": tags}
    record["gates"] = gates.outcome(record["performance"])
    log.info("gates: %s", "; ".join(record["gates"]["missed"]) or "passed")
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        for name in ("model.safetensors", "predictions.npy"):
            (Path(folder) / name).write_bytes(objects.get(before["objects"][name]))
        run = run_log(objects.run_id, before, record, losses, Path(folder))
        record["mlflow"] = dataclasses.asdict(tracking_for(chosen, "cloud").log(run))
    log.info("mlflow: %s %s", record["mlflow"]["state"], record["mlflow"]["reason"])
    times = records.time_record(EVALUATE, start, time.time())
    return {**record, "time": times, "spans": {"evaluate": times["total-seconds"]}}


@contextlib.contextmanager
def _stage(
    profile: str, run_id: str, bucket: str, stage: str
) -> Iterator[tuple[Settings, StageStore]]:
    """Open what a stage needs and leave its traceback in the store when it fails."""
    kit, inside = logging.getLogger("kit"), os.environ.get("_KFP_RUNTIME") == "true"
    if inside and not kit.handlers:  # KFP would mark the kit's messages as its own
        kit.addHandler(logging.StreamHandler(sys.stdout))
        kit.setLevel(logging.INFO)
        kit.propagate = False
    chosen = settings.load(profile)
    objects = StageStore(open_store(chosen, bucket), run_id)
    with objects.reporting(stage):
        yield chosen, objects
    if inside:
        gc.freeze()  # no last collection at exit


def _with_mlflow(chosen: Settings, url: str) -> Settings:
    """Put another MLflow address into the settings: inside a cluster it has another name."""
    cloud = dataclasses.replace(chosen.cloud or Cloud(), mlflow_url=url)
    return dataclasses.replace(chosen, cloud=cloud) if url else chosen
