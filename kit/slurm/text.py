"""What Slurm's commands print, as data: text in, frozen dataclasses out, no I/O.

A state word that is not known becomes `UNKNOWN`; a listing that is cut or is no listing at all
is a DataError. Times may be seconds since 1970 (`SLURM_TIME_FORMAT=%s`) or the site's local time.
Checked against Slurm 22.05 and published files of CSC Mahti (2024).
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kit.base import DataError
from kit.slurm.values import UTC, JobState, expand_hosts, state_of, when


@dataclass(frozen=True)
class QueueRow:
    """One line of squeue (`QUEUE_FORMAT`); `start` is a forecast while it is pending."""

    job_id: str
    state: JobState
    word: str
    submit: float | None
    start: float | None
    nodes: tuple[str, ...]
    name: str
    reason: str


@dataclass(frozen=True)
class AccountRow:
    """One line of sacct: a job (`step` empty) or a step; `columns` holds every text as it was."""

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
    def whole(self) -> bool:
        """Whether slurmdbd has the record in full.

        For some seconds after a quick job it is called `allocation` and has no partition, no
        cores and no memory asked for, though a state and an end (seen with 22.05).
        """
        return bool(self.step or self.columns.get("Partition", "-"))


@dataclass(frozen=True)
class SubmitReply:
    """What sbatch said: an id, or a refusal, or neither (it may have landed all the same)."""

    job_id: str
    refused: bool
    text: str


QUEUE_FORMAT = "%i|%T|%V|%S|%N|%j|%r"  # name and reason may hold blanks: they come last
# Planned and PlannedCPU are not asked for: before 23.02 they are called Reserved and ResvCPU, and
# sacct refuses a name that it does not know.
ACCOUNT_COLUMNS = (
    *("JobID", "Account", "Partition", "ReqCPUS", "AllocCPUS", "ReqNodes", "AllocNodes", "State"),
    *("AveCPU", "AveCPUFreq", "AveDiskRead", "AveDiskWrite", "Timelimit", "Submit", "Start"),
    *("Elapsed", "End", "CPUTime", "TotalCPU", "ExitCode", "ElapsedRaw"),
    *("CPUTimeRAW", "MaxRSS", "ReqMem", "ReqTRES", "AllocTRES", "NodeList", "Cluster", "User"),
    *("Group", "JobName"),  # a name may hold a bar: it comes last
)


def read_reply(code: int, out: str, err: str) -> SubmitReply:
    """Read `sbatch --parsable`: the id (alone on a line, `id[;cluster]`), a refusal, or neither.

    Only an exit code with a known text is a refusal: `Socket timed out` has landed and run.
    """
    ids = set(re.findall(r"^(\d{1,12})(?:;[\w.-]+)?\r?$", out, flags=re.MULTILINE))
    text = " ".join(f"{err}\n{out}".split())[-1000:]
    if len(ids) == 1:
        return SubmitReply(ids.pop(), False, text)
    known = re.search(r"\b[Ii]nvalid\b|\bRequested |\bviolates |\bAccess/permission denied", err)
    return SubmitReply("", bool(known) and code != 0 and not ids, text or "no output")


def read_queue(text: str, zone: datetime.tzinfo = UTC) -> list[QueueRow]:
    """Read `squeue --noheader --format=QUEUE_FORMAT`; lines that are no rows raise DataError."""
    rows = []
    for line in text.splitlines():
        job_id, _, rest = line.partition("|")
        fields = rest.split("|", 4)
        if not re.fullmatch(r"\d+(_\S+|\+\d+)?", job_id) or len(fields) < 5 or "|" not in fields[4]:
            raise DataError("a line of squeue is not what was asked for", repr(line[:200]))
        name, _, reason = fields[4].rpartition("|")
        word, submit, start = fields[0], when(fields[1], zone), when(fields[2], zone)
        hosts = tuple(expand_hosts(fields[3]))
        rows.append(QueueRow(job_id, state_of(word), word, submit, start, hosts, name, reason))
    return rows


def read_account(text: str, zone: datetime.tzinfo = UTC) -> list[AccountRow]:
    """Read `sacct --parsable2` with a header, steps and earlier lives (`-D`), in its order.

    Columns are found by name; noise before the header is passed over. Raises DataError when
    there is no header (no answer is not an empty answer) or a row has other columns than it.
    """
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("JobID|")]
    if not starts:
        raise DataError("sacct gave no listing", repr(text[:200]))
    header = lines[starts[0]].split("|")
    limit = len(header) - 1 if header[-1] == "JobName" else -1
    rows = []
    for line in lines[starts[0] + 1 :]:
        columns = dict(zip(header, fields := line.split("|", limit), strict=False))
        if len(fields) != len(header) or not re.match(r"\d", fields[0]):
            raise DataError("a line of sacct does not fit its header", repr(line[:200]))
        rows.append(account_row(columns, zone))
    return rows


def account_row(columns: Mapping[str, str], zone: datetime.tzinfo = UTC) -> AccountRow:
    """Bind the columns of one sacct line to fields; a column that was not asked for is None."""
    job_id, _, step = columns["JobID"].partition(".")
    word = columns.get("State", "")
    code, _, signal = columns.get("ExitCode", "").partition(":")
    submit, start, end = (when(columns.get(name, ""), zone) for name in ("Submit", "Start", "End"))
    return AccountRow(
        job_id=job_id,
        step=step,
        state=state_of(word),
        word=word,
        exit_code=int(code) if code.isdigit() else None,
        signal=int(signal) if signal.isdigit() else None,
        submit=submit,
        start=start,
        end=end,
        columns=columns,
    )
