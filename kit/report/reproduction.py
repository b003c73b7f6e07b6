"""The reproduction certificate: each published file beside its new one, and why they differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import (
    ROOT,
    DataError,
    Json,
    git_state,
    host_facts,
    read_history,
    read_json,
    sha256_of,
    to_text,
    write_text,
)
from kit.base.settings import Settings
from kit.report import page as report_page
from kit.report import table as report
from kit.slurm.usage import PUBLISHED

RULE = (
    "green: the published shape, and the figure agrees (accuracy: the 95 % Wilson intervals meet; "
    "seconds and units: within a fifth; without a figure: the shape is all there is)",
    "amber: the published shape, the figure differs, and a reason is known",
    "red: missing, another shape, changed after its run, or a difference without a reason",
)
NEAR = 0.2
Row = dict[str, str]
ASKED = {"epochs": 5, "batch_size": 4, "learning_rate": 0.001, "momentum": 0.9, "workers": 1}
DATA = "official 60,000 + 10,000"
KINDS = ("accuracy", "precision", "recall")
TIME = {"name": str, "start-time": float, "end-time": float, "total-seconds": float}
PERFORMANCE = {"name": str, **dict.fromkeys(KINDS, float)} | {f"class-{k}": [float] for k in KINDS}
METRICS = {"performance": PERFORMANCE, "time": TIME}
SEFF = dict.fromkeys(
    ("Job ID", "Cluster", "User/Group", "State", "CPU Utilized", "CPU Efficiency",
     "Job Wall-clock time", "Memory Utilized", "Memory Efficiency"), str,
)  # fmt: skip


@dataclass(frozen=True)
class File:
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


def files() -> list[File]:
    """Name every published file, in the article's order."""
    accuracy, seconds = ("performance", "accuracy"), ("time", "total-seconds")
    found = []
    for column, path in (("local", "local/artifacts/local_metrics.json"),
                         ("cloud", "cloud/artifacts/cloud-metrics.json")):  # fmt: skip
        found.append(File(path, column, METRICS, "accuracy", accuracy))
        found.append(File(path, column, METRICS, "training_s", seconds))
    last = "total-seconds"
    found.append(
        File("cloud/times/pipeline_data.json", "cloud", _numbered(3), "pipeline_s", ("3", last))
    )
    for n in (1, 2):
        for path, shape, figure, keys in (
            ("artifacts/cloud-hpc-metrics", PERFORMANCE, "accuracy", ("accuracy",)),
            ("times/components", _numbered(4), "pipeline_s", ("4", last)),
            ("times/training", _numbered(2), "training_s", ("1", last)),
            ("artifacts/sacct", {"1": dict.fromkeys(PUBLISHED, None)}, "", ()),
            ("artifacts/seff", SEFF, "slurm_bu", ()),
        ):
            found.append(File(f"cloud-hpc/{path}-{n}.json", f"cloud-hpc-{n}", shape, figure, keys))
    return found


def differs(value: Any, shape: Any, where: str = "") -> str:
    """Say where a JSON value has another shape; "" where it has this one. None: any text or null.

    Keys that a shape has not are let through only beside known ones of free tables (seff, sacct).
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{where or 'the file'} is no table"
        missing = [key for key in shape if key not in value]
        if missing:
            return f"{where} lacks {missing[0]!r}".strip()
        found = (differs(value[key], part, f"{where} {key}".strip()) for key, part in shape.items())
        return next((text for text in found if text), "")
    if isinstance(shape, list):
        right = isinstance(value, list) and all(type(item) is shape[0] for item in value)
        return "" if right and len(value) == 10 else f"{where} is no list of 10 numbers"
    if shape is None:
        return "" if value is None or isinstance(value, str) else f"{where} is no text"
    return "" if type(value) is shape else f"{where} is no {shape.__name__}"


def make(settings: Settings) -> list[Row]:
    """Hold each published file of a profile against the article; `""` is a row's colour."""
    manifest_file = settings.profile_dir / "manifest.json"
    manifest = read_json(manifest_file) if manifest_file.exists() else {}
    history = read_history(settings.profile_dir / "history.jsonl")[0]
    runs = {run["run"]: run for run in history}
    return [_row(settings, file, manifest.get(file.path, {}), runs) for file in files()]


