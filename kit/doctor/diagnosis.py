"""Diagnoses and findings of `kit doctor`: the exceptions of a check and how they are shown.

Each diagnosis is a constant beside the check that raises it. `docs/doctor.md` has all of them as
a table; a test compares it and seeds every fault once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


Known = Mapping[Any, Diagnosis]  # class of an error -> its diagnosis

LATE = Diagnosis(
    "late", "any", "the check did not end in time", "look at that service, then run it again"
)
PACKAGE_MISSING = Diagnosis(
    "package-missing", "any", "a Python package of the kit is not installed here", "`make setup`"
)


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
    """A known fault; `got` is what was seen, `next_step` replaces the diagnosis's own."""

    def __init__(self, diagnosis: Diagnosis, got: str = "", next_step: str = "") -> None:
        super().__init__(diagnosis.cause, got, next_step or diagnosis.next_step)
        self.diagnosis = diagnosis


class CheckSkipped(KitError):
    """A check that cannot run: what it needs has failed, and has a finding of its own."""


def finding_of(name: str, err: KitError, known: Known, seconds: float = 0.0) -> Finding:
    """Return the finding for an error of a check; `known` has the diagnoses of its classes."""
    if isinstance(err, CheckSkipped):
        return Finding(name, "skipped", err.tried, "", seconds)
    answer = " ".join("; ".join(part for part in (err.tried, err.got) if part).split())
    if isinstance(err, DiagnosisError):
        row = err.diagnosis
        return Finding(name, row.state, answer, err.next_step, seconds, row.name)
    match = next((known[cls] for cls in type(err).__mro__ if cls in known), None)
    if match is None:
        return Finding(name, "failed", answer, err.next_step or "look at that service", seconds)
    return Finding(name, match.state, answer, err.next_step or match.next_step, seconds, match.name)


def to_text(findings: Iterable[Finding]) -> str:
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


def to_markdown(diagnoses: Iterable[Diagnosis]) -> str:
    """Return diagnoses as a Markdown table."""
    lines = ["| diagnosis | check | cause | what to do |", "|---|---|---|---|"]
    for row in diagnoses:
        mark = " (warning)" if row.state == "warning" else ""
        lines.append(f"| `{row.name}`{mark} | {row.check} | {row.cause} | {row.next_step} |")
    return "\n".join(lines)
