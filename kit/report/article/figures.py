"""The published figures, and what a careful reader should know of them."""

from collections.abc import Mapping

from kit.base import ROOT, Json, read_json

ARTICLE = ROOT / "results" / "article" / "figures.json"
OFFICIAL_TEST_ITEMS = 10_000
OFFICIAL_TITLE = "official 60,000 + 10,000"
# What it trained with; its seed did not settle the result, its threads are not recorded.
ARTICLE_PARAMETERS = {"epochs": 5, "batch_size": 4, "learning_rate": 0.001, "momentum": 0.9}
SHARE = "accuracy"  # the figure that is a share of the items tested on, so that it has an interval

# label of the table's row -> key of the figure, digits after the point
ROWS: Mapping[str, tuple[str, int]] = {
    "training s": ("training_s", 2),
    "Ray job s": ("ray_job_s", 2),
    "train component s": ("train_component_s", 2),
    "pipeline s": ("pipeline_s", 2),
    "rows of notebook code": ("notebook_rows", 0),
    SHARE: (SHARE, 4),
    "Slurm BU": ("slurm_bu", 2),
    "VM + floating IP BU": ("cloud_bu", 2),
    "total BU, as in the article": ("total_bu", 2),
}

ODDITIES = (
    "Run 2 of cloud-hpc was made before run 1 (start 1723470624 against 1723473204).",
    "Both batch jobs ended CANCELLED: they were cancelled after the work.",
    "2 full nodes were reserved for one process on one core (CPU efficiency 0.15 %): the speed-up "
    "over the cloud is not parallelism.",
    "Ray's time leaves out the loading of the data (6.5 s); the cloud's includes the logging of "
    "the model (about 7 s).",
    "Every published cell is one run: no spread is known.",
    "80 % of the cloud-hpc pipeline was not training.",
    "The article set the seed after the model was built, so its runs differ (0.8820 to 0.8941); "
    "here it is set before.",
    "The article did not record its number of threads; here it is a parameter, 1 by default.",
    "The article's cloud units are fractions of hours at the rates of 2024.",
)

# figure of the table -> the published file that it is read from, below results/<profile>/
SOURCES = {
    "training s": "local/artifacts/local_metrics.json, cloud/artifacts/cloud-metrics.json, "
    "cloud-hpc/times/training-N.json (remote-model-training)",
    "Ray job s": "cloud-hpc/times/training-N.json (train-fmnist-cnn)",
    "train component s": "cloud/times/pipeline_data.json, cloud-hpc/times/components-N.json",
    "pipeline s": "cloud/times/pipeline_data.json, cloud-hpc/times/components-N.json",
    "rows of notebook code": "notebooks/*.ipynb, counted by the article's rule",
    SHARE: "local/artifacts/local_metrics.json, cloud/artifacts/cloud-metrics.json, "
    "cloud-hpc/artifacts/cloud-hpc-metrics-N.json",
    "Slurm BU": "cloud-hpc/artifacts/seff-N.json, sacct-N.json; runs/<run>/bill.json",
    "VM + floating IP BU": "pipeline s times the profile's rates; runs/<run>/bill.json",
    "total BU, as in the article": "Slurm BU and VM + floating IP BU, each rounded, added up",
}

# Where the seconds of a run went: names of all targets and of the article -> kind. The eight
# kinds of the published run 1 stay apart.
OTHER = "not attributed"
RAY = "Ray start and data load"
SET_UP = "HPC set-up, environment"
STARTS = "starting pods, components"
POLLING = "polling, submitting, collecting"
RECORDS = "data, evaluation, records"
NOTEBOOK = "notebook"
KINDS = {
    "training": "training",
    RAY: RAY,
    "starting Ray": RAY,
    "starting the driver": RAY,
    "ending Ray": RAY,
    "queue": "queue",
    "HPC set-up (venv, key, script)": SET_UP,
    "environment": SET_UP,
    "pod starts": STARTS,
    "starting components": STARTS,
    "pip installs inside pods": "pip installs inside pods",
    "polling, fixed sleeps and holds": POLLING,
    "submitting, collecting": POLLING,
    OTHER: OTHER,
    "data": RECORDS,
    "upload": RECORDS,
    "preprocess": RECORDS,
    "download": RECORDS,
    "evaluate": RECORDS,
    "evaluation": RECORDS,
    "records": RECORDS,
    "mlflow": RECORDS,
    "loading": RECORDS,
    "command": NOTEBOOK,
    "kernel": NOTEBOOK,
    "notebook kept": NOTEBOOK,
    "tables and pictures": NOTEBOOK,
    "between cells": NOTEBOOK,
    "other": OTHER,
}


def article_figures() -> dict[str, Json]:
    """Return the published figures: column -> figure -> value."""
    figures: dict[str, Json] = read_json(ARTICLE)["targets"]
    return figures


def column_of(target: str, parameters: Json) -> str:
    """Return the article's column of a run: cloud-hpc has 1, unconfigured, and 2, configured."""
    if target != "cloud-hpc":
        return target
    return f"{target}-{2 if parameters.get('configured') else 1}"


def published_seconds(column: str) -> dict[str, float]:
    """Return where the seconds of a published run went; only for run 1 all of it is known."""
    if column == "cloud-hpc-1":
        seconds: dict[str, float] = read_json(ARTICLE)["cloud-hpc-1_went_to_s"]
        return seconds
    figures = article_figures()[column]
    training = figures["training_s"]
    ray = figures.get("ray_job_s", training) - training
    rest = figures.get("pipeline_s", training) - training - ray
    return {"training": training, RAY: ray, OTHER: rest}


def by_kind(parts: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by kind, all kinds in one order; an unknown name counts as `OTHER`."""
    sums: dict[str, float] = dict.fromkeys(KINDS.values(), 0.0)
    for name, value in parts.items():
        sums[KINDS.get(name, OTHER)] += value
    return sums