def _row(settings: Settings, file: File, entry: Json, runs: Mapping[str, Json]) -> Row:
    published = report.article()[file.column].get(file.figure)
    shown = f"{published:,.4f}" if published is not None else ""

    def row(colour: str, shape: str, new: str = "", why: str = "") -> Row:
        """Fill in what is the same in every row of this file."""
        return {"": colour, "file": file.path, "shape": shape, "figure": file.figure,
                "published": shown, "new": new, "why it differs": why}  # fmt: skip

    path = settings.profile_dir / file.path
    if not path.exists():
        return row("red", "missing", why=f"{file.column} was not run here")
    problem = _problem(path, file, entry)
    if problem:
        return row("red", problem)
    run = runs.get(entry.get("run", ""), {})
    value: Any = read_json(path) if file.keys else run.get("figures", {}).get(file.figure)
    for key in file.keys:
        value = value[key]
    if published is None or value is None:
        return row("green", "as published")
    if _agrees(file.figure, published, value, report.test_images(run)):
        return row("green", "as published", f"{value:,.4f}")
    why = reasons(run, file.figure)
    return row("amber" if why else "red", "as published", f"{value:,.4f}", "; ".join(why))


def _problem(path: Path, file: File, entry: Json) -> str:
    try:
        text = differs(read_json(path), file.shape)
    except DataError as err:
        return str(err).splitlines()[0]
    if not text and entry.get("sha256") != sha256_of(path.read_bytes()):
        return "changed after its run (manifest.json)"
    return text


def _agrees(figure: str, published: float, value: float, tested: int) -> bool:
    if figure != "accuracy":
        return abs(value - published) <= NEAR * published
    low, high = report.wilson(value, tested)
    under, over = report.wilson(published, report.OFFICIAL_TEST_IMAGES)
    return low <= over and under <= high


def reasons(run: Json, figure: str) -> list[str]:
    """Say what was other than in the article: data, parameters; for seconds the hardware too."""
    told = []
    title = run.get("data", {}).get("title", "")
    if title and title != DATA:
        told.append(f"data: {title}, not {DATA}")
    given = run.get("parameters", {})
    told += [
        f"{name} {given[name]}, not {wanted}"
        for name, wanted in ASKED.items()
        if name in given and given[name] != wanted
    ]
    if figure != "accuracy" and run:
        told.append(f"hardware: {run.get('host', {}).get('cpu', 'another')}")
        if run.get("target") != "local":
            told.append(f"profile {run.get('profile', '?')}")
    return told


def text(rows: list[Row]) -> str:
    """Give the certificate for a terminal: table, rule, count."""
    counts = {c: sum(row[""] == c for row in rows) for c in ("green", "amber", "red")}
    told = ", ".join(f"{count} {colour}" for colour, count in counts.items())
    return "\n".join(["Reproduction certificate: " + told, "", to_text(rows), "", *RULE])


def page(settings: Settings, rows: list[Row]) -> str:
    """Give the certificate as one HTML page."""
    commit = git_state(ROOT)["commit"] or "unknown"
    facts = [(name, str(value)) for name, value in host_facts().items()]
    return report_page.document(
        f"Reproduction certificate: profile {settings.profile}",
        [("Each published file beside its new one", report_page.table(rows, words=True)),
         ("The rule", report_page.listed(RULE)),
         ("Made from", report_page.listed([f"git commit {commit}", *map(" ".join, facts)]))],
    )  # fmt: skip


def write(settings: Settings) -> tuple[str, Path]:
    """Write the certificate beside the results; give its text and the page's path."""
    rows = make(settings)
    path = settings.profile_dir / "certificate.html"
    write_text(path, page(settings, rows))
    return text(rows), path
