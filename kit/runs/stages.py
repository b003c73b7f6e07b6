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

from kit.base import (
    Busy,
    DataError,
    Json,
    Timeline,
    dumps,
    file_lock,
    hide_secrets,
    host_facts,
    sha256_of,
    time_record,
)
from kit.base.settings import Settings, load
from kit.experiments import (
    DEFAULT,
    Context,
    Experiment,
    GatesNotPassed,
    Thresholds,
    experiment_with_code,
    load_experiment,
    running,
)
from kit.experiments.parameters import Parameters
from kit.experiments.running import model_file, out_names
from kit.runs.client import requests_at
from kit.runs.follow import follow, time_of_starts, times_of_training
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest
from kit.store import open_store
from kit.sweeps import Sweep
from kit.tracking import log_run, predictions, run_log, start_ahead, with_server

PREPROCESS_TRAIN, EVALUATE, HPC_EVALUATE = "preprocess-train", "evaluate", "cloud-hpc-evaluate"
HPC_PREPROCESS, HPC_TRAIN = "cloud-hpc-preprocess", "cloud-hpc-train"

OF_THE_JOB = ("try", "token", "job", "sacct", "seff", "elapsed_s", "queued_s", "nodes", "cores")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage at work: settings, the run's objects, a folder of its own, and when it started."""

    name: str
    settings: Settings
    objects: StageStore
    work: Path
    start: float


def preprocess_train(
    profile: str,
    run_id: str,
    bucket: str,
    data_hash: str,
    experiment: str,
    code: str,
    hyperparameters: Mapping[str, Any],
) -> str:
    """Train on the data set in the bucket; return the hash of the stage's record.

    `code` is the hash of the experiment's source files where the run was started.
    """
    wanted = experiment_with_code(experiment, code)
    parameters = wanted.parameters(**hyperparameters)
    do = partial(_train_here, data_hash=data_hash, experiment=wanted, parameters=parameters)
    return _record_of(profile, run_id, bucket, PREPROCESS_TRAIN, do)[1]


def cloud_hpc_preprocess(
    profile: str, run_id: str, bucket: str, data_hash: str, experiment: str
) -> str:
    """Upload the data set unless it is in the bucket; return the hash of the stage's record."""
    do = partial(_upload, data_hash=data_hash, experiment=experiment)
    return _record_of(profile, run_id, bucket, HPC_PREPROCESS, do)[1]


def cloud_hpc_train(
    profile: str,
    run_id: str,
    bucket: str,
    jobs_bucket: str,
    data_hash: str,
    experiment: str,
    code: str,
    configured: bool,
    workers: int,
    tunnel: str,
    follow_timeout_s: float,
    hyperparameters: dict[str, Any],
    sweep: dict[str, Any],
) -> str:
    """Request the training on the site and follow it; return the hash of the stage's record.

    Killed and started again it finds the same request and resumes following it.
    """
    request = RunRequest(
        run=run_id,
        data_hash=data_hash,
        experiment=experiment,
        code=code,
        configured=configured,
        hyperparameters=hyperparameters,
        workers=workers,
        tunnel=tunnel,
        sweep=Sweep(**sweep),
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
    gates: Mapping[str, float | str],
    strict: bool = False,
    commit: str = "",
    mlflow_url: str = "",
    experiment: str = DEFAULT,
) -> tuple[str, dict[str, float]]:
    """Judge the model of the record with hash `trained`; return this record's hash and metrics.

    The model of a cloud-hpc run was measured on the site, another one is measured here. `gates`
    are the bounds by metric; other gates judge again without another training. Raises
    GatesNotPassed with `strict`, after everything is recorded.
    """
    stage = HPC_EVALUATE if run_id.startswith("cloud-hpc-") else EVALUATE
    thresholds = Thresholds(gates)
    tags = {"kit.profile": profile, "mlflow.source.git.commit": commit or "unknown"}
    do = partial(
        _judge,
        trained=trained,
        thresholds=thresholds,
        tags=tags,
        mlflow_url=mlflow_url,
        experiment=experiment,
    )

    def is_current(record: Json) -> bool:
        """Return whether a record is about this model and these gates."""
        judged = record.get("gates", {}).get("thresholds")
        return record.get("trained") == trained and judged == dict(thresholds)

    record, record_hash = _record_of(profile, run_id, bucket, stage, do, is_current)
    if strict and not record["gates"]["passed"]:
        raise GatesNotPassed(
            "the model did not pass the gates, and the run is strict",
            "; ".join(record["gates"]["missed"]),
            "train longer, or lower the gates",
        )
    return record_hash, dict(record["metrics"])


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
    with _alone(lock), objects.reporting(name, hide_secrets(settings)):
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


