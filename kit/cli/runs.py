"""Commands about runs and jobs on a Slurm site: `kit runs`, `kit logs`, `kit cancel`.

The state of a run depends on which of its objects exist; the state of its job is asked of
Slurm, for all live jobs in one query. Without contact nothing changes but "last seen".
"""

import contextlib
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from kit.base import (
    CredentialRefused,
    DataError,
    HostKeyRefused,
    Json,
    KitError,
    NoSuchBucket,
    Unreachable,
    UsageError,
)
from kit.cli.options import echo_rows, json_option, profile_option
from kit.runs.follow import one_line, poll, training_sentence, write_stored_log
from kit.runs.requests import RUN_ID, RunState, RunStatus, attempt_id

if TYPE_CHECKING:
    from kit.slurm import JobStatus, Slurm
    from kit.submitter.submitter import Submitter

ON_SITE = RunState.SUBMITTED, RunState.CANCELLING
CONTACT_PATIENCE_S = 120.0  # `kit logs` waits as long for contact to come back
CANCEL_WAIT_S = 60.0  # a job that is cancelled may take 32 s to end
EXIT_UNKNOWN = 3
REASONS = 50  # refused runs that are listed with their reason, which takes a request for each run
SHORT_REASON = 120  # characters


@dataclass(frozen=True)
class Row:
    """One run: its state, the number of its attempt, its job's id and state on the site."""

    run: str
    state: str
    number: int
    job: str
    slurm: str
    why: str
    known: bool = True


@click.command("runs")
@click.argument("run", required=False)
@profile_option
@json_option
@click.pass_context
def runs_command(ctx: click.Context, run: str | None, profile: str | None, as_json: bool) -> None:
    """List runs and their state.

    Lists all cloud-hpc runs of the profile's site and the jobs of `kit submit`, or RUN alone,
    unfinished ones first. The exit code is 3 when the state of a run is not known.

    \b
    Example:
      kit runs --profile sandbox
    """
    from kit.base.settings import load
    from kit.cli.submit import job_rows

    settings = load(profile)
    settings.hpc_section(accepts_jobs=True)
    rows = job_rows(settings, run or "") if run is None or is_job(run) else []
    if settings.store is not None and not (run and is_job(run)):
        rows += list_runs(open_site(profile, run), run or "")
    rows.sort(key=lambda row: (RunState[row.state].finished, row.run))
    echo_rows(rows, as_json, _cells)
    if not rows:
        click.echo(
            "no runs on this site yet: kit run cloud-hpc, kit submit; kit bill lists the others",
            err=True,
        )
    ctx.exit(0 if all(row.known for row in rows) else EXIT_UNKNOWN)


