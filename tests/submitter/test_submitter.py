"""The submitter brings every request to one end despite crashes, outages and cancels."""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
from itertools import pairwise

import pytest
from bad_requests import BAD
from submitter_world import DATA, RUN, World

from kit.base import (
    BucketTaken,
    CommandFailed,
    CredentialExpired,
    CredentialRefused,
    KitError,
    StoreUnavailable,
    Unreachable,
    UsageError,
)
from kit.runs.follow import last_seen, sentence
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunRequests, RunState, attempt_id
from kit.submitter import env as hpc_env
from kit.submitter import staging
from kit.submitter.submitter import LIST_ALL_INTERVAL_S, MAX_ATTEMPTS, NOT_ALLOWED, RESULT_WAIT_S

TRAINING = {"step": 3, "steps": 5, "loss": 0.53123}


class Killed(BaseException):
    """Represents kill -9: nothing catches it."""


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("experiment", ["fashion_mnist", "digits"])
def test_request_becomes_a_job_and_its_files_a_result(world, experiment):
    world.ask(experiment)
    assert world.until_finished().state is RunState.DONE
    result = world.requests.read(RUN, "result")
    assert result["job"]["state"] == "COMPLETED"
    assert {"out/model.safetensors", "metrics.json", "job.log", "sacct.txt"} <= set(result["files"])
    for reference in result["files"].values():
        content = world.data.objects[reference["key"]]
        assert hashlib.sha256(content).hexdigest() == reference["sha256"]
    assert result["sacct"]["1"]["State"] == "COMPLETED"
    assert result["seff"]["Source"] == "computed from sacct"


def test_message_of_the_site_reaches_the_person_while_the_job_is_queued(world):
    world.site.message = "Your project has 12 BU left"
    world.ask()
    submitter = world.submitter()
    submitter.once()
    submitter.once()
    progress = world.requests.read(RUN, "progress")
    assert progress["state"] in ("PENDING", "RUNNING")
    assert "the site says: Your project has 12 BU left" in sentence(progress)
    assert world.until_finished().state is RunState.DONE


@pytest.mark.parametrize("private", [True, False])
def test_environment_on_the_login_node_is_reported_and_used(tmp_path, monkeypatch, private):
    world, reasons = World(tmp_path), []
    world.hpc = dataclasses.replace(world.hpc, build_env_on="login")
    world.settings = dataclasses.replace(world.settings, hpc=world.hpc)

    def make(*_):
        reasons.append(world.requests.read(RUN, "progress")["why"])
        return "/proj/kit/venvs/made", private

    monkeypatch.setattr(hpc_env, "make_environment", make)
    world.ask()
    assert world.until_finished().state is RunState.DONE
    assert len(reasons) == 1
    assert "login node" in reasons[0]
    own = "/proj/kit/venvs/made" if private else ""
    assert f"venv=/proj/kit/venvs/made private={own}\n" in world.site.scripts[attempt_id(RUN, 1)]


def test_failed_environment_build_ends_the_attempt_with_its_cause(tmp_path, monkeypatch):
    world, made = World(tmp_path), []
    world.hpc = dataclasses.replace(world.hpc, build_env_on="login")
    world.settings = dataclasses.replace(world.settings, hpc=world.hpc)

    def make(*_):
        made.append(1)
        if len(made) == 1:
            raise hpc_env.EnvironmentBuildError(
                "make the environment on x", "no space left", "fix that"
            )
        return "/proj/kit/venvs/made", False

    monkeypatch.setattr(hpc_env, "make_environment", make)
    world.ask()
    assert world.until_finished().state is RunState.ENDED
    ended = world.requests.read(RUN, "try-1/ended")
    assert (ended["failure"]["got"], ended["worked"]) == ("no space left", False)
    assert world.site.jobs == []
    world.requests.ask_again(RUN)
    status = world.until_finished()
    assert (status.state, status.number) == (RunState.DONE, 2)


