"""Read what Slurm's commands print: text in, values and frozen dataclasses out, no I/O.

A value that is absent (`Unknown`, `N/A`) becomes None and an unknown state word becomes `UNKNOWN`;
text of the wrong form raises DataError and is never read as 0. A line of squeue that is not a row
costs that line only. Checked against Slurm 22.05, 24.11 and published files of CSC
Mahti (2024).
"""

import datetime
import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from kit.base import DataError

UTC = ZoneInfo("UTC")
ABSENT = ("", "Unknown", "None", "N/A", "(null)", "NONE", "INVALID", "Partition_Limit", "NOT_SET")


class JobState(enum.Enum):
    """Slurm's base states and flags under their own names, each with when it occurs.

    `finished` is true where Slurm has nothing more to do for the job. It does not mean success.
    Source: https://slurm.schedmd.com/job_state_codes.html
    """

    BOOT_FAIL = True, "the nodes could not be booted"
    CANCELLED = True, "it was cancelled, before or after it started"
    COMPLETED = True, "the script ended with exit code 0"
    DEADLINE = True, "it could no longer end before its deadline"
    FAILED = True, "the script ended with another exit code or by a signal"
    NODE_FAIL = True, "a node was lost; processes may still run there"
    OUT_OF_MEMORY = True, "it used more memory than it requested (sites with cgroups)"
    PENDING = False, "it waits for resources, a time, another job or a person"
    PREEMPTED = True, "a job with higher precedence took its nodes"
    RUNNING = False, "it is running on its nodes"
    SUSPENDED = False, "it holds its nodes but is stopped"
    TIMEOUT = True, "it reached its time limit"
    COMPLETING = False, "it is ending: an epilog runs or a node does not answer"
    CONFIGURING = False, "its nodes are being prepared"
    EXPEDITING = False, "it was requeued with the highest priority"
    LAUNCH_FAILED = False, "the start on a node failed; it is held or requeued"
    POWER_UP_NODE = False, "its nodes are being switched on"
    RECONFIG_FAIL = False, "the reconfiguration of its nodes failed"
    REQUEUED = False, "it is being requeued"
    REQUEUE_FED = False, "a federation requeues it"
    REQUEUE_HOLD = False, "it was requeued and is held"
    RESIZING = False, "its size is being changed"
    RESV_DEL_HOLD = False, "its reservation was deleted, so it is held"
    REVOKED = False, "another cluster of the federation started it"
    SIGNALING = False, "a signal is being sent to it"
    SPECIAL_EXIT = False, "it ended with a special exit code and is held"
    STAGE_OUT = False, "its files are being staged out"
    STOPPED = False, "it received SIGSTOP and keeps its nodes"
    UPDATE_DB = False, "its record is being updated"
    UNKNOWN = False, "no evidence of its state"

    def __init__(self, finished: bool, when: str) -> None:
        self.finished = finished
        self.when = when


# Pending reasons, in the order of https://slurm.schedmd.com/job_reason_codes.html where there is
# one; the families of limits (`AssocGrp…`, `QOSMax…`) are read by `explain_reason`.
REASONS = {
    "AssocGrpBillingMinutes": "the project has used up its billing units",
    "AssociationJobLimit": "the account has as many jobs as allowed",
    "BadConstraints": "no node fulfils its constraints",
    "BeginTime": "it may not start before its begin time (120 s after a requeue)",
    "Cleaning": "it was requeued and its last run is still being cleaned up",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "the job it waits for did not end as required; cancel it",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "JobArrayTaskLimit": "its array has as many running tasks as allowed",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "its owner holds it",
    "JobLaunchFailure": "it could not be started; the site's support can say why",
    "Licenses": "it waits for a license",
    "NodeDown": "a node that it requires is down",
    "PartitionConfig": "it requests what its partition does not allow",
    "PartitionDown": "its partition is down; it starts when the site opens the partition again",
    "PartitionInactive": "its partition is inactive and starts no jobs",
    "PartitionNodeLimit": "it requests more nodes than its partition allows",
    "PartitionTimeLimit": "its time limit is over the partition's",
    "Priority": "jobs with higher priority are before it",
    "Prolog": "the prolog of its nodes is running",
    "ReqNodeNotAvail": "nodes that it needs are not available",
    "Reservation": "it waits for its reservation",
    "ReservationDeleted": "its reservation was deleted",
    "Resources": "it is next and waits for free nodes",
    "SystemFailure": "a failure of the system; the site's support can say more",
}
LIMIT_REASON = re.compile(r"(Assoc|QOS)(Grp|Max|Min).*")


