"""A Slurm of one's own without any cloud: profile `slurm`, filled in with the sandbox's Slurm."""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from idx_files import as_data, real_or_striped_images, small_data_dir
from rank_attempts import Attempts
from waiting import until

from kit.base import NoSuchBucket, read_json
from kit.base.settings import SITES, load
from kit.experiments.fashion_mnist import published_files, training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.notebook import run as notebook
from kit.onsite import ray_cluster
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunRequests
from kit.store import bucket_name, keystone, open_store

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(300)]
# Beside the six values: where the sandbox keeps its ssh config and its modules.
MORE = ("ssh_config", "modules", "module_init", "module_path")


def filled_in(hpc, folder: Path) -> str:
    """The shipped profile with the six values from `kit sandbox status --json`."""
    text = (SITES / "slurm.toml").read_text()
    six = {"url": str(folder)} | {
        key: hpc[key] for key in ("ssh_host", "account", "partition", "project_dir", "python")
    }
    for key, value in six.items():
        text, found = re.subn(f'^{key} = "<.*$', f"{key} = {value!r}", text, flags=re.MULTILINE)
        assert found == 1, f"{key} is not to be filled in once"
    assert ' = "<' not in text
    more = "".join(f"{key} = {hpc[key]!r}\n" for key in MORE)
    return text.replace("poll_floor_s = 5\n", f"poll_floor_s = 1\n{more}")


@pytest.fixture
def own(sandbox, tmp_path, monkeypatch):
    sites = tmp_path / "sites"
    sites.mkdir()
    (sites / "slurm.toml").write_text(filled_in(sandbox["hpc"], tmp_path / "store"))
    monkeypatch.setenv("KIT_SITES_DIR", str(sites))
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("KIT_DATA_DIR", str(small_data_dir(tmp_path / "data")))
    monkeypatch.setenv("KIT_ENV_FILE", str(tmp_path / "no-login"))
    for name in ("CSC_USERNAME", "CSC_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked_of_the_cloud():
    """What Keystone has logged: every client of the store logs in there first."""
    return (load("sandbox").sandbox_dir / "log" / "keystone.out").read_bytes()


def test_the_experiment_runs_to_a_result_with_two_workers_and_asks_no_cloud(own):
    before = asked_of_the_cloud()
    hp = {"epochs": 2, "seed": secrets.randbelow(2**31)}  # no run that the site knows already
    gates = {"accuracy": 0.0, "precision": 0.0, "recall": 0.0}
    work = notebook.start("slurm", "cloud-hpc", hp, gates=gates, fresh=True, workers=2)
    assert list(work.show_credentials().frame.index) == []
    said = work.run_pipeline()
    record = work.finish()
    assert asked_of_the_cloud() == before
    assert "COMPLETED" in said
    here = Attempts(own, real_or_striped_images(), **hp).run("here") / "out/model.safetensors"
    model = training.load_model(here)
    measured = training.evaluate(model, real_or_striped_images(), Parameters(**hp))
    assert published_files.performance(record["metrics"]) == measured.performance
    assert work.outcome.trained["workers"] == 2
    assert work.outcome.trained["slurm"]["nodes"] == 2
    metrics = own / "results/slurm/cloud-hpc/artifacts/cloud-hpc-metrics-2.json"
    assert read_json(metrics)["accuracy"] == measured.performance["accuracy"]
    assert record["tracking"]["state"] == "logged"
    assert "no rates" in work.show_bill().notes


def test_the_cloud_would_have_been_seen_in_that_log(sandbox):
    before, loaded = asked_of_the_cloud(), load("sandbox")
    keystone._shared.cache_clear()  # the stores of a process share one login
    with contextlib.suppress(NoSuchBucket):
        list(open_store(loaded, bucket_name(loaded, "no-such")).list())
    assert asked_of_the_cloud() != before


def test_submitter_process_sees_a_request_at_once_and_its_api_reports_to_the_end(own):
    loaded = load("slurm")
    jobs, data = (
        open_store(loaded, bucket_name(loaded, role)) for role in ("submitter", "pipeline")
    )
    token, port = own / "token", ray_cluster.free_ports("127.0.0.1", 1)[0]
    token.write_text(secrets.token_hex(16))
    token.chmod(0o600)
    environ = {**os.environ, "KIT_FACE_TOKEN": str(token)}
    argv = [sys.executable, "-m", "kit", "submitter", "--profile", "slurm", "--port", str(port)]

    def face(path):
        headers = {"Authorization": f"Bearer {token.read_text()}"}
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", headers=headers)) as answer:
            return json.loads(answer.read())

    with subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert f"127.0.0.1:{port}/runs" in process.stderr.readline()
            jobs.ensure_bucket()
            data.ensure_bucket()
            images = as_data(real_or_striped_images())
            StageStore(data, "any").put_data(images)
            assert face("/runs") == []
            run = f"cloud-hpc-{secrets.token_hex(6)}-1"
            RunRequests(jobs).ask(
                RunRequest(
                    run=run,
                    data_hash=images.hash,
                    hyperparameters=Parameters(epochs=2).model_dump(),
                )
            )
            until(lambda: face(f"/runs/{run}")["progress"], 30)
            until(lambda: face(f"/runs/{run}")["finished"], 120, 0.5)
            status, log = face(f"/runs/{run}"), face(f"/runs/{run}/log")
            assert (status["state"], status["ended"]["job"]["state"]) == ("DONE", "COMPLETED")
            assert "the driver ended: SUCCEEDED" in log["text"].replace("JobStatus.", "")
            assert token.read_text() not in json.dumps([status, log])
        finally:
            process.terminate()
            said = process.communicate()[1]
    assert token.read_text() not in said
    assert "is done" in said
