"""What is copied to the site before a job: the inputs and the kit's code, each once."""

import json

import pytest
from own_experiments import GOOD, write
from submitter_world import DATA, RUN, World

from kit.base.settings import Hpc
from kit.experiments import list_experiment, load_experiment
from kit.runs.requests import RunRequest, RunState, attempt_id
from kit.slurm import Room
from kit.submitter.staging import needed_room


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_inputs_are_copied_once(world):
    world.ask()
    world.submitter().once()
    before = {name: id(content) for name, content in world.files.items() if "/inputs/" in name}
    data = f"/proj/kit/inputs/{DATA.hash}.zip"
    assert len(before) == 3
    assert {data, f"{data}.sha256"} < set(before)
    world.requests.store.delete(f"runs/{RUN}/try-1/submitted.json")
    world.submitter().once()
    after = {name: id(content) for name, content in world.files.items() if "/inputs/" in name}
    assert after == before


def test_data_that_is_not_in_the_store_is_waited_for_and_named(world):
    world.ask()
    objects, world.data.objects = world.data.objects, {}
    submitter = world.submitter()
    submitter.once()
    assert DATA.hash in world.requests.read(RUN, "progress")["why"]
    world.data.objects = objects
    assert world.until_finished(submitter).state is RunState.DONE


def test_code_on_the_site_that_was_changed_is_copied_again(world):
    world.ask()
    world.submitter().once()
    (code,) = [n for n in world.files if n.endswith(".zip") and DATA.hash not in n]
    good, world.files[code] = world.files[code], b"somebody else's code"
    world.requests.store.delete(f"runs/{RUN}/try-1/submitted.json")
    world.submitter().once()
    assert world.files[code] == good