def parse_state(word: str) -> JobState:
    """Parse `CANCELLED by 12345`, `CANCELLED+` (a cut column) or a bare word; else UNKNOWN."""
    match = re.fullmatch(r"([A-Z_]+)(\+?)( by \S+)?", word.strip())
    if not match:
        return JobState.UNKNOWN
    name, cut = match[1], match[2]
    states = [s for s in JobState if s.name == name or (cut and s.name.startswith(name))]
    return states[0] if len(states) == 1 else JobState.UNKNOWN


def parse_duration(text: str) -> float | None:
    """Parse `[d-]hh:mm:ss[.fff]`, `mm:ss`, `d-hh[:mm]` or bare minutes into seconds.

    UNLIMITED is infinite, Unknown and the like are None. Raises DataError for anything else.
    Source: https://slurm.schedmd.com/sbatch.html#OPT_time
    """
    if text.strip() in ABSENT:
        return None
    if text.strip().upper() in ("UNLIMITED", "INFINITE"):
        return math.inf
    digits = r"(\d{1,9})"  # longer numbers are not a time and would overflow
    match = re.fullmatch(
        rf"(?:{digits}-)?{digits}(?::{digits})?(?::{digits})?(\.\d+)?", text.strip()
    )
    if not match:
        raise DataError("a duration was expected from Slurm", repr(text[:80]))
    days, *parts = match.groups()[:4]
    numbers = [int(part) for part in parts if part is not None]
    scale = (3600, 60, 1) if days is not None or len(numbers) == 3 else (60, 1, 0)
    total = sum(number * unit for number, unit in zip(numbers, scale, strict=False))
    return int(days or 0) * 86400 + total + float(match[5] or 0)


def format_duration(seconds: float) -> str:
    """Return `[d-]hh:mm:ss`, the form that sbatch, sacct and seff use."""
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def parse_size(text: str) -> int | None:
    """Parse a size that sacct or seff prints into bytes: `125292K`, `2.21 GB`, `4Gc`, `1000Mn`.

    K is 1024. seff's `(estimated maximum)` after the size is passed over; Unknown and the like
    are None. Raises DataError for anything else.
    """
    if text.strip() in ABSENT:
        return None
    match = re.fullmatch(
        r"(\d{1,20}(?:\.\d+)?) ?([KMGTPE]?)i?B?[nc?]?(?: \(estimated maximum\))?", text.strip()
    )
    if not match:
        raise DataError("a size was expected from Slurm", repr(text[:80]))
    return round(float(match[1]) * 2.0 ** (10 * " KMGTPE".index(match[2] or " ")))


def parse_memory(text: str) -> int | None:
    """Parse a memory request as sbatch reads `--mem` into bytes: a bare number is MiB.

    `0` is 0 and means the whole memory of each node; an empty text is None (the site's default).
    Raises DataError for anything else. Source: https://slurm.schedmd.com/sbatch.html#OPT_mem
    """
    if not text.strip():
        return None
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)B?", text.strip().upper())
    if not match:
        raise DataError("a memory size was expected", repr(text[:80]), "write it as 3G or 3000M")
    return int(match[1]) << (10 * " KMGT".index(match[2] or "M"))


def parse_count(text: str | None) -> int | None:
    """Parse a count, also in the short form `2K` (1024 each); None where it is not a count."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([KMG]?)", (text or "").strip())
    if not match or ("." in match[1] and not match[2]):
        return None
    return round(float(match[1]) * 1024.0 ** " KMG".index(match[2] or " "))


def parse_time(text: str, zone: datetime.tzinfo = UTC) -> float | None:
    """Parse seconds since 1970, or ISO time in the site's `zone`; Unknown and N/A are None."""
    if text.strip() in ABSENT:
        return None
    if re.fullmatch(r"\d{1,12}", text.strip()):
        return float(text)
    try:
        moment = datetime.datetime.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S")
    except ValueError as err:
        raise DataError("a time was expected from Slurm", repr(text[:80])) from err
    return moment.replace(tzinfo=zone).timestamp()


