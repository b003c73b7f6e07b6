"""Submitting and following on a model of Slurm: single faults, then thousands of orders of them."""

import dataclasses
import hashlib

import pytest
from fake_slurm import FakeHost, Killed, Site
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kit.base import (
    Busy,
    CommandFailed,
    CredentialExpired,
    DataError,
    HostKeyRefused,
    Unreachable,
    UsageError,
)
from kit.base.settings import Hpc
from kit.slurm import JobSpec, JobState, Slurm
from kit.slurm.fence import read_answer

SPEC = JobSpec("x", ("true",), partition="small")
HPC = Hpc(ssh_host="site", project_dir="/projappl/p", poll_floor_s=15.0, renew_hint="csc_cert.py")
NO_ACCOUNTING = "Slurm accounting storage is disabled"


def attempt_id(number):
    return hashlib.sha256(f"run {number}".encode()).hexdigest()[:12]


A = attempt_id(0)


def client(site, host=None, **options):
    return Slurm(host or FakeHost(site), options.pop("hpc", HPC), lambda: site.now, **options)


@pytest.fixture
def site():
    return Site()


@pytest.fixture
def slurm(site):
    return client(site)


@pytest.fixture
def running(site, slurm):
    """A job that is running."""
    slurm.submit(SPEC, A)
    site.start(site.jobs[0])
    return site.jobs[0]


# One fault at a time.


def test_job_is_submitted_started_committed_and_done(site, slurm):
    status = slurm.submit(SPEC, A)
    assert (status.state, status.job_id, status.done) == (JobState.PENDING, "1", False)
    site.start(site.jobs[0])
    assert slurm.status([A])[A].state is JobState.RUNNING
    site.end(site.jobs[0], "COMPLETED")
    status = slurm.settle(A)
    assert (status.state, status.done, status.succeeded) == (JobState.COMPLETED, True, True)


@pytest.mark.parametrize("mode", ["ok", "noise", "drop", "error", "twice", "late"])
@pytest.mark.parametrize("clients", [1, 2, 8])
def test_one_attempt_runs_once_whatever_sbatch_does(site, mode, clients):
    site.sbatch = mode
    for _ in range(clients):
        client(site).submit(SPEC, A)
    for waiting in list(site.late):
        site.land(waiting)
    for job in site.jobs:
        site.start(job)
    assert len(site.bodies) == 1
    assert client(site).status([A])[A].job_id == site.bodies[0][1].partition(".")[0]


def test_lost_reply_is_found_by_the_jobs_name(site, slurm):
    site.sbatch = "drop"
    assert slurm.submit(SPEC, A).job_id == "1"


def test_refusal_is_an_error_and_closes_the_attempt(site, slurm):
    site.sbatch = "refuse"
    for _ in range(2):
        with pytest.raises(CommandFailed, match="Invalid partition") as caught:
            slurm.submit(SPEC, A)
        assert "new attempt" in caught.value.next_step
    assert site.links[A, "owner"][0] == "fenced"
    assert site.jobs == []
    assert "Invalid partition" in slurm.status([A])[A].why


def test_limit_on_the_number_of_jobs_waits_and_submits_again(site, slurm):
    site.sbatch = "limit"
    for _ in range(2):
        with pytest.raises(Busy, match="AssocMaxSubmitJobLimit"):
            slurm.submit(SPEC, A)
    assert (A, "owner") not in site.links
    site.sbatch = "ok"
    assert slurm.submit(SPEC, A).state is JobState.PENDING
    assert len(site.jobs) == 1


def test_attempt_refused_by_a_limit_can_be_closed(site, slurm):
    site.sbatch = "limit"
    with pytest.raises(Busy):
        slurm.submit(SPEC, A)
    slurm.cancel(A)
    site.sbatch = "ok"
    with pytest.raises(CommandFailed):
        slurm.submit(SPEC, A)
    assert site.jobs == []


