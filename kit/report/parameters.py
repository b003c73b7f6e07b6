"""Which parameters differ between the columns of a table: no figure is read without them."""

import json
from collections.abc import Iterable, Mapping

from kit.base import Json
from kit.report.intervals import OPTIONS

LABEL = "parameter "  # before the name of a parameter: its row in a table


def trained_with(run: Json) -> Json:
    """Return the experiment's parameters of a run, and on how many workers it trained."""
    given: Json = run["parameters"]
    own = {name: value for name, value in given.items() if name not in OPTIONS}
    return {**own, "workers": given.get("workers", 1)}


def differing(new: Iterable[Json], published: Json | None = None) -> list[str]:
    """Return the names of the parameters that are not the same everywhere.

    One that a run does not have differs from those of the others; of the `published` ones only
    those are compared that runs have, too.
    """
    runs = list(new)
    names = dict.fromkeys(name for run in runs for name in run)
    known = published or {}
    return [
        name
        for name in names
        if any(name not in run or run[name] != runs[0].get(name) for run in runs)
        or (name in known and known[name] != runs[0][name])
    ]


def parameter_rows(columns: Mapping[str, Json], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the rows of these parameters: title of a column -> label -> value."""
    chosen = list(names)
    return {
        title: {LABEL + name: _text(values[name]) if name in values else "-" for name in chosen}
        for title, values in columns.items()
    }


def parameter_note(labels: Iterable[str]) -> str:
    """Return the sentence below a table with these rows; empty where no parameter differs."""
    names = [label.removeprefix(LABEL) for label in labels if label.startswith(LABEL)]
    if not names:
        return ""
    return (
        f"The columns differ in the parameters {', '.join(names)}: kit report shows the newest "
        "runs of each target, whatever they were trained with."
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
