"""Follow a run in the store until its result is there, or say what it ended with."""

import time
from collections.abc import Callable
from typing import Protocol

from kit.base import Json, KitError, Unreachable
from kit.runs.requests import RunRequests, RunState, RunStatus

POLL_S = 1.0


class Runs(Protocol):
    """What following needs: `RunRequests` itself, or the forwarder's face."""

    def status(self, run: str) -> RunStatus:
        """Say how a run stands."""

    def read(self, run: str, name: str) -> Json | None:
        """Read an object of a run."""


class TrainingFailed(KitError):
    """The training on the site came to nothing; `traceback` and `log` are from there."""

    def __init__(
        self, tried: str, got: str = "", next_step: str = "", traceback: str = "", log: str = ""
    ) -> None:
        super().__init__(tried, got, next_step)
        self.traceback, self.log = traceback, log

    def __str__(self) -> str:
        """Give the message, then what the driver or the job said last."""
        end = "\n".join(self.log.splitlines()[-10:])
        more = self.traceback or (f"the job's log ended with:\n{end}" if end else "")
        return f"{super().__str__()}\n\n{more}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the fields."""
        return type(self), (self.tried, self.got, self.next_step, self.traceback, self.log)


def follow(
    jobs: Runs,
    run: str,
    timeout_s: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    ask: Callable[[], object] | None = None,
) -> Json:
    """Have a run asked for by `ask`, wait for its result.

    Raises TrainingFailed, Unreachable after `timeout_s`. A store (or its Keystone, or the
    forwarder) that does not answer is asked again. Nothing is ever cancelled here.
    """
    end, said = clock() + timeout_s, ""
    while True:
        try:
            if ask is not None:
                ask()
                ask = None
            state = jobs.status(run).state
            if state.finished:
                return _finished(jobs, run)
            text = sentence(jobs.read(run, "progress") or {}) or state.when
        except Unreachable as err:
            text = f"no answer, asked again: {err.tried}: {err.got}"
        if text != said:
            say(text)
            said = text
        if clock() >= end:
            step = "run again to go on: nothing was cancelled"
            raise Unreachable(f"{run} is still running after {timeout_s:.0f} s", said, step)
        sleep(POLL_S)


def _finished(jobs: Runs, run: str) -> Json:
    """Give the result of a finished run, or raise what it ended with."""
    standing = jobs.status(run)
    if standing.state is RunState.DONE:
        return jobs.read(run, "result") or {}
    if standing.state is RunState.REFUSED:
        why = (jobs.read(run, "refused") or {}).get("why", "")
        raise TrainingFailed(f"the request of {run} was refused", why)
    if standing.state is RunState.CANCELLED:
        raise TrainingFailed(f"{run} was cancelled", next_step="start it again with --fresh")
    ended = jobs.read(run, f"try-{standing.number}/ended") or {}
    left = ended.get("failure") or {}
    got = f"{left.get('cause') or ended.get('why', '')}: {left.get('got', '')}".strip(": ")
    step = left.get("next") or "mend the cause; run again for another try"
    tried = f"try {standing.number} of {run} failed on the site"
    raise TrainingFailed(tried, got, step, left.get("traceback", ""), ended.get("log", ""))


def last_seen(jobs: RunRequests, run: str, clock: Callable[[], float] = time.time) -> str:
    """Say how a run stands and how long ago that was seen."""
    try:
        progress = jobs.read(run, "progress")
    except KitError as err:
        return str(err)
    if progress is None:
        return "no submitter has seen the request yet"
    job = f"job {progress['job']}: " if progress.get("job") else ""
    ago = clock() - progress.get("seen", clock())
    return f"{job}{sentence(progress)}; last seen {max(0.0, ago):.0f} s ago"


def sentence(progress: Json) -> str:
    """Say how a run stands, for a person: queued because, running where, which epoch."""
    state, why = progress.get("state", ""), progress.get("why", "")
    told = f"{state}: {why}".strip(": ")
    if state == "PENDING":
        told = f"queued: {why}"
    elif state == "RUNNING" and progress.get("nodes"):
        told = f"on {','.join(progress['nodes'])}"
    if window := progress.get("tunnel"):
        told += f"; {seen_through(window)}"
    now = progress.get("training")
    return f"epoch {now['epoch']}/{now['epochs']}, loss {now['loss']:.3f}, {told}" if now else told


def seen_through(window: Json) -> str:
    """Say where Ray's dashboard is, or why no tunnel shows it."""
    if "port" in window:
        return f"Ray's dashboard: http://{window['address']}:{window['port']}"
    return f"no tunnel (the run needs none): {window.get('barred', '')}"