@pytest.mark.parametrize(("end", "state"), [("FAILED", "FAILED"), ("TIMEOUT", "TIMEOUT")])
def test_submitting_an_ended_attempt_reports_its_end(site, slurm, running, end, state):
    site.end(running, end, 1)
    slurm.settle(A)
    status = slurm.submit(SPEC, A)
    assert (status.state.name, status.done) == (state, True)


def test_lost_submission_is_closed_and_harmless_when_it_lands(site, slurm):
    site.sbatch = "late"
    assert slurm.submit(SPEC, A).state is JobState.UNKNOWN
    site.now += 100
    assert not slurm.settle(A).done
    site.now += 30
    status = slurm.settle(A)
    assert (status.done, status.started, status.succeeded) == (True, False, False)
    site.start(site.land(A))
    assert site.bodies == []
    assert site.jobs[0].starts[-1]["code"] == 99


@pytest.mark.parametrize("switch", ["controller", "database"])
def test_service_that_is_away_changes_no_state(site, slurm, running, switch):
    setattr(site, switch, False)
    site.end(running, "FAILED", 3)
    status = slurm.settle(A)
    assert (status.state, status.done, status.observed) == (JobState.UNKNOWN, False, False)
    assert "does not answer" in status.why
    assert (A, "commit") not in site.links
    setattr(site, switch, True)
    status = slurm.settle(A)
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)
    assert (status.done, status.started) == (True, True)
    assert site.links[A, "commit"][0] == "closed"


def test_lost_contact_is_an_error_and_changes_no_state(site, running):
    host = FakeHost(site)
    site.end(running, "FAILED", 3)
    host.failures = {0: "before", 1: "after", 3: "after"}  # 2: squeue, 3: sacct
    for _ in range(3):
        with pytest.raises(Unreachable, match="connection"):
            client(site, host).settle(A)
    assert client(site, host).settle(A).done


def test_site_without_accounting_delivers_a_committed_result(site, slurm, running):
    site.database, site.database_error = False, NO_ACCOUNTING
    site.end(running, "COMPLETED")
    assert slurm.settle(A).succeeded


def test_site_without_accounting_closes_a_job_that_left_the_queue(site, slurm, running):
    site.database, site.database_error = False, NO_ACCOUNTING
    assert not slurm.settle(A).done
    site.end(running, "FAILED", 3)
    running.purged = True
    status = slurm.settle(A)
    assert (status.done, status.started, status.succeeded) == (True, True, False)
    assert "no accounting" in status.why
    assert site.links[A, "commit"][0] == "closed"
    assert not site.commit(running)


def test_site_without_accounting_waits_for_a_job_that_is_not_listed_yet(site, slurm):
    site.database, site.database_error = False, NO_ACCOUNTING
    slurm.submit(SPEC, A)
    site.jobs[0].purged = True
    assert not slurm.settle(A).done


def test_end_without_a_time_is_not_final(site, slurm, running):
    site.lag = True
    site.end(running, "FAILED", 1)
    status = slurm.status([A])[A]
    assert (status.state, status.done) == (JobState.UNKNOWN, False)
    running.starts[-1]["lag"] = False
    assert slurm.status([A])[A].state is JobState.FAILED


def test_job_purged_from_the_queue_is_found_in_the_accounting(site, slurm, running):
    site.end(running, "TIMEOUT")
    running.purged = True
    assert slurm.settle(A).state is JobState.TIMEOUT


def test_empty_queue_and_empty_accounting_end_nothing(site, slurm):
    slurm.submit(SPEC, A)
    site.jobs[0].purged = True
    job = site.jobs.pop()
    assert slurm.status([A])[A].state is JobState.PENDING
    site.now += 1000
    status = slurm.status([A])[A]
    assert (status.state, status.done, status.missing_s) == (JobState.UNKNOWN, False, 0)
    assert "close the attempt" in status.why
    site.jobs.append(job)


