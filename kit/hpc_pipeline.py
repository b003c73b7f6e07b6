"""The Kubeflow pipeline of the cloud-hpc target: preprocess, train on the site, evaluate.

The same object runs on this machine (kfp.local) and on a cluster. Components only call
`kit.hpc_stages`; arguments are data, never credentials (see `kit.pipeline`).
"""

from functools import partial

from kfp import dsl, kubernetes

from kit.pipeline import IMAGE, SECRET, SECRET_FOLDER

NAME = "cloud-hpc-fmnist-pipeline"

_component = partial(dsl.component, base_image=IMAGE, install_kfp_package=False)


@_component
def cloud_hpc_preprocess(profile: str, run_id: str, bucket: str, data_hash: str) -> str:
    """See to it that the data set is in the bucket."""
    from kit import hpc_stages

    return hpc_stages.preprocess(profile, run_id, bucket, data_hash)


@_component
def cloud_hpc_train(
    profile: str,
    run_id: str,
    bucket: str,
    jobs_bucket: str,
    prepared: str,
    data_hash: str,
    configured: bool,
    workers: int,
    follow_timeout_s: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    seed: int,
    threads: int,
    device: str,
) -> str:
    """Ask for the training and follow it; give the SHA-256 of the record of this stage."""
    from kit import hpc_stages

    return hpc_stages.train(
        profile,
        run_id,
        bucket,
        jobs_bucket,
        data_hash,
        configured,
        workers,
        follow_timeout_s,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        seed=seed,
        threads=threads,
        device=device,
    )


@_component
def cloud_hpc_evaluate(
    profile: str,
    run_id: str,
    bucket: str,
    trained: str,
    min_accuracy: float,
    min_precision: float,
    min_recall: float,
    strict: bool,
    commit: str,
    mlflow_url: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Apply the gates, log to MLflow; give the SHA-256 of the record."""
    from kit import hpc_stages

    record_hash, figures = hpc_stages.evaluate(
        profile,
        run_id,
        bucket,
        trained,
        min_accuracy=min_accuracy,
        min_precision=min_precision,
        min_recall=min_recall,
        strict=strict,
        commit=commit,
        mlflow_url=mlflow_url,
    )
    for name, value in figures.items():
        metrics.log_metric(name, value)
    return record_hash


@dsl.pipeline(  # type: ignore[untyped-decorator]  # KFP ships no types
    name=NAME, description="Train a small classifier on a supercomputer and evaluate it"
)
def cloud_hpc_fmnist(
    profile: str,
    run_id: str,
    bucket: str,
    jobs_bucket: str,
    data_hash: str,
    configured: bool = True,
    workers: int = 1,
    follow_timeout_s: float = 86400.0,
    epochs: int = 5,
    batch_size: int = 4,
    learning_rate: float = 0.001,
    momentum: float = 0.9,
    seed: int = 42,
    threads: int = 1,
    device: str = "cpu",
    min_accuracy: float = 0.8,
    min_precision: float = 0.8,
    min_recall: float = 0.8,
    strict: bool = False,
    commit: str = "",
    mlflow_url: str = "",
) -> None:
    """Chain the three components; each may be started once more (what is done is skipped)."""
    prepared = cloud_hpc_preprocess(
        profile=profile, run_id=run_id, bucket=bucket, data_hash=data_hash
    )
    trained = cloud_hpc_train(
        profile=profile,
        run_id=run_id,
        bucket=bucket,
        jobs_bucket=jobs_bucket,
        prepared=prepared.output,
        data_hash=data_hash,
        configured=configured,
        workers=workers,
        follow_timeout_s=follow_timeout_s,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        seed=seed,
        threads=threads,
        device=device,
    )
    test = cloud_hpc_evaluate(
        profile=profile,
        run_id=run_id,
        bucket=bucket,
        trained=trained.output,
        min_accuracy=min_accuracy,
        min_precision=min_precision,
        min_recall=min_recall,
        strict=strict,
        commit=commit,
        mlflow_url=mlflow_url,
    )
    for task in (prepared, trained, test):
        task.set_caching_options(False)  # a finished run is never a measurement of a new one
        task.set_retry(num_retries=1, backoff_duration="2s", backoff_factor=1.0)
        kubernetes.use_secret_as_volume(task, SECRET, SECRET_FOLDER)
