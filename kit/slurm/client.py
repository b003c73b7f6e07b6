"""Jobs on a Slurm site: at most one execution and one commit a try, whatever breaks on the way.

Loss of contact changes no state. Live states come from squeue, ends from sacct with an end time,
success only from the committed manifest; everything else is UNKNOWN with the reason in a
sentence. Every method may be called again after any failure, from any machine.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from zoneinfo import ZoneInfo

from kit.base import (
    Busy,
    CommandFailed,
    CredentialRefused,
    DataError,
    Host,
    HostKeyRefused,
    Unreachable,
    UsageError,
)
from kit.base.settings import Hpc
from kit.slurm import fence
from kit.slurm import script as jobspec
from kit.slurm import status as fate
from kit.slurm.job_output import Accounting, accounting, log
from kit.slurm.script import JobSpec
from kit.slurm.status import JobStatus
from kit.slurm.text import ACCOUNT_COLUMNS, AccountRow, QueueRow, read_account, read_queue
from kit.slurm.values import seconds

ANSWER_S = 10  # how long a submission waits for sbatch; slurmctld's own time-out is 9 to 10 s
SUBMIT_STEPS = "submit 1 written", "submit 2 answered", "submit 3 looked up"
WAIT_STEPS = "wait 1 asked", "wait 2 closed", "wait 3 ended"


class Slurm:
    """The jobs of one user on one site. `hpc` is the profile's section, `host` its login node.

    `say` gets a sentence for the person, `step` the name of each step that was done (for tests
    that kill there); `clock`, `sleep` and `jitter` (0 to 1) can be replaced. `lost_after_s`: a
    submission that shows up nowhere for so long is given up by its fence.
    """

    def __init__(
        self,
        host: Host,
        hpc: Hpc,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        say: Callable[[str], None] = lambda _: None,
        step: Callable[[str], None] = lambda _: None,
        lost_after_s: float = 120,
    ) -> None:
        self.host, self.hpc, self.clock, self.sleep, self.jitter = host, hpc, clock, sleep, jitter
        self.say, self.step, self.lost_after_s = say, step, lost_after_s

    def folder(self, token: str) -> str:
        """Name the folder of a try on the site. Raises UsageError for what is no token."""
        if not fence.TOKEN.fullmatch(token):
            raise UsageError(f"{token!r} is no token", next_step="give 12 hex digits")
        return f"{self._tries}/{token}"

    def submit(self, spec: JobSpec, token: str) -> JobStatus:
        """Submit a try, or find out how it stands when that was asked before.

        One round trip. Raises CommandFailed when sbatch refused (the try is closed then),
        Unreachable when nothing is known: call it again, the try is submitted once at most.
        """
        folder = self.folder(token)
        text = jobspec.script(dataclasses.replace(spec, name=f"kit-{token}"), folder)
        argv = jobspec.argv(folder)
        self._warn(spec)
        self.step("submit 1 written")
        body = fence.wrap(fence.SUBMIT, self._tries, token, str(ANSWER_S), text, *argv)
        answer = self._ask(body, [token])
        found = answer.tries[token]
        self.step("submit 2 answered")
        if found.reply and found.reply.refused and not found.worked:
            self._close(token, "settle")
            step = "mend what it names (account, partition, time, nodes) and start a new try"
            raise CommandFailed(argv, found.code, err=found.reply.text, next_step=step)
        status = fate.from_links(found) or fate.after_submit(found)
        if not status.job_id and not status.done:
            status = self.status([token])[token]
        self.step("submit 3 looked up")
        return status

    def status(self, tokens: Sequence[str]) -> dict[str, JobStatus]:
        """Say how tries stand: one squeue, and one sacct where that leaves an end open.

        A scheduler that does not answer makes UNKNOWN, not an error. Raises Unreachable and
        DataError when there was no whole answer at all: then nothing has changed.
        """
        if not tokens:
            return {}
        for token in tokens:
            self.folder(token)
        answer = self._ask(fence.wrap(fence.QUEUE, self._tries, *tokens), tokens)
        (code, text), *_ = answer.listing("queue")
        rows: list[QueueRow] | str = answer.err if code else read_queue(text, self._zone)
        known: dict[str, JobStatus] = {}
        open_ends: dict[str, str] = {}
        for token, found in answer.tries.items():
            job_id, live = fate.from_queue(found, rows)
            if status := fate.from_links(found) or live:
                known[token] = status
            else:
                open_ends[token] = job_id
        return {**known, **(self._ends(open_ends) if open_ends else {})}

    def wait(
        self,
        token: str,
        on_status: Callable[[JobStatus], None] = lambda _: None,
        timeout_s: float | None = None,
    ) -> JobStatus:
        """Follow a try to its end and close it; after `timeout_s` give how it stands (not done).

        Asks politely: at once, then after the profile's floor, later up to four times as long.
        Contact that is lost or refused changes no state; it goes on when contact is back. Raises
        HostKeyRefused, because that does not mend itself.
        """
        begun, pause, last = self.clock(), self.hpc.poll_floor_s, JobStatus(token)
        while True:
            last = self._look(last)
            on_status(last)
            if last.done or (timeout_s is not None and self.clock() - begun >= timeout_s):
                self.step("wait 3 ended")
                return last
            self.sleep(pause * (1 + 0.1 * self.jitter()))
            pause = min(pause * 1.5, self.hpc.poll_floor_s * 4)

    def give_up(self, token: str) -> JobStatus:
        """Close a try, so that nothing of it can work or publish any more; then a next may open.

        Raises Busy while its job lives, Unreachable while the job's fate is not known.
        """
        found = self._close(token, "fence").tries[token]
        status = fate.from_links(found)
        if status is None or not status.done:
            status = self.status([token])[token]
        if status.done:
            return self._settle(status)
        live = f"job {status.job_id} of try {token} is {status.state.name}: {status.why}"
        if status.state.name != "UNKNOWN":
            raise Busy("give up a try", live, "wait for its end or cancel it")
        raise Unreachable("give up a try", live, "ask again later: its fate is not known")

    def cancel(self, token: str) -> JobStatus:
        """Take both links and end the jobs. What was committed before stays COMPLETED.

        Raises CommandFailed when scancel failed: the result can no longer be published, but the
        job may run on; call it again.
        """
        answer = self._close(token, "cancel")
        if answer.cancel_code:
            step = "cancel it again: the scheduler did not take it"
            raise CommandFailed(
                ["scancel", token], answer.cancel_code, err=answer.err, next_step=step
            )
        status = fate.from_links(answer.tries[token])
        if status and status.manifest:
            return dataclasses.replace(status, why="it had finished before the cancel")
        return status or self.status([token])[token]

    def usage(self, job_id: str, life: int = 0) -> Accounting:
        """Read what a job used; see `job_output.accounting`."""
        return accounting(self.host, self.hpc, job_id, life)

    def logs(self, token: str, offset: int = 0, name: str = "") -> tuple[bytes, int]:
        """Read what a job has written since `offset`; see `job_output.log`."""
        self.folder(token)
        return log(self.host, self.hpc, token, offset, name)

    @property
    def _tries(self) -> str:
        return f"{self.hpc.project_dir}/kit/tries"

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.hpc.timezone)

    def _ask(self, body: bytes, tokens: Sequence[str]) -> fence.Answer:
        """Run one script on the site (each may be sent twice) and read its answer."""
        done = self.host.run(["bash", "-s"], body, timeout=90, repeat=True)
        return fence.read_answer(done.out, done.err, tokens)

    def _close(self, token: str, mode: str) -> fence.Answer:
        self.folder(token)
        return self._ask(fence.wrap(fence.CLOSE, self._tries, token, mode), [token])

    def _settle(self, status: JobStatus) -> JobStatus:
        """Close a try that has ended; a commit that was made before that is its result."""
        found = self._close(status.token, "settle").tries[status.token]
        self.step("wait 2 closed")
        committed = fate.from_links(found) if found.manifest else None
        return committed or dataclasses.replace(status, worked=found.worked)

    def _ends(self, job_ids: dict[str, str]) -> dict[str, JobStatus]:
        """Ask sacct about tries that squeue has no live job of; by name where no id is known."""
        ids = ",".join(sorted({job for job in job_ids.values() if job}))
        names = ",".join(f"kit-{token}" for token, job in job_ids.items() if not job)
        columns = ",".join(ACCOUNT_COLUMNS)
        body = fence.wrap(fence.ACCOUNT, self._tries, columns, ids, names, *job_ids)
        answer = self._ask(body, list(job_ids))
        rows: list[AccountRow] | str = []
        for code, text in answer.listing("account"):
            if code or isinstance(rows, str):
                rows = answer.err or text
            elif text.strip():
                rows += read_account(text, self._zone)
        return {
            token: fate.from_links(found)
            or fate.from_account(found, job_ids[token], rows, answer.now)
            for token, found in answer.tries.items()
        }

    def _look(self, last: JobStatus) -> JobStatus:
        """Ask how a try stands and close it at its end; without an answer nothing changes."""
        try:
            status = self.status([last.token])[last.token]
            self.step("wait 1 asked")
            if status.missing_s > self.lost_after_s:
                status = self.give_up(last.token)
            elif status.done and not status.manifest:
                status = self._settle(status)
        except HostKeyRefused:
            raise
        except (Busy, Unreachable, CredentialRefused, CommandFailed, DataError) as err:
            reason = " · ".join(part for part in (err.tried, err.got, err.next_step) if part)
            if isinstance(err, CredentialRefused) and reason not in last.why:
                self.say(str(err))
        else:
            if status.seen or not last.seen:
                return dataclasses.replace(status, last_seen=self.clock() if status.seen else None)
            reason = status.why
        ago = "never" if last.last_seen is None else f"{self.clock() - last.last_seen:.0f} s ago"
        return dataclasses.replace(last, why=f"{reason} (last seen {ago})", done=False)

    def _warn(self, spec: JobSpec) -> None:
        """Say so when the certificate ends before the job can have ended."""
        end = self.host.valid_until()
        if end is not None and self.clock() + (seconds(spec.time) or 0) > end:
            until = time.strftime("%H:%M", time.localtime(end))
            self.say(
                f"the certificate ends at {until}, before the job's time limit is over: the job "
                f"goes on, the kit waits for a new one. {self.hpc.renew_hint}".rstrip()
            )