def explain_reason(reason: str) -> str:
    """Append a sentence to a pending reason: `ReqNodeNotAvail, UnavailableNodes:c1` keeps both."""
    word = re.split(r"[,( ]", reason, maxsplit=1)[0]
    sentence = REASONS.get(word, "")
    if not sentence and (match := LIMIT_REASON.fullmatch(word)):
        owner = "the account" if match[1] == "Assoc" else "the QOS"
        sentence = f"a limit of {owner} is reached; it waits until other jobs end"
    return f"{reason}: {sentence}" if sentence else reason


@dataclass(frozen=True)
class QueueRow:
    """One line of squeue in QUEUE_FORMAT; `nodes` as squeue writes them, such as `c[1-3]`."""

    job_id: str
    state: JobState
    word: str
    nodes: str
    name: str
    reason: str


@dataclass(frozen=True)
class AccountRow:
    """One line of sacct: a job (`step` empty) or a step; `columns` holds the original texts."""

    job_id: str
    step: str
    state: JobState
    word: str
    exit_code: int | None
    signal: int | None
    submit: float | None
    start: float | None
    end: float | None
    columns: Mapping[str, str]

    @property
    def complete(self) -> bool:
        """Whether slurmdbd has the whole record.

        For some seconds after a quick job it is called `allocation` and has no partition, cores
        or requested memory, although it has a state and an end (observed with 22.05).
        """
        return bool(self.step or self.columns.get("Partition", "-"))


@dataclass(frozen=True)
class SubmitReply:
    """The answer of sbatch: an id, a refusal, or neither (the job may exist all the same).

    `limited`: refused by a limit on the number of jobs, which passes when other jobs end.
    `message`: what a job_submit plugin of the site said beside an accepted job.
    """

    job_id: str
    refused: bool
    text: str
    limited: bool = False
    message: str = ""


QUEUE_FORMAT = "%i|%T|%V|%S|%N|%j|%r"  # name and reason may hold blanks: they come last
# Planned and PlannedCPU are not requested: before 23.02 they are called Reserved and ResvCPU, and
# sacct refuses a name that it does not know.
# A name may hold a bar: it comes last.
_COLUMNS = (
    "JobID,Account,Partition,ReqCPUS,AllocCPUS,ReqNodes,AllocNodes,State,AveCPU,AveCPUFreq,"
    "AveDiskRead,AveDiskWrite,Timelimit,Submit,Start,Elapsed,End,CPUTime,TotalCPU,ExitCode,"
    "ElapsedRaw,CPUTimeRAW,MaxRSS,ReqMem,ReqTRES,AllocTRES,NodeList,Cluster,User,Group,JobName"
)
ACCOUNT_COLUMNS = tuple(_COLUMNS.split(","))
# All columns of 500 jobs take sacct 100 ms longer than these (22.05).
STATUS_COLUMNS = ("JobID", "Partition", "State", "Submit", "Start", "End", "ExitCode", "JobName")
# `scripts/submit.sh` uses these two as well (grep -E). The first, without regard to case: sbatch
# could not ask the controller, or got no answer, so the job may exist.
_LOST_PATTERN = "timed out|unable to contact|connect failure|zero bytes|message (receive|send)"
NO_ANSWER_PATTERN = (
    f"{_LOST_PATTERN}|connection|communication|authentication|munge|controller|interrupted"
    "|temporarily"
)
# Limits on the number of submitted jobs.
LIMIT_PATTERN = r"(Assoc|QOS)(Grp|Max)[A-Za-z]*Submit[A-Za-z]*Limit"
NO_ACCOUNTING = re.compile(r"accounting[_ ]storage (is disabled|plugin)", re.IGNORECASE)