def test_job_id_used_before_by_another_job_is_not_trusted(site, slurm, running):
    old = site.land(attempt_id(7), stored=False)
    old.id = running.id
    site.end(old, "FAILED", 1)
    site.jobs.insert(0, site.jobs.pop())
    running.purged = old.purged = True
    assert not slurm.settle(A).done, "the end of another job was taken for the end of this one"
    site.end(running, "TIMEOUT")
    assert slurm.settle(A).state is JobState.TIMEOUT


def test_unknown_state_is_unknown_for_that_job_alone(site, slurm):
    other = attempt_id(1)
    slurm.submit(SPEC, A)
    slurm.submit(SPEC, other)
    site.start(site.jobs[0])
    site.jobs[1].starts[-1]["state"] = "FROZEN_SOLID"
    statuses = slurm.status([A, other])
    assert statuses[A].state is JobState.RUNNING
    assert (statuses[other].state, statuses[other].done) == (JobState.UNKNOWN, False)
    assert "FROZEN_SOLID" in statuses[other].why


def test_lost_node_ends_the_attempt_even_when_the_job_is_requeued(site, slurm, running):
    site.lose_node(running, requeue=True)
    status = slurm.settle(A)
    assert (status.state, status.done, status.restart_count) == (JobState.NODE_FAIL, True, 0)
    assert "put back" in status.why
    assert not site.commit(running), "an orphan published after the attempt was closed"
    site.start(running)
    assert (len(site.bodies), running.starts[-1]["code"]) == (1, 99)
    assert slurm.status([A])[A].state is JobState.NODE_FAIL


def test_pending_reason_with_blanks_becomes_a_sentence(site, slurm):
    slurm.submit(SPEC, A)
    site.jobs[0].reason = "ReqNodeNotAvail, UnavailableNodes:c[1-2]"
    assert slurm.status([A])[A].why.endswith("nodes that it needs are not available")


@pytest.mark.parametrize(
    ("code", "signal", "word"),
    [
        (96, 0, "module"),
        (99, 0, "another start"),
        (93, 0, "ran out of chalk"),
        (0, 53, "could not open the job's log"),
        (0, 9, "memory"),
        (3, 0, "another exit code"),
    ],
)
def test_exit_codes_are_explained(site, running, code, signal, word):
    site.end(running, "FAILED", code)
    running.starts[-1]["signal"] = signal
    status = client(site, exit_meanings={93: "it ran out of chalk"}).settle(A)
    assert word in status.why


def test_giving_up_before_a_start_wins_and_after_it_waits_for_the_end(site, slurm):
    slurm.submit(SPEC, A)
    assert slurm.give_up(A).started is False
    second = attempt_id(1)
    slurm.submit(SPEC, second)
    site.start(site.jobs[1])
    with pytest.raises(Busy, match="RUNNING"):
        slurm.give_up(second)
    site.controller = False
    with pytest.raises(Unreachable, match="not known whether"):
        slurm.give_up(second)
    site.controller = True
    site.end(site.jobs[1], "FAILED", 1)
    assert slurm.give_up(second).done
    assert site.links[second, "commit"][0] == "closed"


def test_giving_up_before_any_submission_bars_a_later_one(site, slurm):
    assert slurm.give_up(A).done
    assert client(site).submit(SPEC, A).done
    assert site.jobs == []


@pytest.mark.parametrize("started", [False, True])
def test_cancelled_attempt_cannot_publish_and_its_jobs_end(site, slurm, started):
    slurm.submit(SPEC, A)
    if started:
        site.start(site.jobs[0])
    slurm.cancel(A)
    assert site.jobs[0].state == "CANCELLED by 1001"
    assert slurm.settle(A).state is JobState.CANCELLED
    assert not site.commit(site.jobs[0])


