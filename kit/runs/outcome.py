"""One run of a pipeline, seen from the notebook: arguments, run, outcome.

Needs neither KFP nor PyTorch in this process: the pipeline runs in a child or on a cluster, and
all that it found out is read from the object store afterwards.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import ROOT, Json, UsageError, git_state, time_file, time_record
from kit.base.settings import Settings
from kit.experiments import Thresholds
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.kfp_cluster import access_of, run_on_cluster
from kit.runs.kfp_here import OnChange, PipelineFailed, States, ignore, run_local
from kit.runs.objects import StageStore
from kit.runs.stages import EVALUATE, PREPROCESS_TRAIN
from kit.tracking.delivery import tracking_for
from kit.tracking.stage_log import run_log


@dataclass(frozen=True)
class Target:
    """A pipeline: its object (`package.module:object`), components in order, which one trains.

    `whole` is what the published times call the pipeline; `flows` names what goes in, between
    the components, and comes out.
    """

    pipeline: str
    components: tuple[str, ...]
    trains: str
    whole: str
    flows: tuple[str, ...]


CLOUD = Target(
    pipeline="kit.runs.pipeline:cloud_fmnist",
    components=(PREPROCESS_TRAIN, EVALUATE),
    trains=PREPROCESS_TRAIN,
    whole="pipeline",
    flows=("data set", "model", "metrics"),
)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the records of its stages and the seconds of the pipeline.

    `start` and `end` are epoch seconds of this start of the pipeline; stages that were finished
    by an earlier one keep their times, which are counted in `pipeline_s`.
    """

    target: Target
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
    def performance(self) -> Json:
        """Accuracy, precision, recall, in total and by class."""
        return dict(self.evaluated["performance"])

    @property
    def mlflow(self) -> Json:
        """What became of the run in MLflow: state, link, mlflow_run_id, reason."""
        return dict(self.evaluated["mlflow"])

    @property
    def kept(self) -> list[str]:
        """Name the stages that an earlier start had finished."""
        return [n for n, stage in self.stages.items() if stage["time"]["end-time"] < self.start]

    @property
    def pipeline_s(self) -> float:
        """Seconds of the pipeline: this start's, and those of stages finished before it."""
        before = sum(float(self.stages[name]["time"]["total-seconds"]) for name in self.kept)
        return self.end - self.start + before

    def times(self) -> Json:
        """Give the published times: each component, then the pipeline."""
        parts = [stage["time"] for stage in self.stages.values()]
        start = min(self.start, parts[0]["start-time"])
        whole = time_record(self.target.whole, start, self.end, self.pipeline_s)
        return time_file([*parts, whole])

    def seconds(self) -> dict[str, float]:
        """Say where the seconds went; what no stage accounts for is `starting components`."""
        spans: dict[str, float] = {}
        for stage in self.stages.values():
            for name, seconds in stage["spans"].items():
                spans[name] = spans.get(name, 0.0) + seconds
        return {**spans, "starting components": max(0.0, self.pipeline_s - sum(spans.values()))}


def with_runner(settings: Settings, runner: str) -> Settings:
    """Let the pipeline run somewhere else than the profile says; "" changes nothing.

    Raises UsageError for another word, and for a cluster that the profile does not name.
    """
    if not runner:
        return settings
    if runner not in ("local", "cluster"):
        step = "give local, cluster, or an empty text for what the profile says"
        raise UsageError(f"there is no runner {runner!r:.40}", next_step=step)
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
    hyperparameters: Parameters,
    gates: Thresholds,
    strict: bool = False,
) -> dict[str, Any]:
    """Give the arguments of the pipeline: data only, nothing secret."""
    port = settings.ports.get("mlflow")
    inside = bool(settings.cloud and settings.cloud.runner == "cluster" and port and port.svc)
    return {
        "profile": settings.profile,
        "run_id": run_id,
        "bucket": bucket,
        "data_hash": data_hash,
        "hyperparameters": hyperparameters.model_dump(),
        "gates": dict(gates),
        "strict": strict,
        "commit": git_state(ROOT)["commit"] or "",
        "mlflow_url": f"http://{port.svc}.{port.namespace}:{port.port}" if inside and port else "",
    }


def run_pipeline(
    settings: Settings,
    objects: StageStore,
    arguments: dict[str, Any],
    folder: Path,
    on_change: OnChange = ignore,
    clock: Callable[[], float] = time.time,
    target: Target = CLOUD,
) -> Outcome:
    """Run the pipeline where the profile says and read what it came to.

    `folder` gets its log. Raises PipelineFailed with the component's own traceback.
    """
    cloud, start = settings.cloud, clock()
    try:
        if cloud is not None and cloud.runner == "cluster":
            access, run = access_of(cloud.kfp_url, settings.env_file), objects.run_id
            states = run_on_cluster(
                access, target.pipeline, target.components, arguments, run, on_change
            )
        else:
            states = run_local(target.pipeline, target.components, arguments, folder, on_change)
    except PipelineFailed as err:
        if err.traceback or not err.component:
            raise
        # On a cluster the traceback is in the store: a pod's log is soon gone.
        kept = objects.failure(err.component)
        raise PipelineFailed(err.component, kept, err.log, err.states, err.where) from err
    outcome = dataclasses.replace(read_outcome(objects, start, clock(), target), states=states)
    if cloud is not None and cloud.runner == "cluster" and outcome.mlflow["state"] != "logged":
        outcome.evaluated["mlflow"] = _log_again(settings, objects, outcome, folder)
    return outcome


def read_outcome(objects: StageStore, start: float, end: float, target: Target = CLOUD) -> Outcome:
    """Read the records of a finished run; raises DataError when one is not there."""
    stages = {name: objects.finished(name) for name in target.components}
    losses = json.loads(objects.get(stages[target.trains]["objects"]["losses.json"]))
    return Outcome(target, stages, losses, start, end)


def _log_again(settings: Settings, objects: StageStore, outcome: Outcome, folder: Path) -> Json:
    """Log from here what a pod could not: its spool went away with it, this one stays."""
    kept = {**outcome.trained["objects"], **outcome.evaluated["objects"]}
    for name in ("model.safetensors", "predictions.npy"):
        (folder / name).write_bytes(objects.get(kept[name]))
    run = run_log(objects.run_id, outcome.trained, outcome.evaluated, outcome.losses, folder)
    return dataclasses.asdict(tracking_for(settings, "cloud").log(run))
