"""The status of a run follows from which of its objects exist; a request is only data."""

import dataclasses

import pytest
from bad_requests import BAD, HASH, RUN
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from kit.base import DataError, NoSuchBucket, NoSuchObject, UsageError
from kit.base.settings import load
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.requests import (
    MAX_REQUEST_BYTES,
    RunRequest,
    RunRequests,
    RunState,
    attempt_id,
    parse_key,
    read_request,
    site_id,
    statuses_from_keys,
    write_request,
)

NAMES = ("request", "cancel", "refused", "result", "progress")
STEPS = tuple(f"try-{n}/{step}" for n in (1, 2, 3) for step in ("asked", "submitted", "ended"))


def keys(*names, run=RUN):
    return [f"runs/{run}/{name}.json" for name in names]


STANDINGS = [
    ((), None),
    (("progress",), (RunState.UNKNOWN, 1)),
    (("request",), (RunState.REQUESTED, 1)),
    (("try-1/submitted",), (RunState.SUBMITTED, 1)),  # the listing is late with the request
    (("request", "try-1/submitted", "progress"), (RunState.SUBMITTED, 1)),
    (("request", "try-1/submitted", "try-1/ended"), (RunState.ENDED, 1)),
    (("request", "try-1/ended"), (RunState.ENDED, 1)),
    (("request", "try-1/ended", "try-2/asked"), (RunState.REQUESTED, 2)),
    (("request", "try-1/ended", "try-2/asked", "try-2/submitted"), (RunState.SUBMITTED, 2)),
    (("request", "try-1/submitted", "try-2/submitted"), (RunState.SUBMITTED, 2)),
    (("request", "try-1/ended", "try-2/ended"), (RunState.ENDED, 2)),
    (("request", "cancel"), (RunState.CANCELLING, 1)),
    (("request", "try-1/submitted", "cancel"), (RunState.CANCELLING, 1)),
    (("request", "try-1/submitted", "cancel", "try-1/ended"), (RunState.CANCELLED, 1)),
    (("request", "try-1/ended", "try-2/submitted", "cancel"), (RunState.CANCELLING, 2)),
    (("request", "cancel", "try-1/ended", "result"), (RunState.DONE, 1)),
    (("request", "try-9/ended", "result"), (RunState.DONE, 9)),
    (("request", "refused"), (RunState.REFUSED, 1)),
    (("request", "refused", "result"), (RunState.DONE, 1)),
]


@pytest.mark.parametrize(("names", "expected"), STANDINGS)
def test_the_status_of_a_run_follows_from_its_objects(names, expected):
    found = statuses_from_keys(keys(*names)).get(RUN)
    assert (found and (found.state, found.number)) == expected


@given(st.sets(st.sampled_from(NAMES + STEPS), min_size=1), st.randoms())
@settings(max_examples=300, deadline=None)
def test_any_order_of_arrival_ends_in_the_same_status(names, random):
    mixed = keys(*sorted(names)) + keys(*sorted(names), run="cloud-hpc-ffffffffffff-2")
    random.shuffle(mixed)
    one, other = statuses_from_keys(mixed).values()
    assert (one.state, one.number) == (other.state, other.number)
    assert statuses_from_keys(mixed + mixed) == statuses_from_keys(sorted(mixed))


@given(st.permutations(sorted(set(NAMES + STEPS) - {"cancel", "try-2/asked", "try-3/asked"})))
@settings(max_examples=200, deadline=None)
def test_without_the_persons_word_a_result_is_never_taken_back(order):
    done = [
        statuses_from_keys(keys(*order[:n]))[RUN].state is RunState.DONE
        for n in range(1, len(order) + 1)
    ]
    assert done == sorted(done)
    assert done[-1]


FOREIGN = [
    "runs/../etc/passwd/request.json",
    "runs/cloud-hpc-0123456789ab-1/../x/request.json",
    "runs/cloud-hpc-0123456789ab-0/request.json",
    "runs/local-0123456789ab-1/request.json",
    "runs/cloud-hpc-0123456789ab-1/try-0/ended.json",
    "runs/cloud-hpc-0123456789ab-1/try-1/request.json",
    "runs/cloud-hpc-0123456789ab-1/request.json\n",
    "runs/cloud-hpc-0123456789AB-1/request.json",
    "data/x",
    "",
]