def test_environment_built_by_another_submitter_is_kept(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.hpc = dataclasses.replace(world.hpc, build_env_on="login")
    world.settings = dataclasses.replace(world.settings, hpc=world.hpc)
    other, begun = world.submitter(), []

    def make(*_):
        begun.append(1)
        if len(begun) == 1:
            other.once()
            world.play()
            raise hpc_env.EnvironmentBuildError(
                "make the environment on x", "no space left", "fix that"
            )
        return "/proj/kit/venvs/made", False

    monkeypatch.setattr(hpc_env, "make_environment", make)
    world.ask()
    assert world.until_finished(world.submitter()).state is RunState.DONE
    assert len(world.site.jobs) == len(world.site.commits) == 1


def interrupt(world, submitter, nth, when, action):
    """Do `action` before or after the nth call that leaves the submitter: site or store."""
    seen = itertools.count(1)

    def wrapped(call):
        def run(*arguments, **named):
            number = next(seen)
            if (number, when) == (nth, "before"):
                action()
            answer = call(*arguments, **named)
            if (number, when) == (nth, "after"):
                action()
            return answer

        return run

    host, requests = submitter.slurm.host, copy.copy(world.requests.store)
    for name in ("run", "put", "get"):
        setattr(host, name, wrapped(getattr(host, name)))
    for name in ("put", "get", "list"):
        setattr(requests, name, wrapped(getattr(requests, name)))
    submitter.requests = RunRequests(requests)
    return lambda: next(seen) > nth


def kill():
    raise Killed


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_call_the_next_submitter_reaches_the_same_end(tmp_path, when):
    for nth in range(1, 60):
        world = World(tmp_path / str(nth))
        world.ask()
        first = world.submitter()
        reached = interrupt(world, first, nth, when, kill)
        with contextlib.suppress(Killed):
            for _ in range(6):
                first.once()
                world.play()
        assert world.until_finished().state is RunState.DONE
        assert len(world.site.bodies) == len(world.site.commits) == 1
        assert world.requests.status(RUN).number == 1
        if not reached():
            return
    raise AssertionError("the run never ended without being killed")


def test_two_submitters_at_once_do_no_harm(world):
    world.ask()
    pair = world.submitter(), world.submitter()
    for _ in range(8):
        for each in pair:
            each.once()
        world.play()
    assert world.requests.status(RUN).state is RunState.DONE
    assert len(world.site.jobs) == len(world.site.commits) == 1


def test_second_submitter_in_the_middle_of_a_pass_does_no_harm(tmp_path):
    for nth in range(1, 25):
        world = World(tmp_path / str(nth))
        world.ask()
        first, other = world.submitter(), world.submitter()
        interrupt(world, first, nth, "before", lambda submitter=other: submitter.once())
        assert world.until_finished(first).state is RunState.DONE
        assert len(world.site.jobs) == 1


def test_publishing_twice_gives_the_same_result(world):
    world.ask()
    world.until_finished()
    result, files = world.requests.read(RUN, "result"), dict(world.data.objects)
    world.requests.store.delete(f"runs/{RUN}/result.json")
    world.until_finished()
    assert world.requests.read(RUN, "result") == result
    assert world.data.objects == files


def test_failed_attempt_is_reported_with_its_cause(world):
    world.ask()
    world.submitter().once()
    world.play()
    folder = f"/proj/kit/tries/{attempt_id(RUN, 1)}"
    failure = {"cause": "the training failed", "got": "ValueError", "traceback": "Traceback"}
    world.files[f"{folder}/failure.json"] = json.dumps(failure).encode()
    assert world.until_finished(end="FAILED", code=1).state is RunState.ENDED
    ended = world.requests.read(RUN, "try-1/ended")
    assert ended["failure"] == failure
    assert (ended["job"]["state"], ended["exit_code"], ended["worked"]) == ("FAILED", 1, True)
    assert len(world.site.jobs) == 1  # work was done: nobody pays twice unasked


def test_repeated_request_opens_an_attempt_with_its_predecessor(world):
    world.ask()
    world.until_finished(end="FAILED", code=1)
    world.requests.ask_again(RUN)
    status = world.until_finished()
    assert (status.state, status.number) == (RunState.DONE, 2)
    script = world.site.scripts[attempt_id(RUN, 2)]
    assert f"/proj/kit/tries/{attempt_id(RUN, 1)}" in script
    files = world.requests.read(RUN, "result")["files"]
    texts = {
        name: StageStore(world.data, RUN).get(files[name]).decode()
        for name in ("sacct.txt", "sacct-tries.txt")
    }
    first, second = (f"kit-{attempt_id(RUN, number)}" for number in (1, 2))
    assert [first in texts["sacct.txt"], second in texts["sacct.txt"]] == [False, True]
    assert [first in texts["sacct-tries.txt"], second in texts["sacct-tries.txt"]] == [True, True]


def test_retries_of_the_profile_open_another_attempt(tmp_path):
    world = World(tmp_path, retries=1)
    world.ask()
    status = world.until_finished(end="FAILED", code=1)
    assert (status.state, status.number) == (RunState.ENDED, 2)
    assert len(world.site.jobs) == 2


def test_lost_submission_is_fenced_and_repeated(world):
    world.ask()
    world.site.sbatch = "late"
    submitter = world.submitter()
    submitter.once()
    world.site.sbatch = "ok"
    world.site.now += 1000
    status = world.until_finished(submitter)
    assert (status.state, status.number) == (RunState.DONE, 2)
    lost = world.site.land(attempt_id(RUN, 1))  # it lands after all
    world.site.start(lost)
    assert len(world.site.bodies) == 1


def test_attempts_without_work_are_limited(world):
    world.ask()
    world.site.sbatch = "late"
    for _ in range(3 * MAX_ATTEMPTS):
        world.submitter().once()
        world.site.now += 1000
    assert world.requests.status(RUN).state is RunState.ENDED
    assert world.requests.status(RUN).number == MAX_ATTEMPTS


def test_refused_submission_is_reported_in_the_schedulers_words(world):
    world.ask()
    world.site.sbatch = "refuse"
    assert world.until_finished().state is RunState.ENDED
    ended = world.requests.read(RUN, "try-1/ended")
    assert "Invalid partition" in ended["failure"]["got"]
    assert "partition" in ended["failure"]["next"]


@pytest.mark.parametrize("before", ["nothing", "a submission"])
def test_unwritable_folder_is_reported_not_treated_as_refusal(world, before):
    world.ask()
    submitter = world.submitter()
    if before == "a submission":
        submitter.once()
        world.requests.store.delete(f"runs/{RUN}/try-1/submitted.json")
    host, run = world.hosts[-1], world.hosts[-1].run

    def full(argv, *args, **kwargs):
        if argv[0] == "bash":
            raise CommandFailed(argv, 74, err="cannot use the folder /proj/kit/tries")
        return run(argv, *args, **kwargs)

    host.run = full
    submitter.once()
    assert "cannot use the folder" in world.requests.read(RUN, "progress")["why"]
    assert world.requests.status(RUN).state is RunState.REQUESTED
    host.run = run
    status = world.until_finished(submitter)
    assert (status.state, status.number) == (RunState.DONE, 1)
    assert len(world.site.jobs) == 1


@pytest.mark.parametrize("experiment", ["fashion_mnist", "digits"])
@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_cancel_at_each_stage_leaves_no_job(world, passes, experiment):
    world.ask(experiment)
    submitter = world.submitter()
    for _ in range(passes):
        submitter.once()
        if passes < 3 or not world.live() or world.live()[0].state == "PENDING":
            world.play()
    world.requests.cancel(RUN)
    status = world.until_finished(submitter)
    assert status.state in (RunState.CANCELLED, RunState.DONE)
    assert world.live() == []
    if status.state is RunState.CANCELLED:
        assert world.site.commits == []
        late = world.site.land(attempt_id(RUN, 1))
        world.site.start(late)
        assert world.site.commits == []


def test_what_was_committed_before_the_cancel_is_the_result(world):
    world.ask()
    world.submitter().once()
    world.play()
    world.play()
    world.requests.write(RUN, "cancel", {})
    assert world.until_finished().state is RunState.DONE


def trials_on_site(world, **counts):
    """What the running job of a sweep has reported; returns the file that asks it to end."""
    (job,) = world.live()
    folder = f"/proj/kit/tries/{job.attempt_id}"
    world.files[f"{folder}/progress.json"] = json.dumps(
        {"step": 1, "steps": 3, "trials": counts}
    ).encode()
    return ["touch", "--", f"{folder}/end-trials"]


def test_cancelled_sweep_publishes_its_finished_trials_before_its_job_ends(world):
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.play()
    wanted = trials_on_site(world, done=1)
    world.requests.cancel(RUN)
    for _ in range(3):
        submitter.once()
        assert world.requests.status(RUN).state is RunState.CANCELLING
    other = world.submitter()  # `kit cancel` in another process
    assert other.cancel(RUN).state is RunState.CANCELLING
    assert submitter.slurm.host.calls.count(wanted) == 1
    assert wanted in other.slurm.host.calls
    world.play()  # the job publishes and ends
    assert world.until_finished(submitter).state is RunState.DONE
    assert world.live() == []


@pytest.mark.parametrize("counts", [{"done": 0}, {"done": 1}])
def test_cancelled_sweep_without_results_or_that_does_not_end_is_ended(world, counts):
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.play()
    trials_on_site(world, **counts)
    world.requests.cancel(RUN)
    submitter.once()
    if counts["done"]:
        assert world.requests.status(RUN).state is RunState.CANCELLING
        world.site.now += 60
        submitter.once()
    assert world.requests.status(RUN).state is RunState.CANCELLED
    assert (world.live(), world.site.commits) == ([], [])


@pytest.mark.parametrize(
    "content", [b"", b"[", b'{"schema": 1}', b"\x80\x04K\x01.", b" " * 70_000, b"[" * 60_000]
)
def test_hostile_request_is_refused_and_others_continue(world, content):
    bad = "cloud-hpc-ffffffffffff-1"
    world.requests.store.put(f"runs/{bad}/request.json", content)
    world.ask()
    assert world.until_finished().state is RunState.DONE
    assert world.requests.status(bad).state is RunState.REFUSED
    assert bad in world.requests.read(bad, "refused")["why"]
    assert len(world.site.jobs) == 1


def test_no_hostile_request_reaches_the_site(world):
    for number, content in enumerate(BAD.values(), 1):
        run = f"cloud-hpc-ffffffffffff-{number}"
        world.requests.store.put(
            f"runs/{run}/request.json", content.replace(RUN.encode(), run.encode())
        )
    world.submitter().once()
    statuses = world.requests.statuses().values()
    assert {each.state for each in statuses} == {RunState.REFUSED}
    assert len(statuses) == len(BAD)
    reasons = [world.requests.read(each.run, "refused")["why"] for each in statuses]
    assert all(0 < len(why) < 2000 for why in reasons)
    assert world.hosts[-1].calls == []
    assert [name for name in world.files if "/tries/" in name or "/inputs/" in name] == []
    before = dict(world.requests.store.objects)
    world.submitter().once()
    assert world.requests.store.objects == before


@pytest.mark.parametrize("passes", [1, 10, 100])
def test_result_does_not_depend_on_the_number_of_passes(world, passes):
    world.ask()
    submitter = world.submitter()
    for _ in range(6):
        for _ in range(passes):
            submitter.once()
        world.play()
    assert world.requests.status(RUN).state is RunState.DONE
    assert len(world.site.jobs) == len(world.site.commits) == 1
    ended = {
        key: content
        for key, content in world.requests.store.objects.items()
        if "progress" not in key
    }
    other = World(world.settings.cache_dir)
    other.ask()
    other.until_finished()
    other.submitter().once()  # as the passes above did after the end
    theirs = {k: c for k, c in other.requests.store.objects.items() if "progress" not in k}
    assert set(ended) == set(theirs)
    mine, them = (json.loads(all_[f"runs/{RUN}/result.json"]) for all_ in (ended, theirs))
    for name in ("out/model.safetensors", "out/predictions.npy", "metrics.json", "job.log"):
        assert mine["files"][name] == them["files"][name]


def test_more_workers_than_cpus_are_refused_and_as_many_are_taken(tmp_path):
    world = World(tmp_path, nodes=2, cpus=3)
    bad = "cloud-hpc-ffffffffffff-1"
    world.requests.ask(RunRequest(run=bad, data_hash=DATA.hash, workers=7))
    world.requests.ask(RunRequest(run=RUN, data_hash=DATA.hash, workers=6))
    assert world.until_finished().state is RunState.DONE
    assert world.requests.status(bad).state is RunState.REFUSED
    assert "6 CPUs" in world.requests.read(bad, "refused")["why"]
    assert '"workers": 6' in world.site.scripts[attempt_id(RUN, 1)]


def test_a_gpu_is_asked_of_a_site_that_has_one_only(tmp_path):
    without, with_one = World(tmp_path), World(tmp_path, gres="gpu:gh200:1")
    for world in (without, with_one):
        world.ask(device="cuda")
        world.until_finished()
    assert without.site.jobs == []
    assert "0 GPUs" in without.requests.read(RUN, "refused")["why"]
    assert with_one.requests.status(RUN).state is RunState.DONE


def test_a_job_over_the_profiles_budget_is_refused_before_it_is_submitted(tmp_path):
    world = World(tmp_path, partition="small", mem="3G")
    # 3 GiB x 0.375 x 20 min = 0.375 BU
    world.settings = dataclasses.replace(world.settings, budget={"CPU": "0.3"})
    world.ask()
    assert world.until_finished().state is RunState.REFUSED
    assert "may cost 0.38 CPU BU, and 0.3 are allowed" in world.requests.read(RUN, "refused")["why"]
    assert world.site.jobs == []


def test_a_closed_site_refuses_with_its_sentence(world):
    closed = dataclasses.replace(world.settings.site, closed="closed in 2026: use roihu")
    world.settings = dataclasses.replace(world.settings, site=closed)
    world.ask()
    assert world.until_finished().state is RunState.REFUSED
    assert "use roihu" in world.requests.read(RUN, "refused")["why"]
    assert world.site.jobs == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"budget": {"CPU": "0.3"}}, "may cost 0.38 CPU BU, and 0.3 are allowed"),
        ({"site": "closed in 2026: use roihu"}, "use roihu"),
    ],
    ids=["budget", "closed site"],
)
def test_a_later_attempt_that_is_not_allowed_ends_and_the_next_one_resumes(tmp_path, changed, why):
    world = World(tmp_path, partition="small", mem="3G")
    world.ask()
    assert world.until_finished(end="FAILED", code=1).state is RunState.ENDED
    allowed = world.settings
    if "site" in changed:
        changed = {"site": dataclasses.replace(allowed.site, closed=changed["site"])}
    world.settings = dataclasses.replace(allowed, **changed)
    world.requests.ask_again(RUN)
    status = world.until_finished()
    assert (status.state, status.number) == (RunState.ENDED, 2)
    ended = world.requests.ending(status)
    assert (ended["failure"]["cause"], ended["worked"]) == (NOT_ALLOWED, False)
    assert why in ended["why"]
    assert len(world.site.jobs) == 1
    world.settings = allowed
    world.requests.ask_again(RUN)
    status = world.until_finished()
    assert (status.state, status.number) == (RunState.DONE, 3)
    assert len(world.site.jobs) == 2


