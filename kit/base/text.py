"""Rows as text: a terminal's table, Markdown, CSV, LaTeX. Every row has the same keys."""

import csv
import io
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, str]]


def to_text(rows: Rows) -> str:
    """Return an aligned table; columns that are empty in every row are left out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    table = _table([{name: row[name] for name in names} for row in rows], "simple")
    return "\n".join(line.rstrip() for line in table.splitlines())


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
