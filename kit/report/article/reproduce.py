"""`kit reproduce`: every notebook in order, then the article's table and the reproduction report.

Where the sandbox cannot run, the profile `laptop` takes its place: the targets local and cloud
need no service. The end says what was left out and how to get it.
"""

import os
import textwrap
from collections.abc import Callable

from kit.base import WIDTH, Json, KitError, UsageError
from kit.base.settings import Settings, load
from kit.report.article.figures import column_of
from kit.report.noise import compare
from kit.report.table import ABOUT_RESUMED, build_table, columns, read_table, to_form
from kit.runs import notebooks
from kit.tracking import Logged

Report = Callable[[str], None]
ORDER: tuple[tuple[str, dict[str, object]], ...] = (
    ("local", {}),
    ("cloud", {}),
    ("cloud-hpc", {"configured": False}),
    ("cloud-hpc", {"configured": True}),
    ("Notebook_Size_Comparison", {}),
    ("report", {}),
)
WITHOUT_SERVICES = "laptop"


def reproduce(settings: Settings, report: Report, start_sandbox: Callable[[], object]) -> int:
    """Run everything; return the exit code: 1 in CI when something had to be left out."""
    from kit.report.article import reproduction  # late: it draws, which `kit run` does not need

    reason = _sandbox_problem(settings, report, start_sandbox)
    if reason is not None:
        report(f"the sandbox cannot run: {reason}\ncontinuing with --profile {WITHOUT_SERVICES} …")
        settings = load(WITHOUT_SERVICES)
    left_out = []
    for name, values in ORDER:
        title = ", ".join([name, *(f"{key} = {value}" for key, value in values.items())])
        if name == "cloud-hpc" and settings.hpc is None:
            left_out.append(title)
            continue
        report(f"running the notebook {title} …")
        report(summary(notebooks.run_notebook(settings, name, values)))
    shown, problems = read_table(settings)
    text, path = reproduction.write(settings)
    for line in [to_form(shown, "table"), *problems, f"\n{text}", f"as a page: {path}"]:
        report(line)
    if not left_out:
        return 0
    why = reason or f"profile {settings.profile} has no section [hpc]"
    report(f"\nNot run: {'; '.join(left_out)}\n{why}")
    return 1 if os.environ.get("CI") else 0


def summary(record: Json | None) -> str:
    """Return the figures of a run on a line, and below it what is wrong with data or MLflow."""
    if record is None:
        return "  done"
    primary = record.get("primary", "")
    shown = {primary: record["metrics"][primary]} if primary else {}
    figures = ", ".join(f"{k} {v:.5g}" for k, v in {**record["figures"], **shown}.items())
    text = f"  {record['run']}: {figures}"
    lines = [textwrap.fill(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)]
    if record.get("resumed") and "pipeline_s" in record["figures"]:
        note = textwrap.fill(ABOUT_RESUMED, WIDTH - 2, break_on_hyphens=False)
        lines.append(textwrap.indent(note, "  "))
    if warning := record["data"].get("warning"):
        lines.append(f"  data: {warning}")
    if "tracking" in record and (note := Logged(**record["tracking"]).sentence()):
        lines.append(f"  {note}")
    return "\n".join(lines)


def repeated(settings: Settings, record: Json) -> str:
    """Return the median and spread of several runs of one kind, and which differences count."""
    shown = columns(settings)[0]
    title = f"{column_of(record['target'], record['parameters'])} (new)"
    text = to_form({title: build_table(shown)[title]}, "table")
    return "\n".join([text, *compare(shown)])


def _sandbox_problem(
    settings: Settings, report: Report, start_sandbox: Callable[[], object]
) -> KitError | None:
    """Start the sandbox; return the reason when its packages are missing."""
    if settings.profile != "sandbox":
        return None
    report("starting the sandbox …")
    try:
        start_sandbox()
    except UsageError as err:
        return err
    return None
