"""A run with the figures of the article's first job, and helpers that read a scrape."""

import json

import captured
from prometheus_client.parser import text_string_to_metric_families

from kit.forwarder import gauges
from kit.forwarder.gauges import RunSnapshot

RUN = "cloud-hpc-0123456789ab-1"
BUCKET = "integration-submitter-s0-c0-u1-anna"


def published(name):
    return json.loads(captured.read(f"slurm-mahti-2024/{name}"))


def stage(name, start, end):
    times = {"name": name, "start-time": start, "end-time": end, "total-seconds": end - start}
    return {"time": times, "spans": {"environment": 12.5}}


def kept(run=RUN, **changes):
    """Return a run with the figures of the article's first job."""
    trained = stage(gauges.TRAIN, 110.0, 994.0)
    trained["training"] = {"name": "remote-model-training", "total-seconds": 271.85157}
    trained["ray_job"] = {"name": "train-fmnist-cnn", "total-seconds": 278.46777}
    result = {
        "job": {"id": "3659617"},
        "sacct": published("sacct-1.json"),
        "seff": published("seff-1.json"),
        "elapsed_s": 417,
        "queued_s": 11.0,
    }
    facts = {
        "user": "anna",
        "collector": BUCKET,
        "zone": "Europe/Helsinki",
        "moments": {"request": 1000.0, "submitted": 1004.0, "result": 1440.0},
        "result": result,
        "stages": {
            gauges.FIRST: stage(gauges.FIRST, 100.0, 105.0),
            gauges.TRAIN: trained,
            gauges.LAST: stage(gauges.LAST, 1000.0, 1010.0),
        },
    }
    return RunSnapshot(run, **facts | changes)


def scraped(text):
    """Parse Prometheus text: (gauge, labels as a dict, value) of each sample."""
    return [
        (sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    ]


def values(rows, gauge, **labels):
    return {
        sample_labels["metric"]: value
        for name, sample_labels, value in rows
        if name == gauge and labels.items() <= sample_labels.items()
    }
