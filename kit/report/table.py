"""The comparison table: the article's columns, and new runs beside them.

A new column holds the finished runs of one target with the newest parameters and data: one run
as it is, several as their median with the smallest and largest value. Speed-ups are over the
local column of the same kind (article or new), training to training and pipeline to training.
Parameters in which the columns differ have a row each, and a sentence below the table.
"""

import json
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.base import ROOT, WIDTH, DataError, Json, read_history, to_csv, to_latex, to_markdown
from kit.base.settings import Settings
from kit.experiments import DEFAULT
from kit.report.article.figures import (
    ARTICLE_PARAMETERS,
    OFFICIAL_TEST_ITEMS,
    OFFICIAL_TITLE,
    ROWS,
    SHARE,
    article_figures,
    column_of,
)
from kit.report.intervals import Spread, read_spreads, spread_of, wilson
from kit.report.parameters import differing, parameter_note, parameter_rows, trained_with
from kit.runs.history import TARGETS

NOTEBOOKS = ROOT / "notebooks"
CELL_WIDTH = 14
RESUMED = "resumed"
ABOUT_RESUMED = (
    "A resumed run was interrupted and started again: its pipeline s is the last start and what "
    "the components had done before it, without the time between."
)
Table = dict[str, dict[str, str]]  # title of a column -> label of a row -> text


@dataclass(frozen=True)
class Column:
    """The runs of one column, oldest first, or a published one (`new` false).

    `name` is local, cloud, cloud-hpc-1 or cloud-hpc-2; `values` has one value a run of each
    figure; `test_items` is the number of items they were tested on, 0 when it is not known or
    when the classes are not balanced: then no interval of the figure `SHARE` can be given.
    `seeds` is what a sweep has reached with the same parameters and several seeds.
    """

    name: str
    new: bool
    runs: Sequence[Json]
    values: Mapping[str, Sequence[float]]
    test_items: int
    seeds: Spread | None = None

    @property
    def title(self) -> str:
        """Heading of the column."""
        return f"{self.name} (new)" if self.new else f"article {self.name}"

    @property
    def parameters(self) -> Json:
        """The parameters of the training; for a published column those that the article names."""
        return trained_with(self.runs[-1]) if self.new else dict(ARTICLE_PARAMETERS)

    def median(self, key: str) -> float | None:
        """Return the median over the runs; None where no run has that figure."""
        return statistics.median(self.values[key]) if self.values.get(key) else None

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the (median) `SHARE`; None where it is not known."""
        share = self.median(SHARE)
        if share is None or not self.test_items:
            return None
        return wilson(share, self.test_items)

    def judged_interval(self) -> tuple[float, float, float] | None:
        """Return low end, middle and high end of the interval that differences are judged by.

        That of the mean over seeds where there is one, else the other around the median.
        """
        if self.seeds:
            low, mean, high = self.seeds.interval()
            return max(0.0, low), mean, min(1.0, high)
        interval = self.interval()
        return interval and (interval[0], self.median(SHARE) or 0.0, interval[1])


def notebook_rows(path: Path) -> int:
    """Count rows by the article's rule: the lines of all code cells."""
    return sum(len(source.splitlines()) for source in code_cells(path))


def code_cells(path: Path) -> list[str]:
    """Return the sources of a notebook's code cells. Raises DataError for any other file."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} is not a notebook", str(err)) from err


def test_items(run: Json) -> int:
    """Return the number of items a run was tested on; 0 when unknown or not balanced."""
    data = run.get("data") or {}
    return int(data.get("test_items") or 0) if data.get("balanced") else 0


def experiment_of_run(run: Json) -> str:
    """Return the experiment of a line of the history; older lines are the article's."""
    return str(run.get("experiment") or DEFAULT)


