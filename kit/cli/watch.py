"""Runs on a Slurm site: look at them, follow the log of one, end one.

How a run stands is which of its objects exist; how its job stands is asked of Slurm, all live
ones in one query. Without contact nothing changes but "last seen".
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from kit.base import settings
from kit.base.errors import (
    CredentialRefused,
    HostKeyRefused,
    KitError,
    NoSuchBucket,
    Unreachable,
    UsageError,
)
from kit.notebook import plan
from kit.runs.objects import StageStore
from kit.runs.requests import RUN, RunState, Standing, token
from kit.slurm.status import JobStatus
from kit.submitter.loop import submitter_for
from kit.submitter.submitter import Submitter

ON_SITE = RunState.SUBMITTED, RunState.CANCELLING
PATIENCE_S = 120.0  # `kit logs` waits so long for contact to come back
CANCEL_S = 60.0  # a job that is told to end may take 32 s


@dataclass(frozen=True)
class Row:
    """One run: how it stands, its try, its job's id and state while it is on the site."""

    run: str
    state: str
    number: int
    job: str
    slurm: str
    why: str
    known: bool = True


def look(submitter: Submitter, run: str = "") -> list[Row]:
    """Say how runs stand, open ones first: one listing, one query of the site for all of them."""
    if run:
        standings = [submitter.jobs.standing(run)]
    else:
        standings = []
        with contextlib.suppress(NoSuchBucket):  # nobody has asked for anything yet
            standings = list(submitter.jobs.standings().values())
    live = {token(each.run, each.number): each for each in standings if each.state in ON_SITE}
    found, reason = dict[str, JobStatus](), ""
    try:
        found = submitter.slurm.status(list(live))
    except KitError as err:
        reason = " · ".join(part for part in (err.tried, err.got, err.next_step) if part)
    rows = [_live_row(submitter, each, found.get(name), reason) for name, each in live.items()]
    rows += [_row(submitter, each, bool(run)) for each in standings if each.state not in ON_SITE]
    return sorted(rows, key=lambda row: (RunState[row.state].finished, row.run))


def _live_row(
    submitter: Submitter, standing: Standing, status: JobStatus | None, reason: str
) -> Row:
    """Say how a run stands that is on the site; without an answer, when it was last seen."""
    run, state, number = standing.run, standing.state.name, standing.number
    if status and status.seen:
        return Row(run, state, number, status.job_id, status.state.name, status.why)
    progress = submitter.jobs.read(run, "progress") or {}
    reason = status.why if status else reason
    ago = submitter.slurm.clock() - progress["seen"] if "seen" in progress else None
    why = f"{reason} (" + ("never seen)" if ago is None else f"last seen {ago:.0f} s ago)")
    job = status.job_id if status else str(progress.get("job") or "")
    return Row(run, state, number, job, "UNKNOWN", why, known=False)


def _row(submitter: Submitter, standing: Standing, in_full: bool) -> Row:
    """Say how a run stands that is not on the site; `in_full` reads what it ended with."""
    run, state, number = standing.run, standing.state, standing.number
    names = {RunState.DONE: "result", RunState.REFUSED: "refused"}
    name = names.get(state, f"try-{number}/ended")
    left = (submitter.jobs.read(run, name) if in_full else None) or {}
    job = left.get("job") or {}
    why = " ".join(str(left.get("why") or state.when).split())
    return Row(run, state.name, number, str(job.get("id", "")), str(job.get("state", "")), why)


