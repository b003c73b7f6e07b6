"""The five stages of the two pipelines; they hold no state but the object store's, and no ssh key.

A stage whose record is in the store is done: started again it returns the same answer at once.
PyTorch is imported only where a model is trained or evaluated here: a component that trains on
the site starts quickly.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kit.base import Busy, DataError, Json, Timeline, dumps, file_lock, host_facts, time_record
from kit.base.settings import Cloud, Settings, load
from kit.experiments import GatesNotPassed, Thresholds
from kit.experiments.fashion_mnist import METRICS
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.client import ForwarderClient, forwarder_client
from kit.runs.follow import follow
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunRequests, site_id
from kit.store import bucket_name, open_store
from kit.tracking import log_run, run_log

PREPROCESS_TRAIN, EVALUATE = "preprocess-train", "evaluate"
HPC_PREPROCESS, HPC_TRAIN = "cloud-hpc-preprocess", "cloud-hpc-train"
HPC_EVALUATE = "cloud-hpc-evaluate"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage at work: settings, the run's objects, a folder of its own, and when it started."""

    name: str
    settings: Settings
    objects: StageStore
    work: Path
    start: float


def preprocess_train(profile: str, run_id: str, bucket: str, data_hash: str, **given: Any) -> str:
    """Train on the data set in the bucket; return the hash of the stage's record.

    `given` are the fields of `Parameters`.
    """
    do = partial(_train_here, data_hash=data_hash, parameters=Parameters(**given))
    return _record_of(profile, run_id, bucket, PREPROCESS_TRAIN, do)[1]


def cloud_hpc_preprocess(profile: str, run_id: str, bucket: str, data_hash: str) -> str:
    """Upload the data set unless it is in the bucket; return the hash of the stage's record."""
    do = partial(_upload, data_hash=data_hash)
    return _record_of(profile, run_id, bucket, HPC_PREPROCESS, do)[1]