@pytest.mark.parametrize("nth", range(1, 9))
@pytest.mark.parametrize("when", ["before", "after"])
def test_unreachable_site_changes_no_state(world, when, nth):
    world.ask()
    submitter = world.submitter()
    host = world.hosts[-1]
    calls, run = itertools.count(1), host.run

    def cut(*args, **kwargs):
        if next(calls) == nth:
            host.failures[0] = when
        return run(*args, **kwargs)

    host.run = cut
    assert world.until_finished(submitter).state is RunState.DONE
    assert len(world.site.bodies) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Unreachable("reach x by ssh", "connection refused"), "connection refused"),
        (CredentialExpired("the certificate ended", "denied", "csc_cert.py"), "csc_cert.py"),
    ],
)
def test_unreachable_site_is_reported_and_waited_for(world, error, words):
    world.ask()
    submitter = world.submitter()
    submitter.once()
    host, run = world.hosts[-1], world.hosts[-1].run

    def away(*args, **kwargs):
        raise error

    host.run = away
    before = world.requests.read(RUN, "progress")
    for _ in range(3):
        submitter.once()
    shown = world.requests.read(RUN, "progress")
    assert words in shown["why"]
    assert words in sentence(shown)
    assert shown["state"] == "UNKNOWN"
    assert {name: shown.get(name) for name in ("seen", "job", "nodes")} == {
        name: before.get(name) for name in ("seen", "job", "nodes")
    }
    assert world.requests.status(RUN).state is RunState.SUBMITTED
    host.run = run
    assert world.until_finished(submitter).state is RunState.DONE


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        ({}, ""),
        ({"state": "STAGING", "why": "inputs are copied"}, "STAGING: inputs are copied"),
        ({"state": "PENDING", "why": "too few nodes are free"}, "queued: too few nodes are free"),
        ({"state": "RUNNING", "why": "it works", "nodes": []}, "RUNNING: it works"),
        ({"state": "RUNNING", "why": "it works", "nodes": ["c1", "c2"]}, "on c1,c2"),
        (
            {"state": "RUNNING", "why": "", "nodes": ["c1"], "training": TRAINING},
            "step 3/5, loss 0.531, on c1",
        ),
        (
            {"state": "UNKNOWN", "why": "no answer", "nodes": ["c1"], "training": TRAINING},
            "step 3/5, loss 0.531, UNKNOWN: no answer",
        ),
    ],
)
def test_status_of_a_run_is_a_sentence(progress, text):
    assert sentence(progress) == text


