"""Usage and resources of a job: sacct's figures, seff's text, resources. Pure functions.

sacct is the truth; the caller keeps the raw text. A job id that the site has used before is
never trusted: only the rows of a job with the expected name count.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kit.base import DataError, UsageError
from kit.slurm.script import JobSpec, job_for
from kit.slurm.text import (
    AccountRow,
    JobState,
    count_gres,
    format_duration,
    parse_count,
    parse_duration,
    parse_memory,
    parse_size,
)

if TYPE_CHECKING:
    from kit.base.settings import Hpc

GIB = 2**30
_COLUMNS = (
    "JobID,JobName,Account,Partition,ReqCPUS,AllocCPUS,ReqNodes,AllocNodes,State,AveCPU,"
    "AveCPUFreq,AveDiskRead,AveDiskWrite,Timelimit,Submit,Start,Elapsed,Planned,End,PlannedCPU,"
    "CPUTime,TotalCPU"
)
PUBLISHED = tuple(_COLUMNS.split(","))
SEFF_KEYS = (
    "Job ID",
    "Cluster",
    "User/Group",
    "State",
    "Nodes",
    "Cores",
    "Cores per node",
    "CPU Utilized",
    "CPU Efficiency",
    "Job Wall-clock time",
    "Memory Utilized",
    "Memory Efficiency",
    "Billed project",
    "Non-Interactive BUs",
)


@dataclass(frozen=True)
class Usage:
    """Usage of one start of a job (`rows`: the job's row, then its steps).

    Seconds and bytes; `core_seconds` were allocated, `cpu_seconds` were worked, `queued_seconds`
    is start minus submission. None where sacct has no value.
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


def job_starts(rows: Sequence[AccountRow], prefix: str = "") -> list[list[AccountRow]]:
    """Group a listing into starts of jobs, each the job's row and its steps, in sacct's order.

    `prefix`: only jobs whose name begins with it (steps have names of their own).
    """
    starts: list[list[AccountRow]] = []
    latest: dict[str, list[AccountRow]] = {}
    for row in rows:
        if not row.step:
            latest[row.job_id] = [row]
            if row.columns.get("JobName", "").startswith(prefix):
                starts.append(latest[row.job_id])
        elif row.job_id in latest:
            latest[row.job_id].append(row)
    return starts


def read_usage(
    rows: Sequence[AccountRow], job_id: str, restart_count: int = 0, name: str = ""
) -> Usage:
    """Sum up one start of a job (restart count 0 is its first) whose job name is `name`.

    Without a name every row of the id counts: only for listings that were requested by name.
    Raises DataError when that start is not listed or its record is not complete yet.
    """
    starts = [
        start
        for start in job_starts(rows)
        if start[0].job_id == job_id and (not name or start[0].columns.get("JobName") == name)
    ]
    if restart_count >= len(starts) or not starts[restart_count][0].complete:
        raise DataError(f"job {job_id} is not in the accounting", next_step="ask again later")
    return usage_of(starts[restart_count])


def usage_of(start: Sequence[AccountRow]) -> Usage:
    """Sum up the rows of one start."""
    job, *steps = start
    sizes = [parse_size(step.columns.get("MaxRSS", "")) or 0 for step in steps]
    get = job.columns.get
    return Usage(
        job_id=job.job_id,
        state=job.state,
        exit_code=job.exit_code,
        elapsed_seconds=_whole_seconds(get("ElapsedRaw"), get("Elapsed", "")),
        queued_seconds=job.start - job.submit if job.start and job.submit else None,
        nodes=parse_count(get("AllocNodes")),
        cores=parse_count(get("AllocCPUS")),
        core_seconds=_whole_seconds(get("CPUTimeRAW"), get("CPUTime", "")),
        cpu_seconds=parse_duration(get("TotalCPU", "")),
        max_rss_bytes=max(sizes, default=0) or None,
        tres=dict(p.split("=", 1) for p in get("AllocTRES", "").split(",") if "=" in p),
        rows=(job, *steps),
    )


def published_rows(usage: Usage, zone: tzinfo) -> dict[str, dict[str, str | None]]:
    """Return the 22 published columns of each row, numbered from "1"; empty texts are None.

    Times are local to the site's `zone`, as sacct prints them. Planned (start minus submission)
    and PlannedCPU (times the requested cores) are computed: their names differ by version.
    """
    rows: dict[str, dict[str, str | None]] = {}
    for number, row in enumerate(usage.rows, start=1):
        columns = dict(row.columns)
        for name, moment in (("Submit", row.submit), ("Start", row.start), ("End", row.end)):
            if moment is not None:
                columns[name] = datetime.fromtimestamp(moment, zone).strftime("%Y-%m-%dT%H:%M:%S")
        if not row.step and usage.queued_seconds is not None:
            cores = parse_count(columns.get("ReqCPUS")) or 0
            columns.setdefault("Planned", format_duration(usage.queued_seconds))
            columns.setdefault("PlannedCPU", format_duration(usage.queued_seconds * cores))
        rows[str(number)] = {name: columns.get(name) or None for name in PUBLISHED}
    return rows


def read_seff(text: str) -> dict[str, str]:
    """Read `seff`: `key: value` lines, with either kind of CSC's billing lines.

    Today's `Job consumed 46.32 CSC billing units` is kept under the old key too. Raises
    DataError without an id and a state (`Job not found` also comes when the database is away).
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if value and (key in SEFF_KEYS or value.endswith(" BU")):
            values[key] = value
        if match := re.search(r"consumed (\d+(?:[.,]\d+)?) \w* ?billing units", line):
            values["Non-Interactive BUs"] = match[1].replace(",", ".")
    if "Job ID" not in values or "State" not in values:
        raise DataError("seff printed no figures", repr(text[-200:]), "ask again later")
    return values


def computed_seff(usage: Usage) -> dict[str, str]:
    """Compute seff's keys from sacct where a site has no seff, and note it in `Source`.

    CPU efficiency is worked over allocated core-seconds; memory efficiency is the largest step's
    resident memory over the allocated memory, as contribs/seff of Slurm 22.05 does. What the
    accounting does not know is `N/A`, never 0.
    """
    column, nodes = usage.rows[0].columns, usage.nodes
    memory = parse_size(usage.tres.get("mem", ""))
    core = _known(format_duration, usage.core_seconds)
    return {
        "Job ID": usage.job_id,
        "Cluster": column.get("Cluster", ""),
        "User/Group": f"{column.get('User', '')}/{column.get('Group', '')}",
        "State": f"{usage.state.name} (exit code {usage.exit_code or 0})",
        "Nodes": _known(str, nodes),
        "Cores per node": _known(lambda cores: str(cores // max(1, nodes or 1)), usage.cores),
        "CPU Utilized": _known(format_duration, usage.cpu_seconds),
        "CPU Efficiency": _share(usage.cpu_seconds, usage.core_seconds, f"{core} core-walltime"),
        "Job Wall-clock time": _known(format_duration, usage.elapsed_seconds),
        "Memory Utilized": _known(_format_memory, usage.max_rss_bytes),
        "Memory Efficiency": _share(usage.max_rss_bytes, memory, _known(_format_memory, memory)),
        "Billed project": column.get("Account", ""),
        "Source": "computed from sacct",
    }


def matches(seff: Mapping[str, str], usage: Usage) -> bool:
    """Whether seff's figures are those of this start of the job.

    seff takes a job id only and prints the latest job of that id: of a requeued job, or of an id
    that the site has used before, that may be another one than the start that sacct was asked for.
    """
    try:
        elapsed = parse_duration(seff.get("Job Wall-clock time", ""))
    except DataError:
        return False
    state = seff.get("State", "").split(" ")[0]
    same_time = None in (elapsed, usage.elapsed_seconds) or elapsed == usage.elapsed_seconds
    return same_time and state == usage.state.name


@dataclass(frozen=True)
class Resources:
    """Resources of a job while it runs, summed over its nodes; `memory_gib` None: not known."""

    partition: str
    seconds: Decimal
    nodes: int
    cores: int
    memory_gib: Decimal | None
    gpus: int = 0
    disk_gib: Decimal = Decimal(0)


def planned_resources(hpc: "Hpc") -> Resources:
    """Return what a run on the profile's site requests. Raises UsageError as below."""
    return requested_resources(job_for(hpc, "plan", ()))


def requested_resources(job: JobSpec) -> Resources:
    """Return what a job holds from its start to its time limit.

    The memory of a job that requests whole nodes (`--mem=0`) or the site's default is not known.
    What an exclusive job holds beyond its request depends on the nodes, which is not known here.
    Raises UsageError for a time without an end and a memory size that sbatch does not accept.
    """
    try:
        limit, memory = parse_duration(job.time), parse_memory(job.memory)
        per_core = parse_memory(job.mem_per_cpu)
    except DataError as err:
        tried = f"plan a job with time {job.time!r} and memory {job.memory!r}"
        raise UsageError(tried, err.got, "write [hpc] time as hh:mm:ss and mem as 3G") from err
    if not limit or math.isinf(limit):
        tried = f"price a job with the time limit {job.time!r}"
        raise UsageError(tried, "it has no end", "write [hpc] time as hh:mm:ss")
    cores = job.nodes * max(1, job.tasks_per_node) * job.cpus
    held = per_core * cores if per_core else memory * job.nodes if memory else None
    disk = count_gres(job.gres, "nvme") + _burst_buffer_gib(job.burst_buffer)
    return Resources(
        partition=job.partition,
        seconds=Decimal(str(limit)),
        nodes=job.nodes,
        cores=cores,
        memory_gib=Decimal(held) / GIB if held else None,
        gpus=count_gpus(job) * job.nodes,
        disk_gib=Decimal(disk * job.nodes),
    )


def count_gpus(site: "JobSpec | Hpc") -> int:
    """Return the GPUs on each node that a job or a profile requests."""
    text = f"gpu:{site.gpus_per_node}" if site.gpus_per_node else site.gres
    return count_gres(text, "gpu")


def _burst_buffer_gib(text: str) -> int:
    """Return the GiB of a request such as `#BB_LUA SBF storagesize=100G path=…`, for each node.

    https://docs.csc.fi/computing/roihu-disk/#disaggregated-storage, read 2026-08. That it is for
    each node is the dearer reading; the page does not say.
    """
    match = re.search(r"\bstoragesize=(\d+)([GT])B?\b", text)
    return int(match[1]) * (1024 if match[2] == "T" else 1) if match else 0


def allocated_resources(usage: Usage) -> Resources:
    """Return what one start of a job held, from AllocTRES where sacct has it, else from columns."""
    columns, tres = usage.rows[0].columns, usage.tres
    text = ",".join(f"{key}={value}" for key, value in tres.items())
    nodes = parse_count(tres.get("node")) or usage.nodes or 0
    cores = parse_count(tres.get("cpu")) or usage.cores or 0
    memory = parse_size(tres.get("mem", ""))
    if memory is None and (requested := parse_size(columns.get("ReqMem", ""))):
        memory = requested * (cores if columns["ReqMem"].endswith("c") else max(nodes, 1))
    return Resources(
        partition=columns.get("Partition", ""),
        seconds=Decimal(usage.elapsed_seconds or 0),
        nodes=nodes,
        cores=cores,
        memory_gib=None if memory is None else Decimal(memory) / GIB,
        gpus=count_gres(text, "gpu"),
        disk_gib=Decimal(count_gres(text, "nvme")),
    )


def _whole_seconds(raw: str | None, clock: str) -> int | None:
    """Read whole seconds: the raw column, or the clock's where a listing has only that."""
    if raw or not clock:
        return parse_count(raw)
    total = parse_duration(clock)
    return None if total is None or math.isinf(total) else int(total)


def _known(form: Callable[[Any], str], value: float | None) -> str:
    return "N/A" if value is None else form(value)


def _share(part: float | None, whole: float | None, of: str) -> str:
    if part is None or whole is None:
        return "N/A"
    return f"{100 * part / whole if whole else 0:.2f}% of {of}"


def _format_memory(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < 4:
        count, unit = count / 1024, unit + 1
    return f"{count:.2f} {('B', 'KB', 'MB', 'GB', 'TB')[unit]}"
