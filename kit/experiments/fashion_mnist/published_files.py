"""The published shape of the metrics: three over all classes, then a list of each by class."""

from collections.abc import Mapping
from typing import Any

from kit.base import time_file
from kit.experiments.fashion_mnist import METRICS
from kit.experiments.fashion_mnist.images import LABELS

CLASSIFIER = "Convolutional-neural-network-classifier"


def metrics_of(performance: Mapping[str, Any]) -> dict[str, float]:
    """Return a published record as metrics by name; those of a class begin with its label.

    Raises ValueError unless the record has one figure for each label.
    """
    metrics = {name: float(performance[name]) for name in METRICS}
    for name in METRICS:
        values = zip(LABELS, performance[f"class-{name}"], strict=True)
        metrics |= {f"{label}-{name}": float(value) for label, value in values}
    return metrics


def performance(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return the metrics in the published shape."""
    by_class = {
        f"class-{name}": [metrics[f"{label}-{name}"] for label in LABELS] for name in METRICS
    }
    return {"name": CLASSIFIER, **{name: metrics[name] for name in METRICS}, **by_class}


def published_files(target: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published files of a run by path; `facts` are those of `Experiment.published`.

    Those of cloud-hpc have the suffix 2 with an environment that was configured, else 1.
    """
    measured = performance(facts["metrics"])
    metrics = {"performance": measured, "time": facts["time"]}
    if target == "local":
        return {"local/artifacts/local_metrics.json": metrics}
    if target == "cloud":
        return {
            "cloud/artifacts/cloud-metrics.json": metrics,
            "cloud/times/pipeline_data.json": facts["components"],
        }
    number = 2 if facts["configured"] else 1
    return {
        f"cloud-hpc/times/components-{number}.json": facts["components"],
        f"cloud-hpc/times/training-{number}.json": time_file([facts["time"], facts["ray_job"]]),
        f"cloud-hpc/artifacts/cloud-hpc-metrics-{number}.json": measured,
        f"cloud-hpc/artifacts/sacct-{number}.json": facts["sacct"],
        f"cloud-hpc/artifacts/seff-{number}.json": facts["seff"],
    }
