"""The words and quantities that Slurm prints: states, durations, sizes, times, host lists.

Pure functions. What is not known is None or `UNKNOWN`; what is no such quantity is a DataError,
never 0. Checked against Slurm 22.05 and published files of CSC Mahti (2024).
"""

import datetime
import enum
import math
import re
from itertools import product
from zoneinfo import ZoneInfo

from kit.base import DataError

UTC = ZoneInfo("UTC")
NO_VALUE = ("", "Unknown", "None", "N/A", "(null)", "NONE", "INVALID", "Partition_Limit", "NOT_SET")
MAX_HOSTS = 100_000


class JobState(enum.Enum):
    """Slurm's base states and flags by their own names, and when each occurs.

    `finished` is true where Slurm has nothing more to do for the job. It is not success.
    Source: https://slurm.schedmd.com/job_state_codes.html
    """

    BOOT_FAIL = True, "the nodes could not be booted"
    CANCELLED = True, "somebody cancelled it, before or after it started"
    COMPLETED = True, "the script ended with exit code 0"
    DEADLINE = True, "it could no longer end before its deadline"
    FAILED = True, "the script ended with another exit code or by a signal"
    NODE_FAIL = True, "a node was lost; processes may live on there"
    OUT_OF_MEMORY = True, "it used more memory than it asked for (sites with cgroups)"
    PENDING = False, "it waits for resources, a time, another job or a person"
    PREEMPTED = True, "a job with more right took its nodes"
    RUNNING = False, "its nodes work for it"
    SUSPENDED = False, "it holds its nodes but is stopped"
    TIMEOUT = True, "it reached its time limit"
    COMPLETING = False, "its end is under way: an epilog runs or a node does not answer"
    CONFIGURING = False, "its nodes are being made ready"
    EXPEDITING = False, "it was requeued with the highest priority"
    LAUNCH_FAILED = False, "the start on a node failed; it is held or requeued"
    POWER_UP_NODE = False, "its nodes are being switched on"
    RECONFIG_FAIL = False, "the reconfiguration of its nodes failed"
    REQUEUED = False, "it goes back to the queue"
    REQUEUE_FED = False, "a federation puts it back to the queue"
    REQUEUE_HOLD = False, "it is back in the queue and held"
    RESIZING = False, "its size is being changed"
    RESV_DEL_HOLD = False, "its reservation was deleted, so it is held"
    REVOKED = False, "another cluster of the federation started it"
    SIGNALING = False, "a signal is being sent to it"
    SPECIAL_EXIT = False, "it ended with a special exit code and is held"
    STAGE_OUT = False, "its files are being staged out"
    STOPPED = False, "it got SIGSTOP and keeps its nodes"
    UPDATE_DB = False, "its record is being updated"
    UNKNOWN = False, "nothing that was seen says what it does"

    def __init__(self, finished: bool, when: str) -> None:
        self.finished = finished
        self.when = when


REASONS = {
    "AssocGrpBillingMinutes": "the project has used up its billing units",
    "BeginTime": "it may not start before its begin time (120 s after a requeue)",
    "Dependency": "it waits for another job",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "its owner holds it",
    "PartitionTimeLimit": "its time limit is over the partition's",
    "Priority": "jobs with more priority are before it",
    "QOSMaxJobsPerUserLimit": "the user has as many jobs as allowed",
    "ReqNodeNotAvail": "nodes that it needs are not available",
    "Resources": "it is next and waits for free nodes",
}


def state_of(word: str) -> JobState:
    """Read `CANCELLED by 12345`, `CANCELLED+` (a cut column) or a bare word; else UNKNOWN."""
    match = re.fullmatch(r"([A-Z_]+)(\+?)( by \S+)?", word.strip())
    if not match:
        return JobState.UNKNOWN
    name, cut = match[1], match[2]
    fits = [s for s in JobState if s.name == name or (cut and s.name.startswith(name))]
    return fits[0] if len(fits) == 1 else JobState.UNKNOWN


def seconds(text: str) -> float | None:
    """Read `[d-]hh:mm:ss[.fff]`, `mm:ss`, `d-hh[:mm]` or bare minutes, as Slurm defines them.

    UNLIMITED is infinite, Unknown and the like are None. Raises DataError for anything else.
    Source: https://slurm.schedmd.com/sbatch.html#OPT_time
    """
    if text.strip() in NO_VALUE:
        return None
    if text.strip().upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?(\.\d+)?", text.strip())
    if not match:
        raise DataError("a duration was expected from Slurm", repr(text[:80]))
    days, *parts = match.groups()[:4]
    numbers = [int(part) for part in parts if part is not None]
    scale = (3600, 60, 1) if days is not None or len(numbers) == 3 else (60, 1, 0)
    total = sum(number * unit for number, unit in zip(numbers, scale, strict=False))
    return int(days or 0) * 86400 + total + float(match[5] or 0)


def size(text: str) -> int | None:
    """Read `125292K`, `3G`, `14.44M`, `2.21 GB`, `4Gc`, `1000Mn` as bytes (K = 1024).

    Unknown and the like are None. Raises DataError for anything else.
    """
    if text.strip() in NO_VALUE:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGTPE]?)i?B?[nc?]?", text.strip())
    if not match:
        raise DataError("a size was expected from Slurm", repr(text[:80]))
    return round(float(match[1]) * 2.0 ** (10 * " KMGTPE".index(match[2] or " ")))


def when(text: str, zone: datetime.tzinfo = UTC) -> float | None:
    """Read a time (seconds since 1970, or ISO in the site's `zone`); Unknown and N/A are None."""
    if text.strip() in NO_VALUE:
        return None
    if re.fullmatch(r"\d{1,12}", text.strip()):
        return float(text)
    try:
        moment = datetime.datetime.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S")
    except ValueError as err:
        raise DataError("a time was expected from Slurm", repr(text[:80])) from err
    return moment.replace(tzinfo=zone).timestamp()


def why(reason: str) -> str:
    """Make a pending reason a sentence: `ReqNodeNotAvail, UnavailableNodes:c1` keeps its tail."""
    word = re.split(r"[,( ]", reason, maxsplit=1)[0]
    return f"{reason}: {REASONS[word]}" if word in REASONS else reason


def expand_hosts(text: str) -> list[str]:
    """Expand `n[1-3,5],m[01-02]x` to names, as `scontrol show hostnames` does.

    Raises DataError for brackets that do not close, ranges that run backwards and lists of more
    than 100,000 names.
    """
    if text.strip() in (*NO_VALUE, "None assigned"):
        return []
    pieces = re.findall(r"((?:[^\[\],]|\[[^\[\]]*\])+)(,|$)", text.strip())
    if "".join(a + b for a, b in pieces) != text.strip() or pieces[-1][1]:
        raise DataError("a host list was expected", repr(text[:200]))
    names: list[str] = []
    for piece, _ in pieces:
        parts = re.split(r"\[([^\]]*)\]", piece)
        choices = [_numbers(p) if n % 2 else [p] for n, p in enumerate(parts)]
        if len(names) + math.prod(map(len, choices)) > MAX_HOSTS:
            raise DataError("a host list is too long", repr(text[:200]))
        names += ["".join(choice) for choice in product(*choices)]
    return names


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise DataError("a range of host numbers was expected", repr(part[:80]))
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > MAX_HOSTS:
            raise DataError("a host list is too long", repr(part[:80]))
        numbers += [str(n).zfill(len(match[1])) for n in range(first, last + 1)]
    return numbers
