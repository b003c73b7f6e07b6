"""Diagnoses and findings of `kit doctor`: the exceptions of a check and how they are shown.

Every diagnosis is in `diagnoses.toml`; a check names it. The table in `docs/doctor.md` is made from
that file, and a test seeds every fault once.
"""

import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from kit.base import KitError


@dataclass(frozen=True)
class Diagnosis:
    """A known fault: its name, the check that finds it, its cause, and what to do."""

    name: str
    check: str
    cause: str
    next_step: str
    state: str = "failed"


Known = Mapping[Any, str]  # class of an error -> the name of its diagnosis


@cache
def diagnoses() -> dict[str, Diagnosis]:
    """Return every diagnosis by its name, in the order of the checks."""
    table = tomllib.loads((files(__package__) / "diagnoses.toml").read_text(encoding="utf-8"))
    return {
        name: Diagnosis(name, check, *row)
        for check, rows in table.items()
        for name, row in rows.items()
    }


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    `state` is ok, warning, failed or skipped. `diagnosis` is the name of a Diagnosis, or "" if
    all is well or the fault is unknown.
    """

    name: str
    state: str
    answer: str
    next_step: str = ""
    seconds: float = 0.0
    diagnosis: str = ""


class DiagnosisError(KitError):
    """A known fault by its name; `got` is what was seen, `next_step` replaces the usual one."""

    def __init__(self, name: str, got: str = "", next_step: str = "") -> None:
        self.diagnosis = diagnoses()[name]
        super().__init__(self.diagnosis.cause, got, next_step or self.diagnosis.next_step)


class CheckSkipped(KitError):
    """A check that cannot run: what it needs has failed, and has a finding of its own."""


def finding_of(name: str, err: KitError, known: Known, seconds: float = 0.0) -> Finding:
    """Return the finding for an error of a check; `known` has the diagnoses of its classes."""
    if isinstance(err, CheckSkipped):
        return Finding(name, "skipped", err.tried, "", seconds)
    answer = " ".join("; ".join(part for part in (err.tried, err.got) if part).split())
    if isinstance(err, DiagnosisError):
        row = err.diagnosis
    elif match := next((known[cls] for cls in type(err).__mro__ if cls in known), ""):
        row = diagnoses()[match]
    else:
        return Finding(name, "failed", answer, err.next_step or "look at that service", seconds)
    return Finding(name, row.state, answer, err.next_step or row.next_step, seconds, row.name)


def findings_to_text(findings: Iterable[Finding]) -> str:
    """Return findings as lines; skipped checks are listed by their reason, and all are counted."""
    lines, states, skipped = [], Counter[str](), defaultdict[str, list[str]](list)
    for row in findings:
        states[row.state] += 1
        if row.state == "skipped":
            skipped[row.answer].append(row.name)
            continue
        lines.append(f"{row.state:8}{row.name}: {row.answer}")
        if row.next_step:
            label = f" [{row.diagnosis}]" if row.diagnosis else ""
            lines.append(f"{'':8}next: {row.next_step}{label}")
    lines += [f"skipped {', '.join(names)}: {why}" for why, names in skipped.items()]
    return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in states.items())])


def diagnosis_table(diagnoses: Iterable[Diagnosis]) -> str:
    """Return diagnoses as a Markdown table."""
    lines = ["| diagnosis | check | cause | what to do |", "|---|---|---|---|"]
    for row in diagnoses:
        mark = " (warning)" if row.state == "warning" else ""
        lines.append(f"| `{row.name}`{mark} | {row.check} | {row.cause} | {row.next_step} |")
    return "\n".join(lines)