def test_status_includes_when_the_run_was_last_seen(world):
    assert last_seen(world.requests, RUN) == "no submitter has seen the request yet"
    known = {"state": "RUNNING", "why": "", "nodes": ["c1"], "job": "7", "seen": 100.0}
    world.requests.write(RUN, "progress", known)
    assert last_seen(world.requests, RUN, lambda: 107.0) == "job 7: on c1; last seen 7 s ago"
    world.requests.store.away = StoreUnavailable("ask the store", "503")
    assert "503" in last_seen(world.requests, RUN)


def test_unchanged_progress_is_rewritten_to_update_last_seen(world):
    world.ask()
    submitter = world.submitter()
    seen = []
    for _ in range(30):
        submitter.once()
        seen.append((world.requests.read(RUN, "progress") or {}).get("seen"))
        world.site.now += 1
    distinct = sorted({each for each in seen if each})
    assert 3 <= len(distinct) <= 5  # 30 s, of which the first pass takes none
    assert {later - sooner for sooner, later in pairwise(distinct[1:])} == {10}


def test_store_outage_at_the_end_of_a_job_loses_nothing(world):
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.requests.store.away = world.data.away = StoreUnavailable("ask the store", "503")
    for _ in range(4):
        with pytest.raises(KitError, match="503"):
            submitter.once()
        world.play()
    assert len(world.site.commits) == 1
    world.requests.store.away = world.data.away = None
    assert world.until_finished(submitter).state is RunState.DONE