def _train_here(
    stage: Stage, data_hash: str, experiment: Experiment, parameters: Parameters
) -> Json:
    """Train in this process; an interrupted training resumes from the checkpoint of its folder."""
    objects, timeline, folder = stage.objects, Timeline(), stage.work
    with timeline.span("download"):
        about = objects.get_data(data_hash, folder / "data")
    log.info("%s: %s", experiment.name, about["title"])
    ctx = _context(stage, parameters)
    trained = running.train_timed(timeline, experiment, ctx)
    with timeline.span("upload"):
        files = objects.keep_out(running.out_files(ctx.out))
        files["losses.json"] = objects.keep("losses.json", dumps(ctx.losses).encode())
    return {
        "objects": files,
        "data": about,
        "experiment": experiment.facts(),
        "hyperparameters": parameters.model_dump(),
        "training": time_record(
            "cloud-model-training", trained.start, trained.end, trained.seconds
        ),
        "resumed_step": trained.resumed_step,
        **times_of_training(stage.name, stage.start, trained, timeline.seconds()),
        "host": host_facts(),
    }


def _context(stage: Stage, parameters: Parameters) -> Context:
    return Context(stage.work / "data", stage.work, parameters, show=_log_progress)


def _log_progress(step: int, steps: int, loss: float) -> None:
    log.info("step %s/%s, loss %.4f", step, steps, loss)


def _upload(stage: Stage, data_hash: str, experiment: str) -> Json:
    """Upload the data set of this machine, unless the bucket has the wanted one."""
    objects, settings, uploaded = stage.objects, stage.settings, False
    wanted = load_experiment(experiment, own_files=False)
    data = running.make_data(wanted, settings.cache_dir / "datasets", settings.data_dir)
    if data.hash == data_hash:
        uploaded = objects.put_data(data)
    elif not list(objects.store.list(f"data/{data_hash}")):
        got = f"here is {data.hash} ({data.info.source})"
        raise DataError(f"upload the data set {data_hash}", got, "upload it from the notebook")
    log.info("the data set %s", "is uploaded" if uploaded else "was there, same hash")
    times = time_record(stage.name, stage.start, time.time())
    return {"objects": {}, "time": times, "spans": {"preprocess": times["total-seconds"]}}


def _train_on_site(stage: Stage, request: RunRequest, bucket: str, follow_timeout_s: float) -> Json:
    """Request the training and wait for its result. Raises TrainingFailed, Unreachable."""
    objects, settings = stage.objects, stage.settings
    request = request.addressed_to(settings)
    first_start = objects.first_start(stage.name, stage.start)
    requests = requests_at(settings, bucket)
    ask = partial(requests.ask, request)
    result = follow(requests, request.run, follow_timeout_s, log.info, ask=ask)
    times = json.loads(objects.get(result["files"]["times.json"]))
    about = json.loads(objects.store.get(f"data/{request.data_hash}.json"))
    job_s, queued_s = float(result["elapsed_s"] or 0), float(result["queued_s"] or 0)
    whole = time_of_starts(stage.name, first_start, stage.start, job_s + queued_s)
    spans = {"queue": queued_s, "environment": max(0.0, job_s - sum(times["spans"].values()))}
    rest = whole["total-seconds"] - queued_s - job_s
    return {
        "objects": result["files"],
        "data": {"hash": request.data_hash} | {n: about.get(n, "") for n in ("source", "warning")},
        "experiment": load_experiment(request.experiment, own_files=False).facts(),
        "hyperparameters": request.hyperparameters | times.get("best", {}),  # of a sweep's trials
        "configured": request.configured,
        "workers": times["workers"],
        "training": times["training"],
        "ray_job": times["job"],
        "resumed_step": times["resumed_step"],
        "resumed": first_start < stage.start,
        "site": {**times["host"], "nodes": times["nodes"], "versions": times["versions"]},
        "slurm": {name: result[name] for name in OF_THE_JOB},
        "time": whole,
        "spans": {**spans, **times["spans"], "submitting, collecting": max(0.0, rest)},
    }