def read_runs(settings: Settings) -> tuple[list[Json], list[str]]:
    """Read the finished runs of a profile, without sweeps; also return what was left out."""
    history, problems = read_history(settings.profile_dir / "history.jsonl")
    runs = []
    for run in history:
        if "sweep" in run:
            continue  # a search is not a measurement of one training
        if run.get("target") in TARGETS and "parameters" in run:
            runs.append(run)
        else:
            problems.append(f"history.jsonl: {run['run']} has no known target and was left out")
    return runs, problems


def columns(settings: Settings) -> tuple[list[Column], list[str]]:
    """Return the article's columns, then the new ones, and what could not be read."""
    runs, problems = read_runs(settings)
    runs = [run for run in runs if experiment_of_run(run) == DEFAULT]
    problems += [text for run in runs if (text := _odd_share(run))]
    runs = [run for run in runs if not _odd_share(run)]
    article = article_figures()
    result = [
        Column(name, False, (), {key: [value] for key, value in row.items()}, OFFICIAL_TEST_ITEMS)
        for name, row in article.items()
    ]
    spreads = read_spreads(settings)
    newest = newest_groups(runs, lambda run: column_of(run["target"], run["parameters"]))
    for name, group in [(name, newest[name]) for name in article if name in newest]:
        figures = [run.get("figures", {}) for run in group]
        keys = {key for row in figures for key in row}
        values = {key: [row[key] for row in figures if key in row] for key in keys}
        seeds = spread_of(spreads, group[-1], SHARE)
        result.append(Column(name, True, group, values, test_items(group[-1]), seeds))
    return result, problems


def _odd_share(run: Json) -> str:
    """Return why a run cannot be shown beside the article; empty if its `SHARE` is a share."""
    if 0 <= (run.get("figures", {}).get(SHARE) or 0) <= 1:
        return ""
    return f"history.jsonl: {run['run']} was left out: {SHARE} is not between 0 and 1"


def newest_groups(history: Iterable[Json], column: Callable[[Json], str]) -> dict[str, list[Json]]:
    """Return for each column all runs that share parameters and data with its newest run."""
    groups: dict[str, dict[str, list[Json]]] = {}
    for run in history:
        kind = json.dumps([run["parameters"], (run.get("data") or {}).get("hash")], sort_keys=True)
        kinds = groups.setdefault(column(run), {})
        runs = kinds.pop(kind, [])  # inserted again as the last one: the kind of the newest run
        runs.append(run)
        kinds[kind] = runs
    return {name: list(kinds.values())[-1] for name, kinds in groups.items()}


def count_of(runs: Sequence[Json]) -> str:
    """Return the cell `runs`: how many, on what if that differs, and how many were resumed."""
    resumed = sum(bool(run.get("resumed")) for run in runs)
    return f"{len(runs)}{differences(runs)}" + (f"; {resumed} {RESUMED}" if resumed else "")


def differences(runs: Sequence[Json]) -> str:
    """Return on how many machines and code versions the runs of a column were made, if several."""
    machines = {str((run.get("host") or {}).get("cpu")) for run in runs}
    versions = {f"{(run.get('git') or {}).get('commit')} {run.get('code')}" for run in runs}
    parts = [
        f"{len(values)} {name}"
        for name, values in (("machines", machines), ("code versions", versions))
        if len(values) > 1
    ]
    return f" on {', '.join(parts)}" if parts else ""


def build_table(shown: Sequence[Column], parameters: Iterable[str] | None = None) -> Table:
    """Build the table of these columns, with rows of `parameters`: those in which they differ."""
    local = {column.new: column.median("training_s") for column in shown if column.name == "local"}
    names = differing_parameters(shown) if parameters is None else parameters
    rows = parameter_rows({column.title: column.parameters for column in shown}, names)
    return {
        column.title: _cells(column, local.get(column.new)) | rows[column.title] for column in shown
    }


def differing_parameters(shown: Iterable[Column]) -> list[str]:
    """Return the names of the parameters in which columns differ."""
    columns = list(shown)
    published = [column.parameters for column in columns if not column.new]
    new = [column.parameters for column in columns if column.new]
    return differing(new, published[0] if published else None)


