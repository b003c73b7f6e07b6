"""The status of an attempt from the evidence: symlinks first, then squeue, then sacct. Pure.

States change on positive evidence only. The committed manifest overrides everything; live states
come from squeue; an end comes from sacct, from a row with the job's name and an end time;
everything else is UNKNOWN with a reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.slurm.fence import Attempt
from kit.slurm.text import NO_ACCOUNTING, AccountRow, JobState, QueueRow, explain_reason

GRACE_S = 120  # squeue shows a new job at once, sacct by name after 2 to 5 s
# The states of a job that was put back to the queue.
WAITING = (
    JobState.PENDING,
    JobState.REQUEUED,
    JobState.REQUEUE_HOLD,
    JobState.REQUEUE_FED,
    JobState.SPECIAL_EXIT,
    JobState.RESV_DEL_HOLD,
    JobState.LAUNCH_FAILED,
)
# Exit codes of the job script (fence.sh, modules.sh). What the script runs has its own (88 to 95,
# kit/onsite/names.py), given as `exit_meanings`.
EXIT_MEANINGS = {
    96: "a module could not be loaded",
    97: "its result could not be published: the attempt was closed before, or the disk is full",
    98: "the attempt's folder, or the one to work in, cannot be used on the node; no work was done",
    99: "another start owns the attempt; this one did no work",
}
NO_LOG = (
    "Slurm could not open the job's log (0:53): the project folder is not on the compute node, "
    "or its disk or its number of files is full"
)


@dataclass(frozen=True)
class JobStatus:
    """The status of one attempt. Success is `manifest`; a Slurm state never means success.

    `done`: no job of this attempt is running or can still start. `started`: a job began
    executing, so a new attempt would repeat work. `observed`: this is positive evidence.
    `missing_s`: how long the submission has been found nowhere although squeue and sacct
    answered. `nodes` as squeue writes them (`c[1-3]`). `opened`: somebody submitted the attempt, or
    closed it so that nobody can. `message`: what the site said when it accepted the job.
    """

    attempt_id: str
    state: JobState = JobState.UNKNOWN
    why: str = "not looked up yet"
    job_id: str = ""
    restart_count: int = 0
    manifest: str = ""
    exit_code: int | None = None
    done: bool = False
    started: bool = False
    observed: bool = False
    missing_s: float = 0
    nodes: str = ""
    opened: bool = False
    message: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether its result was committed."""
        return bool(self.manifest)


def status_of(attempt: Attempt, **more: Any) -> JobStatus:
    """Return the status with everything that the symlinks tell, and `more`."""
    links = {
        "attempt_id": attempt.attempt_id,
        "job_id": attempt.job_id,
        "restart_count": attempt.restart_count or 0,
        "started": attempt.started,
        "opened": bool(attempt.submit or attempt.owner),
        "message": attempt.reply.message if attempt.reply else "",
    }
    return JobStatus(**{**links, **more})


def from_links(attempt: Attempt) -> JobStatus | None:
    """Return an end that the symlinks alone prove, else None."""
    end = {"done": True, "observed": True}
    if attempt.manifest:
        why = "its result is committed"
        return status_of(
            attempt, state=JobState.COMPLETED, why=why, manifest=attempt.manifest, **end
        )
    if attempt.abandoned:
        why = f"the attempt was {attempt.owner} before any job of it could start"
        if attempt.reply and not attempt.reply.job_id:
            why += f"; sbatch answered: {attempt.reply.text}"
        return status_of(attempt, state=JobState.CANCELLED, why=why, **end)
    return None


def after_submit(attempt: Attempt) -> JobStatus | None:
    """Return the status of a submission that sbatch has just answered.

    None where the site must be asked: sbatch's answer is missing or unclear, or the attempt is an
    older one whose job has started, and may have ended.
    """
    if attempt.job_id and not attempt.started and not attempt.commit:
        why = "submitted, not listed yet"
        return status_of(attempt, state=JobState.PENDING, why=why, observed=True)
    return None


