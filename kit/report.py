"""The article's table from `results/article/`, and new runs beside it.

A new column holds every finished run of one target with the newest parameters and data: one
run as it is, several as their median with the smallest and largest value.
"""

import ast
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import plots, records, tables
from kit.errors import DataError
from kit.records import Json
from kit.settings import ROOT, Settings

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

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
FORMS = {"table": tables.text, "md": tables.markdown, "csv": tables.comma, "tex": tables.latex}
Column = dict[str, str]


def article() -> dict[str, Json]:
    """Give the published figures: target -> figure -> value."""
    targets: dict[str, Json] = records.read_json(ARTICLE)["targets"]
    return targets


def notebook_rows(path: Path) -> int:
    """Count rows by the article's rule: the lines of all code cells."""
    cells = _cells(path)
    return sum(len(source.splitlines()) for source in cells)


def package_lines(notebook: Path) -> dict[str, int]:
    """Count the lines of each file of `kit/` that a notebook pulls in, by its imports.

    Every import statement counts, also those inside functions, and those of the files
    imported: file name -> lines.
    """
    todo = _imports("\n".join(_cells(notebook)))
    lines: dict[str, int] = {}
    while todo:
        path = ROOT / "kit" / f"{todo.pop()}.py"
        if path.name in lines or not path.exists():
            continue
        source = path.read_text(encoding="utf-8")
        lines[path.name] = len(source.splitlines())
        todo |= _imports(source)
    return dict(sorted(lines.items()))


def _cells(path: Path) -> list[str]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} is not a notebook", str(err)) from err


def _imports(source: str) -> set[str]:
    """Name the files of `kit/` that some Python source imports (magics left out)."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    found: set[str] = {"__init__"}
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ImportFrom) and node.module == "kit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kit."):
            found.add(str(node.module).removeprefix("kit."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("kit.") for a in node.names if a.name.startswith("kit.")}
    return found


def size_table() -> "pandas.DataFrame":
    """Give, for each target with a notebook, the article's rows, ours and the lines of `kit/`."""
    import pandas

    sizes = _sizes()
    frame = pandas.DataFrame.from_dict(sizes, orient="index").astype("Int64")
    frame["rows saved"] = [
        f"{1 - size['our rows'] / size['article rows']:.1%}" if "our rows" in size else "-"
        for size in sizes.values()
    ]
    return frame


def size_chart() -> "Figure":
    """Draw the sizes as bars on a logarithmic axis."""
    return plots.bars(_sizes(), "Rows of notebook code and lines behind them", "rows, lines", True)


def size_details() -> "pandas.DataFrame":
    """Give the lines of each file of `kit/` that each notebook pulls in."""
    import pandas

    pulled = {path.stem: package_lines(path) for path in _target_notebooks()}
    frame = pandas.DataFrame(pulled).fillna(0).astype(int).sort_index()
    frame.loc["together"] = frame.sum()
    return frame


def _target_notebooks() -> list[Path]:
    paths = [NOTEBOOKS / f"{name}.ipynb" for name in ("local", "cloud", "cloud-hpc")]
    return [path for path in paths if path.exists()]


def _sizes() -> dict[str, dict[str, int]]:
    published = article()
    sizes = {
        name: {"article rows": published[key]["notebook_rows"]}
        for name, key in (("local", "local"), ("cloud", "cloud"), ("cloud-hpc", "cloud-hpc-1"))
    }
    for path in _target_notebooks():
        sizes[path.stem]["our rows"] = notebook_rows(path)
        sizes[path.stem]["lines of kit/"] = sum(package_lines(path).values())
    return sizes


def columns(settings: Settings) -> tuple[dict[str, Column], list[str]]:
    """Build the table: column title -> row label -> text, and what could not be read."""
    table = {f"article {name}": _published(figures) for name, figures in article().items()}
    groups, problems = newest_runs(settings)
    for name, runs in groups.items():
        table[f"{name} (new)"] = _measured(runs)
    return table, problems


def newest_runs(settings: Settings) -> tuple[dict[str, list[Json]], list[str]]:
    """Give for each new column its runs, oldest first, and what could not be read."""
    history, problems = records.read_history(settings.profile_dir / "history.jsonl")
    whole = []
    for run in history:
        if run.get("target") in TARGETS and isinstance(run.get("parameters"), dict):
            whole.append(run)
        else:
            problems.append(f"history.jsonl: {run['run']} has no known target and was left out")
    return _newest_groups(whole), problems


def _published(figures: Json) -> Column:
    column = {label: _number(figures.get(key), digits) for label, (key, digits) in ROWS.items()}
    return column | {"data": "official 60,000 + 10,000", "runs": "1", "hardware": "as published"}


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


def _measured(runs: list[Json]) -> Column:
    column = {}
    for label, (key, digits) in ROWS.items():
        values = [run["figures"][key] for run in runs if key in run.get("figures", {})]
        column[label] = _spread(values, digits)
    newest = runs[-1]
    notebook = NOTEBOOKS / f"{newest['target']}.ipynb"
    column["rows of notebook code"] = _number(
        notebook_rows(notebook) if notebook.exists() else None, 0
    )
    column["data"] = newest.get("data", {}).get("title", "not recorded")
    column["runs"] = str(len(runs))
    host = newest.get("host", {})
    column["hardware"] = f"{host.get('cpu', '?')}, {newest['parameters'].get('threads')} thread(s)"
    return column


def _spread(values: list[float], digits: int) -> str:
    if len(values) < 2:
        return _number(values[0] if values else None, digits)
    low, middle, high = (
        _number(value, digits) for value in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"{middle} [{low} to {high}]"


def _number(value: Any, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def rows(table: Mapping[str, Column]) -> list[dict[str, str]]:
    """Turn columns into rows, the label first; what a column has not is `-`."""
    labels = dict.fromkeys(label for column in table.values() for label in column)
    return [
        {"": label, **{title: column.get(label, "-") for title, column in table.items()}}
        for label in labels
    ]


def render(table: Mapping[str, Column], form: str) -> str:
    """Give the table as text: form table (terminal), md, csv or tex."""
    return FORMS[form](rows(table))
