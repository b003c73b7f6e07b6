"""What the notebook of cloud-hpc does beside the pipeline."""

import contextlib
import dataclasses
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from memory_store import MemoryStore
from submitter_world import RUN, World

from kit.base import KitError
from kit.base.settings import load
from kit.experiments import load_experiment
from kit.notebook import cloud_hpc, show
from kit.notebook.results import Options
from kit.notebook.run import Run
from kit.runs import history
from kit.runs import outcome as pipelines
from kit.runs.kfp_here import PipelineFailed
from kit.runs.requests import RunRequest, RunRequests, RunState, attempt_id
from kit.runs.stages import HPC_TRAIN


def test_the_notebook_shows_why_its_own_submitter_ended(tmp_path):
    log = tmp_path / "submitter.log"
    log.write_text("one line\nKIT_COMPOSE_SECRETS names a file that does not exist\n")
    requests = SimpleNamespace(read=lambda run, name: None)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        submitter = cloud_hpc.SubmitterProcess(child, log)
        assert cloud_hpc.note(submitter, requests, "run", ()) == ""
        child.kill()
        child.wait()
    with pytest.raises(KitError, match="KIT_COMPOSE_SECRETS names a file") as caught:
        cloud_hpc.note(submitter, requests, "run", ())
    assert "exit code -9" in caught.value.tried
    assert "run this cell again" in caught.value.next_step


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of the notebook whose stores are in memory."""
    loaded = load("sandbox", {"KIT_RESULTS_DIR": str(tmp_path)})
    experiment = load_experiment("digits")
    stored = history.start_run(loaded, "cloud-hpc", {}, "d" * 64, experiment=experiment)
    options = Options(experiment.gates, False, True, 1, "")
    requests = RunRequests(MemoryStore())
    monkeypatch.setattr(Run, "requests", property(lambda _: requests))
    monkeypatch.setattr(Run, "objects", SimpleNamespace(store=MemoryStore()))
    monkeypatch.setattr(pipelines, "hpc_arguments_of", lambda *_, **__: {})  # it reads the login
    return Run(stored, SimpleNamespace(hash="d" * 64), experiment.parameters(), options)


def test_refused_run_ends_with_the_reason_alone_and_asks_again_the_next_time(run, monkeypatch):
    """The traceback of the component that followed the request would say nothing more."""
    before, requests = [], run.requests
    requests.ask(run.request)
    requests.write(run.run.id, "refused", {"why": "the reason of the last time"})

    def refused(*_, **__):
        before.append(requests.status(run.run.id).state)
        refusal = {"why": "x", "got": "unknown experiment 'net'", "next": "set KIT_EXPERIMENTS"}
        requests.write(run.run.id, "refused", refusal)
        raise PipelineFailed(HPC_TRAIN, "Traceback (most recent call last):\n  …", "", (), "a log")

    monkeypatch.setattr(pipelines, "run_pipeline", refused)
    monkeypatch.setattr(cloud_hpc.sys, "executable", "/bin/true")  # in place of a submitter
    for _ in range(2):
        with pytest.raises(KitError) as caught:
            run.run_pipeline()
        assert type(caught.value) is KitError
        assert str(caught.value).splitlines() == [
            f"the request of {run.run.id} was refused",
            "  got:  unknown experiment 'net'",
            "  next: set KIT_EXPERIMENTS; then the same command asks again",
        ]
        assert caught.value.__suppress_context__
    assert before == [RunState.REQUESTED] * 2


def test_pipeline_that_fails_otherwise_keeps_its_traceback(run, monkeypatch):
    def failed(*_, **__):
        raise PipelineFailed(HPC_TRAIN, "Traceback (most recent call last):\n  …", "", (), "a log")

    monkeypatch.setattr(pipelines, "run_pipeline", failed)
    monkeypatch.setattr(cloud_hpc.sys, "executable", "/bin/true")
    with pytest.raises(PipelineFailed, match="Traceback"):
        run.run_pipeline()


def test_the_cell_ends_when_the_notebooks_own_submitter_has_ended(run, tmp_path, monkeypatch):
    """Nobody would take the run further, and the training component would wait for ever."""
    log = tmp_path / "submitter.log"
    log.write_text("the key was refused\n")
    ended = SimpleNamespace(poll=lambda: 1)
    given = contextlib.nullcontext(cloud_hpc.SubmitterProcess(ended, log))
    monkeypatch.setattr(cloud_hpc, "submitter", lambda *_: given)
    monkeypatch.setattr(
        pipelines,
        "run_pipeline",
        lambda settings, store, values, folder, on_change, **_: on_change(()),
    )
    with pytest.raises(KitError, match="the key was refused"):
        run.run_pipeline()


def test_the_notebook_says_how_to_open_it_and_never_the_token(tmp_path):
    loaded = load("sandbox", {"KIT_SANDBOX_DIR": "/sandbox"})
    world = World(tmp_path)

    def shown(**cloud):
        profile = dataclasses.replace(loaded, cloud=dataclasses.replace(loaded.cloud, **cloud))
        request = RunRequest(run=RUN, data_hash="d" * 64)
        return cloud_hpc.tunnel_text(profile, request, world.requests)

    try_1, try_2 = (f"/kit/tries/{attempt_id(RUN, number)}/ray.token" for number in (1, 2))
    assert re.search(rf"ssh -F /sandbox/etc/ssh_config hpc cat \S+{try_1}$", shown())
    assert "-L" not in shown()
    assert "ssh -N -F" not in shown()
    assert "-L 8280:10.1.2.3:8280 cloud" in shown(tunnel_address="10.1.2.3")
    assert "no tunnel" in shown(tunnel_address="")
    world.requests.write(RUN, "request", {})
    world.requests.write(RUN, "try-1/ended", {})
    assert shown().endswith(try_2), "the next try is let work by running the pipeline"


def test_showing_the_credentials_makes_neither_a_bucket_nor_a_key(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "credentials_table", lambda *both: both)
    hpc_run = SimpleNamespace(target="cloud-hpc", settings=load("sandbox"), experiment=None)
    run = Run(hpc_run, None, None, None)
    monkeypatch.setattr(Run, "requests", property(lambda _: pytest.fail("a store was opened")))
    monkeypatch.setattr(Run, "objects", property(lambda _: pytest.fail("a store was opened")))
    assert run.show_credentials()[1] > 0
