"""The reproduction report: each published file beside the new one, and why they differ."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import (
    WIDTH,
    DataError,
    Json,
    git_state,
    host_facts,
    read_history,
    read_json,
    sha256_of,
    to_text,
    work_dir,
    write_text,
)
from kit.base.settings import Settings
from kit.report.article.figures import (
    ARTICLE_PARAMETERS,
    OFFICIAL_TEST_ITEMS,
    OFFICIAL_TITLE,
    article_figures,
)
from kit.report.intervals import wilson
from kit.report.page import Part, Section, render
from kit.report.table import test_items
from kit.slurm import PUBLISHED

NEAR = 0.2
HARDWARE_FACTOR = (
    50.0  # the article did not record its threads; a bad number of them costs 80 times
)
RULE = (
    "green: the published shape, and the figure agrees (accuracy: the 95 % Wilson intervals meet; "
    "seconds and units: within a fifth; without a figure: the shape is all there is)",
    "amber: the published shape, the figure differs, and a stated reason can explain it: "
    "other parameters explain any figure, another machine or less data explains seconds and units "
    f"within a factor of {HARDWARE_FACTOR:.0f}, and fewer reserved CPUs explain fewer units",
    "red: missing, another shape, changed after its run, a run that is not in the history, or a "
    "difference that no stated reason explains (other data does not explain an accuracy)",
)
Row = dict[str, str]
METRICS = ("accuracy", "precision", "recall")
TIME = {"name": str, "start-time": float, "end-time": float, "total-seconds": float}
PERFORMANCE = {
    "name": str,
    **dict.fromkeys(METRICS, float),
    **{f"class-{name}": [float] for name in METRICS},
}
RUN = {"performance": PERFORMANCE, "time": TIME}
SEFF_KEYS = (
    "Job ID",
    "Cluster",
    "User/Group",
    "State",
    "CPU Utilized",
    "CPU Efficiency",
    "Job Wall-clock time",
    "Memory Utilized",
    "Memory Efficiency",
)
SEFF = dict.fromkeys(SEFF_KEYS, str)


@dataclass(frozen=True)
class PublishedFile:
    """One published file: the article's column, its shape, and the figure read from it.

    Without `keys` the figure is the one that the history has of the file's run (the bill).
    """

    path: str
    column: str
    shape: Mapping[str, Any]
    figure: str = ""
    keys: tuple[str, ...] = ()


def _numbered(count: int) -> dict[str, Any]:
    return {str(number): TIME for number in range(1, count + 1)}


def list_published_files() -> list[PublishedFile]:
    """List every published file, in the article's order."""
    accuracy, seconds = ("performance", "accuracy"), ("time", "total-seconds")
    files = []
    for column, path in (
        ("local", "local/artifacts/local_metrics.json"),
        ("cloud", "cloud/artifacts/cloud-metrics.json"),
    ):
        files.append(PublishedFile(path, column, RUN, "accuracy", accuracy))
        files.append(PublishedFile(path, column, RUN, "training_s", seconds))
    path, last = "cloud/times/pipeline_data.json", "total-seconds"
    files.append(PublishedFile(path, "cloud", _numbered(3), "pipeline_s", ("3", last)))
    for n in (1, 2):
        for path, shape, figure, keys in (
            ("artifacts/cloud-hpc-metrics", PERFORMANCE, "accuracy", ("accuracy",)),
            ("times/components", _numbered(4), "pipeline_s", ("4", last)),
            ("times/training", _numbered(2), "training_s", ("1", last)),
            ("artifacts/sacct", {"1": dict.fromkeys(PUBLISHED, None)}, "", ()),
            ("artifacts/seff", SEFF, "slurm_bu", ()),
        ):
            name = f"cloud-hpc/{path}-{n}.json"
            files.append(PublishedFile(name, f"cloud-hpc-{n}", shape, figure, keys))
    return files


def difference(value: Any, shape: Any, where: str = "") -> str:
    """Return where a JSON value has another shape; "" where it fits. None: any text or null.

    Keys beyond those of the shape are accepted: seff and sacct have more at some centres.
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{where or 'the file'} is not an object"
        missing = [key for key in shape if key not in value]
        if missing:
            return f"{where} lacks {missing[0]!r}".strip()
        texts = (
            difference(value[key], part, f"{where} {key}".strip()) for key, part in shape.items()
        )
        return next((text for text in texts if text), "")
    if isinstance(shape, list):
        right = isinstance(value, list) and all(type(item) is shape[0] for item in value)
        return "" if right and len(value) == 10 else f"{where} is not a list of 10 numbers"
    if shape is None:
        return "" if value is None or isinstance(value, str) else f"{where} is not a text"
    return "" if type(value) is shape else f"{where} is not a {shape.__name__}"


def rows_of(settings: Settings) -> list[Row]:
    """Compare each published file of a profile with the article; key `""` is a row's colour."""
    manifest_file = settings.profile_dir / "manifest.json"
    manifest = read_json(manifest_file) if manifest_file.exists() else {}
    history = read_history(settings.profile_dir / "history.jsonl")[0]
    runs = {run["run"]: run for run in history}
    return [
        _row(settings, file, manifest.get(file.path, {}), runs) for file in list_published_files()
    ]