def from_queue(attempt: Attempt, rows: Sequence[QueueRow] | str) -> tuple[str, JobStatus | None]:
    """Return the job of an attempt and its live state from squeue (a text is squeue's error).

    Return None as the state if squeue shows no live job; the caller then asks sacct. A job that
    waits although the attempt has an owner was requeued: the start that owned it has ended.
    """
    if isinstance(rows, str):
        why = f"the scheduler does not answer: {' '.join(rows.split())[-300:]}"
        return attempt.job_id, status_of(attempt, why=why)
    mine = sorted((r for r in rows if r.name == attempt.name), key=lambda row: row.state.finished)
    job_id = attempt.job_id or (mine[0].job_id if mine else "")
    row = next((row for row in mine if row.job_id == job_id), None)
    if not job_id and not attempt.submit:
        return "", status_of(attempt, why="nothing was submitted for this attempt")
    if row is None or row.state.finished or (attempt.started and row.state in WAITING):
        return job_id, None
    if row.state is JobState.UNKNOWN:
        why = f"squeue reports the unknown state {row.word!r}"
        return job_id, status_of(attempt, job_id=job_id, why=why)
    why = explain_reason(row.reason) if row.reason not in ("", "None") else row.state.when
    live = {"state": row.state, "why": why, "nodes": row.nodes, "observed": True}
    return job_id, status_of(attempt, job_id=job_id, **live)


def from_account(
    attempt: Attempt,
    job_id: str,
    rows: Sequence[AccountRow] | str,
    now: float,
    exit_meanings: Mapping[int, str] = EXIT_MEANINGS,
) -> JobStatus:
    """Return an end from sacct's rows (a text is sacct's error); squeue showed no live job.

    `now` is the server's time. Only rows with the job's name count: a site may use an id again.
    The start that counts is the one that owns the attempt, else the last.
    """
    if isinstance(rows, str):
        return _without_account(attempt, job_id, rows, now)
    jobs = [row for row in rows if not row.step and row.columns.get("JobName") == attempt.name]
    job_id = job_id or (jobs[-1].job_id if jobs else "")
    starts = [row for row in jobs if row.job_id == job_id]
    number = len(starts) - 1 if attempt.restart_count is None else attempt.restart_count
    if not 0 <= number < len(starts):
        return _absent(attempt, job_id, now)
    row = starts[number]
    requeued = number < len(starts) - 1
    if row.end is None or not row.complete or not (row.state.finished or requeued):
        why = f"squeue shows no live job, and sacct's record is not complete yet ({row.word})"
        return status_of(attempt, job_id=job_id, why=why)
    return status_of(
        attempt,
        job_id=job_id,
        state=row.state,
        why=_explain_end(row, requeued, exit_meanings),
        restart_count=number,
        exit_code=row.exit_code,
        done=True,
        observed=True,
    )


def _explain_end(row: AccountRow, requeued: bool, exit_meanings: Mapping[int, str]) -> str:
    if requeued:
        return f"{row.state.when}; it was put back to the queue, where it may not start again"
    if row.signal == 53:
        return NO_LOG
    if row.state is JobState.FAILED and 9 in (row.exit_code, row.signal):
        return "it was killed (signal 9): most often it used more memory than it requested"
    return exit_meanings.get(row.exit_code or 0, row.state.when)


def _without_account(attempt: Attempt, job_id: str, error: str, now: float) -> JobStatus:
    """Return the status when sacct cannot be asked; on a site without accounting squeue decides.

    There a job that squeue no longer lists has ended; how it ended is not known.
    """
    text = " ".join(error.split())[-300:]
    if not NO_ACCOUNTING.search(error):
        return status_of(attempt, job_id=job_id, why=f"the accounting does not answer: {text}")
    if not job_id or (now - (attempt.replied_at or now) < GRACE_S and not attempt.started):
        return _absent(attempt, job_id, now)
    why = "squeue no longer lists its job, and this site has no accounting: how it ended is unknown"
    return status_of(attempt, job_id=job_id, state=JobState.FAILED, why=why, done=True)


def _absent(attempt: Attempt, job_id: str, now: float) -> JobStatus:
    """Return the status of an attempt that neither squeue nor sacct lists."""
    since = now - (attempt.replied_at or attempt.submitted_at or now)
    if not job_id:
        answer = f": {attempt.reply.text}" if attempt.reply else ", sbatch has not answered"
        why = f"submitted {since:.0f} s ago and listed nowhere{answer}"
        return status_of(attempt, why=why, missing_s=since)
    if since < GRACE_S and not attempt.started:
        why = f"submitted {since:.0f} s ago, not listed yet"
        return status_of(attempt, job_id=job_id, state=JobState.PENDING, why=why, observed=True)
    why = "neither squeue nor sacct lists it; close the attempt to continue"
    return status_of(attempt, job_id=job_id, why=why)
