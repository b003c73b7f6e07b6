"""The report as one HTML page that needs nothing else, as pictures for a paper, and as text."""

import base64
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import WIDTH, KitError, Rows, UsageError, write_bytes
from kit.base.settings import Settings
from kit.billing import bill_advice, bill_of_run, bill_rows, bill_summary
from kit.report import plots
from kit.report.article.figures import ODDITIES, SHARE, SOURCES, by_kind, published_seconds
from kit.report.experiments import experiment_table, own_tables
from kit.report.intervals import read_spreads
from kit.report.noise import INTERVAL, OVER_SEEDS, compare, seconds_by_kind
from kit.report.table import (
    Column,
    Table,
    build_table,
    columns,
    differing_parameters,
    read_runs,
    read_table,
    table_notes,
    table_rows,
    to_form,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

ABOUT = (
    "New columns: one run as it is, several as median [smallest to largest].",
    f"{SHARE.capitalize()}: {INTERVAL}, where every class has the same number of test images.",
    "Interval over seeds: Student's t around the mean of a sweep's trials with the parameters and "
    "the data of the run; where there is one, differences are judged by it.",
    "Times faster: over the local column of the same kind.",
    "The total adds CPU and Cloud BU as the article's table does; they are separate budgets.",
)
NOTHING = "No new runs yet: kit run local, then this report again."
NO_TEST = "A difference needs new runs of two targets: kit run local, kit run cloud."


@dataclass(frozen=True)
class Part:
    """One piece of a section: a heading, a table (of `words`: left-aligned), a picture, lines."""

    lines: Sequence[str] = ()
    table: Rows = ()
    words: bool = False
    picture: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a page; `empty` is the sentence that is shown when it has no parts."""

    title: str
    parts: Sequence[Part]
    empty: str = NOTHING


def render(title: str, sections: Sequence[Section]) -> str:
    """Return an HTML page: no script, no address outside, every text escaped."""
    from jinja2 import Environment

    template = resources.files("kit.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    return page.render(title=title, sections=sections) + "\n"


def pictures(settings: Settings) -> dict[str, "Figure"]:
    """Draw the report's pictures: name -> figure."""
    return _pictures(columns(settings)[0])


def _pictures(shown: Sequence[Column]) -> dict[str, "Figure"]:
    times, units, shares = {}, {}, {}
    for column in shown:
        keys = {"training": "training_s", "whole pipeline": "pipeline_s"}
        times[column.title] = _medians(column, keys)
        keys = {"Slurm (CPU BU)": "slurm_bu", "VM and address (Cloud BU)": "cloud_bu"}
        units[column.title] = _medians(column, keys)
        if interval := column.judged_interval():
            shares[column.title] = interval
    units = {title: parts for title, parts in units.items() if any(parts.values())}
    seconds = {title: parts for title, parts in seconds_by_kind(shown).items() if parts}
    seeded = ", ".join(column.title for column in shown if column.seeds)
    over = INTERVAL + (f";\n{seeded}: {OVER_SEEDS}" if seeded else "")
    return {
        "where-the-seconds-went": plots.timeline(seconds, shares=True),
        "times": plots.bars(times, "Seconds of training and of the whole pipeline", "s", True),
        SHARE: plots.intervals(shares, f"{SHARE.capitalize()}, {over}", SHARE),
        "billing-units": plots.bars(units, "Billing units, each kind for itself", "BU"),
    }


def _medians(column: Column, keys: dict[str, str]) -> dict[str, float]:
    values = {label: column.median(key) for label, key in keys.items()}
    return {label: value for label, value in values.items() if value is not None}


def frame(settings: Settings) -> "pandas.DataFrame":
    """Return the table for a notebook."""
    return _frame(read_table(settings)[0])


def _frame(table: Table) -> "pandas.DataFrame":
    """Return a table for a notebook, with the sentences below it in `attrs["notes"]`."""
    import pandas

    rows = table_rows(table)
    frame = pandas.DataFrame(rows, columns=None if rows else [""]).set_index("").rename_axis(None)
    frame.attrs["notes"] = "\n".join(table_notes(table))
    return frame


def beside_article(settings: Settings, column: str) -> "pandas.DataFrame":
    """Return the newest runs of a column (such as cloud-hpc-1) beside the article's figures.

    Raises UsageError when no run of that column is finished yet.
    """
    shown = columns(settings)[0]
    titles = {f"article {column}": "article", f"{column} (new)": "this run"}
    pair = {titles[each.title]: each for each in shown if each.title in titles}
    if "this run" not in pair:
        step = "finish a run first: the notebook's cells up to here, or kit run"
        raise UsageError(f"compare {column} with the article", "no run is finished yet", step)
    cells = build_table(shown, differing_parameters(pair.values()))
    published, new = (cells[title] for title in titles)
    known = {label: text for label, text in new.items() if text != "-"}
    beside = {label: published.get(label, "-") for label in known}
    return _frame({"article": beside, "this run": known})


def runs_of_experiment(settings: Settings, name: str) -> "pandas.DataFrame":
    """Return the runs of an experiment for a notebook: its metrics, a column for each target."""
    return _frame(experiment_table(settings, read_runs(settings)[0], name))


def timeline_beside_article(
    column: str,
    seconds: Mapping[str, float],
    warning: str = "",
    whole: Mapping[str, float] | None = None,
) -> "Figure":
    """Draw what the seconds of a run went to, as shares, beside the article's of that column.

    `seconds` are those of the pipeline, as the article has them, `whole` with the notebook's.
    """
    rows = {"article": published_seconds(column), "this run": seconds}
    rows |= {"with the notebook": whole} if whole else {}
    shares = {title: by_kind(parts) for title, parts in rows.items()}
    return plots.timeline(shares, warning, shares=True)


def notes(settings: Settings) -> dict[str, list[str]]:
    """Return the remarks of the report: noise of the differences, oddities, sources of figures."""
    return {
        "noise": [*compare(columns(settings)[0]), *map(str, read_spreads(settings))] or [NO_TEST],
        "oddities": list(ODDITIES),
        "sources": [f"{figure}: {file}" for figure, file in SOURCES.items()],
    }


def save_pictures(settings: Settings, folder: Path) -> list[Path]:
    """Write every picture as SVG and PDF into a folder; return the paths."""
    paths = []
    for name, figure in pictures(settings).items():
        for form in ("svg", "pdf"):
            paths.append(folder / f"{name}.{form}")
            write_bytes(paths[-1], plots.picture(figure, form))
    return paths


def page(settings: Settings) -> str:
    """Return the whole report as one HTML page, with the pictures inside."""
    shown, problems = columns(settings)
    table = build_table(shown)
    sources = [{"figure": k, "file below results/<profile>/": v} for k, v in SOURCES.items()]
    noise, own = [*compare(shown), *map(str, read_spreads(settings))], own_tables(settings)
    bills = [Part(lines, rows, heading=run) for run, rows, lines in _bills(settings, shown)]
    drawn = [
        Section(name.replace("-", " ").capitalize(), [Part(picture=_svg(figure))])
        for name, figure in _pictures(shown).items()
    ]
    sections = [
        Section("The table", [Part([*table_notes(table), *ABOUT], table_rows(table))]),
        *(
            Section(f"Experiment {n}", [Part(table_notes(t), table_rows(t))])
            for n, t in own.items()
        ),
        Section("Is a difference more than noise?", [Part(noise)] if noise else []),
        *drawn,
        Section("Bills of the newest runs", bills),
        Section("What a careful reader should know of the published figures", [Part(ODDITIES)]),
        Section("Which file feeds which figure", [Part(table=sources, words=True)]),
        Section(
            "What could not be read",
            [Part(problems)] if problems else [],
            "Everything could be read.",
        ),
    ]
    return render(f"One experiment on three targets: profile {settings.profile}", sections)


def _svg(figure: "Figure") -> str:
    return base64.b64encode(plots.picture(figure, "svg")).decode()


def _bills(settings: Settings, shown: Sequence[Column]) -> Iterator[tuple[str, Rows, list[str]]]:
    """Yield the newest run of each new column: its id, the lines of its bill, remarks."""
    for run in (column.runs[-1] for column in shown if column.new):
        try:
            bill = bill_of_run(settings, run)
            lines = [*bill_summary(bill), *bill_advice(settings, run)]
        except KitError as err:  # its files are damaged: the other runs are shown
            yield run["run"], [], [str(err)]
            continue
        if bill.lines:
            yield run["run"], bill_rows(bill.lines), lines


def text(settings: Settings, form: str) -> tuple[str, list[str]]:
    """Return the report in a form (table, md, csv, tex or html) and what could not be read."""
    if form == "html":
        return page(settings), []
    shown, problems = columns(settings)
    result = to_form(build_table(shown), form)
    if form in ("csv", "tex"):
        return result, problems
    mark, heads = ("- ", "## ") if form == "md" else ("", "")
    own = own_tables(settings)
    if own:
        result = f"Below the article's table: {', '.join(own)}.\n\n{result}"
    for name, table in own.items():
        result += f"\n\n{heads}Experiment {name}\n\n{to_form(table, form)}"
    bills = [f"{run}: {line}" for run, _, lines in _bills(settings, shown) for line in lines]
    parts = {
        "Noise": [*compare(shown), *map(str, read_spreads(settings))],
        "Bills of the newest runs": bills,
        "The published figures": ODDITIES,
    }
    for name, lines in parts.items():
        if form == "table":
            lines = [textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in lines]
        if lines:
            result += f"\n\n{heads}{name}\n\n" + "\n".join(mark + line for line in lines)
    return result, problems
