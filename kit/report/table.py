"""The article's table from `results/article/`, and new runs beside it.

A new column holds every finished run of one target with the newest parameters and data: one
run as it is, several as their median with the smallest and largest value. Speed-ups are over the
local column of the same kind (article or new), training to training and pipeline to training.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.base import (
    ROOT,
    DataError,
    Json,
    read_history,
    read_json,
    to_csv,
    to_latex,
    to_markdown,
    to_text,
)
from kit.base.settings import Settings

ARTICLE = ROOT / "results" / "article" / "figures.json"
NOTEBOOKS = ROOT / "notebooks"
# label of the row -> key of the figure, digits after the point
ROWS: Mapping[str, tuple[str, int]] = {
    "training s": ("training_s", 2),
    "Ray job s": ("ray_job_s", 2),
    "train component s": ("train_component_s", 2),
    "pipeline s": ("pipeline_s", 2),
    "rows of notebook code": ("notebook_rows", 0),
    "accuracy": ("accuracy", 4),
    "Slurm BU": ("slurm_bu", 2),
    "VM + floating IP BU": ("cloud_bu", 2),
    "total BU, as in the article": ("total_bu", 2),
}
TARGETS = ("local", "cloud", "cloud-hpc")
FORMS = {"table": to_text, "md": to_markdown, "csv": to_csv, "tex": to_latex}
Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
OFFICIAL_TEST_IMAGES = 10_000
Table = dict[str, dict[str, str]]  # title of a column -> label of a row -> text


@dataclass(frozen=True)
class Column:
    """The runs of one column, oldest first, or the article's one (`new` false).

    `name` is local, cloud, cloud-hpc-1 or cloud-hpc-2; `values` has one value a run of each
    figure; `test_images` is how many they were tested on.
    """

    name: str
    new: bool
    runs: Sequence[Json]
    values: Mapping[str, Sequence[float]]
    test_images: int

    @property
    def title(self) -> str:
        """What stands above the column."""
        return f"{self.name} (new)" if self.new else f"article {self.name}"

    def median(self, key: str) -> float | None:
        """Give the median over the runs; None where no run has that figure."""
        return statistics.median(self.values[key]) if self.values.get(key) else None

    def interval(self) -> tuple[float, float] | None:
        """Give the 95 % interval of the (median) accuracy; None where it is not known."""
        share = self.median("accuracy")
        if share is None or not self.test_images:
            return None
        return wilson(share, self.test_images)


def article() -> dict[str, Json]:
    """Give the published figures: target -> figure -> value."""
    targets: dict[str, Json] = read_json(ARTICLE)["targets"]
    return targets


def notebook_rows(path: Path) -> int:
    """Count rows by the article's rule: the lines of all code cells."""
    return sum(len(source.splitlines()) for source in code_cells(path))


def code_cells(path: Path) -> list[str]:
    """Give the sources of a notebook's code cells. Raises DataError for what is no notebook."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} is not a notebook", str(err)) from err


def wilson(share: float, count: int) -> tuple[float, float]:
    """Give the 95 % interval of a share of `count` tests, after Wilson (1927)."""
    if count <= 0:
        return 0.0, 1.0
    spread = Z95 * Z95 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def test_images(run: Json) -> int:
    """Say on how many images a run was tested: the last number of its data's title."""
    numbers = re.findall(r"\d[\d,]*", str(run.get("data", {}).get("title", "")))
    return int(numbers[-1].replace(",", "")) if numbers else 0


def columns(settings: Settings) -> tuple[list[Column], list[str]]:
    """Give the article's columns, then the new ones, and what could not be read."""
    history, problems = read_history(settings.profile_dir / "history.jsonl")
    whole = []
    for run in history:
        if run.get("target") in TARGETS and isinstance(run.get("parameters"), dict):
            whole.append(run)
        else:
            problems.append(f"history.jsonl: {run['run']} has no known target and was left out")
    found = [
        Column(name, False, (), {k: [v] for k, v in figures.items()}, OFFICIAL_TEST_IMAGES)
        for name, figures in article().items()
    ]
    for name, runs in _newest_groups(whole).items():
        figures = [run.get("figures", {}) for run in runs]
        keys = {key for each in figures for key in each}
        values = {key: [each[key] for each in figures if key in each] for key in keys}
        found.append(Column(name, True, runs, values, test_images(runs[-1])))
    return found, problems


def _newest_groups(history: Iterable[Json]) -> dict[str, list[Json]]:
    """Give for each column the runs that share parameters and data with its newest run."""
    groups: dict[str, dict[str, list[Json]]] = {}
    for run in history:
        kind = json.dumps([run["parameters"], run.get("data", {}).get("hash")], sort_keys=True)
        kinds = groups.setdefault(column_of(run["target"], run["parameters"]), {})
        runs = kinds.pop(kind, [])  # put back last: the kind of the newest run stands there
        runs.append(run)
        kinds[kind] = runs
    return {name: list(groups[name].values())[-1] for name in article() if name in groups}


def column_of(target: str, parameters: Json) -> str:
    """Name the article's column of a run: cloud-hpc has 1, unconfigured, and 2, configured."""
    if target != "cloud-hpc":
        return target
    return f"{target}-{2 if parameters.get('configured') else 1}"


def texts(found: Sequence[Column]) -> Table:
    """Build the table of these columns."""
    local = {column.new: column.median("training_s") for column in found if column.name == "local"}
    return {column.title: _text(column, local.get(column.new)) for column in found}


def table(settings: Settings) -> tuple[Table, list[str]]:
    """Build the table of a profile; also say what could not be read."""
    found, problems = columns(settings)
    return texts(found), problems


def _text(column: Column, local: float | None) -> dict[str, str]:
    text = {label: _spread(column.values.get(key, ()), n) for label, (key, n) in ROWS.items()}
    text |= {"data": "official 60,000 + 10,000", "runs": "1", "hardware": "as published"}
    if column.new:
        newest = column.runs[-1]
        rows_here = notebook_rows(NOTEBOOKS / f"{newest['target']}.ipynb")
        text["rows of notebook code"] = str(rows_here)
        cpu, threads = newest.get("host", {}).get("cpu", "?"), newest["parameters"].get("threads")
        text |= {"runs": str(len(column.runs)), "hardware": f"{cpu}, {threads} thread(s)"}
        text["data"] = newest.get("data", {}).get("title", "not recorded")
    low, high = column.interval() or (None, None)
    text["accuracy, 95 % interval (Wilson)"] = "-" if low is None else f"{low:.4f} to {high:.4f}"
    for what in ("training", "pipeline"):
        took = column.median(f"{what}_s")
        faster = f"{local / took:.2f}" if local and took else "-"
        text[f"{what}, times faster than local"] = faster
    return text


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    three = min(values), statistics.median(values), max(values)
    low, middle, high = (f"{value:,.{digits}f}" for value in three)
    return middle if low == high else f"{middle} [{low} to {high}]"


def rows(table: Table) -> list[dict[str, str]]:
    """Turn columns into rows, the label first; what a column has not is `-`."""
    labels = dict.fromkeys(label for column in table.values() for label in column)
    return [
        {"": label, **{title: column.get(label, "-") for title, column in table.items()}}
        for label in labels
    ]


def render(table: Table, form: str) -> str:
    """Give the table as text: form table (terminal), md, csv or tex."""
    return FORMS[form](rows(table))
