"""The forwarder in the sandbox: after a run Prometheus answers what published dashboards ask."""

import json
import os
import secrets
import subprocess
import sys
import urllib.parse
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from dashboard_queries import queries
from dotenv import dotenv_values
from idx_files import small_data_dir
from waiting import until

from kit.base.settings import load
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.forwarder import gauges
from kit.report import dashboard
from kit.runs.requests import RunRequest, RunState
from kit.submitter.loop import submitter_for

pytestmark = pytest.mark.sandbox
METRICS = {
    gauges.SACCT: "RqCPUS AcCPUS RqNod AcNod AvCPUSec AvCPUFreqkhz AvDiReByte AvDiWrByte TiLiSec "
    "ElaSec PlaSec PlaCPUSec CPUTiSec ToCPUSec SuTi StTi EnTi",
    gauges.SEFF: "Nod CoPeNod CPUUSec CPUEffPe CPUEffSec JoWaClTISec MemUtiByte MemEffPe "
    "MemEffByte BiUn",
    gauges.JOB: "ToStaSec ToConSec ToRunSec ToCanSec ToStoSec",
    gauges.PIPELINE: "ToSec",
    gauges.TASK: "ToWaiSec ToRunSec ToTasSec",
}
EVERY = [(name, metric) for name, metrics in METRICS.items() for metric in metrics.split()]


@pytest.fixture(scope="module")
def prometheus(sandbox):
    given = dotenv_values(sandbox["files"]["prometheus_env"])
    words = f"{given['PROMETHEUS_USERNAME']}:{given['PROMETHEUS_PASSWORD']}"
    headers = {"Authorization": f"Basic {b64encode(words.encode()).decode()}"}

    def get(path, **parameters):
        url = f"{given['PROMETHEUS_URL']}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return json.loads(answer.read())["data"]

    return get


def test_prometheus_scrapes_the_forwarder_with_its_token(prometheus):
    def scraped():
        target = prometheus("targets")["activeTargets"][0]
        return target["health"] == "up" and target["lastError"] == ""

    assert until(scraped, 60, 0.5)


def test_the_scrape_is_refused_without_the_token(sandbox):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen("http://127.0.0.1:6502/metrics")


def test_the_api_takes_a_request_and_its_cancel_from_the_person_with_the_token(sandbox):
    folder = Path(sandbox["files"]["slurm_conf"]).parent
    token = (folder / "secrets" / "face").read_text()

    def ask(method, path, body=None, token=token):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url, data = f"http://127.0.0.1:6500{path}", json.dumps(body).encode() if body else None
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    scrape = (folder / "secrets" / "forwarder").read_text()
    for wrong in (scrape, "guess"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask("GET", "/runs", token=wrong)
    run = f"cloud-hpc-{secrets.token_hex(6)}-1"
    assert ask("POST", "/runs", {"run": run, "data_hash": "0" * 64})["state"] == "REQUESTED"
    assert ask("POST", f"/runs/{run}/cancel")["state"] == "CANCELLING"
    submitter = submitter_for(load("sandbox"))
    submitter.once()
    shown = ask("GET", f"/runs/{run}?state=CANCELLING&wait_s=30")
    assert (shown["state"], shown["finished"]) == ("CANCELLED", True)
    for info in list(submitter.requests.store.list(f"runs/{run}/")):
        submitter.requests.store.delete(info.key)


@pytest.fixture(scope="module")
def runs(sandbox, tmp_path_factory):
    """A run of the notebook that ends well, and one that is cancelled: their ids."""
    folder = tmp_path_factory.mktemp("forwarder")
    data = small_data_dir(folder / "data")
    env = os.environ | {"KIT_RESULTS_DIR": str(folder), "KIT_DATA_DIR": str(data)}
    argv = [sys.executable, "-m", "kit", "run", "cloud-hpc", "-p", "epochs", "1"]
    done = subprocess.run([*argv, "--fresh"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    history = folder / "sandbox" / "history.jsonl"
    good = json.loads(history.read_text().splitlines()[-1])["run"]
    submitter, gone = submitter_for(load("sandbox")), f"cloud-hpc-{secrets.token_hex(6)}-1"
    submitter.requests.ask(
        RunRequest(
            run=gone, data_hash="0" * 64, configured=True, hyperparameters=Parameters().model_dump()
        )
    )
    submitter.cancel(gone)
    assert submitter.requests.status(gone).state is RunState.CANCELLED
    yield good, gone
    for info in list(submitter.requests.store.list(f"runs/{gone}/")):
        submitter.requests.store.delete(info.key)


@pytest.fixture(scope="module")
def seen(runs, prometheus):
    """Wait until Prometheus has scraped both runs."""
    good, gone = runs

    def there():
        asked = [f'{gauges.TASK}{{sampleid="{good}"}}', f'{gauges.JOB}{{jobkey="{gone}"}}']
        return all(prometheus("query", query=one)["result"] for one in asked)

    assert until(there, 60, 1)
    return good


@pytest.mark.slow
@pytest.mark.parametrize(("name", "metric"), EVERY, ids=[metric for _, metric in EVERY])
def test_every_metric_of_every_gauge_is_answered_once(seen, prometheus, name, metric):
    found = prometheus("query", query=f'{name}{{metric="{metric}"}}')["result"]
    assert found
    added = {"__name__", "instance", "job"}  # by Prometheus
    whole = frozenset(gauges.LABELS[name])
    labels = {frozenset(one["metric"]) - added for one in found}
    assert labels <= {whole, whole - {"partition"}}, "an empty label (a step's) is none there"
    twins = prometheus(
        "query",
        query=f"count by (jobkey, sampleid, row, group, name, collector) "
        f'({name}{{metric="{metric}"}}) > 1',
    )["result"]
    assert twins == []


@pytest.mark.slow
@pytest.mark.parametrize(("title", "query"), queries())
def test_every_query_of_the_dashboard_is_answered(seen, prometheus, title, query):
    assert prometheus("query", query=query)["result"], title


@pytest.mark.slow
def test_all_panels_of_the_dashboard_are_drawn_from_prometheus(seen):
    drawn, missing = dashboard.panels(load("sandbox"))
    assert missing == ""
    assert len(drawn) == 7


@pytest.mark.slow
def test_the_gauges_are_the_same_after_the_worker_was_killed(seen, prometheus, sandbox):
    folder = Path(sandbox["files"]["slurm_conf"]).parent.parent
    env = {**os.environ, "KIT_SANDBOX_DIR": str(folder)}
    ask = [sys.executable, "-m", "kit", "forwarder", "--once", "--profile", "sandbox"]

    def shown():
        text = subprocess.run(ask, env=env, capture_output=True, text=True).stdout
        return {line for line in text.splitlines() if seen in line}

    before = shown()
    assert len(before) > 20
    pid = int((folder / "run" / "pids" / "worker").read_text().split()[0])
    os.kill(pid, 9)
    token = (folder / "etc" / "secrets" / "forwarder").read_text()

    def back():
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request("http://127.0.0.1:6502/metrics", headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return {one for one in answer.read().decode().splitlines() if seen in one}
        except OSError:
            return set()

    assert until(lambda: back() == before, 60, 0.5)