def read_table(settings: Settings) -> tuple[Table, list[str]]:
    """Build the table of a profile; also return what could not be read."""
    shown, problems = columns(settings)
    return build_table(shown), problems


def _cells(column: Column, local: float | None) -> dict[str, str]:
    cells = {label: _spread(column.values.get(key, ()), n) for label, (key, n) in ROWS.items()}
    cells |= {"data": OFFICIAL_TITLE, "runs": "1", "hardware": "as published"}
    if column.new:
        newest = column.runs[-1]
        rows = notebook_rows(NOTEBOOKS / f"{newest['target']}.ipynb")
        cpu, threads = newest.get("host", {}).get("cpu", "?"), newest["parameters"].get("threads")
        cells |= {
            "rows of notebook code": str(rows),
            "runs": count_of(column.runs),
            "hardware": f"{cpu}, {threads} thread(s)",
            "data": newest.get("data", {}).get("title", "not recorded"),
        }
    low, high = column.interval() or (None, None)
    cells[f"{SHARE}, 95 % interval (Wilson)"] = "-" if low is None else f"{low:.4f} to {high:.4f}"
    cells |= column.seeds.cell() if column.seeds else {}
    for what in ("training", "pipeline"):
        seconds = column.median(f"{what}_s")
        ratio = f"{local / seconds:.2f}" if local and seconds else "-"
        cells[f"{what}, times faster than local"] = ratio
    return cells


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    three = min(values), statistics.median(values), max(values)
    low, middle, high = (f"{value:,.{digits}f}" for value in three)
    return middle if low == high else f"{middle} [{low} to {high}]"


def table_rows(table: Table) -> list[dict[str, str]]:
    """Turn columns into rows, the label first; a missing cell is `-`."""
    labels = dict.fromkeys(label for column in table.values() for label in column)
    return [
        {"": label, **{title: column.get(label, "-") for title, column in table.items()}}
        for label in labels
    ]


def table_notes(table: Table) -> list[str]:
    """Return the sentences below a table: parameters that differ, resumed runs."""
    labels = dict.fromkeys(label for column in table.values() for label in column)
    resumed = any(RESUMED in column.get("runs", "") for column in table.values())
    return [*filter(None, [parameter_note(labels)]), *([ABOUT_RESUMED] if resumed else [])]


def to_form(table: Table, form: str) -> str:
    """Return the table as text: form table (terminal) or md with its notes, csv or tex without."""
    if form in ("csv", "tex"):
        return {"csv": to_csv, "tex": to_latex}[form](table_rows(table))
    notes = table_notes(table)
    if form == "table":
        notes = [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in notes]
    text = to_terminal(table) if form == "table" else to_markdown(table_rows(table))
    return "\n\n".join([text, *notes])


def to_terminal(table: Table) -> str:
    """Return the table in blocks of columns that fit WIDTH; long cells are wrapped."""
    from tabulate import tabulate

    blocks = []
    for titles in _blocks(table):
        rows = table_rows({title: table[title] for title in titles})
        lines = [[row[""], *(_wrapped(row[title]) for title in titles)] for row in rows]
        headers = ["", *(_wrapped(title) for title in titles)]
        alignment = ["left", *("right" for _ in titles)]
        blocks.append(tabulate(lines, headers, "simple", colalign=alignment, disable_numparse=True))
    return "\n\n".join(blocks)


def _wrapped(cell: str) -> str:
    """Wrap a cell; a range starts a new line, so that it is below its median."""
    lines = cell.replace(" [", "\n[").split("\n")
    return "\n".join(textwrap.fill(line, CELL_WIDTH, break_on_hyphens=False) for line in lines)


def _blocks(table: Table) -> list[list[str]]:
    """Distribute the columns over blocks that fit the width of a terminal."""
    label = max((len(name) for column in table.values() for name in column), default=0)
    count = max(1, (WIDTH - label) // (CELL_WIDTH + 2))
    titles = list(table)
    return [titles[start : start + count] for start in range(0, len(titles), count)]