def test_cancel_that_the_scheduler_did_not_accept_still_bars_the_result(site, slurm, running):
    site.controller = False
    with pytest.raises(CommandFailed, match="exit code 8"):
        slurm.cancel(A)
    assert not site.commit(running)


def test_cancel_after_the_commit_changes_nothing(site, slurm, running):
    site.end(running, "COMPLETED")
    status = slurm.cancel(A)
    assert status.succeeded
    assert status.why == "it had finished before the cancel"


def test_settling_leaves_a_running_job_alone(site, slurm, running):
    host = FakeHost(site)
    status = client(site, host).settle(A)
    assert (status.state, status.done) == (JobState.RUNNING, False)
    assert len(host.calls) == 1
    assert (A, "commit") not in site.links


class Refusing(FakeHost):
    """A login whose certificate ends at `until`."""

    until, error = 0, None

    def valid_until(self):
        return self.until

    def run(self, *args, **kwargs):
        if self.error:
            raise self.error
        if self.until < self.site.now:
            raise CredentialExpired("the certificate ended", "Permission denied", HPC.renew_hint)
        return super().run(*args, **kwargs)


def test_certificate_that_ends_before_the_job_is_announced(site):
    host, messages = Refusing(site), []
    host.until = site.now + 20
    slurm = client(site, host, say=messages.append)
    slurm.submit(SPEC, A)
    assert len(messages) == 1
    assert "before the job's time limit" in messages[0]
    assert "csc_cert.py" in messages[0]
    host.until = site.now + 86400
    slurm.submit(SPEC, A)
    assert len(messages) == 1


@pytest.mark.parametrize("error", [CredentialExpired, HostKeyRefused])
def test_refused_login_changes_no_state(site, running, error):
    host = Refusing(site)
    host.error = error("reach fake", "refused", "renew")
    with pytest.raises(error):
        client(site, host).settle(A)
    host.error, host.until = None, site.now + 1000
    assert client(site, host).settle(A).state is JobState.RUNNING


@pytest.mark.parametrize("bad", ["", "x", "0123456789AB", "../../etc/12", "0123456789abc"])
def test_text_that_is_not_an_attempt_id_never_reaches_the_site(slurm, bad):
    calls = (
        lambda: slurm.submit(SPEC, bad),
        lambda: slurm.status([bad]),
        lambda: slurm.settle(bad),
        lambda: slurm.give_up(bad),
        lambda: slurm.logs(bad),
        lambda: slurm.log_end(bad),
        lambda: slurm.list_accounting([bad]),
    )
    for call in calls:
        with pytest.raises(UsageError):
            call()
    assert slurm.host.calls == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@attempts\n",
        "@attempts\n@now\n",
        "@now x\n",
        "@queue\n@now 5\n",
        "Welcome\n",
        "@attempts\n@now 5\n@queue\n1|RUNNING",
    ],
)
def test_incomplete_answer_is_an_error(text):
    with pytest.raises(DataError):
        read_answer(text, "", [A])


def test_symlinks_with_unexpected_values_are_no_evidence():
    links = f"{A}|owner|1.0|root\n{A}|commit|1.0|manifest-abc\n{A}|other|1.0|x\n"
    text = f"@attempts\n{links}@now 5\n"
    attempt = read_answer(text, "", [A]).attempts[A]
    assert not attempt.started
    assert not attempt.abandoned
    assert (attempt.manifest, attempt.job_id) == ("", "")


def test_job_that_owns_the_attempt_is_its_job_whatever_sbatch_answered(site, slurm):
    slurm.submit(SPEC, A)  # sbatch names job 1
    site.start(site.land(A, stored=False))  # job 2 of the same attempt starts first
    assert slurm.status([A])[A].job_id == "2"


def test_surplus_job_that_was_cancelled_is_not_the_end_of_the_attempt(site, slurm):
    site.sbatch = "twice"
    slurm.submit(SPEC, A)
    site.end(site.jobs[0], "CANCELLED by 0")
    status = slurm.status([A])[A]
    assert (status.state, status.job_id, status.done) == (JobState.PENDING, "2", False)