def _judge(
    stage: Stage,
    trained: str,
    thresholds: Thresholds,
    tags: Json,
    mlflow_url: str,
    experiment: str,
) -> Json:
    """Measure the model, hold it against the thresholds, log it to MLflow."""
    objects, timeline, on_site = stage.objects, Timeline(), stage.name == HPC_EVALUATE
    trains = HPC_TRAIN if on_site else PREPROCESS_TRAIN
    stored = objects.record(trains)
    if stored is None or stored[1] != trained:
        raise DataError(
            f"the training of {objects.run_id} in the bucket is not the one to be evaluated",
            "its record or its model was removed or changed",
            "run again: what is missing is recreated",
        )
    before = stored[0]
    measure = _read_measured if on_site else partial(_measure, name=experiment)
    settings = with_server(stage.settings, mlflow_url)
    if _in_component() and not on_site:
        start_ahead(settings, "cloud")
    record: Json = {**measure(stage, before, timeline), "trained": trained, "tags": tags}
    record["gates"] = thresholds.judge(record["metrics"])
    log.info("gates: %s", "; ".join(record["gates"]["missed"]) or "passed")
    losses = json.loads(objects.get(before["objects"]["losses.json"]))
    with timeline.span("mlflow"):
        run = run_log(objects.run_id, before, record, losses, stage.work / "out")
        record["mlflow"] = dataclasses.asdict(log_run(settings, run))
    log.info("mlflow: %s %s", record["mlflow"]["state"], record["mlflow"]["reason"])
    times = time_record(stage.name, stage.start, time.time())
    return {**record, "time": times, "spans": timeline.seconds()}


def _measure(stage: Stage, before: Json, timeline: Timeline, name: str) -> Json:
    """Download the results of the training and measure them here."""
    objects = stage.objects
    experiment = experiment_with_code(name, before["experiment"]["code"])
    ctx = _context(stage, experiment.parameters(**before["hyperparameters"]))
    with timeline.span("download"):
        objects.get_data(before["data"]["hash"], ctx.data)
        objects.get_files(out_names(before["objects"]), ctx.out)
    with timeline.span("evaluation"):
        metrics = running.evaluate(experiment, ctx)
    with timeline.span("upload"):
        files = running.out_files(ctx.out)
        known = {name: ref["sha256"] for name, ref in out_names(before["objects"]).items()}
        new = {name: path for name, path in files.items() if sha256_of(path) != known.get(name)}
        if changed := sorted(set(new) & set(known)):
            got = f"its function evaluate changed {', '.join(changed)}"
            step = "write the results of the evaluation into files of their own"
            raise DataError(f"evaluate {name}", got, step)
        references = objects.keep_out(new)
    return {"objects": references, "metrics": metrics}


def _read_measured(stage: Stage, before: Json, timeline: Timeline) -> Json:
    """Download what the site has measured, and the files that are logged."""
    names = out_names(before["objects"])
    logged = {*predictions(names), model_file(names)}
    with timeline.span("download"):
        wanted = {name: reference for name, reference in names.items() if name in logged}
        stage.objects.get_files(wanted, stage.work / "out")
        metrics = json.loads(stage.objects.get(before["objects"]["metrics.json"]))
    return {"metrics": metrics["metrics"], "objects": {}}