def test_objects_that_are_none_of_ours_count_nothing():
    assert statuses_from_keys(FOREIGN) == {}


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_is_none_is_refused_with_a_reason(name):
    with pytest.raises(DataError) as error:
        read_request(RUN, BAD[name])
    assert RUN in error.value.tried
    assert error.value.got
    assert len(str(error.value)) < 2000


def test_a_request_is_read_as_it_was_written():
    request = RunRequest(
        run=RUN,
        data_hash=HASH,
        configured=False,
        hyperparameters=Parameters(epochs=3, learning_rate=0.01).model_dump(),
        workers=4,
    )
    assert read_request(RUN, write_request(request)) == request


@pytest.mark.parametrize("run", ["", "x", "../x", RUN + "\n", "local-0123456789ab-1", None, 3])
def test_only_the_id_of_a_cloud_hpc_run_can_be_asked_for(run):
    with pytest.raises(UsageError):
        RunRequest(run=run, data_hash=HASH)


def test_each_try_has_a_token_of_its_own():
    tokens = {attempt_id(run, n) for run in (RUN, RUN[:-1] + "2") for n in range(1, 50)}
    assert len(tokens) == 98
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in tokens)
    assert attempt_id(RUN, 1) == attempt_id(RUN, 1)


def test_the_tries_of_open_runs_and_their_next_ones_are_open():
    jobs = RunRequests(MemoryStore())
    assert jobs.open_attempt_ids() == []
    jobs.ask(RunRequest(run=RUN, data_hash=HASH))
    done = RUN[:-1] + "2"
    jobs.ask(RunRequest(run=done, data_hash=HASH))
    jobs.write(done, "result", {})
    jobs.write(RUN, "try-3/submitted", {})
    assert jobs.open_attempt_ids() == [attempt_id(RUN, 3), attempt_id(RUN, 4)]


def test_asking_twice_writes_one_request():
    jobs = RunRequests(MemoryStore())
    request = RunRequest(run=RUN, data_hash=HASH)
    assert jobs.ask(request).state is RunState.REQUESTED
    assert jobs.ask(request).state is RunState.REQUESTED
    assert [key for key in jobs.store.objects if key.startswith("runs/")] == keys("request")
    assert jobs.request(RUN) == request


def test_asking_for_a_finished_run_changes_nothing():
    jobs = RunRequests(MemoryStore())
    jobs.write(RUN, "result", {"try": 1})
    assert jobs.ask(RunRequest(run=RUN, data_hash=HASH)).state is RunState.DONE
    assert list(jobs.store.objects) == keys("result")


def test_a_huge_request_is_refused_without_being_read():
    jobs = RunRequests(MemoryStore())
    jobs.store.put(keys("request")[0], b" " * (MAX_REQUEST_BYTES + 1))
    with pytest.raises(DataError, match="at most 65536"):
        jobs.request(RUN)
    assert "get" not in jobs.store.calls


def test_a_new_try_needs_an_ended_one():
    jobs = RunRequests(MemoryStore())
    jobs.ask(RunRequest(run=RUN, data_hash=HASH))
    assert jobs.ask_again(RUN).number == 1
    jobs.write(RUN, "try-1/ended", {})
    again = jobs.ask_again(RUN)
    assert (again.state, again.number) == (RunState.REQUESTED, 2)


def test_refused_request_is_judged_again_when_the_person_asks_again():
    jobs = RunRequests(MemoryStore())
    request = RunRequest(run=RUN, data_hash=HASH)
    jobs.ask(request)
    jobs.write(RUN, "refused", {"why": "unknown experiment"})
    jobs.unmark(RUN)
    assert jobs.ask(request).state is RunState.REFUSED, "a component that starts again asks this"
    again = jobs.ask_again(RUN)
    assert (again.state, again.number) == (RunState.REQUESTED, 1)
    assert jobs.marked_runs() == {RUN}
    assert jobs.request(RUN) == request


def test_job_of_another_submitter_is_followed_when_a_refused_run_is_asked_for_again():
    """One submitter refused what another one had accepted: there is one job, which continues."""
    jobs = RunRequests(MemoryStore())
    jobs.ask(RunRequest(run=RUN, data_hash=HASH))
    for name in ("try-1/submitted", "refused"):
        jobs.write(RUN, name, {})
    again = jobs.ask_again(RUN)
    assert (again.state, again.number) == (RunState.SUBMITTED, 1)


