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
from kit.runs.requests import RunRequest, RunRequests, attempt_id


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


def test_the_cell_ends_when_the_notebooks_own_submitter_has_ended(tmp_path, monkeypatch):
    """Nobody would take the run further, and the training component would wait for ever."""
    loaded = load("sandbox", {"KIT_RESULTS_DIR": str(tmp_path)})
    experiment = load_experiment("digits")
    stored = history.start_run(loaded, "cloud-hpc", {}, "d" * 64, experiment=experiment)
    options = Options(experiment.gates, False, True, 1, "")
    run = Run(stored, SimpleNamespace(hash="d" * 64), experiment.parameters(), options)
    requests = RunRequests(MemoryStore())
    monkeypatch.setattr(Run, "requests", property(lambda _: requests))
    monkeypatch.setattr(Run, "objects", SimpleNamespace(store=MemoryStore()))
    log = tmp_path / "submitter.log"
    log.write_text("the key was refused\n")
    ended = SimpleNamespace(poll=lambda: 1)
    given = contextlib.nullcontext(cloud_hpc.SubmitterProcess(ended, log))
    monkeypatch.setattr(cloud_hpc, "submitter", lambda *_: given)
    monkeypatch.setattr(pipelines, "hpc_arguments_of", lambda *_, **__: {})  # it reads the login
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
