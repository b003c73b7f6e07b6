"""One run of a pipeline, seen from the notebook: arguments, run, outcome, published files.

Needs neither KFP nor PyTorch in this process: the pipeline runs in a child process or on a
cluster, and its results are read from the object store afterwards.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import Json, KitError, UsageError, hide_secrets, time_file, time_record
from kit.base.settings import Settings
from kit.billing import job_units
from kit.experiments import Experiment, Thresholds, load_experiment
from kit.experiments.running import out_names
from kit.runs.kfp_cluster import access_of, run_on_cluster
from kit.runs.kfp_here import OnChange, PipelineFailed, States, run_local
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest
from kit.runs.stages import (
    EVALUATE,
    HPC_EVALUATE,
    HPC_PREPROCESS,
    HPC_TRAIN,
    PREPROCESS_TRAIN,
)
from kit.store import bucket_name
from kit.tracking import log_run, run_log

CLOCK_SKEW_S = 10.0  # between this machine and the pods of a cluster


@dataclass(frozen=True)
class PipelineSpec:
    """A pipeline: its object less the experiment's label, components in order, which one trains.

    `whole` is the pipeline's name in the published times; `flows` are the inputs, what passes
    between the components, and the output.
    """

    pipeline: str
    components: tuple[str, ...]
    trains: str
    whole: str
    flows: tuple[str, ...]


CLOUD = PipelineSpec(
    pipeline="kit.runs.pipeline:cloud__",
    components=(PREPROCESS_TRAIN, EVALUATE),
    trains=PREPROCESS_TRAIN,
    whole="pipeline",
    flows=("data set", "model", "metrics"),
)
CLOUD_HPC = PipelineSpec(
    pipeline="kit.runs.pipeline:cloud_hpc__",
    components=(HPC_PREPROCESS, HPC_TRAIN, HPC_EVALUATE),
    trains=HPC_TRAIN,
    whole="cloud-hpc-pipeline",
    flows=("data set", "request", "result", "metrics"),
)


@dataclass(frozen=True)
class Outcome:
    """The result of a run: the records of its stages and the seconds of the pipeline.

    `start` and `end` are epoch seconds of this start of the pipeline; what earlier starts did of
    its stages is counted in `pipeline_s`, which so is never less than the stages together.
    """

    target: PipelineSpec
    stages: dict[str, Json]
    losses: list[tuple[int, float]]
    start: float
    end: float
    states: States = ()

    @property
    def trained(self) -> Json:
        """The record of the stage that trained."""
        return self.stages[self.target.trains]

    @property
    def evaluated(self) -> Json:
        """The record of the last stage."""
        return self.stages[self.target.components[-1]]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that the experiment measured, by name."""
        return dict(self.evaluated["metrics"])

    @property
    def files(self) -> dict[str, Json]:
        """The references of all files that the stages left, by name."""
        return {**self.trained["objects"], **self.evaluated["objects"]}

    @property
    def mlflow(self) -> Json:
        """The delivery to MLflow: state, link, mlflow_run_id, reason."""
        return dict(self.evaluated["mlflow"])

    @property
    def resumed(self) -> bool:
        """Whether a stage was killed and started again."""
        return any(stage.get("resumed") for stage in self.stages.values())

    @property
    def kept(self) -> list[str]:
        """The names of the stages that an earlier start had finished."""
        return [n for n, stage in self.stages.items() if stage["time"]["end-time"] < self.start]

    @property
    def pipeline_s(self) -> float:
        """Seconds of the pipeline: this start's, and those of its stages before it."""
        times = [stage["time"] for stage in self.stages.values()]
        return self.end - self.start + sum(_seconds_before(time, self.start) for time in times)

    def times(self) -> Json:
        """Return the published times: each component, then the pipeline."""
        parts = [stage["time"] for stage in self.stages.values()]
        start = min(self.start, parts[0]["start-time"])
        whole = time_record(self.target.whole, start, self.end, self.pipeline_s)
        return time_file([*parts, whole])

    def seconds(self) -> dict[str, float]:
        """Return the seconds by activity; what no stage accounts for is `starting components`."""
        spans: dict[str, float] = {}
        for stage in self.stages.values():
            for name, seconds in stage["spans"].items():
                spans[name] = spans.get(name, 0.0) + seconds
        return {**spans, "starting components": max(0.0, self.pipeline_s - sum(spans.values()))}


def _seconds_before(time_of_stage: Json, start: float) -> float:
    """Return how many of a stage's seconds are not between `start` and its end."""
    first, end, seconds = (
        float(time_of_stage[name]) for name in ("start-time", "end-time", "total-seconds")
    )
    return max(0.0, seconds - max(0.0, end - max(first, start)))


def with_runner(settings: Settings, runner: str) -> Settings:
    """Return settings with another runner of the pipeline than the profile's; "" changes nothing.

    Raises UsageError for another word, and for a cluster that the profile does not name.
    """
    if not runner:
        return settings
    if runner not in ("local", "cluster"):
        step = "give local, cluster, or an empty text for what the profile says"
        raise UsageError(f"unknown runner {runner!r:.40}", next_step=step)
    cloud = settings.cloud
    if cloud is None or (runner == "cluster" and not cloud.kfp_url):
        step = "name its address in cloud.kfp_url of a profile of your own (KIT_SITES_DIR)"
        raise UsageError(f"{settings.profile} names no Kubeflow cluster", next_step=step)
    return dataclasses.replace(settings, cloud=dataclasses.replace(cloud, runner=runner))