@pytest.mark.parametrize("last", ["result", "try-1/ended", "refused"])
def test_cancelling_what_is_finished_changes_nothing(last):
    jobs = RunRequests(MemoryStore())
    jobs.ask(RunRequest(run=RUN, data_hash=HASH))
    jobs.write(RUN, last, {})
    before = jobs.status(RUN)
    assert jobs.cancel(RUN) == before
    assert keys("cancel")[0] not in jobs.store.objects


def test_all_runs_are_folded_from_one_listing():
    jobs = RunRequests(MemoryStore())
    for number in range(1, 201):
        run = f"cloud-hpc-0123456789ab-{number}"
        for name in ("request", "try-1/submitted", "result"):
            jobs.write(run, name, {})
    jobs.store.calls.clear()
    found = jobs.statuses()
    assert jobs.store.calls == ["list"]
    assert {each.state for each in found.values()} == {RunState.DONE}
    assert len(found) == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 2}', b"[" * 60_000])
def test_a_damaged_object_is_named(content):
    jobs = RunRequests(MemoryStore())
    jobs.store.put(keys("try-1/ended")[0], content)
    with pytest.raises(DataError, match="try-1/ended"):
        jobs.read(RUN, "try-1/ended")


def test_an_object_that_is_not_there_is_none():
    jobs = RunRequests(MemoryStore())
    assert jobs.read(RUN, "result") is None
    with pytest.raises(NoSuchObject):
        jobs.request(RUN)


@pytest.mark.parametrize("name", ["../x", "try-0/ended", "x", "request.json"])
def test_only_the_objects_of_a_run_are_written(name):
    with pytest.raises(UsageError):
        RunRequests(MemoryStore()).write(RUN, name, {})


def test_every_state_says_when_it_is_so():
    assert all(state.when for state in RunState)
    finished = {state.name for state in RunState if state.finished}
    assert finished == {"ENDED", "CANCELLED", "REFUSED", "DONE"}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"tunnel": "none"}, True),
        ({"profile": "", "site": ""}, True),
        ({"workers": 2}, False),
        ({"data_hash": "cd" * 32}, False),
    ],
)
def test_a_run_may_be_requested_again_with_another_tunnel(changes, same):
    request = RunRequest(run=RUN, data_hash=HASH, profile="sandbox", site="0" * 12)
    assert request.same_training(request.model_copy(update=changes)) is same


def test_a_request_names_its_profile_and_site_and_is_for_no_other():
    sandbox = load("sandbox")
    request = RunRequest(run=RUN, data_hash=HASH, profile="sandbox", site=site_id(sandbox))
    assert request.is_for(sandbox)
    assert read_request(RUN, write_request(request)) == request
    other_site = dataclasses.replace(
        sandbox, hpc=dataclasses.replace(sandbox.hpc, ssh_host="another")
    )
    assert not request.is_for(other_site)
    assert not request.is_for(dataclasses.replace(sandbox, profile="another"))
    assert RunRequest(run=RUN, data_hash=HASH).is_for(other_site), "requests of older versions"


def test_a_bucket_that_does_not_exist_holds_no_runs():
    requests = RunRequests(MemoryStore())
    requests.store.away = NoSuchBucket("list the bucket")
    assert requests.statuses() == {}
    assert requests.open_attempt_ids() == []
    assert requests.status(RUN).state is RunState.UNKNOWN
    assert requests.read(RUN, "progress") is None
    with pytest.raises(NoSuchObject):
        requests.request(RUN)


@pytest.mark.parametrize(
    ("names", "content"),
    [
        (("request",), {}),
        (("request", "try-1/submitted"), {}),
        (("request", "result"), {"name": "result"}),
        (("request", "refused"), {"name": "refused"}),
        (("request", "try-1/ended", "try-2/ended"), {"name": "try-2/ended"}),
    ],
)
def test_the_ending_of_a_run_is_the_object_of_its_state(names, content):
    requests = RunRequests(MemoryStore())
    for name in names:
        requests.write(RUN, name, {"name": name})
    ending = requests.ending(requests.status(RUN))
    assert {key: value for key, value in ending.items() if key != "schema"} == content


def test_object_keys_are_parsed_into_run_name_and_attempt():
    assert parse_key(f"runs/{RUN}/result.json") == (RUN, "result", 0)
    assert parse_key(f"runs/{RUN}/try-12/ended.json") == (RUN, "try-12/ended", 12)
    assert [parse_key(key) for key in FOREIGN] == [None] * len(FOREIGN)
