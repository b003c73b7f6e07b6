"""Rows as text: a terminal's table, Markdown, CSV, LaTeX. Every row has the same keys."""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, str]]
WIDTH = 100  # columns of a terminal that every table fits
NARROW = 12  # a column is not made narrower than this


def to_text(rows: Rows) -> str:
    """Return an aligned table; columns that are empty in every row are left out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    table = _table(narrowed([{name: row[name] for name in names} for row in rows]), "simple")
    return "\n".join(line.rstrip() for line in table.splitlines())


def narrowed(rows: Rows) -> list[dict[str, str]]:
    """Return the rows with the cells of the widest columns wrapped, so that they fit WIDTH.

    Columns are divided by two blanks. A word is broken only where no column has blanks left.
    """
    names = list(rows[0]) if rows else []
    # tabulate 0.10 makes a column two wider than its header: MIN_PADDING
    cells = {name: [f"{name}--", *(row[name] for row in rows)] for name in names}
    widths = {
        name: max(len(line) for cell in cells[name] for line in cell.split("\n")) for name in names
    }
    words = {name: max(map(len, " ".join(cells[name]).split()), default=0) for name in names}
    least = {name: max(NARROW, words[name]) for name in names}
    while sum(widths.values()) + 2 * (len(names) - 1) > WIDTH:
        wide = [name for name in names if widths[name] > least[name]]
        wide = wide or [name for name in names if widths[name] > NARROW]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return [{name: _wrapped(row[name], widths[name]) for name in names} for row in rows]


def _wrapped(text: str, width: int) -> str:
    return "\n".join(
        textwrap.fill(line, width, break_on_hyphens=False) if len(line) > width else line
        for line in text.split("\n")
    )


def to_markdown(rows: Rows) -> str:
    """Return a Markdown table, the first column to the left and the others to the right."""
    escaped = [{key: cell.replace("|", "\\|") for key, cell in row.items()} for row in rows]
    return _table(escaped, "pipe")


def to_csv(rows: Rows) -> str:
    """Return CSV (RFC 4180, line feeds)."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def to_latex(rows: Rows) -> str:
    """Return a LaTeX table for the package booktabs."""
    return _table(rows, "latex_booktabs")


def _table(rows: Rows, form: str) -> str:
    """Return the table in a format of tabulate; cells are texts and stay as they are."""
    import tabulate  # here for its weight

    if not rows:
        return ""
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    cells = [list(row.values()) for row in rows]
    return tabulate.tabulate(
        cells, list(rows[0]), form, disable_numparse=True, colalign=align, preserve_whitespace=True
    )
