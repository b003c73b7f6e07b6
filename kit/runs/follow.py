"""Follow a run in the store until its result is there, or report what it ended with."""

import contextlib
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from kit.base import DataError, Json, KitError, Unreachable, time_record
from kit.experiments.running import Trained
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequests, RunState, RunStatus
from kit.store import ObjectStore

POLL_INTERVAL_S = 1.0
# States of a job whose cause only Slurm knows: the job itself saw no more than a signal.
OUTSIDE_CAUSES = ("BOOT_FAIL", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
_OTHER_SHAPE = (AttributeError, KeyError, TypeError, ValueError)
AFTER_CANCEL = "start it again with --fresh, or a sweep by the same command, which continues it"
AGAIN = "the same command asks again"  # the next step after a refusal
LOG_LINES = 10  # of a failed job's log, shown with the error

T = TypeVar("T")


class FollowedRuns(Protocol):
    """The methods that following needs: those of `RunRequests` or of the forwarder's client."""

    def status(self, run: str) -> RunStatus:
        """Return the status of a run."""

    def read(self, run: str, name: str) -> Json | None:
        """Read an object of a run."""


class TrainingFailed(KitError):
    """The training on the site failed; `traceback` and `log` are from there."""

    def __init__(
        self, tried: str, got: str = "", next_step: str = "", traceback: str = "", log: str = ""
    ) -> None:
        super().__init__(tried, got, next_step)
        self.traceback, self.log = traceback, log

    def __str__(self) -> str:
        """Return the message, then the traceback or the end of the job's log."""
        end = "\n".join(self.log.splitlines()[-LOG_LINES:])
        more = self.traceback or (f"the job's log ended with:\n{end}" if end else "")
        return f"{super().__str__()}\n\n{more}".rstrip()


def poll(
    look: Callable[[], tuple[T | None, str]],
    report: Callable[[str], object],
    sleep: Callable[[float], object],
    interval_s: float,
) -> T:
    """Call `look` until it returns a result; report each sentence that it returns once."""
    reported = ""
    while True:
        result, text = look()
        if text and text != reported:
            report(text)
            reported = text
        if result is not None:
            return result
        sleep(interval_s)


def follow(
    requests: FollowedRuns,
    run: str,
    timeout_s: float,
    report: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    ask: Callable[[], object] | None = None,
) -> Json:
    """Request a run by `ask` and wait for its result.

    Raises TrainingFailed, and Unreachable after `timeout_s`. A store (or its Keystone, or the
    forwarder) that does not answer is asked again. Nothing is ever cancelled here.
    """
    end, pending = clock() + timeout_s, [ask] if ask else []

    def look() -> tuple[Json | None, str]:
        """Return the result, None while there is none, and a sentence about the run."""
        try:
            for request in pending:
                request()
            pending.clear()
            status = requests.status(run)
            if status.state.finished and (result := _result(requests, status)) is not None:
                return result, ""
            text = _progress_text(requests, run) or status.state.when
        except Unreachable as err:
            text = f"no answer, asked again: {err.tried}: {err.got}"
        if clock() >= end:
            next_step = "run again to resume: nothing was cancelled"
            raise Unreachable(f"{run} is still running after {timeout_s:.0f} s", text, next_step)
        return None, text

    return poll(look, report, sleep, POLL_INTERVAL_S)


def _progress_text(requests: FollowedRuns, run: str) -> str:
    """Return the progress of a run in a sentence; a damaged object is for display only."""
    try:
        return sentence(requests.read(run, "progress") or {})
    except DataError:
        return ""


def refusal(run: str, refused: Json) -> TrainingFailed:
    """Return the error of a request that was refused, from the object that says why."""
    why = str(refused.get("why", ""))
    got, step = str(refused.get("got", "")) or one_line(why), str(refused.get("next", ""))
    step = step if "--fresh" in step else "; then ".join(filter(None, (step, AGAIN)))
    return TrainingFailed(f"the request of {run} was refused", got, step)


def one_line(text: str) -> str:
    """Return a text with each white space, such as a new line, as one blank."""
    return " ".join(text.split())


def _result(requests: FollowedRuns, status: RunStatus) -> Json | None:
    """Return the result of a finished run. Raises TrainingFailed if it has none.

    None where a listing is late with a refusal that was removed.
    """
    run = status.run
    if status.state is RunState.DONE:
        return requests.read(run, "result") or {}
    if status.state is RunState.REFUSED:
        if (refused := requests.read(run, "refused")) is None:
            return None
        raise refusal(run, refused)
    if status.state is RunState.CANCELLED:
        raise TrainingFailed(f"{run} was cancelled", next_step=AFTER_CANCEL)
    ended = requests.read(run, f"try-{status.number}/ended") or {}
    failure = ended.get("failure") or {}
    if (ended.get("job") or {}).get("state") in OUTSIDE_CAUSES:
        failure = {}
    cause = failure.get("cause") or ended.get("why", "")
    got = f"{cause}: {failure.get('got', '')}".strip(": ")
    next_step = failure.get("next") or "fix the cause; run again for another attempt"
    tried = f"attempt {status.number} of {run} failed on the site"
    traceback, log = failure.get("traceback", ""), ended.get("log", "")
    raise TrainingFailed(tried, got, next_step, traceback, log)


def last_seen(requests: RunRequests, run: str, clock: Callable[[], float] = time.time) -> str:
    """Return the progress of a run in a sentence, and how long ago it was observed."""
    try:
        progress = requests.read(run, "progress")
    except KitError as err:
        return str(err)
    if progress is None:
        return "no submitter has seen the request yet"
    job = f"job {progress['job']}: " if progress.get("job") else ""
    age_s = max(0.0, clock() - progress.get("seen", clock()))
    return f"{job}{sentence(progress)}; last seen {age_s:.0f} s ago"


def sentence(progress: Json) -> str:
    """Return the progress of a run for a person: why it is queued, where it runs, how far it is."""
    state, why, nodes = progress.get("state", ""), progress.get("why", ""), progress.get("nodes")
    text = f"{state}: {why}".strip(": ")
    if state == "PENDING":
        text = f"queued: {why}"
    elif state == "RUNNING" and nodes:
        text = f"on {nodes if isinstance(nodes, str) else ','.join(nodes)}"
    # What a job reports of another shape is left out: it is for display only.
    with contextlib.suppress(*_OTHER_SHAPE):
        if tunnel := progress.get("tunnel"):
            text += f"; {tunnel_sentence(tunnel)}"
    if (message := progress.get("message")) and not progress.get("training"):
        text += f"; the site says: {message}"
    with contextlib.suppress(*_OTHER_SHAPE):
        if training := progress.get("training"):
            text = f"{training_sentence(training)}, {text}"
    return text


def training_sentence(training: Json) -> str:
    """Return how far a training, or a sweep, is."""
    steps = f"{training['step']}/{training['steps']}"
    if not (trials := training.get("trials")):
        return f"step {steps}, loss {training['loss']:.3f}"
    failed = f", {trials['failed']} of them failed" if trials["failed"] else ""
    best = f", best {trials['best']}" if trials["best"] else ""
    return f"trial {steps}{failed}, {trials['running']} running{best}"


def tunnel_sentence(tunnel: Json) -> str:
    """Return the address of Ray's dashboard, or why no tunnel shows it."""
    if "port" in tunnel:
        return f"Ray's dashboard: http://{tunnel['address']}:{tunnel['port']}"
    return f"no tunnel (the run needs none): {tunnel.get('barred', '')}"


def write_stored_log(
    requests: RunRequests, data: ObjectStore, status: RunStatus, write: Callable[[bytes], object]
) -> bool:
    """Write the stored log of a finished run; return whether the run succeeded.

    The log of a run with a result is stored whole, of a failed attempt only its end.
    """
    ending = requests.ending(status)
    if status.state is RunState.DONE:
        files = ending.get("files") or {}
        if "job.log" in files:
            write(StageStore(data, status.run).get(files["job.log"]))
        return True
    write(str(ending.get("log") or ending.get("why") or status.state.when).encode())
    return False


def time_of_starts(stage: str, first_start: float, start: float, job_s: float) -> Json:
    """Return the time of a stage that may have been killed while the job went on.

    Of the time before this start only queue and job certainly belong to the run: the pipeline may
    have been started again a day later.
    """
    end = time.time()
    seconds = end - start
    if first_start < start:
        seconds = min(end - first_start, seconds + job_s)
    return time_record(stage, first_start, end, seconds)


def times_of_training(stage: str, start: float, trained: Trained, spans: dict[str, float]) -> Json:
    """Return the time of a stage that trains and its spans, those of this start.

    A training that resumed from a checkpoint counts what earlier starts have trained.
    """
    end = time.time()
    before = trained.seconds - spans["training"] if trained.start < start else 0.0
    before, first = max(0.0, before), min(start, trained.start)
    return {
        "time": time_record(stage, first, end, end - start + before),
        "spans": {**spans, "training": spans["training"] + before},
        "resumed": first < start,
    }
