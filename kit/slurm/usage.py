"""What a job used: one life of it in sacct's figures, seff's text of both kinds, or computed.

Pure functions over the rows of `slurm_text.read_account`. sacct is the truth; the raw text is
kept by whoever asked.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from kit.base import DataError
from kit.slurm.text import AccountRow
from kit.slurm.values import JobState, seconds, size

PUBLISHED = (
    *("JobID", "JobName", "Account", "Partition", "ReqCPUS", "AllocCPUS", "ReqNodes", "AllocNodes"),
    *("State", "AveCPU", "AveCPUFreq", "AveDiskRead", "AveDiskWrite", "Timelimit", "Submit"),
    *("Start", "Elapsed", "Planned", "End", "PlannedCPU", "CPUTime", "TotalCPU"),
)
SEFF_KEYS = (
    *("Job ID", "Cluster", "User/Group", "State", "Nodes", "Cores", "Cores per node"),
    *("CPU Utilized", "CPU Efficiency", "Job Wall-clock time", "Memory Utilized"),
    *("Memory Efficiency", "Billed project", "Non-Interactive BUs"),
)


@dataclass(frozen=True)
class Usage:
    """What one life of a job used: the truth for bills (`rows`: the job, then its steps).

    Seconds and bytes; `core_seconds` is what was allocated, `cpu_seconds` what was worked,
    `queued_seconds` start minus submit. None where sacct has no value.
    """

    job_id: str
    state: JobState
    exit_code: int | None
    elapsed_seconds: int | None
    queued_seconds: float | None
    nodes: int | None
    cores: int | None
    core_seconds: float | None
    cpu_seconds: float | None
    max_rss_bytes: int | None
    tres: Mapping[str, str]
    rows: tuple[AccountRow, ...]


def lives(rows: Sequence[AccountRow]) -> list[list[AccountRow]]:
    """Sort a listing into lives of jobs, each the job's row and its steps, in order."""
    found: list[list[AccountRow]] = []
    newest: dict[str, list[AccountRow]] = {}
    for row in rows:
        if not row.step:
            newest[row.job_id] = [row]
            found.append(newest[row.job_id])
        elif row.job_id in newest:
            newest[row.job_id].append(row)
    return found


def read_usage(rows: Sequence[AccountRow], job_id: str, life: int = 0) -> Usage:
    """Sum up one life of a job (0 = its first start).

    Raises DataError when it is not listed, or not whole yet (`whole`).
    """
    found = [each for each in lives(rows) if each[0].job_id == job_id]
    if life >= len(found) or not found[life][0].whole:
        raise DataError(f"job {job_id} is not in the accounting", next_step="ask again later")
    return usage_of(found[life])


def usage_of(life: Sequence[AccountRow]) -> Usage:
    """Sum up the rows of one life."""
    job, *steps = life
    rss = [size(step.columns.get("MaxRSS", "")) or 0 for step in steps]
    get = job.columns.get
    return Usage(
        job_id=job.job_id,
        state=job.state,
        exit_code=job.exit_code,
        elapsed_seconds=_seconds(get("ElapsedRaw"), get("Elapsed", "")),
        queued_seconds=job.start - job.submit if job.start and job.submit else None,
        nodes=_number(get("AllocNodes")),
        cores=_number(get("AllocCPUS")),
        core_seconds=_seconds(get("CPUTimeRAW"), get("CPUTime", "")),
        cpu_seconds=seconds(get("TotalCPU", "")),
        max_rss_bytes=max(rss, default=0) or None,
        tres=dict(p.split("=", 1) for p in get("AllocTRES", "").split(",") if "=" in p),
        rows=(job, *steps),
    )


def published_rows(usage: Usage, zone: tzinfo) -> dict[str, dict[str, str | None]]:
    """Give the 22 published columns of each row, numbered from "1"; empty texts are None.

    Times are local to the site's `zone`, as sacct prints them. Planned (start minus submit) and
    PlannedCPU (times the cores asked for) are computed: sacct names them differently by version.
    """
    rows: dict[str, dict[str, str | None]] = {}
    for number, row in enumerate(usage.rows, start=1):
        columns = dict(row.columns)
        for name, moment in (("Submit", row.submit), ("Start", row.start), ("End", row.end)):
            if moment is not None:
                columns[name] = datetime.fromtimestamp(moment, zone).strftime("%Y-%m-%dT%H:%M:%S")
        if not row.step and usage.queued_seconds is not None:
            asked = _number(columns.get("ReqCPUS")) or 0
            columns.setdefault("Planned", _clock(usage.queued_seconds))
            columns.setdefault("PlannedCPU", _clock(usage.queued_seconds * asked))
        rows[str(number)] = {name: columns.get(name) or None for name in PUBLISHED}
    return rows


def read_seff(text: str) -> dict[str, str]:
    """Read `seff`: `key: value` lines, with either kind of billing lines of CSC.

    Today's `Job consumed 46.32 CSC billing units` is kept under the old key too. Raises
    DataError without an id and a state (`Job not found` also comes when the database is away).
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if value and (key in SEFF_KEYS or value.endswith(" BU")):
            found[key] = value
        if match := re.search(r"consumed (\d+(?:[.,]\d+)?) \w* ?billing units", line):
            found["Non-Interactive BUs"] = match[1].replace(",", ".")
    if "Job ID" not in found or "State" not in found:
        raise DataError("seff gave no figures", repr(text[-200:]), "ask again later")
    return found


def computed_seff(usage: Usage) -> dict[str, str]:
    """Compute seff's keys from sacct where a site has no seff, and say so in `Source`.

    CPU efficiency is worked over allocated core seconds; memory efficiency is the largest
    step's resident memory over what was asked for, as contribs/seff of Slurm 22.05 does.
    """
    column = usage.rows[0].columns
    core, worked = usage.core_seconds or 0, usage.cpu_seconds or 0
    asked = size(usage.tres.get("mem", "")) or 0
    used, nodes = usage.max_rss_bytes or 0, usage.nodes or 1
    return {
        "Job ID": usage.job_id,
        "Cluster": column.get("Cluster", ""),
        "User/Group": f"{column.get('User', '')}/{column.get('Group', '')}",
        "State": f"{usage.state.name} (exit code {usage.exit_code or 0})",
        "Nodes": str(nodes),
        "Cores per node": str((usage.cores or 0) // nodes),
        "CPU Utilized": _clock(worked),
        "CPU Efficiency": f"{_percent(worked, core)} of {_clock(core)} core-walltime",
        "Job Wall-clock time": _clock(usage.elapsed_seconds or 0),
        "Memory Utilized": _memory(used),
        "Memory Efficiency": f"{_percent(used, asked)} of {_memory(asked)}",
        "Billed project": column.get("Account", ""),
        "Source": "computed from sacct",
    }


def _seconds(raw: str | None, clock: str) -> int | None:
    """Read whole seconds: the raw column, or the clock's where a listing has only that."""
    if raw or not clock:
        return _number(raw)
    total = seconds(clock)
    return None if total is None or math.isinf(total) else int(total)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole if whole else 0:.2f}%"


def _clock(total: float) -> str:
    days, rest = divmod(round(total), 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def _memory(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < 4:
        count, unit = count / 1024, unit + 1
    return f"{count:.2f} {('B', 'KB', 'MB', 'GB', 'TB')[unit]}"
