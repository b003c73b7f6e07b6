"""The published shape of the metrics and the metrics by name are the same figures."""

from kit.experiments.fashion_mnist import published_files as published


def test_metrics_by_name_and_the_published_record_are_the_same_figures():
    record = {"name": published.CLASSIFIER, "accuracy": 0.5, "precision": 0.25, "recall": 0.5}
    record |= {
        f"class-{kind}": [n / 10 for n in range(10)] for kind in ("accuracy", "precision", "recall")
    }
    metrics = published.metrics_of(record)
    assert len(metrics) == 33
    assert metrics["trouser-precision"] == 0.1
    assert published.performance(metrics) == record
