"""What stands beside the table: noise, oddities, where the seconds went, sources of figures.

Rules are stated where they are used.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping

from kit.base import read_json
from kit.report import table as report
from kit.report.table import Column

INTERVAL = "95 % Wilson interval over the test images"

# What the seconds of every run went to, from the names of all targets and of the article, whose
# eight kinds stay apart; it does not tell of the last one.
OTHER = "not attributed"
RAY, SET_UP = "Ray start and data load", "HPC set-up, environment"
STARTS, ASKING = "starting pods, components", "polling, submitting, collecting"
WENT_TO = {
    "training": "training",
    RAY: RAY, "starting Ray": RAY, "ending Ray": RAY,
    "queue": "queue",
    "HPC set-up (venv, key, script)": SET_UP, "environment": SET_UP,
    "pod starts": STARTS, "starting components": STARTS,
    "pip installs inside pods": "pip installs inside pods",
    "polling, fixed sleeps and holds": ASKING, "submitting, collecting": ASKING,
    OTHER: OTHER,
    **dict.fromkeys(("data", "upload", "preprocess", "download", "evaluate", "evaluation",
                     "records", "mlflow"), "data, evaluation, records"),
}  # fmt: skip

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
FEEDS = {
    "training s": "local/artifacts/local_metrics.json, cloud/artifacts/cloud-metrics.json, "
    "cloud-hpc/times/training-N.json (remote-model-training)",
    "Ray job s": "cloud-hpc/times/training-N.json (train-fmnist-cnn)",
    "train component s": "cloud/times/pipeline_data.json, cloud-hpc/times/components-N.json",
    "pipeline s": "cloud/times/pipeline_data.json, cloud-hpc/times/components-N.json",
    "rows of notebook code": "notebooks/*.ipynb, counted by the article's rule",
    "accuracy": "local/artifacts/local_metrics.json, cloud/artifacts/cloud-metrics.json, "
    "cloud-hpc/artifacts/cloud-hpc-metrics-N.json",
    "Slurm BU": "cloud-hpc/artifacts/seff-N.json, sacct-N.json; runs/<run>/bill.json",
    "VM + floating IP BU": "pipeline s times the profile's rates; runs/<run>/bill.json",
    "total BU, as in the article": "Slurm BU and VM + floating IP BU, each rounded, added up",
}


def noise(found: Iterable[Column]) -> list[str]:
    """Say of every two new columns whether their differences are more than noise.

    Rule for times: more than noise when the ranges of at least two runs each do not meet. Rule
    for accuracy: more than noise when the Wilson intervals of the medians do not meet.
    """
    new = [column for column in found if column.new]
    single = [column.title for column in new if len(column.values.get("training_s", ())) < 2]
    told = [f"{', '.join(single)}: fewer than two runs, the noise of their times is not known "
            "(kit run --repeat 5)."] if single and len(new) > 1 else []  # fmt: skip
    for pair in itertools.combinations(new, 2):
        told += [text for text in (_training_noise(*pair), _accuracy_noise(*pair)) if text]
    return told


def _training_noise(one: Column, other: Column) -> str:
    mine, theirs = one.values.get("training_s", ()), other.values.get("training_s", ())
    if min(len(mine), len(theirs)) < 2:
        return ""
    names = f"{one.title} and {other.title}, training"
    meet = min(mine) <= max(theirs) and min(theirs) <= max(mine)
    gap = abs(statistics.median(mine) - statistics.median(theirs))
    verdict = "within the noise: the ranges meet" if meet else "more than noise"
    return f"{names}: {gap:.2f} s apart, {verdict}."


def _accuracy_noise(one: Column, other: Column) -> str:
    mine, theirs = one.interval(), other.interval()
    if mine is None or theirs is None:
        return ""
    gap = abs((one.median("accuracy") or 0) - (other.median("accuracy") or 0))
    meet = mine[0] <= theirs[1] and theirs[0] <= mine[1]
    verdict = "within the noise" if meet else "more than noise"
    return f"{one.title} and {other.title}, accuracy: {gap:.4f} apart, {verdict}."


def timelines(found: Iterable[Column]) -> dict[str, dict[str, float]]:
    """Say where the seconds of each article run and of the newest new runs went, in few kinds."""
    went = {
        column.title: column.runs[-1].get("pipeline") or column.runs[-1].get("seconds", {})
        if column.new
        else published(column.name)
        for column in found
    }
    return {title: kinds(parts) for title, parts in went.items()}


def published(name: str) -> dict[str, float]:
    """Give what is known of a published run: run 1 in full, of the others the training alone."""
    if name == "cloud-hpc-1":
        went: dict[str, float] = read_json(report.ARTICLE)["cloud-hpc-1_went_to_s"]
        return went
    figures = report.article()[name]
    training = figures["training_s"]
    ray = figures.get("ray_job_s", training) - training
    return {"training": training, RAY: ray,
            OTHER: figures.get("pipeline_s", training) - training - ray}  # fmt: skip


def kinds(parts: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by kind, all kinds in one order; what has no known name is `OTHER`."""
    sums: dict[str, float] = dict.fromkeys(WENT_TO.values(), 0.0)
    for name, value in parts.items():
        sums[WENT_TO.get(name, OTHER)] += value
    return sums
