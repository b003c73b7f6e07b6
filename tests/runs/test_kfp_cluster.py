"""The same pipeline object on a cluster: kfp's own client against a small fake of the API."""

import warnings
from pathlib import Path

import pytest
from fake_kfp import FakeKfp, run, serving, task

from kit.base import CredentialRefused, KitError, Unreachable, UsageError
from kit.runs.kfp_cluster import Access, access_of, run_on_cluster
from kit.runs.kfp_here import PipelineFailed, States
from kit.runs.outcome import CLOUD

T0, T1, T2 = "2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z", "2026-01-01T00:00:40Z"
TRAIN, TEST = CLOUD.components
ARGUMENTS = {"profile": "sandbox", "run_id": "cloud-0-1", "bucket": "b", "data_hash": "d"}
ARGUMENTS |= {"experiment": "fashion_mnist", "code": "c", "hyperparameters": {}, "gates": {}}


def follow(
    fake: FakeKfp, patience_s: float = 600.0, env_file: Path | None = None
) -> tuple[States, list[States]]:
    """Run against the fake without waiting; the clock gains 10 s at each poll."""
    seen: list[States] = []
    ticks = iter(range(0, 100_000, 10))
    with serving(fake) as url, warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        result = run_on_cluster(
            access_of(url, env_file),
            CLOUD.pipeline + "fmnist",
            CLOUD.components,
            ARGUMENTS,
            "cloud-0-1",
            seen.append,
            patience_s=patience_s,
            sleep=lambda _: None,
            clock=lambda: float(next(ticks)),
        )
    return result, seen


def test_a_run_is_submitted_followed_and_its_states_are_reported() -> None:
    fake = FakeKfp(
        [
            run("PENDING"),
            run("RUNNING", task(TRAIN, "RUNNING", T0), task("root", "RUNNING", T0)),
            run("RUNNING", task(TRAIN, "SUCCEEDED", T0, T1), task(TEST, "PENDING")),
            run("SUCCEEDED", task(TRAIN, "SUCCEEDED", T0, T1), task(TEST, "SUCCEEDED", T1, T2)),
        ]
    )
    states, seen = follow(fake)
    assert [[state.state for state in shown] for shown in seen] == [
        ["pending", "pending"],
        ["running", "pending"],
        ["done", "pending"],
        ["done", "done"],
    ]
    assert [state.seconds(0) for state in states] == [30.0, 10.0]
    (body,) = fake.submitted
    assert body["display_name"] == "cloud-0-1"
    assert body["runtime_config"]["parameters"] == ARGUMENTS
    spec = body["pipeline_spec"]
    assert spec["pipeline_spec"]["pipelineInfo"]["name"] == "cloud-fmnist-pipeline"
    assert fake.filters[0]["predicates"][0]["stringValue"] == "cloud-0-1"


def test_an_active_run_is_followed_and_not_submitted_again() -> None:
    fake = FakeKfp([run("SUCCEEDED", task(TRAIN, "SUCCEEDED", T0, T1))], going_on=True)
    follow(fake)
    assert fake.submitted == []


def test_an_ended_run_of_that_name_does_no_harm() -> None:
    fake = FakeKfp([run("SUCCEEDED")], going_on=True)
    fake.runs[0]["state"] = "FAILED"
    follow(fake)
    assert len(fake.submitted) == 1


def test_a_failed_component_is_named_with_what_kubeflow_says_of_it() -> None:
    answer = run(
        "FAILED", task(TRAIN, "SUCCEEDED", T0, T1), task(TEST, "FAILED", T1, T2, "pod was evicted")
    )
    with pytest.raises(PipelineFailed, match="evaluate failed") as caught:
        follow(FakeKfp([answer]))
    assert caught.value.component == TEST
    assert caught.value.got == "pod was evicted"
    assert "#/runs/details/r-1" in caught.value.next_step
    assert [state.state for state in caught.value.states] == ["done", "failed"]


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED", "FAILED"])
def test_a_run_that_ended_otherwise_is_a_failure_with_that_word(state: str) -> None:
    with pytest.raises(PipelineFailed, match=f"ended as {state}"):
        follow(FakeKfp([run(state)]))


def test_a_state_that_is_not_known_is_pending_and_not_the_end() -> None:
    fake = FakeKfp([run("WHAT_NOW", task(TRAIN, "HIBERNATED", T0)), run("SUCCEEDED")])
    _, seen = follow(fake)
    assert [state.state for state in seen[0]] == ["pending", "pending"]


def test_an_outage_changes_no_state_and_ends_nothing() -> None:
    fake = FakeKfp([run("RUNNING", task(TRAIN, "RUNNING", T0)), 502, 503, 500, run("SUCCEEDED")])
    _, seen = follow(fake)
    assert len(seen) == 2


def test_an_outage_beyond_patience_reports_that_the_run_is_still_running() -> None:
    with pytest.raises(Unreachable, match="still running there") as caught:
        follow(FakeKfp([run("RUNNING"), 503]), patience_s=60.0)
    assert "HTTP 503" in caught.value.got
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, CredentialRefused, "refused"),
        (403, CredentialRefused, "refused"),
        (404, KitError, "404"),
    ],
)
def test_a_refusal_is_not_taken_for_an_outage(
    status: int, kind: type[KitError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        follow(FakeKfp([status]))


def test_a_cluster_that_is_not_there_is_reported_at_once() -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        run_on_cluster(
            Access("http://127.0.0.1:1"),
            CLOUD.pipeline + "fmnist",
            CLOUD.components,
            ARGUMENTS,
            "cloud-0-1",
        )


def test_a_platform_behind_a_log_in_gets_the_browser_s_session(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("KUBEFLOW_COOKIES=authservice_session=planted\nKUBEFLOW_NAMESPACE=me\n")
    env_file.chmod(0o600)
    session = "authservice_session=planted"
    follow(FakeKfp([run("SUCCEEDED")], cookie=session), env_file=env_file)
    assert "planted" not in repr(access_of("http://h", env_file))
    with pytest.raises(CredentialRefused, match="KUBEFLOW_COOKIES"):
        follow(FakeKfp([run("SUCCEEDED")], cookie=session))
    assert access_of("http://h/", tmp_path / "absent") == Access("http://h")


@pytest.mark.parametrize(
    ("health", "kind", "words"),
    [
        (302, CredentialRefused, "KUBEFLOW_COOKIES"),
        (403, CredentialRefused, "KUBEFLOW_COOKIES"),
        (404, UsageError, "correct cloud.kfp_url"),
        (503, Unreachable, "HTTP 503"),
    ],
)
def test_what_is_wrong_at_the_door_is_reported_at_once(
    health: int, kind: type[KitError], words: str
) -> None:
    fake = FakeKfp([run("SUCCEEDED")])
    fake.health = health
    with pytest.raises(kind, match=words):
        follow(fake)
    assert fake.submitted == []
