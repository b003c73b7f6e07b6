"""What the three components of the cloud-hpc pipeline do; they hold no state and no ssh key.

`cloud-hpc-train` asks for the training and follows it: killed and started again it finds the same
request and goes on following. A stage whose record is in the store is done.
"""

import contextlib
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

from kit.base import DataError, Json, KitError, Timeline, time_record
from kit.base.settings import Settings
from kit.billing.run import job_units
from kit.experiments.fashion_mnist import data as fashion_mnist
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.client import ForwarderClient, forwarder_client
from kit.runs.follow import follow
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunRequests
from kit.runs.stage_work import Evaluation, stage
from kit.store import bucket_name, open_store

PREPROCESS, TRAIN, EVALUATE = "cloud-hpc-preprocess", "cloud-hpc-train", "cloud-hpc-evaluate"

log = logging.getLogger(__name__)


def preprocess(profile: str, run_id: str, bucket: str, data_hash: str) -> str:
    """See to it that the data set is in the bucket; give the hash of this stage's record."""
    with stage(profile, run_id, bucket, PREPROCESS) as (chosen, objects, _):
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
        times = time_record(PREPROCESS, start, time.time())
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
    tunnel: str,
    follow_timeout_s: float,
    **given: Any,
) -> str:
    """Have the model trained on the site; give the hash of this stage's record."""
    hp = Parameters(**given)
    with stage(profile, run_id, bucket, TRAIN) as (chosen, objects, _):
        if done := objects.record(TRAIN):
            log.info("already done, its record is in the store")
            return done[1]
        start = time.time()
        jobs = _asked_at(chosen, jobs_bucket)
        request = RunRequest(
            run=run_id,
            data_hash=data_hash,
            configured=configured,
            hyperparameters=hp,
            workers=workers,
            tunnel=tunnel,
        )
        ask = partial(jobs.ask, request)
        result = follow(jobs, run_id, follow_timeout_s, log.info, ask=ask)
        result["seff"] = _priced(chosen, result, objects)
        record = _record(objects, result, start, request)
        return objects.commit(TRAIN, record)


def _asked_at(chosen: Settings, jobs_bucket: str) -> RunRequests | ForwarderClient:
    """Give the forwarder's face, where the profile has one and it is about that bucket."""
    face = forwarder_client(chosen) if jobs_bucket == bucket_name(chosen, "submitter") else None
    log.info("asked for by %s", f"the forwarder at {face.url}" if face else "the object store")
    return face or RunRequests(open_store(chosen, jobs_bucket))


def _priced(chosen: Settings, result: Json, objects: StageStore) -> Json:
    """Give seff's values; where they were computed, with the units at the profile's rates."""
    seff = dict(result["seff"])
    if source := seff.pop("Source", None):
        with contextlib.suppress(KitError):  # no rate: the run has no price, and is recorded
            text = objects.get(result["files"]["sacct.txt"]).decode()
            seff["Non-Interactive BUs"] = f"{job_units(chosen, text):.2f}"
        seff["Source"] = source
    return seff


def _record(objects: StageStore, result: Json, start: float, request: RunRequest) -> Json:
    """Make the record of the training stage from the run's result."""
    times = json.loads(objects.get(result["files"]["times.json"]))
    about = json.loads(objects.store.get(f"data/{request.data_hash}.json"))
    whole = time_record(TRAIN, start, time.time())
    job_s, queued = float(result["elapsed_s"] or 0), float(result["queued_s"] or 0)
    spans = {"queue": queued, "environment": max(0.0, job_s - sum(times["spans"].values()))}
    rest = whole["total-seconds"] - queued - job_s
    known = ("try", "token", "job", "sacct", "seff", "elapsed_s", "queued_s", "nodes", "cores")
    return {
        "objects": result["files"],
        "data": {"hash": request.data_hash, "source": about["source"], "warning": about["warning"]},
        "hyperparameters": request.hyperparameters.model_dump(),
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


def _measured(objects: StageStore, work: Path, before: Json, timeline: Timeline) -> Json:
    """Take what the site measured and predicted."""
    with timeline.span("download"):
        for name in ("model.safetensors", "predictions.npy"):
            (work / name).write_bytes(objects.get(before["objects"][name]))
        return {**json.loads(objects.get(before["objects"]["metrics.json"])), "objects": {}}


evaluate = Evaluation(EVALUATE, TRAIN, _measured)
