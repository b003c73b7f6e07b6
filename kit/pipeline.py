"""The Kubeflow pipeline of the cloud target: preprocess-train, then evaluate.

The same object runs on this machine (kfp.local) and on a cluster. Each component only calls its
function in `kit.stages`; its source travels inside the pipeline, so it imports there. Arguments
are data, never credentials: those reach a component through the environment of this machine or,
on a cluster, as the secret `kit-pipeline`, mounted where the image's KIT_ENV_FILE points.
"""

from functools import partial
from pathlib import Path

from kfp import compiler, dsl, kubernetes

# Built from env/images/pipeline and pushed to the kind cluster's own registry. (kfp.local warns
# of images without "python" in their name.)
IMAGE = "localhost:5001/kit-python-pipeline:1"
SECRET, SECRET_FOLDER = "kit-pipeline", "/run/secrets/kit"
NAME = "cloud-fmnist-pipeline"

# The image has everything installed: nothing is fetched while the pipeline runs.
_component = partial(dsl.component, base_image=IMAGE, install_kfp_package=False)


@_component
def preprocess_train(
    profile: str,
    run_id: str,
    bucket: str,
    data_hash: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    seed: int,
    threads: int,
    device: str,
) -> str:
    """Train on the data set in the bucket; give the SHA-256 of the record of this stage."""
    from kit import stages

    return stages.preprocess_train(
        profile,
        run_id,
        bucket,
        data_hash,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        seed=seed,
        threads=threads,
        device=device,
    )


@_component
def evaluate(
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
    """Evaluate the model, apply the gates, log to MLflow; give the SHA-256 of the record."""
    from kit import stages

    record_hash, figures = stages.evaluate(
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
    name=NAME, description="Train and evaluate a small classifier on Fashion-MNIST"
)
def cloud_fmnist(
    profile: str,
    run_id: str,
    bucket: str,
    data_hash: str,
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
    """Chain the two components; both may be tried once more (a finished stage is skipped)."""
    train = preprocess_train(
        profile=profile,
        run_id=run_id,
        bucket=bucket,
        data_hash=data_hash,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        seed=seed,
        threads=threads,
        device=device,
    )
    test = evaluate(
        profile=profile,
        run_id=run_id,
        bucket=bucket,
        trained=train.output,
        min_accuracy=min_accuracy,
        min_precision=min_precision,
        min_recall=min_recall,
        strict=strict,
        commit=commit,
        mlflow_url=mlflow_url,
    )
    for task in (train, test):
        task.set_caching_options(False)  # a finished run is never a measurement of a new one
        task.set_retry(num_retries=1, backoff_duration="2s", backoff_factor=1.0)
        kubernetes.use_secret_as_volume(task, SECRET, SECRET_FOLDER)


def compile_to(path: Path) -> None:
    """Write the pipeline as YAML, the form that Kubeflow's own page takes for an upload."""
    compiler.Compiler().compile(cloud_fmnist, str(path))