@click.command("logs")
@click.argument("run")
@profile_option
@click.pass_context
def logs_command(ctx: click.Context, run: str, profile: str | None) -> None:
    """Follow the log of a run's job.

    Prints the log of RUN's job as it grows, to its end. Ctrl-C leaves the job alone. The exit
    code is 1 when the run failed, 3 without contact; of a job of `kit submit`, the job's own.

    \b
    Example:
      kit logs cloud-hpc-0123456789ab-1
    """
    from kit.base.settings import load
    from kit.cli.submit import show_job_log

    try:
        if is_job(run):
            ctx.exit(show_job_log(load(profile), run, write_now))
        submitter = open_site(profile, run)
        succeeded = follow_log(submitter, run, write_now, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo(
            f"kit: stopped following; the job keeps running. Follow again: kit logs {run}; "
            f"end the job: kit cancel {run}",
            err=True,
        )
        ctx.exit(130)
    ctx.exit(0 if succeeded else 1)


@click.command("cancel")
@click.argument("run")
@profile_option
def cancel_command(run: str, profile: str | None) -> None:
    """Cancel a run and its Slurm job.

    Nothing of RUN is published afterwards, except the trials that a sweep has finished. A run that
    had already finished keeps its result.

    \b
    Example:
      kit cancel cloud-hpc-0123456789ab-1
    """
    from kit.base.settings import load
    from kit.cli.submit import cancel_job

    if is_job(run):
        cancel_job(load(profile), run, click.echo)
    else:
        cancel_run(open_site(profile, run), run, click.echo)


def is_job(run: str) -> bool:
    """Return whether this is the id of a job of `kit submit`."""
    return run.startswith("job-")


def write_now(chunk: bytes) -> None:
    """Write a part of a log to the terminal at once."""
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _cells(row: Row) -> dict[str, str]:
    job = f"{row.job or '?'} {row.slurm}".strip() if row.job or row.slurm else "-"
    return {
        "run": row.run,
        "state": row.state,
        "attempt": str(row.number),
        "job": job,
        "why": row.why,
    }


def list_runs(submitter: "Submitter", run: str = "") -> list[Row]:
    """List runs, unfinished ones first: one listing and one query of the site for all of them."""
    if run:
        statuses = [submitter.requests.status(run)]
    else:
        statuses = []
        with contextlib.suppress(NoSuchBucket):  # nothing was requested yet
            statuses = list(submitter.requests.statuses().values())
    live = {attempt_id(each.run, each.number): each for each in statuses if each.state in ON_SITE}
    job_statuses, reason = dict[str, "JobStatus"](), ""
    try:
        job_statuses = submitter.slurm.status(list(live))
    except KitError as err:
        reason = err.sentence
    rows = [
        _live_row(submitter, status, job_statuses.get(name), reason)
        for name, status in live.items()
    ]
    refused = sorted(each.run for each in statuses if each.state is RunState.REFUSED)
    rows += [
        _row(submitter, each, bool(run), each.run in refused[-REASONS:])
        for each in statuses
        if each.state not in ON_SITE
    ]
    return sorted(rows, key=lambda row: (RunState[row.state].finished, row.run))


def _live_row(
    submitter: "Submitter", status: RunStatus, job: "JobStatus | None", reason: str
) -> Row:
    """Return the row of a run on the site: how far it is; without an answer, when last seen."""
    run, state, number = status.run, status.state.name, status.number
    reason = job.why if job else reason
    progress: Json = {}
    try:
        progress = submitter.requests.read(run, "progress") or progress
    except DataError as err:  # damaged: the other runs are listed all the same
        reason = f"{reason}; {err.tried}"
    if job and job.observed:
        why = "; ".join(filter(None, (_how_far(progress), job.why)))
        return Row(run, state, number, job.job_id, job.state.name, why)
    seen = progress.get("seen")
    age = submitter.slurm.clock() - seen if isinstance(seen, int | float) else None
    why = f"{reason} (" + ("never seen)" if age is None else f"last seen {age:.0f} s ago)")
    job_id = job.job_id if job else str(progress.get("job") or "")
    return Row(run, state, number, job_id, "UNKNOWN", why, known=False)


def _how_far(progress: Json) -> str:
    """Return how far a training or a sweep is; empty before it has begun."""
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):  # for display only
        if training := progress.get("training"):
            return training_sentence(training)
    return ""


def _row(submitter: "Submitter", status: RunStatus, in_full: bool, in_short: bool = False) -> Row:
    """Return the row of a run that is not on the site.

    `in_full` reads what it ended with; `in_short` shortens that, and does without what cannot be
    read: the other runs are listed all the same.
    """
    run, state, number = status.run, status.state, status.number
    ended: Json = {}
    try:
        ended = submitter.requests.ending(status) if in_full or in_short else ended
    except DataError:
        if in_full:
            raise
    job, why = ended.get("job") or {}, one_line(str(ended.get("why") or state.when))
    if not in_full:
        why = textwrap.shorten(str(ended.get("got") or why), SHORT_REASON, placeholder=" …")
    return Row(run, state.name, number, str(job.get("id", "")), str(job.get("state", "")), why)