def finished_runs(world, count):
    for number in range(1, count + 1):
        run = f"cloud-hpc-0123456789ab-{number}"
        for name in ("request", "try-1/submitted", "result"):
            world.requests.store.objects[f"runs/{run}/{name}.json"] = b"{}"


def listed_keys(world, action):
    """Return how many keys the store listed during an action, and in how many calls."""
    store, keys, calls = world.requests.store, [], len(world.requests.store.calls)
    list_keys = store.list
    store.list = lambda prefix="": (keys.append(info) or info for info in list_keys(prefix))
    action()
    store.list = list_keys
    return len(keys), store.calls[calls:].count("list")


def test_a_pass_over_finished_runs_is_one_listing_and_no_ssh(world):
    finished_runs(world, 200)
    submitter = world.submitter()
    assert len(submitter.once()) == 200, "the first pass looks at all"
    assert listed_keys(world, submitter.once) == (0, 1)
    assert world.hosts[-1].calls == []


def test_cost_of_a_pass_does_not_grow_with_finished_runs(world):
    """A bucket in which 3,000 runs have finished; then a new run is requested, ends, is gone."""
    finished_runs(world, 3000)
    run, submitter = "cloud-hpc-ffffffffffff-1", world.submitter()
    submitter.once()
    world.requests.ask(RunRequest(run=run, data_hash=DATA.hash))
    while not world.requests.status(run).state.finished:
        keys, _ = listed_keys(world, submitter.once)
        assert keys < 20
        world.play()
    assert world.requests.status(run).state is RunState.DONE
    assert listed_keys(world, submitter.once)[0] < 20
    assert listed_keys(world, submitter.once) == (0, 1), "its mark is gone"


