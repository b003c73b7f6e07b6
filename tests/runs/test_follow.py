"""Following a run waits through what may pass by itself and never cancels anything."""

import pytest
from memory_store import MemoryStore

from kit.base import CredentialRefused, StoreUnavailable, Unreachable
from kit.runs.follow import TrainingFailed, follow, poll, sentence
from kit.runs.requests import RunRequest, RunRequests, RunState, RunStatus

RUN = "cloud-hpc-0123456789ab-1"


@pytest.fixture
def jobs():
    made = RunRequests(MemoryStore())
    made.ask(RunRequest(run=RUN, data_hash="d" * 64))
    return made


class Clock:
    """Time that passes by sleeping; `then` runs after each sleep."""

    def __init__(self, then=lambda: None):
        self.now, self.then = 0.0, then

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.then()


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("list the bucket", "HTTP 503"),
        Unreachable("Keystone at http://k gives no usable answer", "HTTP 503"),
    ],
)
def test_a_store_or_a_keystone_that_is_away_is_asked_again(jobs, error):
    said, clock = [], Clock()

    def restore():
        if clock.now > 5:
            jobs.store.away = None
            jobs.write(RUN, "result", {"try": 1})

    jobs.store.away, clock.then = error, restore
    assert follow(jobs, RUN, 60, said.append, clock, clock.sleep)["try"] == 1
    assert len(said) == 1
    assert error.tried in said[0]
    assert "503" in said[0]


def test_a_refused_login_is_not_waited_for(jobs):
    jobs.store.away, clock = CredentialRefused("Keystone refuses the login"), Clock()
    with pytest.raises(CredentialRefused):
        follow(jobs, RUN, 60, lambda _: None, clock, clock.sleep)


def test_the_end_of_patience_cancels_nothing_and_says_how_to_go_on(jobs):
    clock = Clock()
    with pytest.raises(Unreachable, match="still running after 60 s") as error:
        follow(jobs, RUN, 60, lambda _: None, clock, clock.sleep)
    assert "run again" in error.value.next_step
    assert jobs.status(RUN).state is RunState.REQUESTED


def test_a_damaged_progress_object_does_not_end_the_run_that_is_followed(jobs):
    said, clock = [], Clock()
    jobs.store.put(f"runs/{RUN}/progress.json", b"damaged")

    def end():
        if clock.now > 3:
            jobs.write(RUN, "result", {"try": 1})

    clock.then = end
    assert follow(jobs, RUN, 60, said.append, clock, clock.sleep)["try"] == 1
    assert said == [RunState.REQUESTED.when]


def test_polling_reports_each_sentence_once_and_returns_the_result():
    answers = iter(
        [(None, "queued"), (None, "queued"), (None, ""), (None, "running"), (7, "ended")]
    )
    said, slept = [], []
    assert poll(lambda: next(answers), said.append, slept.append, 2.0) == 7
    assert said == ["queued", "running", "ended"]
    assert slept == [2.0] * 4


def test_refused_request_ends_the_following_with_the_reason_and_the_next_step(jobs):
    step = "use fewer workers"
    refused = {"why": "train\n  got:  2 CPUs", "got": "train: 2 CPUs", "next": step}
    jobs.write(RUN, "refused", refused)
    with pytest.raises(TrainingFailed) as caught:
        follow(jobs, RUN, 1, lambda _: None)
    assert caught.value.got == "train: 2 CPUs"
    assert caught.value.next_step == f"{step}; then the same command asks again"
    jobs.write(RUN, "refused", {"why": "train\n  got:  2 CPUs"})  # of an earlier version
    with pytest.raises(TrainingFailed) as caught:
        follow(jobs, RUN, 1, lambda _: None)
    assert caught.value.got == "train got: 2 CPUs"
    assert caught.value.next_step == "the same command asks again"


def test_listing_that_is_late_with_a_removed_refusal_is_read_again(jobs, monkeypatch):
    late, clock = RunStatus(RUN, RunState.REFUSED), Clock()
    states = iter([late, late, RunStatus(RUN, RunState.REQUESTED)])
    status = jobs.status
    monkeypatch.setattr(RunRequests, "status", lambda _, run: next(states, None) or status(run))
    clock.then = lambda: jobs.write(RUN, "result", {"try": 1}) if clock.now > 2 else None
    assert follow(jobs, RUN, 60, lambda _: None, clock, clock.sleep)["try"] == 1


@pytest.mark.parametrize(
    ("state", "cause"),
    [("FAILED", "asked to end"), ("TIMEOUT", "asked to end"), ("NODE_FAIL", "a node failed")],
)
def test_cause_that_only_slurm_knows_comes_before_what_the_job_guessed(jobs, state, cause):
    """A job on a node that fails sees a signal, and writes that its time limit was near."""
    failure = {"cause": "asked to end: its time limit is near", "next": "give it more time"}
    ended = {"why": "a node failed", "job": {"state": state}, "failure": failure}
    jobs.write(RUN, "try-1/ended", ended)
    with pytest.raises(TrainingFailed) as caught:
        follow(jobs, RUN, 1, lambda _: None)
    assert cause in caught.value.got
    assert ("time" in caught.value.next_step) is (cause != "a node failed")


@pytest.mark.parametrize(
    "reported",
    [
        {"training": {"x": 1}},
        {"training": {"step": 1, "steps": 5, "loss": "x"}},
        {"training": {"step": 1, "steps": 5, "loss": None}},
        {"training": [1]},
        {"tunnel": {"port": 1}},
        {"tunnel": [1]},
    ],
)
def test_progress_of_another_shape_does_not_end_the_following(jobs, reported):
    progress = {"state": "RUNNING", "nodes": ["n1"], **reported}
    assert sentence(progress) == "on n1"
    jobs.write(RUN, "progress", progress)
    said, clock = [], Clock(lambda: jobs.write(RUN, "result", {"try": 1}))
    assert follow(jobs, RUN, 60, said.append, clock, clock.sleep)["try"] == 1
    assert said == ["on n1"]