def follow_log(
    submitter: "Submitter",
    run: str,
    write: Callable[[bytes], object],
    report: Callable[[str], None],
) -> bool:
    """Write the log of a run's job as it grows, to its end; return whether the run succeeded.

    Waits for a job that is not submitted yet, and for contact that is lost on the way. Raises
    Unreachable without contact at the start, or after CONTACT_PATIENCE_S without it.
    """
    slurm, seen, offset, number = submitter.slurm, 0.0, 0, 0

    def look() -> tuple[bool | None, str]:
        """Write what is new; return the outcome, None while there is none, and a sentence."""
        nonlocal seen, offset, number
        result, text = None, ""
        try:
            status = submitter.requests.status(run)
            offset, number = (offset if status.number == number else 0), status.number
            if status.state.finished and not offset:
                return write_stored_log(submitter.requests, submitter.data, status, write), ""
            if status.state is RunState.REQUESTED:
                text = f"attempt {number} is not submitted yet: a submitter must be running"
            else:
                name = status.attempt_id
                job = slurm.status([name])[name]  # before the log: then the log is whole
                offset = write_from(slurm, name, offset, write)
                text = "" if offset else f"job {job.job_id} {job.state.name}: {job.why}"
                if job.done:
                    result, text = job.succeeded, f"job {job.job_id}: {job.state.name}, {job.why}"
            seen = slurm.clock()
        except HostKeyRefused:
            raise
        except (Unreachable, CredentialRefused) as err:
            if slurm.clock() - seen > CONTACT_PATIENCE_S:
                raise
            text = f"no contact, asking again: {err.got or err.tried}"
        return result, text

    return poll(look, report, slurm.sleep, slurm.hpc.poll_floor_s)


def write_from(slurm: "Slurm", name: str, offset: int, write: Callable[[bytes], object]) -> int:
    """Write what a job's log has after `offset` bytes; return the log's length."""
    while True:
        chunk, offset = slurm.logs(name, offset)
        if not chunk:
            return offset
        write(chunk)


def cancel_run(submitter: "Submitter", run: str, report: Callable[[str], None]) -> RunStatus:
    """Cancel a run and wait, at most CANCEL_WAIT_S, until its job has left the nodes.

    Raises Unreachable and CommandFailed when the site did not accept the cancel; the request to
    cancel is stored and the submitter carries it out later.
    """
    before = submitter.requests.status(run)
    if before.state.finished:
        report(f"{run} had finished before the cancel: {before.state.when}")
        return before
    slurm, start = submitter.slurm, submitter.slurm.clock()
    try:
        after = submitter.cancel(run)
        while not after.state.finished and slurm.clock() - start < CANCEL_WAIT_S:
            slurm.sleep(slurm.hpc.poll_floor_s)
            after = submitter.cancel(run)
    except KitError:
        report("the request to cancel is stored: the submitter carries it out")
        raise
    report(f"{run} {after.state.name}: {after.state.when}")
    if not after.state.finished:
        report(f"its result can no longer be published; its job is still ending: kit runs {run}")
    return after


def open_site(profile: str | None, run: str | None = None) -> "Submitter":
    """Open the runs and the site of a profile.

    Raises UsageError for a profile without a site, a closed one, and a run that it does not have.
    """
    from kit.base.settings import load
    from kit.submitter.loop import submitter_for

    settings = load(profile)
    settings.hpc_section(accepts_jobs=True)
    if run is not None and not re.fullmatch(RUN_ID, run):
        step = "`kit runs` lists the ids; runs of other targets have no job on a site"
        raise UsageError(f"{run[:80]!r} is not the id of a cloud-hpc run", next_step=step)
    submitter = submitter_for(settings)
    if run is None:
        return submitter
    state = RunState.UNKNOWN
    with contextlib.suppress(NoSuchBucket):
        state = submitter.requests.status(run).state
    if state is RunState.UNKNOWN:
        paths = settings.results_dir.glob(f"*/runs/{run}")
        others = [path.parents[1].name for path in paths if path.parents[1] != settings.profile_dir]
        step = f"it is a run of --profile {others[0]}" if others else "`kit runs` lists the ids"
        raise UsageError(f"profile {settings.profile} has no request of {run}", next_step=step)
    return submitter
