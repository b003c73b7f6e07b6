"""Submitting and following on a model of Slurm: single faults, then thousands of orders of them."""

import dataclasses
import hashlib

import pytest
from fake_slurm import FakeHost, Site
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
from kit.slurm.client import SUBMIT_STEPS, WAIT_STEPS, Slurm
from kit.slurm.fence import read_answer
from kit.slurm.script import JobSpec
from kit.slurm.values import JobState

SPEC = JobSpec("x", ("true",), partition="small")
HPC = Hpc(ssh_host="site", project_dir="/projappl/p", poll_floor_s=15.0, renew_hint="csc_cert.py")


class Killed(BaseException):
    """The client's process ends here, as by kill -9: nothing catches it."""


def token(number):
    return hashlib.sha256(f"run {number}".encode()).hexdigest()[:12]


T = token(0)


def client(site, host=None, at_sleep=lambda: None, **options):
    """Make a client whose sleep moves the site's time on; a wait without an end is an error."""
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        assert len(slept) < 500, "the client waits for ever"
        site.now += round(seconds)
        at_sleep()

    host = host or FakeHost(site)
    hpc = options.pop("hpc", HPC)
    return Slurm(host, hpc, lambda: site.now, sleep, lambda: 0.5, **options)


@pytest.fixture
def site():
    return Site()


# One fault at a time.


def test_a_job_is_submitted_started_committed_and_done(site):
    slurm = client(site)
    status = slurm.submit(SPEC, T)
    assert (status.state, status.job_id, status.done) == (JobState.PENDING, "1", False)
    site.start(site.jobs[0])
    assert slurm.status([T])[T].state is JobState.RUNNING
    site.end(site.jobs[0], "COMPLETED")
    status = slurm.wait(T)
    assert (status.state, status.done, status.succeeded) == (JobState.COMPLETED, True, True)


@pytest.mark.parametrize("mode", ["ok", "noise", "drop", "error", "twice", "late"])
@pytest.mark.parametrize("clients", [1, 2, 8])
def test_one_token_works_once_whatever_sbatch_does(site, mode, clients):
    site.sbatch = mode
    for _ in range(clients):
        client(site).submit(SPEC, T)
    for waiting in list(site.late):
        site.land(waiting)
    for job in site.jobs:
        site.start(job)
    assert len(site.bodies) == 1
    assert client(site).status([T])[T].job_id == site.bodies[0][1].partition(".")[0]


def test_a_lost_reply_is_found_by_the_jobs_name(site):
    site.sbatch = "drop"
    assert client(site).submit(SPEC, T).job_id == "1"


def test_a_refusal_is_an_error_closes_the_try_and_is_told_again(site):
    site.sbatch = "refuse"
    for _ in range(2):
        with pytest.raises(CommandFailed, match="Invalid partition") as caught:
            client(site).submit(SPEC, T)
        assert "new try" in caught.value.next_step
    assert site.links[T, "owner"][0] == "fenced"
    assert site.jobs == []


def test_a_submission_that_shows_up_nowhere_is_given_up_and_harmless_when_it_lands(site):
    site.sbatch = "late"
    slurm = client(site)
    assert slurm.submit(SPEC, T).state is JobState.UNKNOWN
    status = slurm.wait(T)
    assert (status.done, status.worked, status.succeeded) == (True, False, False)
    assert site.links[T, "submit"][1] + 120 < site.now
    site.start(site.land(T))
    assert site.bodies == []
    assert site.jobs[0].lives[-1]["code"] == 99


@pytest.mark.parametrize("switch", ["controller", "database"])
def test_a_service_that_is_away_changes_no_state(site, switch):
    slurm = client(site)
    slurm.submit(SPEC, T)
    job = site.jobs[0]
    site.start(job)
    seen = []

    def later():
        # away for 100 s; the job fails meanwhile
        if len(seen) == 1:
            setattr(site, switch, False)
            site.end(job, "FAILED", 3)
        if len(seen) == 4:
            setattr(site, switch, True)

    slurm = client(site, at_sleep=later)
    status = slurm.wait(T, seen.append)
    assert [s.state.name for s in seen] == ["RUNNING", "RUNNING", "RUNNING", "RUNNING", "FAILED"]
    assert "does not answer" in seen[2].why
    assert "last seen" in seen[2].why
    assert (status.exit_code, status.done, status.worked) == (3, True, True)
    assert site.links[T, "commit"][0] == "closed"


