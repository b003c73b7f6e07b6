"""The submitter: sees run requests in the store, submits them to Slurm, publishes the results.

It alone holds the ssh key. A pass takes the next step that is due for every open run. It keeps
nothing that it could not find out again, so it may be killed anywhere, and two submitters at once
do no harm: they meet at the symlinks of an attempt. The site gets no credential of any kind.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from kit.base import (
    CommandFailed,
    CredentialRefused,
    DataError,
    Json,
    KitError,
    NoSuchObject,
    StoreUnavailable,
    Unreachable,
    UsageError,
)
from kit.base.settings import Settings
from kit.billing import check_affordable
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequests, RunState, RunStatus, attempt_id
from kit.slurm import JobState, JobStatus, Slurm
from kit.store import ObjectStore
from kit.submitter import collect, staging
from kit.submitter.collect import Collector, FinishedTrials, digest_of, explain, never_began
from kit.submitter.env import EnvironmentBuildError
from kit.submitter.job import job_spec
from kit.submitter.tunnel_key import TunnelKeys

MIN_BACK_OFF_S, MAX_BACK_OFF_S = 2.0, 300.0
SWEEP_INTERVAL_S = 60.0
LIST_ALL_INTERVAL_S = 600.0  # all runs are listed so often: a run without its mark is found
RUNS_PER_PAGE = 250  # of a listing of 1,000 keys
PROGRESS_INTERVAL_S = 10.0  # progress is written again after this, so that "last seen" is true
RESULT_WAIT_S = 300.0  # how long a committed result waits for figures and files
# Limit of attempts for a run, unless a person requests another one. All but the last did no work.
MAX_ATTEMPTS = 5
REFUSED = "the scheduler refused the job"
NOT_ALLOWED = "another attempt is not allowed now"
SITE = ""  # the key of the due time of the site itself

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Due:
    """When the next step is due, how long it was delayed, and why."""

    at: float
    pause: float
    why: str = ""


class Submitter:
    """The submitter of one profile."""

    def __init__(
        self,
        settings: Settings,
        slurm: Slurm,
        requests: RunRequests,
        data: ObjectStore,
        tunnel_keys: TunnelKeys | None = None,
    ) -> None:
        self.settings = settings
        self.slurm, self.hpc = slurm, slurm.hpc
        self.requests, self.data = requests, data
        self.tunnel_keys = tunnel_keys
        self._owned = False
        self._due: dict[str, _Due] = {}
        self._ours: dict[str, bool] = {}
        self._open: set[str] = set()
        self._list_all_at, self._runs = 0.0, 0
        self._to_sweep, self._swept = set[str](), set[str]()
        self._sweep_at = self._query_at = 0.0
        self._shown: dict[str, tuple[str, float]] = {}
        self._finished_trials = FinishedTrials(slurm)

    def once(self) -> dict[str, RunStatus]:
        """Do one pass; return the status, at its beginning, of the runs that were listed.

        Raises KitError when the store cannot be read, or a bucket belongs to somebody else. What
        goes wrong with one run is reported in its `progress` and does not hold up the others.
        """
        statuses = self._list_runs()
        self._check_owner(bool(statuses))
        self._sweep(
            attempt_id(status.run, number)
            for status in statuses.values()
            for number in range(1, status.number + status.state.finished)
            if self.tunnel_keys
        )
        open_runs = [status for status in statuses.values() if not status.state.finished]
        self._forget({status.run for status in open_runs})
        open_runs = [status for status in open_runs if self._is_ours(status.run)]
        for status in open_runs:
            if status.state is RunState.REQUESTED:
                self._run_step(status, self._begin)
            elif status.state is RunState.CANCELLING:
                self._run_step(status, self._cancel)
        self._follow([status for status in open_runs if status.state is RunState.SUBMITTED])
        return statuses

    def cancel(self, run: str) -> RunStatus:
        """Cancel a run and end its jobs on the site now; return its status.

        Raises UsageError for a run of another profile, whose jobs this site does not know, and
        what `Slurm.cancel` raises. The cancellation is stored: a pass or another call resumes it.
        """
        if not self._is_ours(run):
            got = f"it was requested for profile {self.requests.request(run).profile}"
            raise UsageError(f"cancel {run}", got, "give that profile: --profile NAME")
        status = self.requests.cancel(run)
        if status.state is RunState.CANCELLING:
            self._cancel(status)
        return self.requests.status(run)

    def _list_runs(self) -> dict[str, RunStatus]:
        """Return the status of the open runs; of all runs where that takes no more listings.

        A run that has finished since is among them once more, and loses its mark.
        """
        now, marked = self.slurm.clock(), self.requests.marked_runs()
        wanted = marked | self._open
        if now >= self._list_all_at or len(wanted) > 1 + self._runs // RUNS_PER_PAGE:
            statuses = self.requests.statuses()
            self._runs, self._list_all_at = len(statuses), now + LIST_ALL_INTERVAL_S
        else:
            statuses = {run: self.requests.status(run) for run in sorted(wanted)}
        ended = {run for run, status in statuses.items() if status.state.finished}
        self._open = {
            run for run in statuses.keys() - ended if statuses[run].state is not RunState.UNKNOWN
        }
        for run in marked & ended:
            self.requests.unmark(run)
        return statuses

    # -- due times and containment ---------------------------------------------------------------

    def _run_step(self, status: RunStatus, action: Callable[[RunStatus], None]) -> None:
        """Do the next step of a run if it is due; a failure affects only this run."""
        run, site = status.run, self._due.get(SITE)
        if site and self.slurm.clock() < site.at:
            self._show_safely(run, {"state": status.state.name, "why": site.why})
            return
        before = self._due.get(run)
        if before and self.slurm.clock() < before.at:
            return
        self._due.pop(run, None)
        try:
            action(status)
        except Exception as err:  # noqa: BLE001 - one run must not hold up the others
            why = explain(run, err)
            self._due[run] = self._later(before, why)
            if isinstance(err, CredentialRefused | Unreachable) and not isinstance(
                err, StoreUnavailable
            ):
                self._due[SITE] = self._later(site, why)
            self._show_safely(run, {"state": status.state.name, "why": why})
        else:
            self._due.pop(SITE, None)

    def _later(self, before: _Due | None, why: str = "") -> _Due:
        pause = max(MIN_BACK_OFF_S, min(2 * before.pause, MAX_BACK_OFF_S) if before else 0.0)
        return _Due(self.slurm.clock() + pause, pause, why)

    def _wait(self, run: str, seconds: float) -> None:
        self._due[run] = _Due(self.slurm.clock() + seconds, seconds)

    def _forget(self, open_runs: set[str]) -> None:
        for known in (self._due, self._ours, self._shown):
            for run in known.keys() - open_runs - {SITE}:
                del known[run]

    # -- what may be worked on -------------------------------------------------------------------

    def _check_owner(self, exists: bool) -> None:
        """Raise BucketTaken where a bucket of ours belongs to another project."""
        if exists and not self._owned:
            self.requests.store.ensure_bucket()
            self.data.ensure_bucket()
        self._owned = exists

    def _is_ours(self, run: str) -> bool:
        """Return whether a run was requested for this profile and this site."""
        if run not in self._ours:
            try:
                request = self.requests.request(run)
            except (DataError, UsageError):  # refused, or waited for, where it is begun
                return True
            self._ours[run] = request.is_for(self.settings)
            if not self._ours[run]:
                log.warning("%s is left alone: it is for profile %s", run, request.profile)
        return self._ours[run]

    def _is_cancelled(self, run: str) -> bool:
        return self.requests.status(run).state in (RunState.CANCELLING, RunState.CANCELLED)

    # -- the steps of a run ----------------------------------------------------------------------

    def _begin(self, status: RunStatus, number: int = 0) -> None:
        """Submit an attempt of a run; refuse a request that cannot be accepted, with the reason."""
        run, number = status.run, number or status.number
        try:
            request = self.requests.request(run)
            if self.settings.site.closed:
                raise DataError("submit", self.settings.site.closed)
            check_affordable(self.settings, self.slurm.host)
            staging.check_request(self.hpc, request)
            continued = staging.continued_attempts(self.slurm, self.requests, request)
        except NoSuchObject:
            return
        except (DataError, UsageError) as err:
            log.info("%s is refused: %s", run, err.got)
            if number > 1:  # not final: a later attempt uses what the earlier ones have finished
                self._give_up(run, number, NOT_ALLOWED, err)
            else:
                self.requests.write(run, "refused", collect.why_refused(err))
            return
        attempt = attempt_id(run, number)
        self._show(run, {"state": "STAGING", "why": "inputs are copied to the site"})
        try:
            inputs = staging.Staging(
                self.slurm, self.data, self.tunnel_keys, partial(self._show, run)
            )
            task = inputs.task(request, number, attempt, continued)
        except EnvironmentBuildError as err:
            self._give_up(run, number, err.tried, err)
            return
        if self._is_cancelled(run):  # staging may take minutes
            self._sweep([attempt])
            return
        try:
            job = self.slurm.submit(job_spec(self.hpc, task), attempt)
        except CommandFailed as err:
            if err.argv[0] != "sbatch":  # the folder is full or not writable: asked again later
                raise
            self._end_without_job(run, number, never_began(attempt, REFUSED, err))
            return
        if job.done and not job.started and self._is_cancelled(run):
            return
        log.info("%s: attempt %s is job %s", run, number, job.job_id or "?")
        self.requests.write(run, f"try-{number}/submitted", {"token": attempt})

    def _give_up(self, run: str, number: int, cause: str, err: KitError) -> None:
        """End an attempt before its job, unless another submitter has submitted it."""
        attempt = attempt_id(run, number)
        if not self.slurm.give_up(attempt).manifest:
            self._end_without_job(run, number, never_began(attempt, cause, err))

    def _end_without_job(self, run: str, number: int, ended: Json) -> None:
        """Publish why an attempt never had a job, and remove the keys of the run's tunnels."""
        self.requests.write(run, f"try-{number}/ended", ended)
        self._sweep(attempt_id(run, each) for each in range(1, number + 1))

    def _cancel(self, status: RunStatus) -> None:
        """End a cancelled run; what was committed before is its result, or a sweep's trials.

        The next attempt is closed too: another submitter may be preparing it.
        """
        run, number = status.run, status.number
        self._show(run, {"state": "CANCELLING", "why": "its job is being ended"})
        if self._finished_trials.awaited(status.attempt_id):
            return self._wait(run, self.hpc.poll_floor_s)
        last, following = status.attempt_id, attempt_id(run, number + 1)
        job, next_job = self.slurm.cancel(last), self.slurm.cancel(following)
        if next_job.job_id or next_job.manifest or not next_job.done:
            self.requests.write(run, f"try-{number + 1}/submitted", {"token": following})
            return
        self._sweep([following])
        if job.manifest or job.done:
            self._end(status, job)
        else:
            self._wait(run, self.hpc.poll_floor_s)

    def _follow(self, live: list[RunStatus]) -> None:
        """Ask about all live attempts at once and take the steps that are due."""
        now = self.slurm.clock()
        live = [s for s in live if s.run not in self._due or self._due[s.run].at <= now]
        if not live or now - self._query_at < self.hpc.poll_floor_s:
            return
        site = self._due.get(SITE)
        if site and now < site.at:
            for status in live:
                self._show_safely(status.run, {"state": "UNKNOWN", "why": site.why})
            return
        self._query_at = now
        attempts = {status.attempt_id: status for status in live}
        try:
            jobs = self.slurm.status(list(attempts))
            running = [attempt for attempt in attempts if not jobs[attempt].done]
            progress = collect.read_progress(self.slurm.host, self.slurm.paths.attempts, running)
        except Exception as err:  # noqa: BLE001 - without an answer no state changes
            why = explain("the query of all live runs", err)
            self._due[SITE] = self._later(site, why)
            for status in live:
                self._show_safely(status.run, {"state": "UNKNOWN", "why": why})
            return
        for attempt, status in attempts.items():
            look = partial(self._look, job=jobs[attempt], progress=progress.get(attempt, {}))
            self._run_step(status, look)

    def _look(self, status: RunStatus, job: JobStatus, progress: Json) -> None:
        """Publish the status of an attempt; close the attempt when its job has ended."""
        if not job.manifest and (job.done or job.missing_s > self.slurm.lost_after_s):
            job = self.slurm.settle(job.attempt_id)  # closes what has ended
        if not job.done:
            shown = {"state": job.state.name, "why": job.why, "job": job.job_id}
            shown |= {"message": job.message} if job.message else {}
            self._show(status.run, {**shown, "nodes": [job.nodes] if job.nodes else [], **progress})
            return
        again = not job.started or status.number <= self.hpc.retries
        if not job.manifest and again and status.number < MAX_ATTEMPTS:
            log.info("%s: attempt %s did no work: %s", status.run, status.number, job.why)
            self._begin(status, status.number + 1)
            return
        self._end(status, job)

    def _end(self, status: RunStatus, job: JobStatus) -> None:
        """Publish the result of an attempt, or why it failed."""
        run, number = status.run, status.number
        self._sweep([job.attempt_id])
        collector = Collector(self.slurm, StageStore(self.data, run), number, job.attempt_id)
        if not job.manifest:
            self.requests.write(run, f"try-{number}/ended", collector.failure(job))
            log.info("%s has ended: %s", run, job.why)
            return
        since, why = self._collecting_since(run), collect.AWAITED
        patient = self.slurm.clock() - since < RESULT_WAIT_S
        try:
            result = collector.result(job, patient)
        except (CommandFailed, DataError) as err:  # a committed file is gone or was changed
            if not patient:
                cause = "a committed file cannot be read"
                ended = {**never_began(job.attempt_id, cause, err), "worked": True}
                self.requests.write(run, f"try-{number}/ended", ended)
                return
            result, why = None, explain(run, err)
        if result is None:
            self._show(run, {"state": "COMPLETED", "why": why, "since": since})
            self._wait(run, max(MIN_BACK_OFF_S, self.hpc.poll_floor_s))
            return
        self.requests.write(run, "result", result)
        log.info("%s is done", run)

    def _collecting_since(self, run: str) -> float:
        """Return since when a committed result waits, as `progress` remembers it."""
        try:
            since = (self.requests.read(run, "progress") or {}).get("since")
        except DataError:
            since = None
        return since if isinstance(since, float) else self.slurm.clock()

    def _sweep(self, attempts: Iterable[str]) -> None:
        """Remove the tunnel keys of ended attempts; retry later while the VM does not answer."""
        keys = self.tunnel_keys
        self._to_sweep |= set(attempts) - self._swept
        if keys is None or not self._to_sweep or self.slurm.clock() < self._sweep_at:
            return
        try:
            keys.sweep(self.slurm.host, self.slurm.paths.attempts, self._to_sweep)
            self._swept |= self._to_sweep
            self._to_sweep = set()
        except Exception as err:  # noqa: BLE001 - a window must not hold up the runs
            log.warning("keys of tunnels stay on the VM until it answers: %s", err)
            self._sweep_at = self.slurm.clock() + SWEEP_INTERVAL_S

    # -- progress --------------------------------------------------------------------------------

    def _show(self, run: str, content: Json) -> None:
        """Publish a run's progress when it has changed, and now and then unchanged.

        Without contact, only the state and its reason change; the rest stays as last seen.
        """
        digest, now = digest_of(content), self.slurm.clock()
        last, at = self._shown.get(run, ("", 0.0))
        if digest == last and now - at < PROGRESS_INTERVAL_S:
            return
        before: Json = {"seen": now}
        if content["state"] == JobState.UNKNOWN.name:
            try:
                before = self.requests.read(run, "progress") or {}
            except DataError:  # damaged: it is written again
                before = {}
        self.requests.write(run, "progress", {**before, **content})
        self._shown[run] = digest, now

    def _show_safely(self, run: str, content: Json) -> None:
        """Publish a problem; if publishing fails too, only log it."""
        try:
            self._show(run, content)
        except Exception as err:  # noqa: BLE001 - reporting one run must not hold up the others
            log.warning("%s: its progress cannot be written: %s", run, err)
