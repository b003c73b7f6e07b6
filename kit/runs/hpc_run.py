"""What the cloud-hpc pipeline has of its own: arguments, files (see `kit.runs.outcome`)."""

from typing import Any

from kit.base import Json, UsageError, time_file
from kit.base.settings import Settings
from kit.experiments import Thresholds
from kit.runs import outcome as cloud_run
from kit.runs.outcome import Outcome, Target
from kit.runs.requests import RunRequest, RunRequests
from kit.runs.stages import HPC_EVALUATE, HPC_PREPROCESS, HPC_TRAIN
from kit.store import bucket_name, open_store

CLOUD_HPC = Target(
    pipeline="kit.runs.pipeline:cloud_hpc_fmnist",
    components=(HPC_PREPROCESS, HPC_TRAIN, HPC_EVALUATE),
    trains=HPC_TRAIN,
    whole="cloud-hpc-pipeline",
    flows=("data set", "request", "result", "metrics"),
)


def files(outcome: Outcome) -> dict[str, Json]:
    """Give the published files by name, without `-1` or `-2`."""
    trained = outcome.trained
    return {
        "components": outcome.times(),
        "training": time_file([trained["training"], trained["ray_job"]]),
        "cloud-hpc-metrics": outcome.performance,
        "sacct": trained["slurm"]["sacct"],
        "seff": trained["slurm"]["seff"],
    }


def published(configured: bool) -> dict[str, str]:
    """Say where each file of `files` is published: suffix 1 unconfigured, 2 configured."""
    n = 2 if configured else 1
    folders = {"components": "times", "training": "times"}
    names = ("components", "training", "cloud-hpc-metrics", "sacct", "seff")
    return {name: f"cloud-hpc/{folders.get(name, 'artifacts')}/{name}-{n}.json" for name in names}


def jobs_of(settings: Settings) -> RunRequests:
    """Open the requests of the profile, for asking, looking and cancelling."""
    return RunRequests(open_store(settings, bucket_name(settings, "submitter")))


def arguments_of(
    settings: Settings,
    request: RunRequest,
    gates: Thresholds,
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
    own |= {"workers": request.workers, "tunnel": request.tunnel}
    return {**common, **own, "follow_timeout_s": float(follow_timeout_s)}