def test_contact_lost_for_a_while_changes_no_state_and_says_since_when(site):
    host = FakeHost(site)
    seen = []

    def later():
        host.break_next = "before" if len(seen) < 4 else ""
        if len(seen) == 3:
            site.end(site.jobs[0], "COMPLETED")

    slurm = client(site, host, at_sleep=later)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    assert slurm.wait(T, seen.append).succeeded
    assert [s.state.name for s in seen] == ["RUNNING"] * 4 + ["COMPLETED"]
    assert seen[1].why.endswith("(last seen 16 s ago)")
    assert "connection refused" in seen[2].why


def test_an_end_without_a_time_is_not_final(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    site.lag = True
    site.end(site.jobs[0], "FAILED", 1)
    status = slurm.status([T])[T]
    assert (status.state, status.done) == (JobState.UNKNOWN, False)
    site.jobs[0].lives[-1]["lag"] = False
    assert slurm.status([T])[T].state is JobState.FAILED


def test_a_job_purged_from_the_queue_is_found_in_the_accounting(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    site.end(site.jobs[0], "TIMEOUT")
    site.jobs[0].purged = True
    assert slurm.wait(T).state is JobState.TIMEOUT


def test_an_empty_queue_and_an_empty_accounting_end_nothing(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.jobs[0].purged = True
    job = site.jobs.pop()
    assert slurm.status([T])[T].state is JobState.PENDING
    site.now += 1000
    status = slurm.status([T])[T]
    assert (status.state, status.done, status.missing_s) == (JobState.UNKNOWN, False, 0)
    assert "give the try up" in status.why
    site.jobs.append(job)


def test_a_state_that_is_not_known_is_unknown_for_that_job_alone(site):
    slurm, other = client(site), token(1)
    slurm.submit(SPEC, T)
    slurm.submit(SPEC, other)
    site.start(site.jobs[0])
    site.jobs[1].lives[-1]["state"] = "FROZEN_SOLID"
    statuses = slurm.status([T, other])
    assert statuses[T].state is JobState.RUNNING
    assert (statuses[other].state, statuses[other].done) == (JobState.UNKNOWN, False)
    assert "FROZEN_SOLID" in statuses[other].why


def test_a_lost_node_ends_the_try_even_when_the_job_is_put_back(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    job = site.jobs[0]
    site.start(job)
    site.lose_node(job, requeue=True)
    status = slurm.wait(T)
    assert (status.state, status.done, status.life) == (JobState.NODE_FAIL, True, 0)
    assert "put back" in status.why
    assert not site.commit(job), "an orphan published after the try was closed"
    site.start(job)
    assert (len(site.bodies), job.lives[-1]["code"]) == (1, 99)
    assert slurm.status([T])[T].state is JobState.NODE_FAIL


def test_a_pending_reason_with_blanks_becomes_a_sentence(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.jobs[0].reason = "ReqNodeNotAvail, UnavailableNodes:c[1-2]"
    assert slurm.status([T])[T].why.endswith("nodes that it needs are not available")


def test_giving_up_before_a_start_wins_and_after_it_waits_for_the_end(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    assert slurm.give_up(T).worked is False
    second = token(1)
    slurm.submit(SPEC, second)
    site.start(site.jobs[1])
    with pytest.raises(Busy, match="RUNNING"):
        slurm.give_up(second)
    site.controller = False
    with pytest.raises(Unreachable, match="fate is not known"):
        slurm.give_up(second)
    site.controller = True
    site.end(site.jobs[1], "FAILED", 1)
    assert slurm.give_up(second).done
    assert site.links[second, "commit"][0] == "closed"


def test_giving_up_what_was_never_submitted_bars_a_later_submission(site):
    assert client(site).give_up(T).done
    assert client(site).submit(SPEC, T).done
    assert site.jobs == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_try_cannot_publish_and_its_jobs_end(site, begun):
    slurm = client(site)
    slurm.submit(SPEC, T)
    if begun:
        site.start(site.jobs[0])
    slurm.cancel(T)
    assert site.jobs[0].state == "CANCELLED by 1001"
    assert slurm.wait(T).state is JobState.CANCELLED
    assert not site.commit(site.jobs[0])


def test_a_cancel_that_the_scheduler_did_not_take_is_an_error_but_bars_the_result(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    site.controller = False
    with pytest.raises(CommandFailed, match="exit code 8"):
        slurm.cancel(T)
    assert not site.commit(site.jobs[0])


def test_a_cancel_after_the_commit_changes_nothing(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    site.end(site.jobs[0], "COMPLETED")
    status = slurm.cancel(T)
    assert status.succeeded
    assert status.why == "it had finished before the cancel"


def test_waiting_stops_at_its_time_limit_and_leaves_the_job_alone(site):
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    status = slurm.wait(T, timeout_s=60)
    assert (status.state, status.done) == (JobState.RUNNING, False)


def test_a_job_of_60_seconds_costs_at_most_six_commands(site):
    host = FakeHost(site)

    def later():
        if site.now >= begun + 60 and site.jobs[0].state == "RUNNING":
            site.end(site.jobs[0], "FAILED", 1)

    slurm = client(site, host, at_sleep=later)
    slurm.submit(SPEC, T)
    begun = site.now
    site.start(site.jobs[0])
    host.calls.clear()
    slurm.wait(T)
    assert len(host.calls) <= 6
    assert site.now - begun < 60 + 4 * 15 * 1.1


class Refusing(FakeHost):
    """A login whose certificate ends at `until`; a new one comes at `renewed`."""

    until, renewed, error = 0, 0, None

    def valid_until(self):
        return self.until if self.site.now < self.renewed else self.renewed + 86400

    def run(self, *args, **kwargs):
        if self.error:
            raise self.error
        if self.valid_until() < self.site.now:
            raise CredentialExpired("the certificate ended", "Permission denied", HPC.renew_hint)
        return super().run(*args, **kwargs)


def test_a_wait_that_outlives_the_certificate_pauses_says_how_to_renew_and_goes_on(site):
    host, said = Refusing(site), []
    host.until, host.renewed = site.now + 20, site.now + 300

    def later():
        if site.now > host.until + 100 and site.jobs[0].state == "RUNNING":
            site.end(site.jobs[0], "COMPLETED")

    slurm = client(site, host, at_sleep=later, say=said.append)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    assert slurm.wait(T).succeeded
    assert site.now >= host.renewed
    assert "before the job's time limit is over" in said[0]
    assert [text for text in said if "csc_cert.py" in text and "ended" in text] == said[1:]
    assert len(said) == 2  # once, not at every look


def test_a_machine_that_is_another_one_stops_the_wait(site):
    host = Refusing(site)
    host.until = site.now + 1000
    host.error = HostKeyRefused("reach fake", "Host key verification failed")
    with pytest.raises(HostKeyRefused):
        client(site, host).wait(T)


@pytest.mark.parametrize("bad", ["", "x", "0123456789AB", "../../etc/12", "0123456789abc"])
def test_what_is_no_token_never_reaches_the_site(site, bad):
    slurm = client(site)
    for call in (lambda: slurm.submit(SPEC, bad), lambda: slurm.status([bad]),
                 lambda: slurm.give_up(bad), lambda: slurm.logs(bad)):  # fmt: skip
        with pytest.raises(UsageError):
            call()
    assert slurm.host.calls == []


@pytest.mark.parametrize(
    "text",
    ["", "@tries\n", "@tries\n@now\n", "@now x\n", "@queue\n@now 5\n", "Welcome\n",
     "@tries\n@now 5\n@queue\n1|RUNNING"],
)  # fmt: skip
def test_an_answer_that_is_not_whole_is_an_error(text):
    with pytest.raises(DataError):
        read_answer(text, "", [T])


def test_links_with_values_that_nobody_makes_are_no_evidence():
    text = f"@tries\n{T}|owner|1.0|root\n{T}|commit|1.0|manifest-abc\n{T}|other|1.0|x\n@now 5\n"
    found = read_answer(text, "", [T]).tries[T]
    assert (found.worked, found.given_up, found.manifest, found.job_id) == (False, False, "", "")


def test_the_job_that_owns_the_try_is_its_job_whatever_sbatch_said(site):
    slurm = client(site)
    slurm.submit(SPEC, T)  # sbatch names job 1
    site.start(site.land(T, stored=False))  # job 2 of the same try starts first
    assert slurm.status([T])[T].job_id == "2"


def test_a_surplus_job_that_was_cancelled_is_not_the_end_of_the_try(site):
    site.sbatch = "twice"
    slurm = client(site)
    slurm.submit(SPEC, T)
    site.end(site.jobs[0], "CANCELLED by 0")
    status = slurm.status([T])[T]
    assert (status.state, status.job_id, status.done) == (JobState.PENDING, "2", False)


def test_a_commit_made_just_before_the_close_is_the_result(site):
    def orphan(name):
        if name == "wait 1 asked" and site.orphans:
            site.commit(site.orphans.pop())

    slurm = client(site, step=orphan)
    slurm.submit(SPEC, T)
    site.start(site.jobs[0])
    site.lose_node(site.jobs[0], requeue=False)
    assert slurm.wait(T).succeeded
    assert len(site.commits) == 1


# Thousands of orders of everything.


FAULTS = {"who": st.integers(0, 1), "cut": st.sampled_from(["", "", "before", "after"])}
SBATCH = ["ok", "late", "drop", "noise", "error", "twice", "refuse", "hung"]


class Orders(RuleBasedStateMachine):
    """Two clients and a site on which anything may happen at any moment.

    `n` is the try that is open. A client opens the next only when the kit said that the present
    one is done without a result: that is the promise on trial.
    """

    def __init__(self):
        super().__init__()
        self.site, self.n = Site(), 0
        self.hosts = [FakeHost(self.site), FakeHost(self.site)]
        self.frozen = {}  # tokens that are closed: their bodies and commits at that moment
        self.cancelled = False

    # What clients do, with the connection cut or the process killed on the way.

    def attempt(self, who, cut, kill, call):
        host = self.hosts[who]
        host.break_next = cut

        def step(name):
            if name == kill:
                raise Killed(name)

        slurm = client(self.site, host, step=step)
        try:
            return call(slurm)
        except (Killed, Unreachable, Busy, CommandFailed) as err:
            if isinstance(err, CommandFailed) and "Invalid partition" in err.got:
                self.close()
            return None
        finally:
            host.break_next = ""

    def close(self):
        """The kit said: done without a result. The next try opens, this one must stay still."""
        current = token(self.n)
        self.frozen[current] = self.work(current)
        self.n += 1

    def work(self, of):
        site = self.site
        bodies = [me for t, me in site.bodies if t == of]
        return bodies, [me for t, me in site.commits if t == of]

    @rule(kill=st.sampled_from(["", *SUBMIT_STEPS]), **FAULTS)
    def submit(self, who, cut, kill):
        self.attempt(who, cut, kill, lambda slurm: slurm.submit(SPEC, token(self.n)))

    @rule(kill=st.sampled_from(["", *WAIT_STEPS]), **FAULTS)
    def follow(self, who, cut, kill):
        current = token(self.n)
        status = self.attempt(who, cut, kill, lambda slurm: slurm.wait(current, timeout_s=0))
        self.judge(current, status)

    @rule(**FAULTS)
    def give_up(self, who, cut):
        current = token(self.n)
        self.judge(current, self.attempt(who, cut, "", lambda slurm: slurm.give_up(current)))

    @rule(**FAULTS)
    def look(self, who, cut):
        current = token(self.n)
        statuses = self.attempt(who, cut, "", lambda slurm: slurm.status([current]))
        status = statuses and statuses[current]
        if status and status.done and status.worked and not status.manifest:
            life = next(j for j in self.site.jobs if j.id == status.job_id).lives[status.life]
            assert life["end"], "an end was told that had not come"

    def judge(self, current, status):
        if status is None or not status.done:
            return
        if status.manifest:
            assert self.work(current)[1], "a result was told that nobody committed"
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
            job.lives.append({"state": "PENDING", "start": "", "end": ""})
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
    def one_body_and_one_commit_a_try(self):
        tokens = [t for t, _ in self.site.bodies]
        assert len(tokens) == len(set(tokens)), "a try was executed twice"
        assert len(self.site.commits) <= 1, "two results were published"

    @invariant()
    def a_closed_try_stays_still(self):
        for closed, work in self.frozen.items():
            assert self.work(closed) == work, "a try worked or published after it was closed"

    def all_goes_well(self):
        while self.site.late:
            self.site.land(self.site.late.pop())
        for job in self.site.jobs:
            if job.state == "PENDING":
                self.site.start(job)
            elif job.state == "RUNNING":
                self.site.end(job, "COMPLETED")

    def teardown(self):
        """Mend everything: the run must come to exactly one result."""
        site = self.site
        site.controller = site.database = True
        site.lag, site.sbatch = False, "ok"
        for job in site.jobs:
            for life in job.lives:
                life["lag"] = False

        for _ in range(3):
            slurm, current = client(site, at_sleep=self.all_goes_well), token(self.n)
            try:
                slurm.submit(SPEC, current)
            except CommandFailed:
                self.close()
                continue
            status = slurm.wait(current, timeout_s=10_000)
            assert status.done, status
            if status.manifest:
                break
            self.judge(current, status)
        assert len(site.commits) == 1
        self.one_body_and_one_commit_a_try()
        self.a_closed_try_stays_still()


class ManyOrders(Orders):
    """The same, many more times."""


STEPS = {"stateful_step_count": 50, "deadline": None, "suppress_health_check": list(HealthCheck)}
Orders.TestCase.settings = settings(max_examples=100, **STEPS)
ManyOrders.TestCase.settings = settings(max_examples=2500, **STEPS)
TestOrders = Orders.TestCase
TestManyOrders = pytest.mark.slow(ManyOrders.TestCase)


def test_the_status_is_data(site):
    status = client(site).submit(SPEC, T)
    assert dataclasses.asdict(status)["token"] == T