def test_run_without_a_mark_is_found_by_the_next_full_listing(world):
    """The process that requested it was killed between the request and its mark."""
    submitter = world.submitter()
    submitter.once()
    world.ask()
    world.requests.store.delete(f"open/{RUN}.json")
    submitter.once()
    assert world.requests.status(RUN).state is RunState.REQUESTED
    world.site.now += int(LIST_ALL_INTERVAL_S)
    assert world.until_finished(submitter).state is RunState.DONE


def test_many_open_runs_are_listed_at_once(world):
    submitter = world.submitter()
    submitter.once()
    for number in range(1, 11):
        world.requests.ask(RunRequest(run=f"cloud-hpc-0123456789ab-{number}", data_hash=DATA.hash))
    submitter.once()
    world.play()
    assert listed_keys(world, submitter.once)[1] == 2


def test_run_that_is_asked_for_again_while_its_mark_goes_keeps_it(world):
    world.ask()
    world.until_finished(end="FAILED", code=1)
    store = world.requests.store
    delete = store.delete

    def late(key):
        world.requests.ask_again(RUN)
        delete(key)

    store.delete = late
    submitter = world.submitter()
    submitter.once()
    store.delete = delete
    assert world.until_finished(submitter).state is RunState.DONE


def test_all_live_runs_are_asked_about_in_one_query(world):
    for number in range(1, 11):
        world.requests.ask(RunRequest(run=f"cloud-hpc-0123456789ab-{number}", data_hash=DATA.hash))
    submitter = world.submitter()
    submitter.once()
    world.play()
    world.hosts[-1].calls.clear()
    submitter.once()
    assert len(world.hosts[-1].calls) == 2  # the status of the jobs, the progress that they report


def test_a_file_that_is_not_the_manifests_is_not_published(world):
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.play()
    world.play()
    world.files[f"/proj/kit/tries/{attempt_id(RUN, 1)}/out/model.safetensors"] = b"another model"
    submitter.once()
    assert world.requests.read(RUN, "result") is None
    assert "it was changed" in world.requests.read(RUN, "progress")["why"]


# Due times and containment.

OTHER = "cloud-hpc-ffffffffffff-1"


def count_calls(submitter, error=None):
    """Count the calls of the site from now on; `error` is raised by each."""
    host, calls = submitter.slurm.host, []
    run = host.run

    def counted(argv, *arguments, **named):
        calls.append(argv)
        if error:
            raise error
        return run(argv, *arguments, **named)

    host.run = counted
    if error:
        host.put = counted
    return calls


def passes(world, submitter, seconds, pause=2):
    for _ in range(int(seconds / pause)):
        submitter.once()
        world.site.now += pause


