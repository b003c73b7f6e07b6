"""Rows as text: a terminal's table, Markdown, CSV, LaTeX. Pure; every row has the same keys."""

import csv
import io
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, str]]


def to_text(rows: Rows) -> str:
    """Give an aligned table; columns that are empty in every row are left out."""
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned(_kept(rows)))


def to_markdown(rows: Rows) -> str:
    """Give a Markdown table, the first column to the left and the others to the right."""
    head, rule, *body = _aligned([{k: v.replace("|", "\\|") for k, v in r.items()} for r in rows])
    rule = [rule[0], *(cell[:-1] + ":" for cell in rule[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *body])


def to_csv(rows: Rows) -> str:
    """Give CSV (RFC 4180, line feeds)."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}",
                      "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})  # fmt: skip


def to_latex(rows: Rows) -> str:
    """Give a LaTeX table for the package booktabs."""
    lines = [[cell.translate(LATEX) for cell in line] for line in _lines(rows)]
    body = [f"{' & '.join(line)} \\\\" for line in lines]
    columns = "l" + "r" * (len(lines[0]) - 1)
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", "\\toprule", body[0], "\\midrule",
                      *body[1:], "\\bottomrule", "\\end{tabular}"])  # fmt: skip


def _kept(rows: Rows) -> Rows:
    names = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    return [{name: row[name] for name in names} for row in rows]


def _lines(rows: Rows) -> list[list[str]]:
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def _aligned(rows: Rows) -> list[list[str]]:
    lines = _lines(rows)
    if not lines:
        return []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