def read_reply(code: int, out: str, err: str) -> SubmitReply:
    """Read the answer of `sbatch --parsable`: the id (`id[;cluster]` alone on a line) or a refusal.

    A failure is a refusal unless its text names the controller or the connection: after `Socket
    timed out` the job may have been accepted and run. A killed sbatch has no answer either. Lines
    before sbatch's own last sentence may be the site's, in words of any kind.
    """
    ids = set(re.findall(r"^[ \t]*(\d{1,12})(?:;[\w.-]+)?[ \t]*\r?$", out, flags=re.MULTILINE))
    text = " ".join(f"{err}\n{out}".split())[-1000:]
    if len(ids) == 1:
        said = [line.strip().removeprefix("sbatch: ") for line in err.splitlines()]
        return SubmitReply(ids.pop(), False, text, message=" ".join(filter(None, said))[:300])
    failed = code not in (0, 124) and code < 128 and not ids and bool(err.strip())
    own = re.findall(r"submission failed: (.*)", err)
    lost = re.search(_LOST_PATTERN, err, re.IGNORECASE)
    refused = failed and not lost and not re.search(NO_ANSWER_PATTERN, (own or [err])[-1], re.I)
    limited = refused and bool(re.search(LIMIT_PATTERN, err))
    return SubmitReply("", refused, text or "no output", limited)


def read_queue(text: str) -> list[QueueRow]:
    """Read `squeue --noheader --format=QUEUE_FORMAT`; a line that is not a row is passed over.

    Whether the listing is complete is judged by squeue's exit code, not here.
    """
    rows = []
    for line in text.splitlines():
        fields = line.split("|", 5)
        if not re.fullmatch(r"\d+(_\S+|\+\d+)?", fields[0]) or "|" not in fields[-1]:
            continue
        job_id, word, _, _, nodes, rest = fields
        name, _, reason = rest.rpartition("|")
        rows.append(QueueRow(job_id, parse_state(word), word, nodes, name, reason))
    return rows


def read_account(text: str, zone: datetime.tzinfo = UTC) -> list[AccountRow]:
    """Read `sacct --parsable2` with a header, steps and earlier starts (`-D`), in its order.

    Columns are found by name; noise before the header is passed over. Raises DataError when
    the header is missing (no answer is not an empty answer) or a row has other columns.
    """
    lines = text.splitlines()
    headers = [n for n, line in enumerate(lines) if line.startswith("JobID|")]
    if not headers:
        raise DataError("sacct printed no listing", repr(text[:200]))
    header = lines[headers[0]].split("|")
    limit = len(header) - 1 if header[-1] == "JobName" else -1
    rows = []
    for line in lines[headers[0] + 1 :]:
        fields = line.split("|", limit)
        if len(fields) != len(header) or not re.match(r"\d", fields[0]):
            raise DataError("a line of sacct does not fit its header", repr(line[:200]))
        rows.append(account_row(dict(zip(header, fields, strict=True)), zone))
    return rows


def account_row(columns: Mapping[str, str], zone: datetime.tzinfo = UTC) -> AccountRow:
    """Return the fields of one sacct line; those of columns that were not requested are None."""
    job_id, _, step = columns["JobID"].partition(".")
    word = columns.get("State", "")
    code, _, signal = columns.get("ExitCode", "").partition(":")
    return AccountRow(
        job_id=job_id,
        step=step,
        state=parse_state(word),
        word=word,
        exit_code=parse_count(code),
        signal=parse_count(signal),
        submit=parse_time(columns.get("Submit", ""), zone),
        start=parse_time(columns.get("Start", ""), zone),
        end=parse_time(columns.get("End", ""), zone),
        columns=columns,
    )


def count_gres(text: str, name: str) -> int:
    """Count one resource of a request (`gpu:gh200:4,nvme:100`) or of AllocTRES (`gres/gpu:a100=4`).

    A type may begin with a digit (`gpu:1g.5gb:1`, a MIG slice). In AllocTRES a total without a
    type counts alone; everywhere else the counts of all types are added.
    """
    total, typed = 0, 0
    for item in text.split(","):
        key, is_tres, value = item.strip().removeprefix("gres/").partition("=")
        kind, *parts = key.split(":")
        if kind != name:
            continue
        if is_tres:
            count = parse_count(value) or 0
        else:
            number = parse_count(parts[-1]) if parts else None
            count = 1 if number is None else number
        if is_tres and not parts:
            total = max(total, count)
        else:
            typed += count
    return total or typed