@pytest.mark.parametrize("runs", [1, 5])
@pytest.mark.parametrize(
    "error",
    [
        CredentialRefused("the site refuses the login", "Permission denied", "renew it"),
        Unreachable("reach x by ssh", "connection refused"),
    ],
)
def test_site_that_refuses_the_login_is_asked_ever_more_rarely(world, error, runs):
    world.ask()
    for number in range(2, runs + 1):
        world.requests.ask(RunRequest(run=f"cloud-hpc-0123456789ab-{number}", data_hash=DATA.hash))
    submitter = world.submitter()
    calls = count_calls(submitter, error)
    passes(world, submitter, 600)
    assert 2 <= len(calls) <= 10
    for status in world.requests.statuses().values():
        assert error.got in world.requests.read(status.run, "progress")["why"]


def test_run_whose_own_step_fails_is_tried_ever_more_rarely(world):
    """A full folder concerns this run: the site answers, and the other runs go on."""
    world.ask()
    submitter = world.submitter()
    error = CommandFailed(["put"], 74, err="cannot use the folder /proj/kit/tries")
    calls = count_calls(submitter, error)
    passes(world, submitter, 600)
    assert 2 <= len(calls) <= 40
    assert "cannot use the folder" in world.requests.read(RUN, "progress")["why"]


def test_limit_on_the_number_of_jobs_waits_and_the_run_is_submitted_later(world):
    world.ask()
    world.site.sbatch = "limit"
    submitter = world.submitter()
    passes(world, submitter, 300)
    assert world.requests.status(RUN).state is RunState.REQUESTED, "it is not refused"
    assert "AssocMaxSubmitJobLimit" in world.requests.read(RUN, "progress")["why"]
    world.site.sbatch = "ok"
    passes(world, submitter, 600)
    assert world.requests.status(RUN).state is RunState.SUBMITTED
    assert len(world.site.jobs) == 1


def test_contact_that_is_back_is_used_after_the_pause(world):
    world.ask()
    submitter = world.submitter()
    host = submitter.slurm.host
    run, put = host.run, host.put
    count_calls(submitter, Unreachable("reach x by ssh", "connection refused"))
    passes(world, submitter, 60)
    host.run, host.put = run, put
    passes(world, submitter, 120)
    assert world.requests.status(RUN).state is RunState.SUBMITTED


@pytest.mark.parametrize("damage", ["unexpected", "damaged progress"])
def test_one_run_that_fails_does_not_hold_up_the_others(world, monkeypatch, damage):
    world.requests.ask(RunRequest(run=OTHER, data_hash=DATA.hash))
    world.ask()
    if damage == "damaged progress":
        world.requests.store.put(f"runs/{OTHER}/progress.json", b"damaged")
    task = staging.Staging.task

    def failing(self, request, *arguments):
        if request.run == OTHER:
            raise ZeroDivisionError("one thing nobody foresaw")
        return task(self, request, *arguments)

    monkeypatch.setattr(staging.Staging, "task", failing)
    assert world.until_finished(world.submitter()).state is RunState.DONE
    assert "ZeroDivisionError" in world.requests.read(OTHER, "progress")["why"]


def test_damaged_progress_is_written_again_when_the_site_is_away(world):
    world.requests.ask(RunRequest(run=OTHER, data_hash=DATA.hash))
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.requests.store.put(f"runs/{OTHER}/progress.json", b"damaged")
    count_calls(submitter, Unreachable("reach x by ssh", "connection refused"))
    submitter.once()
    for run in (RUN, OTHER):
        shown = world.requests.read(run, "progress")
        assert (shown["state"], "refused" in shown["why"]) == ("UNKNOWN", True)


# Cancelling.


@pytest.mark.parametrize("when", ["before", "after"])
def test_cancel_while_the_next_attempt_is_prepared_leaves_no_job(tmp_path, when):
    for nth in range(1, 40):
        world = World(tmp_path / str(nth))
        world.ask()
        world.submitter().once()
        world.site.end(world.site.jobs[0], "FAILED", 98)
        world.site.now += 200
        first, other = world.submitter(), world.submitter()

        def cancel(submitter=other):
            submitter.cancel(RUN)
            raise Killed

        reached = interrupt(world, first, nth, when, cancel)
        with contextlib.suppress(Killed):
            first.once()
        if not reached():
            return
        status = world.until_finished()
        assert status.state is RunState.CANCELLED
        assert world.live() == []
        late = world.site.land(attempt_id(RUN, 2))
        world.site.start(late)
        assert world.site.commits == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_submitter_that_goes_on_after_a_cancel_leaves_it_cancelled(tmp_path, when):
    """Staging may take minutes: the run is looked at again before and after its submission."""
    for nth in range(1, 40):
        world = World(tmp_path / str(nth))
        world.ask()
        world.submitter().once()
        world.site.end(world.site.jobs[0], "FAILED", 98)
        world.site.now += 200
        first, other = world.submitter(), world.submitter()
        cancelled = []

        def cancel(submitter=other, answers=cancelled):
            answers.append(submitter.cancel(RUN))

        reached = interrupt(world, first, nth, when, cancel)
        first.once()
        if not reached():
            return
        if cancelled[0].state is RunState.CANCELLED:
            assert world.requests.status(RUN) == cancelled[0], nth
        assert world.until_finished().state is RunState.CANCELLED, nth
        assert world.live() == []


