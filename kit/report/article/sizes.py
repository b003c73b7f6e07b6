"""How much notebook each target needs, and how many lines of each room are behind it."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import PACKAGE
from kit.report import plots
from kit.report.article.figures import article_figures, column_of
from kit.report.table import NOTEBOOKS, notebook_rows
from kit.runs.history import TARGETS

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

# The rooms that a target uses, from the floors of the architecture page.
ROOMS = {
    "local": ("base", "experiments", "tracking", "runs", "notebook", "report"),
    "cloud": ("base", "experiments", "store", "billing", "tracking", "runs", "notebook", "report"),
    "cloud-hpc": (
        *("base", "experiments", "store", "slurm", "billing", "tracking", "onsite", "runs"),
        *("submitter", "forwarder", "notebook", "report"),
    ),
}


def room_lines() -> dict[str, int]:
    """Count the lines of code of each room: no blank lines, comments or docstrings."""
    return {
        folder.name: sum(_code_lines(path) for path in folder.rglob("*.py"))
        for folder in sorted(PACKAGE.iterdir())
        if (folder / "__init__.py").exists()
    }


def _code_lines(path: Path) -> int:
    source = path.read_text(encoding="utf-8")
    lines = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    }
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines -= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
    return len(lines)


def table() -> "pandas.DataFrame":
    """Return, for each target, the article's rows, ours and the lines of the rooms behind them."""
    import pandas

    frame = pandas.DataFrame.from_dict(_sizes(), orient="index")
    saved = 1 - frame["our rows"] / frame["article rows"]
    return frame.assign(**{"rows saved": saved.map("{:.1%}".format)})


def chart() -> "Figure":
    """Draw the sizes as bars on a logarithmic axis."""
    return plots.bars(_sizes(), "Rows of notebook code and lines behind them", "rows, lines", True)


def details() -> "pandas.DataFrame":
    """Return the lines of each room that each target uses."""
    import pandas

    lines = room_lines()
    used = {target: {room: lines[room] for room in rooms} for target, rooms in ROOMS.items()}
    frame = pandas.DataFrame(used).reindex(lines).fillna(0).astype(int)
    frame.loc["together"] = frame.sum()
    return frame


def _sizes() -> dict[str, dict[str, int]]:
    lines = room_lines()
    return {
        name: {
            "article rows": article_figures()[column_of(name, {})]["notebook_rows"],
            "our rows": notebook_rows(NOTEBOOKS / f"{name}.ipynb"),
            "lines of kit/": sum(lines[room] for room in ROOMS[name]),
        }
        for name in TARGETS
    }
