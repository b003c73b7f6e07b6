"""How much notebook each target needs, and how many lines of `kit/` stand behind it."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import ROOT
from kit.report import plots
from kit.report import table as report

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def package_lines(notebook: Path) -> dict[str, int]:
    """Count the lines of each file of `kit/` that a notebook pulls in, by its imports.

    Every import statement counts, also those inside functions, and those of the files
    imported: file name -> lines.
    """
    todo = _imports("\n".join(report.code_cells(notebook)))
    lines: dict[str, int] = {}
    while todo:
        module = ROOT / "kit" / todo.pop().replace(".", "/")
        path = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        name = path.relative_to(ROOT / "kit").as_posix()
        if name in lines or not path.exists():
            continue
        source = path.read_text(encoding="utf-8")
        lines[name] = len(source.splitlines())
        todo |= _imports(source)
    return dict(sorted(lines.items()))


def _imports(source: str) -> set[str]:
    """Name the files of `kit/` that some Python source imports (magics left out)."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    found: set[str] = {"__init__"}
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kit."):
            module = str(node.module).removeprefix("kit.")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("kit.") for a in node.names if a.name.startswith("kit.")}
    return found


def table() -> "pandas.DataFrame":
    """Give, for each target, the article's rows, ours and the lines of `kit/`."""
    import pandas

    frame = pandas.DataFrame.from_dict(_sizes(), orient="index")
    saved = 1 - frame["our rows"] / frame["article rows"]
    return frame.assign(**{"rows saved": saved.map("{:.1%}".format)})


def chart() -> "Figure":
    """Draw the sizes as bars on a logarithmic axis."""
    return plots.bars(_sizes(), "Rows of notebook code and lines behind them", "rows, lines", True)


def details() -> "pandas.DataFrame":
    """Give the lines of each file of `kit/` that each notebook pulls in."""
    import pandas

    pulled = {name: package_lines(report.NOTEBOOKS / f"{name}.ipynb") for name in report.TARGETS}
    frame = pandas.DataFrame(pulled).fillna(0).astype(int).sort_index()
    frame.loc["together"] = frame.sum()
    return frame


def _sizes() -> dict[str, dict[str, int]]:
    sizes = {}
    for name in report.TARGETS:
        path = report.NOTEBOOKS / f"{name}.ipynb"
        sizes[name] = {
            "article rows": report.article()[report.column_of(name, {})]["notebook_rows"],
            "our rows": report.notebook_rows(path),
            "lines of kit/": sum(package_lines(path).values()),
        }
    return sizes
