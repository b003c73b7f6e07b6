"""`make reproduce`: every notebook in order, then the article's table with the new runs and the
reproduction certificate.

Where the sandbox cannot be had, the notebooks that need nothing of it still run, and the end
says what was left out and how to get it.
"""

import os
from collections.abc import Callable

from kit.base import Json, KitError, UsageError
from kit.base.settings import Settings
from kit.report import comparison
from kit.report import reproduction as certificate
from kit.report import table as report
from kit.runs import notebooks

Say = Callable[[str], None]
# notebook, its parameters, whether it needs the sandbox's services
ORDER: tuple[tuple[str, dict[str, object], bool], ...] = (
    ("local", {}, False),
    ("cloud", {}, True),
    ("cloud-hpc", {"configured": False}, True),
    ("cloud-hpc", {"configured": True}, True),
    ("Notebook_Size_Comparison", {}, False),
    ("report", {}, False),
)


def reproduce(settings: Settings, say: Say, start_sandbox: Callable[[], object]) -> int:
    """Run everything; return the exit code: 1 in CI when something had to be left out."""
    reason = _sandbox(settings, say, start_sandbox)
    left_out = []
    for name, values, needs_sandbox in ORDER:
        told = ", ".join([name, *(f"{key} = {value}" for key, value in values.items())])
        if needs_sandbox and reason is not None:
            left_out.append(told)
            continue
        say(f"running the notebook {told} …")
        say(summary(notebooks.run(settings, name, values)))
    table, problems = report.table(settings)
    told, path = certificate.write(settings)
    for line in [report.render(table, "table"), *problems, f"\n{told}", f"as a page: {path}"]:
        say(line)
    if reason is None:
        return 0
    say(f"\nNot run: {'; '.join(left_out) or 'the sandbox'}\n{reason}")
    return 1 if os.environ.get("CI") else 0


def summary(record: Json | None) -> str:
    """Tell in a few lines what a run came to; stand-in data in capital letters."""
    if record is None:
        return "  done"
    told = ", ".join(f"{key} {value:.5g}" for key, value in record["figures"].items())
    warning = record.get("data", {}).get("warning")
    return f"  {record['run']}: {told}" + (f"\n  !!! {warning}" if warning else "")


def repeated(settings: Settings, record: Json) -> str:
    """Tell after several runs of one kind their median and spread, and which differences count."""
    found = report.columns(settings)[0]
    mine = f"{report.column_of(record['target'], record['parameters'])} (new)"
    table = report.render({mine: report.texts(found)[mine]}, "table")
    return "\n".join([table, *comparison.noise(found)])


def _sandbox(settings: Settings, say: Say, start_sandbox: Callable[[], object]) -> KitError | None:
    """Start the sandbox; return the reason when its packages are missing."""
    if settings.profile != "sandbox":
        return None
    say("starting the sandbox …")
    try:
        start_sandbox()
    except UsageError as err:
        return err
    return None