@pytest.mark.parametrize("content", [b"cut off", b"", None])
def test_data_on_the_site_that_was_damaged_are_copied_again(world, content):
    """An upload that was cut off, or a file that somebody replaced, under the right name."""
    world.ask()
    world.submitter().once()
    data = f"/proj/kit/inputs/{DATA.hash}.zip"
    good = world.files[data]
    if content is None:
        del world.files[f"{data}.sha256"]
    else:
        world.files[data] = content
    world.requests.store.delete(f"runs/{RUN}/try-1/submitted.json")
    world.submitter().once()
    assert world.files[data] == good
    assert f"{data}.sha256" in world.files


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"code": "0" * 64}, "not 000000000000"),
        ({"experiment": "unknown_one"}, "unknown experiment 'unknown_one'"),
        ({"experiment": "mean_model"}, "unknown experiment 'mean_model'"),
        ({"experiment": "mean_model", "hyperparameters": {"steps": 0}}, "unknown experiment"),
    ],
)
def test_request_of_an_experiment_that_the_submitter_has_not_is_refused(
    world, tmp_path, monkeypatch, request_, why
):
    """No code comes out of a bucket, and no file of the working folder is executed."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    world.requests.ask(RunRequest(run=RUN, data_hash=DATA.hash, **request_))
    world.submitter().once()
    assert world.requests.status(RUN).state is RunState.REFUSED
    assert why in world.requests.read(RUN, "refused")["why"]
    assert world.site.jobs == []


def test_request_of_a_listed_experiment_is_submitted_and_its_parameters_are_checked(
    world, tmp_path, monkeypatch
):
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    request = RunRequest(
        run=RUN, data_hash=DATA.hash, experiment="mean_model", hyperparameters={"steps": 0}
    )
    world.requests.ask(request)
    monkeypatch.setenv("KIT_EXPERIMENTS", str(write(tmp_path / "own")))
    world.submitter().once()
    assert "steps = 0 is not valid" in world.requests.read(RUN, "refused")["why"]
    assert world.site.jobs == []


def test_own_experiment_of_the_submitter_is_shipped_and_run(world, tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_EXPERIMENTS", str(write(tmp_path / "own")))
    world.requests.ask(RunRequest(run=RUN, data_hash=DATA.hash, experiment="mean_model"))
    assert world.until_finished().state is RunState.DONE
    (script,) = world.site.scripts.values()
    assert '"module": "mean_model"' in script
    assert '"hyperparameters": {"steps": 3}' in script


def test_listed_experiment_is_run_by_a_submitter_that_was_started_before(
    world, tmp_path, monkeypatch
):
    """As the one of the sandbox: it has another working folder and other variables."""
    for name in ("KIT_CACHE_DIR", "KIT_SANDBOX_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    submitter = world.submitter()
    submitter.once()
    path = write(tmp_path / "own")
    experiment = load_experiment(str(path))
    list_experiment(experiment)
    path.write_text(GOOD + "\n# edited after the run was started\n")
    asked = {"data_hash": DATA.hash, "experiment": "mean_model", "code": experiment.code}
    world.requests.ask(RunRequest(run=RUN, **asked))
    assert world.until_finished(submitter).state is RunState.REFUSED
    assert f"not {experiment.code[:12]}" in world.requests.read(RUN, "refused")["got"]
    path.write_text(GOOD)
    world.requests.ask_again(RUN)  # the same command
    assert world.until_finished(submitter).state is RunState.DONE
    assert len(world.site.jobs) == 1


def test_later_attempt_is_not_begun_with_other_code_than_the_first(world, tmp_path, monkeypatch):
    path = write(tmp_path / "own")
    code = load_experiment(str(path)).code
    monkeypatch.setenv("KIT_EXPERIMENTS", str(path))
    request = {"data_hash": DATA.hash, "experiment": "mean_model", "code": code}
    world.requests.ask(RunRequest(run=RUN, **request))
    world.until_finished(end="FAILED", code=3)
    path.write_text(GOOD + "\n# edited\n")
    world.requests.ask_again(RUN)
    status = world.until_finished()
    assert (status.state, status.number) == (RunState.ENDED, 2)
    assert f"not {code[:12]}" in world.requests.ending(status)["why"]
    assert len(world.site.jobs) == 1
    path.write_text(GOOD)
    world.requests.ask_again(RUN)
    status = world.until_finished()
    assert (status.state, status.number) == (RunState.DONE, 3)
    assert len(world.site.jobs) == 2


def ask_sweep(world, number, *continues):
    """Request a run of a sweep that continues others, by their numbers."""
    ids = [f"{RUN[:-1]}{each}" for each in continues]
    sweep = {"trials": [{"seed": 1}, {"seed": 2}], "continues": ids}
    asked = {"data_hash": DATA.hash, "experiment": "digits", "sweep": sweep}
    run = f"{RUN[:-1]}{number}"
    world.requests.ask(RunRequest(run=run, **asked))
    return run


def taken_over(world, run):
    """Run and folder of the attempts whose trials the job of a run takes over."""
    (line,) = [x for x in world.site.scripts[attempt_id(run, 1)].splitlines() if "KIT_TASK" in x]
    return json.loads(line.partition("=")[2].strip("'"))["continued"]


def test_a_sweep_takes_over_the_trials_of_the_cancelled_runs_that_it_continues(world):
    ask_sweep(world, 1)
    submitter = world.submitter()
    submitter.once()
    world.play()
    second, third = ask_sweep(world, 2, 1), ask_sweep(world, 3, 2, 1)
    submitter.once()
    assert len(world.site.jobs) == 1  # the first job may still run a trial
    assert "an attempt of it is on the site" in world.requests.read(second, "progress")["why"]
    world.requests.cancel(RUN)
    assert submitter.cancel(RUN).state is RunState.CANCELLED
    world.site.now += 60
    submitter.once()
    first = f"/proj/kit/tries/{attempt_id(RUN, 1)}"
    assert taken_over(world, second) == [[RUN, first]]
    world.requests.write(second, "result", {"files": {}})
    world.site.now += 60
    submitter.once()
    own = f"/proj/kit/tries/{attempt_id(second, 1)}"
    assert taken_over(world, third) == [[second, own], [RUN, first]]


@pytest.mark.parametrize("state", ["result", "try-1/ended", ""])
def test_a_sweep_whose_finished_trials_are_gone_is_refused_not_run_again(world, state):
    if state:
        ask_sweep(world, 1)
        world.requests.write(RUN, "try-1/submitted", {})
        world.requests.write(RUN, state, {})
    second = ask_sweep(world, 2, 1)
    world.submitter().once()
    assert world.requests.status(second).state is RunState.REFUSED
    why = world.requests.read(second, "refused")["why"]
    assert f"continue the sweep {RUN}" in why
    assert "--fresh" in why
    if state == "result":
        assert "is gone from the site" in why
    assert world.site.jobs == []


def test_run_that_does_not_fit_into_the_quota_is_reported_before_anything_is_copied(world):
    world.site.room = "@quota\n/proj 900 0 100000 - 10 0 9000 -\n"
    world.ask()
    submitter = world.submitter()
    submitter.once()
    why = world.requests.read(RUN, "progress")["why"]
    assert "has room for 0.09 GiB in 8,990 files, and the run needs about 0.62 GiB in 8,300" in why
    assert "kit tidy" in why
    assert (world.files, world.site.jobs) == ({}, [])
    world.site.room = "@quota\n/proj 900 0 1000000 - 10 0 8000 -\n"
    world.site.now += 600
    submitter.once()
    assert "0.95 GiB in 7,990 files" in world.requests.read(RUN, "progress")["why"]
    world.site.room = "@quota\n/proj 900 0 1000000 - 10 0 9000 -\n"
    world.site.now += 600
    assert world.until_finished(submitter).state is RunState.DONE


def test_room_that_a_run_needs_counts_the_data_twice_and_an_environment_once():
    hpc = Hpc(ssh_host="x", project_dir="/p", attempt_gib=1.0)
    assert needed_room(hpc, 2**30, builds=False) == Room(3 * 2**20, 100)
    assert needed_room(hpc, 0, builds=True) == Room(2**20 + 430 * 1024, 8300)
