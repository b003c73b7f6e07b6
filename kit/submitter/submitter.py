"""The submitter: sees requests in the store, has them worked on by the site, publishes results.

It alone holds the ssh key. A pass does for every open run the next step that is due and keeps
nothing that it could not find out again, so it may be killed anywhere, and two of them at once
do no harm: they meet at the links of a try. The site gets no credential of any kind.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial

from kit.base import (
    CommandFailed,
    DataError,
    Json,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    UsageError,
)
from kit.base.settings import Hpc, Settings
from kit.billing import run as run_bill
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequests, RunState, RunStatus, attempt_id
from kit.slurm import JobState, JobStatus, Slurm
from kit.store import ObjectStore
from kit.submitter import collect, staging
from kit.submitter import env as hpc_env
from kit.submitter import job as ray_job
from kit.submitter.collect import Collector, digest_of
from kit.submitter.tunnel_key import TunnelKeys

SWEEP_AGAIN_S = 60.0
SHOW_S = 10.0  # progress is written anew after so long, so that "last seen" is true
REFUSED = "the scheduler refused the job"
TRIES = 5  # of one run without anybody's word, all but the last without work done

log = logging.getLogger(__name__)


class Submitter:
    """One submitter of one profile. `step` gets the name of each step done (tests kill there)."""

    def __init__(
        self,
        profile: Settings,
        slurm: Slurm,
        jobs: RunRequests,
        data: ObjectStore,
        step: Callable[[str], None] = lambda _: None,
        vm: TunnelKeys | None = None,
    ) -> None:
        self.settings, self.slurm, self.jobs, self.data = profile, slurm, jobs, data
        self.step, self.vm = step, vm
        self._swept: set[str] = set()
        self._sweep_at = 0.0
        self._shown: dict[str, tuple[str, float]] = {}
        self._asked_at = 0.0

    @property
    def hpc(self) -> Hpc:
        """The profile's section."""
        return self.slurm.hpc

    @property
    def tries(self) -> str:
        """Where the folders of the tries are on the site."""
        return f"{self.hpc.project_dir}/kit/tries"

    def once(self) -> dict[str, RunStatus]:
        """Do one pass; give how the runs stood at its beginning.

        Raises KitError when the store cannot be read; what goes wrong with one run is told in
        its `progress` and does not hold up the others.
        """
        try:
            standings = self.jobs.statuses()
        except NoSuchBucket:  # nobody has asked for anything yet
            return {}
        self.step("listed")
        todo = {each.run: each for each in standings.values() if not each.state.finished}
        self._sweep(attempt_id(each.run, number) for each in standings.values()
                    for number in range(1, each.number + each.state.finished))  # fmt: skip
        for each in todo.values():
            if each.state is RunState.REQUESTED:
                self._try(each, lambda one: self._begin(one.run, one.number))
            elif each.state is RunState.CANCELLING:
                self._try(each, self._cancel)
        live = [each for each in todo.values() if each.state is RunState.SUBMITTED]
        floor = self.hpc.poll_floor_s
        if live and self.slurm.clock() - self._asked_at >= floor:
            self._asked_at = self.slurm.clock()
            self._follow(live)
        return standings

    def cancel(self, run: str) -> RunStatus:
        """Say that a run is no longer wanted and end it on the site now; say how it stands.

        Raises what `Slurm.cancel` does: the wish is kept, a pass or another call goes on with it.
        """
        standing = self.jobs.cancel(run)
        if standing.state is RunState.CANCELLING:
            self._cancel(standing)
        return self.jobs.status(run)

    def _try(self, standing: RunStatus, action: Callable[[RunStatus], None]) -> None:
        try:
            action(standing)
        except KitError as err:
            self._show(standing.run, {"state": standing.state.name, "why": str(err)})

    def _begin(self, run: str, number: int) -> None:
        """Submit a try of a run; a request that cannot be accepted is refused with the reason."""
        try:
            request = self.jobs.request(run)
            if self.settings.site.closed:
                raise DataError("submit", self.settings.site.closed)
            run_bill.afford(self.settings, self.slurm.host)
            staging.refuse_too_many(self.hpc, request)
        except NoSuchObject:
            return
        except (DataError, UsageError) as err:
            log.info("%s is refused: %s", run, err.got)
            self.jobs.write(run, "refused", {"why": str(err)})
            return
        name = attempt_id(run, number)
        self._show(run, {"state": "STAGING", "why": "inputs are copied to the site"})
        try:
            inputs = staging.Staging(self.slurm, self.data, self.vm, partial(self._show, run))
            task = inputs.task(request, number, name)
        except hpc_env.EnvironmentBuildError as err:
            if not self.slurm.give_up(name).manifest:  # another submitter may have made it
                self.jobs.write(run, f"try-{number}/ended", _failed(name, err.tried, err))
            return
        self.step("staged")
        try:
            status = self.slurm.submit(ray_job.job_spec(self.hpc, task), name)
        except CommandFailed as err:
            if err.argv[0] != "sbatch":  # the folder is full or not writable: asked again later
                raise
            self.jobs.write(run, f"try-{number}/ended", _failed(name, REFUSED, err))
            return
        self.step("sent")
        log.info("%s: try %s is job %s", run, number, status.job_id or "?")
        self.jobs.write(run, f"try-{number}/submitted", {"token": name})
        self.step("recorded")

    def _cancel(self, standing: RunStatus) -> None:
        """End a run that is no longer wanted; what was committed before is its result."""
        name = attempt_id(standing.run, standing.number)
        status = self.slurm.cancel(name)
        self.step("cancelled")
        if status.manifest or status.done:
            self._end(standing, status)

    def _follow(self, live: list[RunStatus]) -> None:
        """Ask about all live tries at once and do what is due."""
        names = {attempt_id(each.run, each.number): each for each in live}
        try:
            found = self.slurm.status(list(names))
            live_ones = [name for name in names if not found[name].done]
            told = collect.read_progress(self.slurm.host, self.tries, live_ones)
        except KitError as err:
            for each in live:
                self._show(each.run, {"state": "UNKNOWN", "why": str(err)})
            return
        for name, standing in names.items():
            self._try(standing, partial(self._look, status=found[name], told=told.get(name, {})))

    def _look(self, standing: RunStatus, status: JobStatus, told: Json) -> None:
        if not status.manifest and (status.done or status.missing_s > self.slurm.lost_after_s):
            status = self.slurm.settle(status.attempt_id)  # closes what has ended
        self.step("asked")
        if not status.done:
            shown = {"state": status.state.name, "why": status.why, "job": status.job_id}
            self._show(
                standing.run, {**shown, "nodes": [status.nodes] if status.nodes else [], **told}
            )
            return
        again = not status.started or standing.number <= self.hpc.retries
        if not status.manifest and again and standing.number < TRIES:
            log.info("%s: try %s did no work: %s", standing.run, standing.number, status.why)
            self._begin(standing.run, standing.number + 1)
            return
        self._end(standing, status)

    def _sweep(self, tokens: Iterable[str]) -> None:
        """Take the tunnel keys of ended tries away; a VM that is away is asked again later."""
        over = set() if self.vm is None else set(tokens) - self._swept
        if self.vm is None or not over or self.slurm.clock() < self._sweep_at:
            return
        try:
            self.vm.sweep(self.slurm.host, self.tries, over)
            self._swept |= over
        except KitError as err:
            log.warning("keys of tunnels stay on the VM until it answers: %s", err)
            self._sweep_at = self.slurm.clock() + SWEEP_AGAIN_S

    def _end(self, standing: RunStatus, status: JobStatus) -> None:
        """Publish what a try came to. A result waits until the accounting has all of it."""
        self._sweep([status.attempt_id])
        objects = StageStore(self.data, standing.run)
        collector = Collector(self.slurm, objects, standing.number, status.attempt_id)
        if not status.manifest:
            failure = collector.failure(status)
            self.jobs.write(standing.run, f"try-{standing.number}/ended", failure)
            log.info("%s has ended: %s", standing.run, status.why)
            return
        result = collector.result(status)
        self.step("collected")
        if result is None:
            self._show(standing.run, {"state": "COMPLETED", "why": "the accounting is awaited"})
            return
        self.jobs.write(standing.run, "result", result)
        log.info("%s is done", standing.run)

    def _show(self, run: str, content: Json) -> None:
        """Publish a run's progress when it is another than before, and now and then unchanged.

        Without contact everything stays as it was last seen, but the state and its reason.
        """
        shown, now = digest_of(content), self.slurm.clock()
        last, at = self._shown.get(run, ("", 0.0))
        if shown == last and now - at < SHOW_S:
            return
        before: Json = {"seen": now}
        if content["state"] == JobState.UNKNOWN.name:
            before = self.jobs.read(run, "progress") or {}
        self.jobs.write(run, "progress", {**before, **content})
        self._shown[run] = shown, now


def _failed(name: str, what: str, err: KitError) -> Json:
    """Say why a try came to nothing before it could work, in the shape of a failed one."""
    cause = {"cause": what, "got": err.got, "next": err.next_step}
    return {"token": name, "why": err.got, "worked": False, "failure": cause, "log": ""}
