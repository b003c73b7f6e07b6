"""How a try stands, from what was seen: links first, then squeue, then sacct. Pure functions.

States move only on positive evidence. The committed manifest overrides everything; live states
come from squeue; an end comes from sacct with an end time; the rest is UNKNOWN with a reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kit.slurm.fence import Try
from kit.slurm.text import AccountRow, QueueRow
from kit.slurm.values import JobState, why

GRACE_S = 120  # squeue shows a new job at once, sacct by name after 2 to 5 s
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD",
           "LAUNCH_FAILED")  # fmt: skip
EXITS = {
    89: "its folder is full or cannot be written: make room in the project folder, run again",
    96: "a module could not be loaded",
    97: "its result could not be published: the try was closed before",
    98: "the try's folder cannot be used on the compute node, no work was done",
    99: "another start owns the try, no work was done by this one",
}


@dataclass(frozen=True)
class JobStatus:
    """How one try stands. Success is `manifest`; a Slurm state never means success by itself.

    `done`: nothing of it works any more. `worked`: a job of it has begun to work, so a new try
    would repeat work. `seen`: this is positive evidence. `missing_s`: for so long the submission
    has shown up nowhere, although squeue and sacct answered.
    `last_seen` is this machine's clock, `start` and `end` are the site's.
    """

    token: str
    state: JobState = JobState.UNKNOWN
    why: str = "it was not asked about yet"
    job_id: str = ""
    life: int = 0
    manifest: str = ""
    exit_code: int | None = None
    signal: int | None = None
    start: float | None = None
    end: float | None = None
    done: bool = False
    worked: bool = False
    seen: bool = False
    missing_s: float = 0
    last_seen: float | None = None
    nodes: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether its result was committed."""
        return bool(self.manifest)


def from_links(found: Try) -> JobStatus | None:
    """Read an end from the links alone; None when they do not tell one."""
    if found.manifest:
        state, reason = JobState.COMPLETED, "its result is committed"
    elif found.given_up:
        state = JobState.CANCELLED
        reason = f"the try was {found.owner} before any job of it could work"
    else:
        return None
    return JobStatus(
        token=found.token,
        state=state,
        why=reason,
        job_id=found.job_id,
        life=found.life or 0,
        manifest=found.manifest,
        done=True,
        worked=found.worked,
        seen=True,
    )


def after_submit(found: Try) -> JobStatus:
    """How a try stands whose submission was just answered: started, submitted, or not known."""
    if found.worked:
        return _status(found, found.job_id, JobState.RUNNING, "it has begun to work")
    if found.job_id:
        return _status(found, found.job_id, JobState.PENDING, "submitted, not listed yet")
    reason = f"sbatch's answer says neither yes nor no: {found.reply.text}" if found.reply else ""
    return _unknown(found, "", reason or "it was submitted, sbatch has not answered yet")


def from_queue(found: Try, rows: Sequence[QueueRow] | str) -> tuple[str, JobStatus | None]:
    """Read a live state from squeue's rows (a text is its error): the job, and how it stands.

    No state: the accounting must tell. A job that waits although the try has an owner was put
    back to the queue: the start that owned the try has ended.
    """
    if isinstance(rows, str):
        reason = f"the scheduler does not answer: {' '.join(rows.split())[-300:]}"
        return found.job_id, _unknown(found, found.job_id, reason)
    mine = [row for row in rows if row.name == f"kit-{found.token}"]
    mine.sort(key=lambda row: row.state.finished)
    job_id = found.job_id or (mine[0].job_id if mine else "")
    row = next((row for row in mine if row.job_id == job_id), None)
    if not job_id and not found.submit:
        return "", _unknown(found, "", "nothing was submitted for this try")
    if row is None or row.state.finished or (found.worked and row.state.name in WAITING):
        return job_id, None
    if row.state is JobState.UNKNOWN:
        return job_id, _unknown(found, job_id, f"squeue names a state {row.word!r}, not known")
    reason = why(row.reason) if row.reason not in ("", "None") else row.state.when
    start = None if row.state is JobState.PENDING else row.start
    status = _status(found, job_id, row.state, reason, start=start)
    return job_id, replace(status, nodes=row.nodes)


def from_account(
    found: Try, job_id: str, rows: Sequence[AccountRow] | str, now: float
) -> JobStatus:
    """Read an end from sacct's rows (a text is its error); squeue did not tell a live state.

    `now` is the server's time. The life that counts is the one that owns the try, else the last.
    """
    if isinstance(rows, str):
        reason = f"the accounting does not answer: {' '.join(rows.split())[-300:]}"
        return _unknown(found, job_id, reason)
    jobs = [row for row in rows if not row.step]
    named = [row.job_id for row in jobs if row.columns.get("JobName") == f"kit-{found.token}"]
    job_id = job_id or (named[-1] if named else "")
    lives = [row for row in jobs if row.job_id == job_id]
    number = len(lives) - 1 if found.life is None else found.life
    if not 0 <= number < len(lives):
        return _absent(found, job_id, now)
    row = lives[number]
    put_back = number < len(lives) - 1
    if row.end is None or not row.whole or not (row.state.finished or put_back):
        return _unknown(
            found,
            job_id,
            f"squeue has no live job, sacct says {row.word} but not all of it yet",
        )
    reason = EXITS.get(row.exit_code or 0, row.state.when)
    if put_back:
        reason = f"{row.state.when}; it was put back to the queue, where it may not work again"
    if row.state is JobState.FAILED and 9 in (row.exit_code, row.signal):
        reason = "it was killed (signal 9): most often for more memory than it asked for"
    status = _status(found, job_id, row.state, reason, start=row.start)
    return replace(
        status, life=number, exit_code=row.exit_code, signal=row.signal, end=row.end, done=True
    )


def _absent(found: Try, job_id: str, now: float) -> JobStatus:
    """How a try stands that neither squeue nor sacct lists."""
    since = now - (found.replied or found.asked or now)
    if not job_id:
        said = f": {found.reply.text}" if found.reply else ", sbatch has not answered"
        return _unknown(found, "", f"submitted {since:.0f} s ago and listed nowhere{said}", since)
    if since < GRACE_S and not found.worked:
        return _status(found, job_id, JobState.PENDING, f"submitted {since:.0f} s ago, not listed")
    return _unknown(found, job_id, "neither squeue nor sacct lists it; give the try up to go on")


def _unknown(found: Try, job_id: str, reason: str, missing_s: float = 0) -> JobStatus:
    return JobStatus(
        found.token,
        why=reason,
        job_id=job_id,
        life=found.life or 0,
        worked=found.worked,
        missing_s=missing_s,
    )


def _status(
    found: Try, job_id: str, state: JobState, reason: str, start: float | None = None
) -> JobStatus:
    return JobStatus(
        token=found.token,
        state=state,
        why=reason,
        job_id=job_id,
        life=found.life or 0,
        start=start,
        worked=found.worked,
        seen=True,
    )
