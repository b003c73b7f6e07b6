"""What stands beside the table: speed-ups, intervals, noise, oddities, seconds, sources of figures.

Rules are stated where they are used. A column is a title and the history lines of its runs; the
article's columns have one made-up line each with the published figures.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kit import records, report
from kit.records import Json
from kit.settings import Settings

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
INTERVAL = "95 % Wilson interval over the test images"
OFFICIAL_TEST_IMAGES = 10_000

# What the seconds of every run went to, from the names of all targets and of the article, whose
# eight kinds stay apart; it does not tell of the last one.
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
    **dict.fromkeys(("data", "upload", "preprocess", "download", "evaluate", "evaluation",
                     "records", "mlflow"), "data, evaluation, records"),
}  # fmt: skip
OTHER = "not attributed"

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


@dataclass(frozen=True)
class Figures:
    """The values of one column: figure -> one value a run; `test_images` they were tested on."""

    title: str
    target: str
    values: Mapping[str, Sequence[float]]
    test_images: int
    new: bool

    def median(self, key: str) -> float | None:
        """Give the median over the runs; None where no run has that figure."""
        return statistics.median(self.values[key]) if self.values.get(key) else None


def wilson(share: float, count: int) -> tuple[float, float]:
    """Give the 95 % interval of a share of `count` tests, after Wilson (1927)."""
    if count <= 0:
        return 0.0, 1.0
    spread = Z95 * Z95 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def columns(settings: Settings) -> tuple[list[Figures], list[str]]:
    """Give the article's columns, then the new ones, and what could not be read."""
    found = [
        Figures(f"article {name}", _target(name),
                {key: [value] for key, value in figures.items()}, OFFICIAL_TEST_IMAGES, False)
        for name, figures in report.article().items()
    ]  # fmt: skip
    groups, problems = report.newest_runs(settings)
    for name, runs in groups.items():
        keys = {key for run in runs for key in run.get("figures", {})}
        values = {k: [r["figures"][k] for r in runs if k in r.get("figures", {})] for k in keys}
        tested = test_images(runs[-1])
        found.append(Figures(f"{name} (new)", _target(name), values, tested, True))
    return found, problems


def _target(name: str) -> str:
    return re.sub(r"-\d+$", "", name)


def test_images(run: Json) -> int:
    """Say on how many images a run was tested: the last number of its data's title."""
    numbers = re.findall(r"\d[\d,]*", str(run.get("data", {}).get("title", "")))
    return int(numbers[-1].replace(",", "")) if numbers else 0


def interval_text(column: Figures) -> str:
    """Give the accuracy's interval of a column (of the median, where there are several runs)."""
    share = column.median("accuracy")
    if share is None or not column.test_images:
        return "-"
    low, high = wilson(share, column.test_images)
    return f"{low:.4f} to {high:.4f}"


def table(settings: Settings) -> tuple[dict[str, report.Column], list[str]]:
    """Give the table of the report with what is computed from it: intervals and speed-ups.

    Speed-ups are over the local column of the same kind (article or new), training to training
    and whole pipeline to training.
    """
    whole, problems = report.columns(settings)
    found = columns(settings)[0]
    local = {c.new: c.median("training_s") for c in found if c.target == "local"}
    for column in found:
        base = local.get(column.new)
        whole[column.title] |= {
            "accuracy, 95 % interval (Wilson)": interval_text(column),
            "training, times faster than local": _times(base, column.median("training_s")),
            "pipeline, times faster than local": _times(base, column.median("pipeline_s")),
        }
    return whole, problems


def _times(base: float | None, value: float | None) -> str:
    return f"{base / value:.2f}" if base and value else "-"


def noise(found: Iterable[Figures]) -> list[str]:
    """Say of every two new columns whether their differences are more than noise.

    Rule for times: more than noise when the ranges of at least two runs each do not meet. Rule
    for accuracy: more than noise when the Wilson intervals of the medians do not meet.
    """
    new = [column for column in found if column.new]
    told = []
    for place, one in enumerate(new):
        for other in new[place + 1 :]:
            told.append(_training_noise(one, other))
            told.append(_accuracy_noise(one, other))
    return [text for text in told if text]


def _training_noise(one: Figures, other: Figures) -> str:
    mine, theirs = one.values.get("training_s", ()), other.values.get("training_s", ())
    if not mine or not theirs:
        return ""
    names = f"{one.title} and {other.title}, training"
    if min(len(mine), len(theirs)) < 2:
        return f"{names}: fewer than two runs, the noise is not known (kit run --repeat 5)."
    meet = min(mine) <= max(theirs) and min(theirs) <= max(mine)
    gap = abs(statistics.median(mine) - statistics.median(theirs))
    verdict = "within the noise: the ranges meet" if meet else "more than noise"
    return f"{names}: {gap:.2f} s apart, {verdict}."


def _accuracy_noise(one: Figures, other: Figures) -> str:
    mine, theirs = one.median("accuracy"), other.median("accuracy")
    if mine is None or theirs is None or not one.test_images or not other.test_images:
        return ""
    (low, high), (under, over) = wilson(mine, one.test_images), wilson(theirs, other.test_images)
    verdict = "more than noise" if high < under or over < low else "within the noise"
    return f"{one.title} and {other.title}, accuracy: {abs(mine - theirs):.4f} apart, {verdict}."


def timelines(settings: Settings) -> dict[str, dict[str, float]]:
    """Say where the seconds of each article run and of the newest new runs went, in few kinds."""
    found: dict[str, dict[str, float]] = {}
    for name, figures in report.article().items():
        found[f"article {name}"] = kinds(published(name, figures))
    for name, runs in report.newest_runs(settings)[0].items():
        seconds = runs[-1].get("pipeline") or runs[-1].get("seconds", {})
        found[f"{name} (new)"] = kinds(seconds)
    return found


def published(name: str, figures: Json) -> dict[str, float]:
    """Give what is known of a published run: run 1 in full, of the others the training alone."""
    if name == "cloud-hpc-1":
        went: dict[str, float] = records.read_json(report.ARTICLE)["cloud-hpc-1_went_to_s"]
        return went
    whole = figures.get("pipeline_s", figures["training_s"])
    ray = figures.get("ray_job_s", figures["training_s"]) - figures["training_s"]
    parts = {
        "training": figures["training_s"],
        RAY: ray,
        OTHER: whole - figures["training_s"] - ray,
    }
    return {kind: seconds for kind, seconds in parts.items() if seconds}


def kinds(parts: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by kind, in one order for all runs; what has no known name is `OTHER`."""
    sums: dict[str, float] = dict.fromkeys([*WENT_TO.values(), OTHER], 0.0)
    for name, value in parts.items():
        sums[WENT_TO.get(name, OTHER)] += value
    return {kind: seconds for kind, seconds in sums.items() if seconds}