def follow(
    submitter: Submitter, run: str, write: Callable[[bytes], object], say: Callable[[str], None]
) -> bool:
    """Write the log of a run's job as it grows, to its end; give whether the run ended well.

    Waits for a job that is not submitted yet, and for contact that is lost on the way. Raises
    Unreachable when there is none at the start, or not for PATIENCE_S.
    """
    slurm, seen, said, offset, number = submitter.slurm, 0.0, "", 0, 0
    while True:
        text = ""
        try:
            standing = submitter.jobs.standing(run)
            offset, number = (offset if standing.number == number else 0), standing.number
            if standing.state.finished and not offset:
                return kept(submitter, standing, write)
            if standing.state is RunState.REQUESTED:
                text = f"try {number} is not submitted yet: a submitter must be running"
            else:
                name = token(run, number)
                status = slurm.status([name])[name]  # before the log: then the log is whole
                offset = _grown(submitter, name, offset, write)
                if status.done:
                    say(f"job {status.job_id}: {status.state.name}, {status.why}")
                    return status.succeeded
                text = "" if offset else f"job {status.job_id} {status.state.name}: {status.why}"
            seen = slurm.clock()
        except HostKeyRefused:
            raise
        except (Unreachable, CredentialRefused) as err:
            if slurm.clock() - seen > PATIENCE_S:
                raise
            text = f"no contact, asking again: {err.got or err.tried}"
        if text and text != said:
            say(text)
        said = text or said
        slurm.sleep(slurm.hpc.poll_floor_s)


def _grown(submitter: Submitter, name: str, offset: int, write: Callable[[bytes], object]) -> int:
    """Write what a job's log has more than `offset` bytes; give its length."""
    while True:
        chunk, offset = submitter.slurm.logs(name, offset)
        if not chunk:
            return offset
        write(chunk)


def kept(submitter: Submitter, standing: Standing, write: Callable[[bytes], object]) -> bool:
    """Write what the store has kept of a finished run's log: whole, or the end of a failed one."""
    jobs, run = submitter.jobs, standing.run
    if standing.state is RunState.DONE:
        files = (jobs.read(run, "result") or {}).get("files") or {}
        if "job.log" in files:
            write(StageStore(submitter.data, run).get(files["job.log"]))
        return True
    left = jobs.read(run, f"try-{standing.number}/ended") or jobs.read(run, "refused") or {}
    write(str(left.get("log") or left.get("why") or standing.state.when).encode())
    return False


def cancel(submitter: Submitter, run: str, say: Callable[[str], None]) -> Standing:
    """End a run and wait, not too long, until its job has left the nodes.

    Raises Unreachable and CommandFailed when the site did not take it: the wish is kept.
    """
    before = submitter.jobs.standing(run)
    if before.state.finished:
        say(f"{run} had finished before the cancel: {before.state.when}")
        return before
    slurm, begun = submitter.slurm, submitter.slurm.clock()
    try:
        after = submitter.cancel(run)
        while not after.state.finished and slurm.clock() - begun < CANCEL_S:
            slurm.sleep(slurm.hpc.poll_floor_s)
            after = submitter.cancel(run)
    except KitError:
        say("the wish to cancel is kept in the store: the submitter goes on with it")
        raise
    say(f"{run} {after.state.name}: {after.state.when}")
    if not after.state.finished:
        say(f"nothing of it can be published any more; its job still ends: kit jobs {run}")
    return after


def opened(profile: str | None, run: str | None = None) -> Submitter:
    """Open the runs and the site of a profile.

    Raises UsageError for a profile without a site, a closed one, and a run that it has not.
    """
    loaded = settings.load(profile)
    plan.site_of(loaded)
    if run is not None and not re.fullmatch(RUN, run):
        step = "`kit jobs` lists those there are; other targets have no job on a site"
        raise UsageError(f"{run[:80]!r} is no id of a cloud-hpc run", next_step=step)
    submitter = submitter_for(loaded)
    if run is None:
        return submitter
    state = RunState.UNKNOWN
    with contextlib.suppress(NoSuchBucket):
        state = submitter.jobs.standing(run).state
    if state is RunState.UNKNOWN:
        found = loaded.results_dir.glob(f"*/runs/{run}")
        others = [path.parents[1].name for path in found if path.parents[1] != loaded.profile_dir]
        step = f"it is one of --profile {others[0]}" if others else "`kit jobs` lists those"
        raise UsageError(f"profile {loaded.profile} has no request of {run}", next_step=step)
    return submitter
