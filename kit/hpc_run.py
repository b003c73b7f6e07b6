"""One run of the cloud-hpc pipeline, seen from the notebook: arguments, run, outcome."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import cloud_run, records
from kit.errors import UsageError
from kit.gates import Gates
from kit.hpc_stages import EVALUATE, PREPROCESS, TRAIN
from kit.jobs import Jobs, Request
from kit.kfp_cluster import access_of, run_on_cluster
from kit.kfp_runner import OnChange, PipelineFailed, States, ignore, run_local
from kit.records import Json
from kit.settings import Settings
from kit.stage_store import StageStore
from kit.store import bucket_name, open_store

PIPELINE = "kit.hpc_pipeline:cloud_hpc_fmnist"
COMPONENTS = (PREPROCESS, TRAIN, EVALUATE)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the records of its stages and the seconds of the pipeline.

    Stages that an earlier start had finished keep their times, counted in `pipeline_s`.
    """

    stages: dict[str, Json]
    losses: list[tuple[int, float]]
    start: float
    end: float
    states: States = ()

    @property
    def trained(self) -> Json:
        """The record of the training stage."""
        return self.stages[TRAIN]

    @property
    def evaluated(self) -> Json:
        """The record of the evaluation stage."""
        return self.stages[EVALUATE]

    @property
    def kept(self) -> list[str]:
        """Name the stages that an earlier start had finished."""
        return [n for n, stage in self.stages.items() if stage["time"]["end-time"] < self.start]

    @property
    def pipeline_s(self) -> float:
        """Seconds of the pipeline: this start's, and those of stages finished before it."""
        before = sum(float(self.stages[name]["time"]["total-seconds"]) for name in self.kept)
        return self.end - self.start + before

    def seconds(self) -> dict[str, float]:
        """Say where the seconds went; what no stage accounts for is `starting components`."""
        spans: dict[str, float] = {}
        for stage in self.stages.values():
            for name, seconds in stage["spans"].items():
                spans[name] = spans.get(name, 0.0) + seconds
        return {**spans, "starting components": max(0.0, self.pipeline_s - sum(spans.values()))}

    def files(self) -> dict[str, Json]:
        """Give the published files by name, without `-1` or `-2`."""
        start = min(self.start, self.stages[PREPROCESS]["time"]["start-time"])
        whole = records.time_record("cloud-hpc-pipeline", start, self.end, self.pipeline_s)
        parts = [self.stages[name]["time"] for name in COMPONENTS]
        training = [self.trained["training"], self.trained["ray_job"]]
        return {
            "components": records.time_file([*parts, whole]),
            "training": records.time_file(training),
            "cloud-hpc-metrics": dict(self.evaluated["performance"]),
            "sacct": self.trained["slurm"]["sacct"],
            "seff": self.trained["slurm"]["seff"],
        }


def published(configured: bool) -> dict[str, str]:
    """Say where each file of `Outcome.files` is published: suffix 1 unconfigured, 2 configured."""
    n = 2 if configured else 1
    folders = {"components": "times", "training": "times"}
    names = ("components", "training", "cloud-hpc-metrics", "sacct", "seff")
    return {name: f"cloud-hpc/{folders.get(name, 'artifacts')}/{name}-{n}.json" for name in names}


def jobs_of(settings: Settings) -> Jobs:
    """Open the requests of the profile, for asking, looking and cancelling."""
    return Jobs(open_store(settings, bucket_name(settings, "submitter")))


def arguments_of(
    settings: Settings,
    request: Request,
    gates: Gates,
    strict: bool = False,
    follow_timeout_s: float = 86400.0,
) -> dict[str, Any]:
    """Give the arguments of the pipeline: data only, nothing secret. Raises UsageError."""
    if settings.hpc is None:
        raise UsageError(f"profile {settings.profile} has no HPC site", next_step="add [hpc]")
    bucket = bucket_name(settings, "pipeline")
    common = cloud_run.arguments_of(
        settings,
        request.run,
        bucket,
        request.data_hash,
        request.hyperparameters,
        gates,
        strict,
    )
    jobs_bucket = bucket_name(settings, "submitter")
    own = {"jobs_bucket": jobs_bucket, "configured": request.configured}
    own |= {"workers": request.workers}
    return {**common, **own, "follow_timeout_s": float(follow_timeout_s)}


def run_pipeline(
    settings: Settings,
    objects: StageStore,
    arguments: dict[str, Any],
    folder: Path,
    on_change: OnChange = ignore,
    clock: Callable[[], float] = time.time,
) -> Outcome:
    """Run the pipeline where the profile says and read what it came to.

    `folder` gets its log. Raises PipelineFailed with the component's own traceback.
    """
    cloud, start = settings.cloud, clock()
    try:
        if cloud is not None and cloud.runner == "cluster":
            access = access_of(cloud.kfp_url, settings.env_file)
            run = objects.run_id
            states = run_on_cluster(access, PIPELINE, COMPONENTS, arguments, run, on_change)
        else:
            states = run_local(PIPELINE, COMPONENTS, arguments, folder, on_change)
    except PipelineFailed as err:
        if err.traceback or not err.component:
            raise
        kept = objects.failure(err.component)  # a pod's log is soon gone
        raise PipelineFailed(err.component, kept, err.log, err.states, err.where) from err
    return dataclasses.replace(read_outcome(objects, start, clock()), states=states)


def read_outcome(objects: StageStore, start: float, end: float) -> Outcome:
    """Read the records of a finished run; raises DataError when one is not there."""
    stages = {name: objects.finished(name) for name in COMPONENTS}
    losses = json.loads(objects.get(stages[TRAIN]["objects"]["losses.json"]))
    return Outcome(stages, losses, start, end)