def test_commit_made_just_before_the_close_is_the_result(site, running):
    class Orphaned(FakeHost):
        def run(self, argv, input=b"", **options):
            if b"mode=$3" in input:  # the client is about to close the attempt
                site.commit(site.orphans.pop())
            return super().run(argv, input, **options)

    site.lose_node(running, requeue=False)
    assert client(site, Orphaned(site)).settle(A).succeeded
    assert len(site.commits) == 1


# Thousands of orders of everything.


CUTS = ["before", "after", "kill before", "kill after"]
FAULTS = {
    "who": st.integers(0, 1),
    "failures": st.dictionaries(st.integers(0, 3), st.sampled_from(CUTS), max_size=2),
}
SBATCH = ["ok", "late", "drop", "noise", "error", "twice", "refuse", "limit", "hung"]


class Orders(RuleBasedStateMachine):
    """Two clients and a site on which anything may happen at any moment.

    `n` is the open attempt. A client opens the next only when the kit reported that the present
    one is done without a result: that is the promise under test.
    """

    def __init__(self):
        super().__init__()
        self.site, self.n = Site(), 0
        self.hosts = [FakeHost(self.site), FakeHost(self.site)]
        self.frozen = {}  # closed attempts: their bodies and commits at that moment
        self.cancelled = False

    # What clients do, with the connection cut or the process killed on the way.

    def attempt(self, who, failures, call):
        host = self.hosts[who]
        host.failures = dict(failures)
        try:
            return call(client(self.site, host))
        except (Killed, Unreachable, Busy, CommandFailed) as err:
            if isinstance(err, CommandFailed) and "Invalid partition" in err.got:
                self.close()
            return None
        finally:
            host.failures = {}

    def close(self):
        """The kit reported: done without a result. The next attempt opens, this one stays still."""
        current = attempt_id(self.n)
        self.frozen[current] = self.work(current)
        self.n += 1

    def work(self, of):
        site = self.site
        bodies = [me for t, me in site.bodies if t == of]
        return bodies, [me for t, me in site.commits if t == of]

    @rule(**FAULTS)
    def submit(self, who, failures):
        self.attempt(who, failures, lambda slurm: slurm.submit(SPEC, attempt_id(self.n)))

    @rule(**FAULTS)
    def settle(self, who, failures):
        current = attempt_id(self.n)
        self.judge(current, self.attempt(who, failures, lambda slurm: slurm.settle(current)))

    @rule(**FAULTS)
    def give_up(self, who, failures):
        current = attempt_id(self.n)
        self.judge(current, self.attempt(who, failures, lambda slurm: slurm.give_up(current)))

    @rule(**FAULTS)
    def look(self, who, failures):
        current = attempt_id(self.n)
        statuses = self.attempt(who, failures, lambda slurm: slurm.status([current]))
        status = statuses and statuses[current]
        if status and status.done and status.started and not status.manifest:
            job = next(job for job in self.site.jobs if job.id == status.job_id)
            end = job.starts[status.restart_count]["end"]
            assert end, "an end was reported that had not come"

    def judge(self, current, status):
        if status is None or not status.done:
            return
        if status.manifest:
            assert self.work(current)[1], "a result was reported that nobody committed"
        else:
            assert not self.work(current)[1], "a committed result was overlooked"
            self.close()

    # What happens by itself.

    def some(self, data, *states):
        jobs = [job for job in self.site.jobs if job.state in states]
        return data.draw(st.sampled_from(jobs)) if jobs else None

    @rule(mode=st.sampled_from(SBATCH))
    def sbatch_behaves(self, mode):
        self.site.sbatch = mode

    @precondition(lambda self: self.site.late)
    @rule(stored=st.booleans())
    def sbatch_lands_late(self, stored):
        self.site.land(self.site.late.pop(), stored)

    @rule(data=st.data())
    def a_job_starts(self, data):
        if job := self.some(data, "PENDING"):
            self.site.start(job)

    @rule(data=st.data(), state=st.sampled_from(["COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED"]))
    def a_job_ends(self, data, state):
        if job := self.some(data, "RUNNING"):
            self.site.end(job, state)

    @rule(data=st.data(), requeue=st.booleans())
    def a_node_is_lost(self, data, requeue):
        if job := self.some(data, "RUNNING"):
            self.site.lose_node(job, requeue)

    @rule(data=st.data())
    def somebody_requeues(self, data):
        if job := self.some(data, "RUNNING", "FAILED", "COMPLETED", "TIMEOUT"):
            if job.state == "RUNNING":
                self.site.end(job, "REQUEUED")
            job.starts.append({"state": "PENDING", "start": "", "end": ""})
            job.purged = False

    @rule(data=st.data())
    def somebody_cancels(self, data):
        if job := self.some(data, "PENDING", "RUNNING"):
            self.site.end(job, "CANCELLED by 0")

    @precondition(lambda self: self.site.orphans)
    @rule()
    def an_orphan_commits(self):
        self.site.commit(self.site.orphans.pop())

    @rule(data=st.data())
    def the_queue_forgets(self, data):
        states = "COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "CANCELLED by 0"
        if job := self.some(data, *states):
            job.purged = True

    @rule(controller=st.booleans(), database=st.booleans(), lag=st.booleans())
    def services_come_and_go(self, controller, database, lag):
        self.site.controller, self.site.database, self.site.lag = controller, database, lag

    @rule(seconds=st.sampled_from([1, 10, 60, 200]))
    def time_passes(self, seconds):
        self.site.now += seconds

    # What must hold always, and in the end.

    @invariant()
    def one_body_and_one_commit_per_attempt(self):
        started = [t for t, _ in self.site.bodies]
        assert len(started) == len(set(started)), "an attempt was executed twice"
        assert len(self.site.commits) <= 1, "two results were published"

    @invariant()
    def a_closed_attempt_stays_still(self):
        for closed, work in self.frozen.items():
            assert self.work(closed) == work, "an attempt ran or published after it was closed"

    def all_goes_well(self):
        while self.site.late:
            self.site.land(self.site.late.pop())
        for job in self.site.jobs:
            if job.state == "PENDING":
                self.site.start(job)
            elif job.state == "RUNNING":
                self.site.end(job, "COMPLETED")

    def teardown(self):
        """Repair everything: the run must come to exactly one result."""
        site = self.site
        site.controller = site.database = True
        site.lag, site.sbatch = False, "ok"
        for job in site.jobs:
            for start in job.starts:
                start["lag"] = False

        for _ in range(3):
            slurm, current = client(site), attempt_id(self.n)
            try:
                slurm.submit(SPEC, current)
            except CommandFailed:
                self.close()
                continue
            for _ in range(20):
                if (status := slurm.settle(current)).done:
                    break
                site.now += 60
                self.all_goes_well()
            assert status.done, status
            if status.manifest:
                break
            self.judge(current, status)
        assert len(site.commits) == 1
        self.one_body_and_one_commit_per_attempt()
        self.a_closed_attempt_stays_still()


class ManyOrders(Orders):
    """The same, many more times."""


STEPS = {"stateful_step_count": 50, "deadline": None, "suppress_health_check": list(HealthCheck)}
Orders.TestCase.settings = settings(max_examples=100, **STEPS)
ManyOrders.TestCase.settings = settings(max_examples=1500, **STEPS)
TestOrders = Orders.TestCase
TestManyOrders = pytest.mark.slow(ManyOrders.TestCase)


def test_status_is_data(slurm):
    status = slurm.submit(SPEC, A)
    assert dataclasses.asdict(status)["attempt_id"] == A
