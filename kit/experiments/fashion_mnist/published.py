"""The published shape of the metrics: three over all classes, then a list of each by class."""

from collections.abc import Mapping
from typing import Any

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
