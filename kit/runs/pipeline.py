"""The Kubeflow pipelines of the targets cloud (train here) and cloud-hpc (train on the site).

The same objects run on this machine (kfp.local) and on a cluster. Each component only calls its
function in `kit.runs.stages`; its source travels inside the pipeline, so it imports there.
Arguments are data, never credentials: those reach a component through the environment of this
machine or, on a cluster, as the secret `kit-pipeline`, mounted where the image's KIT_ENV_FILE
points.
"""

import copy
from functools import partial
from typing import Any

from kfp import dsl, kubernetes

from kit.runs.stages import HPC_EVALUATE

# Built from env/images/pipeline and pushed to the kind cluster's own registry. (kfp.local warns
# of images without "python" in their name.)
IMAGE = "localhost:5001/kit-python-pipeline:1"
SECRET, SECRET_FOLDER = "kit-pipeline", "/run/secrets/kit"

# The image has everything installed: nothing is fetched while the pipeline runs.
_component = partial(dsl.component, base_image=IMAGE, install_kfp_package=False)


@_component
def preprocess_train(
    profile: str,
    run_id: str,
    bucket: str,
    data_hash: str,
    experiment: str,
    code: str,
    hyperparameters: dict[str, Any],
) -> str:
    """Train on the data set in the bucket; return the SHA-256 of the record of this stage."""
    from kit.runs import stages

    what = experiment, code, hyperparameters
    return stages.preprocess_train(profile, run_id, bucket, data_hash, *what)


@_component
def cloud_hpc_preprocess(
    profile: str, run_id: str, bucket: str, data_hash: str, experiment: str
) -> str:
    """Upload the data set unless it is in the bucket."""
    from kit.runs import stages

    return stages.cloud_hpc_preprocess(profile, run_id, bucket, data_hash, experiment)


@_component
def cloud_hpc_train(
    profile: str,
    run_id: str,
    bucket: str,
    jobs_bucket: str,
    prepared: str,
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
    """Request the training and follow it; return the SHA-256 of the record of this stage."""
    from kit.runs import stages

    return stages.cloud_hpc_train(
        profile,
        run_id,
        bucket,
        jobs_bucket,
        data_hash,
        experiment,
        code,
        configured,
        workers,
        tunnel,
        follow_timeout_s,
        hyperparameters,
        sweep,
    )


@_component
def evaluate(
    profile: str,
    run_id: str,
    bucket: str,
    trained: str,
    gates: dict[str, Any],
    strict: bool,
    commit: str,
    mlflow_url: str,
    experiment: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Evaluate the model, apply the gates, log to MLflow; return the SHA-256 of the record."""
    from kit.runs import stages

    where = profile, run_id, bucket, trained
    how = strict, commit, mlflow_url, experiment
    record_hash, figures = stages.evaluate(*where, gates, *how)
    for name, value in figures.items():
        metrics.log_metric(name, value)
    return record_hash


# The same component under the name that the published times of cloud-hpc have.
cloud_hpc_evaluate = copy.deepcopy(evaluate)
cloud_hpc_evaluate.component_spec.name = cloud_hpc_evaluate.name = HPC_EVALUATE


def _settle(*tasks: Any) -> None:
    """Set what is the same for all components."""
    for task in tasks:
        task.set_caching_options(False)  # a finished run is never a measurement of a new one
        task.set_retry(num_retries=1, backoff_duration="2s", backoff_factor=1.0)
        kubernetes.use_secret_as_volume(task, SECRET, SECRET_FOLDER)
        kubernetes.set_image_pull_policy(task, "Always")  # `:1` is the newest image


def cloud(
    profile: str,
    run_id: str,
    bucket: str,
    data_hash: str,
    experiment: str,
    code: str,
    hyperparameters: dict[str, Any],
    gates: dict[str, Any],
    strict: bool = False,
    commit: str = "",
    mlflow_url: str = "",
) -> None:
    """Chain the two components; each is retried once (a finished stage is skipped)."""
    where = {"profile": profile, "run_id": run_id, "bucket": bucket}
    how = {"gates": gates, "strict": strict, "commit": commit, "mlflow_url": mlflow_url}
    train = preprocess_train(
        **where,
        data_hash=data_hash,
        experiment=experiment,
        code=code,
        hyperparameters=hyperparameters,
    )
    _settle(train, evaluate(**where, trained=train.output, experiment=experiment, **how))


def cloud_hpc(
    profile: str,
    run_id: str,
    bucket: str,
    jobs_bucket: str,
    data_hash: str,
    experiment: str,
    code: str,
    hyperparameters: dict[str, Any],
    gates: dict[str, Any],
    configured: bool = True,
    workers: int = 1,
    tunnel: str = "",
    follow_timeout_s: float = 86400.0,
    sweep: dict[str, Any] = {},  # noqa: B006 - the default of a pipeline's input
    strict: bool = False,
    commit: str = "",
    mlflow_url: str = "",
) -> None:
    """Chain the three components; each is retried once (a finished stage is skipped)."""
    where = {"profile": profile, "run_id": run_id, "bucket": bucket}
    how = {"gates": gates, "strict": strict, "commit": commit, "mlflow_url": mlflow_url}
    how["experiment"] = experiment
    prepared = cloud_hpc_preprocess(**where, data_hash=data_hash, experiment=experiment)
    train = cloud_hpc_train(
        **where,
        jobs_bucket=jobs_bucket,
        prepared=prepared.output,
        data_hash=data_hash,
        experiment=experiment,
        code=code,
        configured=configured,
        workers=workers,
        tunnel=tunnel,
        follow_timeout_s=follow_timeout_s,
        hyperparameters=hyperparameters,
        sweep=sweep,
    )
    _settle(prepared, train, cloud_hpc_evaluate(**where, trained=train.output, **how))


_CHAINS = {
    "cloud": (cloud, "Train {} and evaluate it"),
    "cloud_hpc": (cloud_hpc, "Train {} on a supercomputer and evaluate it"),
}


def __getattr__(name: str) -> Any:
    """Return the pipeline `cloud__<label>` or `cloud_hpc__<label>` of an experiment's label.

    So a pipeline is named by a text, `kit.runs.pipeline:cloud__digits`, in whichever process.
    """
    target, separator, label = name.partition("__")
    if not separator or target not in _CHAINS or not label:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    chain, description = _CHAINS[target]
    shown = label.replace("_", "-")
    return dsl.pipeline(
        name=f"{target.replace('_', '-')}-{shown}-pipeline", description=description.format(shown)
    )(chain)
