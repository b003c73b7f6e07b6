"""The report as one page that stands alone, as pictures for a paper, and as text."""

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import KitError, Rows, write_bytes
from kit.base.settings import Settings
from kit.billing import run as run_bill
from kit.billing import tables as bill_tables
from kit.report import comparison, plots
from kit.report import table as report
from kit.report.table import Column

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
         vertical-align: top; min-width: 5rem; }
th:first-child, td:first-child { text-align: left; font-weight: 600; min-width: 9rem; }
td:last-child { max-width: 34rem; }
thead th { border-bottom: 2px solid #333; }
thead th { white-space: nowrap; } table.words td, table.words th { text-align: left; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0 1.5rem; }
.green { background: #d9f2e3; } .amber { background: #fdebc8; } .red { background: #f8d7da; }
@page { size: A4 landscape; margin: 12mm; }
@media print { body { margin: 0; max-width: none; padding: 0; font-size: 9.5pt; }
  table { font-size: 8pt; } .wide { overflow: visible; break-inside: avoid; }
  th, td { padding: 1pt 4pt; min-width: 0 !important; } h2, h3 { break-after: avoid; }
  img { break-inside: avoid; max-height: 125mm; } }
"""
ABOUT = (
    "New columns: one run as it is, several as median [smallest to largest].",
    f"Accuracy: {comparison.INTERVAL}.",
    "Times faster: over the local column of the same kind.",
    "The total adds CPU and Cloud BU as the article's table does; they are separate budgets.",
)
NOTHING = "<p>There are no new runs yet: <code>kit run local</code>, then this report again.</p>"


def pictures(settings: Settings) -> dict[str, "Figure"]:
    """Draw the report's pictures: name -> figure."""
    return _pictures(report.columns(settings)[0])


def _pictures(found: Sequence[Column]) -> dict[str, "Figure"]:
    times, units, accuracy = {}, {}, {}
    for column in found:
        shown = {"training": "training_s", "whole pipeline": "pipeline_s"}
        times[column.title] = _medians(column, shown)
        shown = {"Slurm (CPU BU)": "slurm_bu", "VM and address (Cloud BU)": "cloud_bu"}
        units[column.title] = _medians(column, shown)
        if interval := column.interval():
            low, high = interval
            accuracy[column.title] = (low, column.median("accuracy") or 0, high)
    units = {title: parts for title, parts in units.items() if any(parts.values())}
    seconds = {name: parts for name, parts in comparison.timelines(found).items() if parts}
    return {
        "where-the-seconds-went": plots.timeline(seconds, shares=True),
        "times": plots.bars(times, "Seconds of training and of the whole pipeline", "s", True),
        "accuracy": plots.intervals(accuracy, f"Accuracy, {comparison.INTERVAL}", "accuracy"),
        "billing-units": plots.bars(units, "Billing units, each kind for itself", "BU"),
    }


def _medians(column: Column, shown: dict[str, str]) -> dict[str, float]:
    values = {label: column.median(key) for label, key in shown.items()}
    return {label: value for label, value in values.items() if value is not None}


def frame(settings: Settings) -> "pandas.DataFrame":
    """Give the table for a notebook."""
    import pandas

    rows = report.rows(report.table(settings)[0])
    return pandas.DataFrame(rows).set_index("").rename_axis(None)


def save_pictures(settings: Settings, folder: Path) -> list[Path]:
    """Write every picture as SVG and PDF into a folder; give the paths."""
    paths = []
    for name, figure in pictures(settings).items():
        for form in ("svg", "pdf"):
            paths.append(folder / f"{name}.{form}")
            write_bytes(paths[-1], plots.picture(figure, form))
    return paths


def page(settings: Settings) -> str:
    """Give the whole report as HTML: no script, no address outside, pictures inside."""
    found, problems = report.columns(settings)
    feeds = [{"figure": k, "file below results/<profile>/": v} for k, v in comparison.FEEDS.items()]
    parts = [
        ("The table", table(report.rows(report.texts(found))) + listed(ABOUT)),
        ("Is a difference more than noise?", listed(comparison.noise(found)) or NOTHING),
        *((name.replace("-", " ").capitalize(), _picture(name, figure))
          for name, figure in _pictures(found).items()),
        ("Bills of the newest runs", "".join(
            f"<h3>{html.escape(run)}</h3>{table(rows)}{listed(told)}"
            for run, rows, told in _bills(settings, found)
        ) or NOTHING),
        ("What a careful reader should know of the published figures",
         listed(comparison.ODDITIES)),
        ("Which file feeds which figure", table(feeds, words=True)),
        ("What could not be read", listed(problems) or "<p>Everything could be read.</p>"),
    ]  # fmt: skip
    return document(f"One experiment on three targets: profile {settings.profile}", parts)


def document(title: str, parts: Sequence[tuple[str, str]]) -> str:
    """Give an HTML page of sections: title and content of each, the content ready-made."""
    body = "\n".join(f"<h2>{html.escape(name)}</h2>\n{content}" for name, content in parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>'
        f"\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n"
        "</body>\n</html>\n"
    )


def _bills(settings: Settings, found: Sequence[Column]) -> Iterator[tuple[str, Rows, list[str]]]:
    """Give the newest run of each new column: its id, the lines of its bill, what to say of it."""
    for run in (column.runs[-1] for column in found if column.new):
        try:
            bill = run_bill.of_run(settings, run)
            told = [*bill_tables.summary(bill), *bill_tables.advice(settings, run)]
        except KitError as err:  # its files are damaged: the report goes on
            yield run["run"], [], [str(err)]
            continue
        if bill.lines:
            yield run["run"], bill_tables.rows(bill.lines), told


def table(rows: Rows, words: bool = False) -> str:
    """Give rows as an HTML table; of `words` all stand to the left, in the first one's colour."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        f'<tr class="{html.escape(row.get("", "")) if words else ""}">'
        + "".join(f"<td>{html.escape(value)}</td>" for value in row.values())
        + "</tr>\n"
        for row in rows
    )
    kind = ' class="words"' * words
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>\n{body}</table></div>'


def listed(texts: Sequence[str]) -> str:
    """Give texts as an HTML list."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _picture(name: str, figure: "Figure") -> str:
    content = base64.b64encode(plots.picture(figure, "svg")).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/svg+xml;base64,{content}">'


def text(settings: Settings, form: str) -> tuple[str, list[str]]:
    """Give the report in a form: table, md, csv, tex or html; and what could not be read."""
    if form == "html":
        return page(settings), []
    found, problems = report.columns(settings)
    shown = report.render(report.texts(found), form)
    if form in ("csv", "tex"):
        return shown, problems
    mark, heads = ("- ", "## ") if form == "md" else ("", "")
    told = [f"{run}: {line}" for run, _, lines in _bills(settings, found) for line in lines]
    parts = {"Noise": comparison.noise(found), "Bills of the newest runs": told,
             "The published figures": comparison.ODDITIES}  # fmt: skip
    for name, lines in parts.items():
        if lines:
            shown += f"\n\n{heads}{name}\n\n" + "\n".join(mark + line for line in lines)
    return shown, problems