def _row(settings: Settings, file: PublishedFile, entry: Json, runs: Mapping[str, Json]) -> Row:
    published = article_figures()[file.column].get(file.figure)
    shown = f"{published:,.4f}" if published is not None else ""

    def row(colour: str, shape: str, new: str = "", why: str = "") -> Row:
        """Build the row; what is the same in every row of this file is filled in."""
        return {
            "": colour,
            "file": file.path,
            "shape": shape,
            "figure": file.figure,
            "published": shown,
            "new": new,
            "why it differs": why,
        }

    path = settings.profile_dir / file.path
    if not path.exists():
        return row("red", "missing", why=f"{file.column} was not run here")
    problem = _problem(path, file, entry)
    if problem:
        return row("red", problem)
    run = runs.get(entry.get("run", ""))
    if run is None:
        return row("red", "as published", why="its run is not in the history")
    value: Any = read_json(path) if file.keys else run.get("figures", {}).get(file.figure)
    for key in file.keys:
        value = value[key]
    if published is None or value is None:
        return row("green", "as published")
    if _agrees(file.figure, published, value, test_items(run)):
        return row("green", "as published", f"{value:,.4f}")
    theirs = article_figures()[file.column].get("job_cpus", 0)
    cpus = (_reserved_cpus(path), theirs) if file.figure == "slurm_bu" else (0, 0)
    why, explained = reasons(run, file.figure, published, value, cpus)
    return row("amber" if explained else "red", "as published", f"{value:,.4f}", "; ".join(why))


def _reserved_cpus(seff_file: Path) -> int:
    """Return the CPUs that a job held, from its seff file; 0 if that does not say so."""
    seff = read_json(seff_file)
    counts = [str(seff.get(key, "")) for key in ("Nodes", "Cores per node")]
    return int(counts[0]) * int(counts[1]) if all(map(str.isdecimal, counts)) else 0


def _problem(path: Path, file: PublishedFile, entry: Json) -> str:
    try:
        text = difference(read_json(path), file.shape)
    except DataError as err:
        return str(err).splitlines()[0]
    if not text and entry.get("sha256") != sha256_of(path.read_bytes()):
        return "changed after its run (manifest.json)"
    return text


def _agrees(figure: str, published: float, value: float, items: int) -> bool:
    """Return whether a figure agrees; what cannot be compared does not."""
    if figure != "accuracy":
        return abs(value - published) <= NEAR * published
    if items <= 0:
        return False
    low, high = wilson(value, items)
    under, over = wilson(published, OFFICIAL_TEST_ITEMS)
    return low <= over and under <= high


def reasons(
    run: Json, figure: str, published: float, value: float, cpus: tuple[int, int] = (0, 0)
) -> tuple[list[str], bool]:
    """Return what differed from the article, and whether that can explain the difference.

    Other parameters can change every figure. Another machine, profile or less data can change
    seconds and units, within HARDWARE_FACTOR; they never explain another accuracy. `cpus` are the
    reserved CPUs here and in the article (0: unknown): units are in proportion to them.
    """
    data = str((run.get("data") or {}).get("title", ""))
    other_data = [f"data: {data}, not {OFFICIAL_TITLE}"] if data and data != OFFICIAL_TITLE else []
    given = run.get("parameters", {})
    other_parameters = [
        f"{name} {given[name]}, not {wanted}"
        for name, wanted in ARTICLE_PARAMETERS.items()
        if name in given and given[name] != wanted
    ]
    if figure == "accuracy":
        if not test_items(run):
            return [*other_data, *other_parameters, "the number of test items is unknown"], False
        return other_data + other_parameters, bool(other_parameters) and not other_data
    machine = [f"hardware: {(run.get('host') or {}).get('cpu', 'another')}"]
    if run.get("target") != "local":
        machine.append(f"profile {run.get('profile', '?')}")
    if all(cpus) and cpus[0] != cpus[1]:
        machine.append(f"{cpus[0]} reserved CPUs, not {cpus[1]}")
        published *= cpus[0] / cpus[1]
    ratio = max(value, published) / min(value, published) if min(value, published) > 0 else 0.0
    within = 0 < ratio <= HARDWARE_FACTOR
    why = other_data + other_parameters + machine
    if not within:
        why.append(f"more than {HARDWARE_FACTOR:.0f} times apart")
    return why, within or bool(other_data or other_parameters)


def as_text(rows: list[Row]) -> str:
    """Return the report for a terminal: count, table, rule."""
    colours = [row[""] for row in rows]
    numbers = ", ".join(f"{colours.count(name)} {name}" for name in ("green", "amber", "red"))
    shown = ("", "file", "figure", "published", "new")
    brief = [{name: row[name] for name in shown} for row in rows]
    amiss = [row for row in rows if row[""] != "green"]
    why = dict.fromkeys(f"{row['file']}: {row['why it differs'] or row['shape']}" for row in amiss)
    prose = [textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in (*why, "", *RULE)]
    return "\n".join(["Reproduction report: " + numbers, "", to_text(brief), "", *prose])


def as_page(settings: Settings, rows: list[Row]) -> str:
    """Return the report as one HTML page."""
    commit = git_state(work_dir())["commit"] or "unknown"
    facts = [f"{name} {value}" for name, value in host_facts().items()]
    sections = [
        Section("Each published file beside the new one", [Part(table=rows, words=True)]),
        Section("The rule", [Part(RULE)]),
        Section("Made from", [Part([f"git commit {commit}", *facts])]),
    ]
    return render(f"Reproduction report: profile {settings.profile}", sections)


def write(settings: Settings) -> tuple[str, Path]:
    """Write the report beside the results; return its text and the page's path."""
    rows = rows_of(settings)
    path = settings.profile_dir / "reproduction.html"
    write_text(path, as_page(settings, rows))
    return as_text(rows), path
