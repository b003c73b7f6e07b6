"""Jobs on a Slurm site: at most one execution and one commit per attempt, whatever breaks.

Loss of contact changes no state. Live states come from squeue, ends from sacct with an end time,
success only from the committed manifest; everything else is UNKNOWN with the reason in a
sentence. Every method may be called again after any failure, from any machine.
"""

import dataclasses
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from kit.base import Busy, CommandFailed, DataError, Host, Unreachable, UsageError
from kit.slurm import fence
from kit.slurm import status as states
from kit.slurm.fence import SitePaths, job_name
from kit.slurm.program import committing, identity, numbered_attempt_id
from kit.slurm.script import LOG_NAME, JobSpec, build_script, job_for, sbatch_argv
from kit.slurm.status import JobStatus
from kit.slurm.text import (
    ACCOUNT_COLUMNS,
    LIMIT_PATTERN,
    NO_ACCOUNTING,
    NO_ANSWER_PATTERN,
    QUEUE_FORMAT,
    STATUS_COLUMNS,
    AccountRow,
    JobState,
    QueueRow,
    parse_duration,
    read_account,
    read_queue,
)
from kit.slurm.usage import Usage, computed_seff, matches, read_seff, read_usage

if TYPE_CHECKING:
    from kit.base.settings import Hpc

REPLY_WAIT_S = 10  # how long a submission waits for sbatch; slurmctld's own time-out is 9 to 10 s
LOG_END_BYTES = 4000
ATTEMPTS_A_QUERY = 8


@dataclass(frozen=True)
class Accounting:
    """Usage of a job, with the texts it was read from, and what is missing.

    `missing` has a sentence for each figure that the accounting does not have (yet); `usage` is
    None while it has none at all. `available` is false on a site without accounting, where
    waiting is of no use.
    """

    usage: Usage | None
    seff: dict[str, str] = field(default_factory=dict)
    sacct_text: str = ""
    seff_text: str = ""
    missing: tuple[str, ...] = ()
    available: bool = True