def test_job_that_takes_long_to_end_is_asked_about_at_the_floor_only(tmp_path):
    world = World(tmp_path)
    world.hpc = dataclasses.replace(world.hpc, poll_floor_s=15)
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.play()
    world.site.end = lambda *_: None
    world.requests.cancel(RUN)
    calls = count_calls(submitter)
    passes(world, submitter, 60, 2)
    assert len(calls) <= 3 * 5
    shown = world.requests.read(RUN, "progress")
    assert (shown["state"], "being ended" in shown["why"]) == ("CANCELLING", True)


# Results without figures.


def test_committed_result_is_published_without_the_figures_that_never_come(world):
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.site.lag = True
    world.play()
    world.play()
    for _ in range(20):
        submitter.once()
        world.site.now += 10
    assert world.requests.read(RUN, "result") is None
    passes(world, submitter, RESULT_WAIT_S, 10)
    result = world.requests.read(RUN, "result")
    assert result["missing"]
    assert {"out/model.safetensors", "sacct.txt"} <= set(result["files"])


@pytest.mark.parametrize("fault", ["no figures", "changed file", "removed file"])
def test_wait_for_a_result_has_an_end_where_each_pass_is_a_new_process(world, fault):
    """`kit submitter --once` from cron: nothing is remembered but what is in the bucket."""
    world.ask()
    world.submitter().once()
    world.site.lag = fault == "no figures"
    world.play()
    world.play()
    model = f"/proj/kit/tries/{attempt_id(RUN, 1)}/out/model.safetensors"
    if fault == "changed file":
        world.files[model] = b"another model"
    elif fault == "removed file":
        del world.files[model]
    for _ in range(1 + int(RESULT_WAIT_S / 59)):
        world.submitter().once()
        assert world.requests.status(RUN).state is RunState.SUBMITTED
        world.site.now += 59
    world.submitter().once()
    state = world.requests.status(RUN).state
    assert state is (RunState.DONE if fault == "no figures" else RunState.ENDED)


def test_committed_file_that_was_changed_ends_the_run_with_that_cause(world):
    world.ask()
    submitter = world.submitter()
    submitter.once()
    world.play()
    world.play()
    world.files[f"/proj/kit/tries/{attempt_id(RUN, 1)}/out/model.safetensors"] = b"another model"
    passes(world, submitter, 2 * RESULT_WAIT_S, 10)
    assert world.requests.status(RUN).state is RunState.ENDED
    assert "committed file" in world.requests.read(RUN, "try-1/ended")["failure"]["cause"]


# What belongs to somebody else.


def test_bucket_of_another_project_is_not_worked_on(world):
    world.ask()
    world.requests.store.taken = True
    submitter = world.submitter()
    before = dict(world.requests.store.objects)
    with pytest.raises(BucketTaken):
        submitter.once()
    assert world.requests.store.objects == before
    assert world.hosts[-1].calls == []


def test_bucket_that_appears_later_is_checked_too(world):
    submitter = world.submitter()
    submitter.once()
    world.requests.store.taken = True
    world.ask()
    with pytest.raises(BucketTaken):
        submitter.once()


@pytest.mark.parametrize(
    "other", [{"profile": "another"}, {"profile": "sandbox", "site": "f" * 12}]
)
def test_request_for_another_site_is_left_alone(world, other):
    world.requests.ask(RunRequest(run=OTHER, data_hash=DATA.hash, **other))
    world.ask()
    submitter = world.submitter()
    assert world.until_finished(submitter).state is RunState.DONE
    assert world.requests.status(OTHER).state is RunState.REQUESTED
    assert world.requests.read(OTHER, "progress") is None
    with pytest.raises(UsageError, match="it was requested for profile"):
        submitter.cancel(OTHER)
    assert world.requests.status(OTHER).state is RunState.REQUESTED, "its own site may run it"
    world.requests.cancel(OTHER)
    submitter.once()
    assert world.requests.status(OTHER).state is RunState.CANCELLING