def cloud_hpc_train(
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
    """Request the training on the site and follow it; return the hash of the stage's record.

    Killed and started again it finds the same request and resumes following it.
    """
    request = RunRequest(
        run=run_id,
        data_hash=data_hash,
        configured=configured,
        hyperparameters=Parameters(**given),
        workers=workers,
        tunnel=tunnel,
    )
    do = partial(
        _train_on_site, request=request, bucket=jobs_bucket, follow_timeout_s=follow_timeout_s
    )
    return _record_of(profile, run_id, bucket, HPC_TRAIN, do)[1]


def evaluate(
    profile: str,
    run_id: str,
    bucket: str,
    trained: str,
    gates: Mapping[str, float],
    strict: bool = False,
    commit: str = "",
    mlflow_url: str = "",
) -> tuple[str, dict[str, float]]:
    """Judge the model of the record with hash `trained`; return this record's hash and metrics.

    The model of a cloud-hpc run was measured on the site, another one is measured here. `gates`
    are the least values by metric; other gates judge again without another training. Raises
    GatesNotPassed with `strict`, after everything is recorded.
    """
    stage = HPC_EVALUATE if run_id.startswith("cloud-hpc-") else EVALUATE
    thresholds = Thresholds(gates)
    tags = {"kit.profile": profile, "mlflow.source.git.commit": commit or "unknown"}
    do = partial(_judge, trained=trained, thresholds=thresholds, tags=tags, mlflow_url=mlflow_url)

    def is_current(record: Json) -> bool:
        """Return whether a record is about this model and these gates."""
        judged = record.get("gates", {}).get("thresholds")
        return record.get("trained") == trained and judged == dict(thresholds)

    record, record_hash = _record_of(profile, run_id, bucket, stage, do, is_current)
    if strict and not record["gates"]["passed"]:
        raise GatesNotPassed(
            "the model did not pass the gates, and the run is strict",
            "; ".join(record["gates"]["missed"]),
            "train longer, or lower min_accuracy, min_precision, min_recall",
        )
    return record_hash, {metric: record["performance"][metric] for metric in METRICS}


def _record_of(
    profile: str,
    run_id: str,
    bucket: str,
    name: str,
    do: Callable[[Stage], Json],
    is_current: Callable[[Json], bool] = lambda record: True,
) -> tuple[Json, str]:
    """Return a stage's record and its hash: the stored one, else do the work, then commit."""
    with open_stage(profile, run_id, bucket, name) as stage:
        stored = stage.objects.record(name)
        if stored and is_current(stored[0]):
            log.info("already done, its record is in the store")
            return stored
        record = do(stage)
        return record, stage.objects.commit(name, record)


@contextlib.contextmanager
def open_stage(profile: str, run_id: str, bucket: str, name: str) -> Iterator[Stage]:
    """Open what a stage needs; its folder is locked and removed when the stage is done.

    A component that outlived its killed pipeline is waited for. The folder of a failed stage stays
    for the next start.
    """
    _log_plainly()
    settings = load(profile)
    objects = StageStore(open_store(settings, bucket), run_id)
    folder = settings.cache_dir / "stages"
    work, lock = folder / run_id / name, folder / f"{run_id}-{name}.lock"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(lock), objects.reporting(name):
        work.mkdir(parents=True, exist_ok=True)  # under the lock: the one before removes it
        yield Stage(name, settings, objects, work, time.time())
        shutil.rmtree(work)
        with contextlib.suppress(OSError):  # another stage of the run is at work
            work.parent.rmdir()
        lock.unlink(missing_ok=True)
    if _in_component():
        gc.freeze()  # nothing is collected at exit: that takes a second with PyTorch and MLflow


def _in_component() -> bool:
    """Return whether KFP's executor runs this process."""
    return os.environ.get("_KFP_RUNTIME") == "true"


def _log_plainly() -> None:
    """Print the kit's messages as they are inside a component (KFP would mark them as its own)."""
    kit = logging.getLogger("kit")
    if _in_component() and not kit.handlers:
        kit.addHandler(logging.StreamHandler(sys.stdout))
        kit.setLevel(logging.INFO)
        kit.propagate = False


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a stage; log that it is waited for."""
    busy = Busy("an earlier start of this stage is still at work")
    next_step = "set KIT_CACHE_DIR to a folder on a file system with locks"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path, 0, busy, next_step))
        except Busy:
            log.info("waiting: %s", busy)
            stack.enter_context(file_lock(path, -1, busy, next_step))
        yield


def _train_here(stage: Stage, data_hash: str, parameters: Parameters) -> Json:
    """Train in this process; an interrupted training resumes from the checkpoint of its folder."""
    from kit.experiments.fashion_mnist import training

    objects, timeline = stage.objects, Timeline()
    model_file = stage.work / "model.safetensors"
    with timeline.span("download"):
        data, about = objects.get_data(data_hash)
    log.info("%s training and %s test images", len(data.train_labels), len(data.test_labels))
    with timeline.span("training"):
        trained = training.train(data, parameters, stage.work / "checkpoint", _log_progress)
        training.save_model(trained.model, model_file)
    losses = dumps(trained.losses).encode()
    with timeline.span("upload"):
        files = {
            model_file.name: objects.keep(model_file.name, model_file.read_bytes()),
            "losses.json": objects.keep("losses.json", losses),
        }
    return {
        "objects": files,
        "data": about,
        "hyperparameters": parameters.model_dump(),
        "training": time_record(
            "cloud-model-training", trained.start, trained.end, trained.seconds
        ),
        "epochs_resumed": trained.epochs_resumed,
        "time": time_record(stage.name, stage.start, time.time()),
        "spans": timeline.seconds(),
        "host": host_facts(),
    }


def _log_progress(step: int, steps: int, loss: float) -> None:
    log.info("step %s/%s, loss %.4f", step, steps, loss)


def _upload(stage: Stage, data_hash: str) -> Json:
    """Upload the data set of this machine, unless the bucket has the wanted one."""
    from kit.experiments.fashion_mnist import images as fashion_mnist

    objects, uploaded = stage.objects, False
    data = fashion_mnist.load(stage.settings.data_dir, stage.settings.cache_dir)
    if data.hash == data_hash:
        uploaded = objects.put_data(data)
    elif not list(objects.store.list(f"data/{data_hash}")):
        got = f"here is {data.hash} ({data.source})"
        raise DataError(f"upload the data set {data_hash}", got, "upload it from the notebook")
    log.info("the data set %s", "is uploaded" if uploaded else "was there, same hash")
    times = time_record(stage.name, stage.start, time.time())
    return {"objects": {}, "time": times, "spans": {"preprocess": times["total-seconds"]}}


def _train_on_site(stage: Stage, request: RunRequest, bucket: str, follow_timeout_s: float) -> Json:
    """Request the training and wait for its result. Raises TrainingFailed, Unreachable."""
    objects, settings = stage.objects, stage.settings
    request = request.model_copy(update={"profile": settings.profile, "site": site_id(settings)})
    first_start = objects.first_start(stage.name, stage.start)
    requests = requests_at(settings, bucket)
    ask = partial(requests.ask, request)
    result = follow(requests, request.run, follow_timeout_s, log.info, ask=ask)
    times = json.loads(objects.get(result["files"]["times.json"]))
    about = json.loads(objects.store.get(f"data/{request.data_hash}.json"))
    job_s, queued_s = float(result["elapsed_s"] or 0), float(result["queued_s"] or 0)
    whole = _time_with_earlier_starts(stage, first_start, job_s + queued_s)
    spans = {"queue": queued_s, "environment": max(0.0, job_s - sum(times["spans"].values()))}
    rest = whole["total-seconds"] - queued_s - job_s
    names = ("try", "token", "job", "sacct", "seff", "elapsed_s", "queued_s", "nodes", "cores")
    return {
        "objects": result["files"],
        "data": {"hash": request.data_hash} | {n: about.get(n, "") for n in ("source", "warning")},
        "hyperparameters": request.hyperparameters.model_dump(),
        "configured": request.configured,
        "workers": times["workers"],
        "training": times["training"],
        "ray_job": times["job"],
        "epochs_resumed": times["epochs_resumed"],
        "resumed": first_start < stage.start,
        "site": {**times["host"], "nodes": times["nodes"], "versions": times["versions"]},
        "slurm": {name: result[name] for name in names},
        "time": whole,
        "spans": {**spans, **times["spans"], "submitting, collecting": max(0.0, rest)},
    }


def _time_with_earlier_starts(stage: Stage, first_start: float, job_s: float) -> Json:
    """Return the time of a stage that may have been killed while the job went on.

    Of the time before this start only queue and job certainly belong to the run: the pipeline may
    have been started again a day later.
    """
    end = time.time()
    seconds = end - stage.start
    if first_start < stage.start:
        seconds = min(end - first_start, seconds + job_s)
    return time_record(stage.name, first_start, end, seconds)


def requests_at(settings: Settings, bucket: str) -> RunRequests | ForwarderClient:
    """Return the forwarder's API, if the profile has one for this bucket, else the store."""
    client = forwarder_client(settings) if bucket == bucket_name(settings, "submitter") else None
    log.info("requested by %s", f"the forwarder at {client.url}" if client else "the object store")
    return client or RunRequests(open_store(settings, bucket))


def _judge(stage: Stage, trained: str, thresholds: Thresholds, tags: Json, mlflow_url: str) -> Json:
    """Measure the model, hold it against the thresholds, log it to MLflow."""
    objects, timeline = stage.objects, Timeline()
    trains, measure = (
        (HPC_TRAIN, _read_measured) if stage.name == HPC_EVALUATE else (PREPROCESS_TRAIN, _measure)
    )
    stored = objects.record(trains)
    if stored is None or stored[1] != trained:
        raise DataError(
            f"the training of {objects.run_id} in the bucket is not the one to be evaluated",
            "its record or its model was removed or changed",
            "run again: what is missing is recreated",
        )
    before = stored[0]
    record = {**measure(stage, before, timeline), "trained": trained}
    record |= {"gates": thresholds.judge(record["performance"]), "tags": tags}
    log.info("gates: %s", "; ".join(record["gates"]["missed"]) or "passed")
    losses = json.loads(objects.get(before["objects"]["losses.json"]))
    settings = stage.settings
    if mlflow_url:  # inside a cluster MLflow has another name
        cloud = dataclasses.replace(settings.cloud or Cloud(), mlflow_url=mlflow_url)
        settings = dataclasses.replace(settings, cloud=cloud)
    with timeline.span("mlflow"):
        run = run_log(objects.run_id, before, record, losses, stage.work)
        record["mlflow"] = dataclasses.asdict(log_run(settings, run))
    log.info("mlflow: %s %s", record["mlflow"]["state"], record["mlflow"]["reason"])
    times = time_record(stage.name, stage.start, time.time())
    return {**record, "time": times, "spans": timeline.seconds()}


def _measure(stage: Stage, before: Json, timeline: Timeline) -> Json:
    """Load the trained model, predict the test images here."""
    import numpy as np

    from kit.experiments.fashion_mnist import training

    objects = stage.objects
    model_file, predictions = stage.work / "model.safetensors", stage.work / "predictions.npy"
    with timeline.span("download"):
        data = objects.get_test_data(before["data"])
        model_file.write_bytes(objects.get(before["objects"][model_file.name]))
    with timeline.span("evaluation"):
        parameters = Parameters(**before["hyperparameters"])
        result = training.evaluate(training.load_model(model_file), data, parameters)
        np.save(predictions, result.predictions, allow_pickle=False)
    with timeline.span("upload"):
        reference = objects.keep(predictions.name, predictions.read_bytes())
    return {
        "objects": {predictions.name: reference},
        "performance": result.performance,
        "confusion": result.confusion.tolist(),
    }


def _read_measured(stage: Stage, before: Json, timeline: Timeline) -> Json:
    """Download what the site has measured and predicted."""
    with timeline.span("download"):
        for name in ("model.safetensors", "predictions.npy"):
            (stage.work / name).write_bytes(stage.objects.get(before["objects"][name]))
        metrics = json.loads(stage.objects.get(before["objects"]["metrics.json"]))
    return {**metrics, "objects": {}}