class Slurm:
    """The jobs of one user on one site. `hpc` is the profile's section, `host` its login node.

    `say` receives a sentence for the person; `clock`, and `sleep` for those who follow a job, can
    be replaced. `lost_after_s`: a submission that is found nowhere for that long is closed by its
    fence. `exit_meanings` explains the exit codes of what the jobs run. `leftovers` are files
    (keys, tokens) that a killed job leaves in its folder; closing an attempt removes them.
    `profile` is a part of the identity of jobs that are submitted by their description;
    `before_submit` is called with each such job, its attempt's id and number, and whether it is
    new, before anything is submitted: to record the job, or to refuse it by an error.
    """

    def __init__(
        self,
        host: Host,
        hpc: "Hpc",
        clock: Callable[[], float] = time.time,
        say: Callable[[str], None] = lambda _: None,
        lost_after_s: float = 120,
        exit_meanings: Mapping[int, str] | None = None,
        leftovers: Sequence[str] = (),
        sleep: Callable[[float], None] = time.sleep,
        profile: str = "",
        before_submit: Callable[[JobSpec, str, int, bool], None] = lambda *_: None,
    ) -> None:
        self.host = host
        self.hpc = hpc
        self.clock = clock
        self.leftovers = tuple(leftovers)
        self.sleep = sleep
        self.say = say
        self.profile = profile
        self.before_submit = before_submit
        self.lost_after_s = lost_after_s
        self.exit_meanings = {**states.EXIT_MEANINGS, **(exit_meanings or {})}

    @property
    def paths(self) -> SitePaths:
        """Where the kit's files are on the site."""
        return SitePaths(self.hpc)

    def folder(self, attempt_id: str) -> str:
        """Return the folder of an attempt on the site. Raises UsageError for another form of id."""
        return self.paths.attempt(attempt_id)

    def job(self, name: str, commands: str | Sequence[str], **more: Any) -> JobSpec:
        """Return a job on one node of what the profile requests; `more` sets fields of JobSpec."""
        lines = (commands,) if isinstance(commands, str) else commands
        return job_for(self.hpc, name, lines, **{"nodes": 1, **more})

    def submit(self, job: JobSpec, attempt_id: str | None = None, again: bool = False) -> JobStatus:
        """Submit an attempt, or return its status if that was done before.

        Without an `attempt_id` the job's description is its identity: the same profile, project
        folder, name, commands and resources are submitted once, from any machine, and the result
        is committed if the commands end with exit code 0. `again` opens the next attempt after
        one that has ended. Raises CommandFailed when sbatch refused the job (the attempt is
        closed then), Busy when a limit on the number of jobs refused it (the next call submits
        again) or, with `again`, while the last attempt has not ended, Unreachable if the outcome
        is unknown. It is safe to call again: an attempt is never submitted twice.
        """
        if attempt_id is None:
            return self._submit_described(job, again)
        folder = self.folder(attempt_id)
        text = build_script(dataclasses.replace(job, name=job_name(attempt_id)), folder)
        argv = sbatch_argv(folder)
        self._warn(job)
        words = [attempt_id, str(REPLY_WAIT_S), LIMIT_PATTERN, NO_ANSWER_PATTERN, text, *argv]
        attempt = self._ask("submit", words, [attempt_id]).attempts[attempt_id]
        if attempt.reply and attempt.reply.refused and not attempt.started:
            self._refuse(attempt, argv)
        status = states.from_links(attempt) or states.after_submit(attempt)
        return status or self.status([attempt_id])[attempt_id]

    def status(self, attempt_ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of attempts: one squeue, and sacct where that leaves an end open.

        A scheduler that does not answer makes UNKNOWN, not an error. Raises Unreachable and
        DataError when there was no complete answer at all: then nothing has changed.
        """
        if not attempt_ids:
            return {}
        for attempt_id in attempt_ids:
            self.folder(attempt_id)
        answer = self._ask("queue", [QUEUE_FORMAT, self._clusters, *attempt_ids], attempt_ids)
        (code, text), *_ = answer.listing("queue")
        rows: list[QueueRow] | str = (answer.err or text) if code else read_queue(text)
        known: dict[str, JobStatus] = {}
        open_ends: dict[str, str] = {}
        for attempt_id, attempt in answer.attempts.items():
            job_id, live = states.from_queue(attempt, rows)
            if status := states.from_links(attempt) or live:
                known[attempt_id] = status
            else:
                open_ends[attempt_id] = job_id
        return {**known, **(self._ends(open_ends) if open_ends else {})}

    def settle(self, attempt_id: str) -> JobStatus:
        """Return the status of an attempt, and close the attempt if it has ended.

        A submission that is found nowhere for `lost_after_s` is closed by its fence. An attempt
        whose status is `done` afterwards can neither start nor publish any more. Raises what
        `status` raises, and Unreachable if it is not known whether a lost job still runs.
        """
        status = self.status([attempt_id])[attempt_id]
        if status.missing_s > self.lost_after_s:
            return self.give_up(attempt_id)
        if status.done and not status.manifest:
            return self._settle(status)
        return status

    def give_up(self, attempt_id: str) -> JobStatus:
        """Close an attempt, so that nothing of it can start or publish; then a next may open.

        Raises Busy while its job is live, Unreachable if it is not known whether it is.
        """
        attempt = self._close(attempt_id, "fence").attempts[attempt_id]
        status = states.from_links(attempt)
        if status is None or not status.done:
            status = self.status([attempt_id])[attempt_id]
        if status.done:
            return self._settle(status)
        tried = f"close attempt {attempt_id}"
        got = f"its job {status.job_id} is {status.state.name}: {status.why}"
        if status.state is not JobState.UNKNOWN:
            raise Busy(tried, got, "wait for its end or cancel it")
        raise Unreachable(tried, got, "ask again later: it is not known whether its job runs")

    def cancel(self, attempt_id: str) -> JobStatus:
        """Take both symlinks and end the jobs. What was committed before stays COMPLETED.

        Raises CommandFailed when scancel failed: the result can no longer be published, but the
        job may still run; call it again.
        """
        answer = self._close(attempt_id, "cancel")
        if answer.cancel_code:
            raise CommandFailed(
                ["scancel", job_name(attempt_id)],
                answer.cancel_code,
                err=answer.err,
                next_step="cancel it again: the scheduler did not accept it",
            )
        status = states.from_links(answer.attempts[attempt_id])
        if status and status.manifest:
            return dataclasses.replace(status, why="it had finished before the cancel")
        return status or self.status([attempt_id])[attempt_id]

    def usage(self, attempt_id: str, job_id: str, restart_count: int = 0) -> Accounting:
        """Return what one start of an attempt's job used, from sacct and, where there is one, seff.

        What the accounting does not have is in `missing`; it is not an error.
        """
        which = (f"--jobs={job_id}", f"--name={job_name(attempt_id)}")
        answer = self.host.run(self._sacct_argv(*which), check=False, repeat=True)
        if answer.code:
            why = " ".join((answer.err or answer.out).split())[-300:]
            available = not NO_ACCOUNTING.search(why)
            return Accounting(None, missing=(f"sacct: {why}",), available=available)
        try:
            rows = read_account(answer.out, self._zone)
            usage = read_usage(rows, job_id, restart_count, job_name(attempt_id))
        except DataError as err:
            why = f"sacct: {err.tried}"
            return Accounting(None, sacct_text=answer.out, missing=(why,))
        missing = tuple(
            f"sacct: {f'step {row.step}' if row.step else f'job {row.job_id}'} has no end"
            for row in usage.rows
            if row.end is None
        )
        seff, seff_text = self._seff(usage)
        return Accounting(usage, seff, answer.out, seff_text, missing)

    def list_accounting(self, attempt_ids: Sequence[str]) -> str:
        """Return sacct's text of all jobs of some attempts, every start. Raises CommandFailed."""
        names = ",".join(job_name(self._checked(attempt_id)) for attempt_id in attempt_ids)
        argv = self._sacct_argv(f"--name={names}", "--starttime=now-30days")
        return self.host.run(argv, repeat=True).out

    def logs(self, attempt_id: str, offset: int = 0, name: str = "") -> tuple[bytes, int]:
        """Return what a job has written since `offset` (at most 1 MB), and the next offset.

        `name` is a file of the attempt's folder; without it the log of the job that owns the
        attempt, which is empty before a job has started.
        """
        text = self._tail(attempt_id, f"+{offset + 1}", name)
        return text, offset + len(text)

    def log_end(self, attempt_id: str, size: int = LOG_END_BYTES, name: str = "") -> bytes:
        """Return the last `size` bytes (at most 1 MB) of the same log or file."""
        return self._tail(attempt_id, str(size), name)

    @staticmethod
    def log_name(job_id: str) -> str:
        """Return the name of a job's log in its attempt's folder."""
        return LOG_NAME.format(job_id)

    def _submit_described(self, job: JobSpec, again: bool) -> JobStatus:
        """Submit a job by its description, unless its newest attempt was submitted before."""
        if not any(map(str.strip, job.commands)):
            raise UsageError(f"the job {job.name!r} has no command", next_step="give its commands")
        build_script(job, "/")  # refuses a value that is not allowed before anything is asked
        key = identity(self.profile, self.hpc.project_dir, job)
        number, status = self._newest_attempt(key)
        if again and status.opened:
            if not self.settle(status.attempt_id).done:
                got = f"attempt {number} is {status.state.name}: {status.why}"
                step = f"wait for its end, or cancel it: kit cancel job-{status.attempt_id}"
                raise Busy(f"submit {job.name} again", got, step)
            number, status = number + 1, JobStatus(numbered_attempt_id(key, number + 1))
        self.before_submit(job, status.attempt_id, number, not status.opened)
        if status.done or status.job_id:
            return status
        return self.submit(committing(job), status.attempt_id)

    def _newest_attempt(self, key: str) -> tuple[int, JobStatus]:
        """Return the number and status of the last attempt that was opened, else of the first."""
        first, newest = 1, (1, JobStatus(numbered_attempt_id(key, 1)))
        while True:
            numbers = range(first, first + ATTEMPTS_A_QUERY)
            ids = {number: numbered_attempt_id(key, number) for number in numbers}
            statuses = self.status(list(ids.values()))
            for number, attempt_id in ids.items():
                if not statuses[attempt_id].opened:
                    return newest
                newest = number, statuses[attempt_id]
            first += ATTEMPTS_A_QUERY

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.hpc.timezone)

    @property
    def _clusters(self) -> str:
        return self.hpc.clusters

    def _checked(self, attempt_id: str) -> str:
        self.folder(attempt_id)
        return attempt_id

    def _ask(self, script: str, words: Sequence[str], attempt_ids: Sequence[str]) -> fence.Answer:
        """Run one script on the site (each may be sent twice) and read its answer."""
        body = fence.wrap(script, self.paths.attempts, *words)
        done = self.host.run(["bash", "-s"], body, timeout=90, repeat=True)
        return fence.read_answer(done.out, done.err, attempt_ids)

    def _close(self, attempt_id: str, mode: str) -> fence.Answer:
        self.folder(attempt_id)
        return self._ask("close", [attempt_id, mode, self._clusters, *self.leftovers], [attempt_id])

    def _refuse(self, attempt: fence.Attempt, argv: list[str]) -> None:
        """Raise the error of a submission that sbatch refused."""
        text = attempt.reply.text if attempt.reply else ""
        if attempt.reply and attempt.reply.limited and not attempt.abandoned:
            tried = f"submit attempt {attempt.attempt_id}"
            raise Busy(tried, text, "wait: it is submitted again when other jobs have ended")
        self._close(attempt.attempt_id, "settle")
        step = "fix what it names (account, partition, time, nodes), then start a new attempt"
        raise CommandFailed(argv, attempt.exit_code, err=text, next_step=step)

    def _settle(self, status: JobStatus) -> JobStatus:
        """Close an attempt that has ended; a commit made before that is its result."""
        attempt = self._close(status.attempt_id, "settle").attempts[status.attempt_id]
        committed = states.from_links(attempt) if attempt.manifest else None
        return committed or dataclasses.replace(status, started=attempt.started)

    def _ends(self, job_ids: dict[str, str]) -> dict[str, JobStatus]:
        """Ask sacct about attempts without a live job; by name alone where no id is known."""
        ids = ",".join(sorted({job for job in job_ids.values() if job}))
        names = ",".join(job_name(attempt_id) for attempt_id, job in job_ids.items() if not job)
        words = [",".join(STATUS_COLUMNS), self._clusters, ids, names, *job_ids]
        answer = self._ask("account", words, list(job_ids))
        rows: list[AccountRow] | str = []
        for code, text in answer.listing("account"):
            if code or isinstance(rows, str):
                rows = answer.err or text
            elif text.strip():
                rows += read_account(text, self._zone)
        return {
            attempt_id: states.from_links(attempt)
            or states.from_account(
                attempt, job_ids[attempt_id], rows, answer.now, self.exit_meanings
            )
            for attempt_id, attempt in answer.attempts.items()
        }

    def _sacct_argv(self, *which: str) -> list[str]:
        clusters = [f"--clusters={self._clusters}"] if self._clusters else []
        columns = f"--format={','.join(ACCOUNT_COLUMNS)}"
        sacct = ["sacct", "--parsable2", "--duplicates", columns, *clusters, *which]
        return ["env", "SLURM_TIME_FORMAT=%s", *sacct]

    def _seff(self, usage: Usage) -> tuple[dict[str, str], str]:
        """Return seff's figures of a job and its text; computed ones where seff has none of it."""
        if not self.hpc.has_seff:
            return computed_seff(usage), ""
        text = self.host.run(["seff", usage.job_id], check=False, repeat=True).out
        try:
            seff = read_seff(text)
        except DataError:
            seff = {}
        return (seff if matches(seff, usage) else computed_seff(usage)), text

    def _tail(self, attempt_id: str, count: str, name: str) -> bytes:
        self.folder(attempt_id)
        body = fence.wrap("log", self.paths.attempts, attempt_id, count, name)
        return b64decode(self.host.run(["bash", "-s"], body, repeat=True).out)

    def _warn(self, job: JobSpec) -> None:
        """Warn if the certificate ends before the job can have ended."""
        end = self.host.valid_until()
        if end is not None and self.clock() + (parse_duration(job.time) or 0) > end:
            until = time.strftime("%H:%M", time.localtime(end))
            self.say(
                f"the certificate ends at {until}, before the job's time limit: the job "
                f"continues and the kit waits for a new certificate. {self.hpc.renew_hint}".rstrip()
            )