def arguments_of(
    settings: Settings,
    run_id: str,
    bucket: str,
    data_hash: str,
    experiment: Experiment,
    hyperparameters: Mapping[str, Any],
    gates: Thresholds,
    strict: bool = False,
    commit: str = "",
) -> dict[str, Any]:
    """Return the arguments of the cloud pipeline: data only, nothing secret."""
    port = settings.ports.get("mlflow")
    inside = bool(settings.cloud and settings.cloud.runner == "cluster" and port and port.svc)
    return {
        "profile": settings.profile,
        "run_id": run_id,
        "bucket": bucket,
        "data_hash": data_hash,
        "experiment": experiment.name,
        "code": experiment.code,
        "hyperparameters": dict(hyperparameters),
        "gates": dict(gates),
        "strict": strict,
        "commit": commit,
        "mlflow_url": f"http://{port.svc}.{port.namespace}:{port.port}" if inside and port else "",
    }


def hpc_arguments_of(
    settings: Settings,
    request: RunRequest,
    experiment: Experiment,
    follow_timeout_s: float = 86400.0,
    **judging: Any,
) -> dict[str, Any]:
    """Return the arguments of the cloud-hpc pipeline; `judging` is as for the cloud pipeline.

    Raises UsageError without a site.
    """
    settings.hpc_section()
    run, bucket = request.run, bucket_name(settings, "pipeline")
    of_the_run = run, bucket, request.data_hash, experiment, request.hyperparameters
    return {
        **arguments_of(settings, *of_the_run, **judging),
        "jobs_bucket": bucket_name(settings, "submitter"),
        "configured": request.configured,
        "workers": request.workers,
        "tunnel": request.tunnel,
        "sweep": request.sweep.model_dump() if request.sweep.trials else {},
        "follow_timeout_s": float(follow_timeout_s),
    }


def published_facts(outcome: Outcome) -> Json:
    """Return what the published files of a run hold, see `Experiment.published`."""
    trained = outcome.trained
    facts: Json = {"metrics": outcome.metrics, "time": trained["training"]}
    facts["components"] = outcome.times()
    if slurm := trained.get("slurm"):
        facts |= {"ray_job": trained["ray_job"], "configured": trained["configured"]}
        facts |= {"sacct": slurm["sacct"], "seff": slurm["seff"]}
    return facts


def run_pipeline(
    settings: Settings,
    objects: StageStore,
    arguments: dict[str, Any],
    folder: Path,
    on_change: OnChange = lambda states: None,
    clock: Callable[[], float] = time.time,
    target: PipelineSpec = CLOUD,
) -> Outcome:
    """Run the pipeline where the profile says and read its outcome.

    `folder` gets its log. Raises PipelineFailed with the component's own traceback.
    """
    cloud, start = settings.cloud, clock()
    label = load_experiment(arguments["experiment"], own_files=False).label
    pipeline = target.pipeline + label.replace("-", "_")
    on_cluster = cloud is not None and cloud.runner == "cluster"
    try:
        if cloud is not None and on_cluster:
            access, run = access_of(cloud.kfp_url, settings.env_file), objects.run_id
            states = run_on_cluster(access, pipeline, target.components, arguments, run, on_change)
        else:
            hide = hide_secrets(settings)  # a component may print what it was given
            where = target.components, arguments, folder
            states = run_local(pipeline, *where, on_change, hide=hide)
    except PipelineFailed as err:
        traceback = ""
        with contextlib.suppress(KitError):  # the store may be what failed
            begun = [state.start for state in err.states if state.name == err.component]
            since = (begun[0] if begun and begun[0] else start) - CLOCK_SKEW_S
            traceback = objects.failure(err.component, since) if err.component else ""
        if not traceback:
            raise
        raise PipelineFailed(err.component, traceback, err.log, err.states, err.where) from err
    if on_cluster:  # a pipeline that was resumed there started before this process did
        start = min([start, *(state.start for state in states if state.start)])
    outcome = dataclasses.replace(read_outcome(objects, start, clock(), target), states=states)
    if on_cluster and outcome.mlflow["state"] != "logged":
        outcome.evaluated["mlflow"] = _log_again(settings, objects, outcome, folder)
    if "slurm" in outcome.trained:
        outcome.trained["slurm"]["seff"] = _priced_seff(settings, objects, outcome.trained)
    return outcome


def read_outcome(
    objects: StageStore, start: float, end: float, target: PipelineSpec = CLOUD
) -> Outcome:
    """Read the records of a finished run. Raises DataError if one is missing."""
    stages = {name: objects.finished(name) for name in target.components}
    losses = json.loads(objects.get(stages[target.trains]["objects"]["losses.json"]))
    return Outcome(target, stages, losses, start, end)


def _priced_seff(settings: Settings, objects: StageStore, trained: Json) -> Json:
    """Return seff's values; computed ones get the billing units at the profile's rates."""
    seff = dict(trained["slurm"]["seff"])
    if source := seff.pop("Source", None):
        with contextlib.suppress(KitError):  # without a rate the run has no price
            text = objects.get(trained["objects"]["sacct.txt"]).decode()
            if (units := job_units(settings, text)) is not None:
                seff["Non-Interactive BUs"] = f"{units:.2f}"
        seff["Source"] = source
    return seff


def _log_again(settings: Settings, objects: StageStore, outcome: Outcome, folder: Path) -> Json:
    """Log from here what a pod could not log: this folder outlives the pod."""
    out = folder / "out"
    objects.get_files(out_names(outcome.files), out)
    run = run_log(objects.run_id, outcome.trained, outcome.evaluated, outcome.losses, out)
    return dataclasses.asdict(log_run(settings, run))
