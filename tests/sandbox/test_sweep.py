"""A sweep in one job of the sandbox's real Slurm: killed, continued, billed to the last digit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hpc_bench import ended_jobs
from notebook_runs import history, kit

from kit import store
from kit.base import SSHHost, read_history
from kit.base.settings import load
from kit.billing import bill_of_run
from kit.billing.rates import slurm_kinds
from kit.runs.requests import RunRequests
from kit.tracking import client as mlflow_client
from kit.tracking import read_logged_run

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]
WORDS = ["sweep", "cloud-hpc", "--experiment", "digits", "-p", "seed", "1..6"]
WORDS += ["-p", "epochs", "600", "--at-once", "2"]


def test_a_sweep_whose_notebook_is_killed_is_one_job_and_bills_each_trial(no_submitter, tmp_path):
    environ, site = {**os.environ, "KIT_RESULTS_DIR": str(tmp_path)}, load("sandbox")
    jobs = RunRequests(store.open_store(site, store.bucket_name(site, "submitter")))
    argv = [sys.executable, "-m", "kit", *WORDS]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)
    while not (found := list(tmp_path.glob("sandbox/runs/cloud-hpc-*/run.json"))):
        assert first.poll() is None, (tmp_path / "first.log").read_text()[-4000:]
        time.sleep(0.2)
    second = kit(environ, *WORDS)  # the same sweep, started twice at once
    assert second.returncode != 0
    assert "is being executed by another process" in second.stderr
    while not _progress(tmp_path, jobs).get("trials"):
        assert first.poll() is None, (tmp_path / "first.log").read_text()[-4000:]
        time.sleep(0.2)
    (row,) = json.loads(kit(environ, "runs", found[0].parent.name, "--json").stdout)
    assert re.match(r"trial \d/6, \d running", row["why"]), row
    first.send_signal(signal.SIGKILL)
    first.wait()
    ended = kit(environ, *WORDS)
    while "is being executed by another process" in ended.stderr:  # its kernel notices soon
        ended = kit(environ, *WORDS)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "6 of 6 trials done" in ended.stdout
    (line,) = history(environ)
    assert (line["sweep"]["done"], line["sweep"]["not_run"]) == (6, 0)
    assert line["gates"]["passed"] is True
    assert line["run"] in registered(site)
    logged = kit(environ, "logs", line["run"])
    assert sorted(re.findall(r"trial (\d) of 6, seed \1: done, accuracy 0\.", logged.stdout)) == [
        str(number) for number in range(1, 7)
    ]
    host = SSHHost(site.hpc.ssh_host, site.hpc.ssh_config, site.hpc.user)
    assert ended_jobs(host, line["run"]) == [(line["slurm"]["job"]["id"], "COMPLETED")]

    folder = tmp_path / "sandbox" / "runs" / line["run"]
    rows = json.loads((folder / "trials.json").read_text())
    best = max(rows, key=lambda row: row["metrics"]["accuracy"])
    assert line["metrics"] == best["metrics"]
    assert (folder / "out" / "model.npy").exists()

    trials = read_history(tmp_path / "sandbox" / "trials.jsonl")[0]
    assert len(trials) == 6
    os.environ["KIT_RESULTS_DIR"] = str(tmp_path)
    try:
        settings = load("sandbox")
        bill = slurm_kinds(x for x in bill_of_run(settings, line).lines if x.what[:4] == "job ")
        ((kind, units),) = bill.items()
        shares = [Decimal(row["units"][kind]) for row in trials]
        written = json.loads((folder / "shares.json").read_text())[kind]
        assert 0 < sum(shares) < units
        assert sum(shares) + Decimal(written["of no trial"]) == units  # to the last digit
        assert written["trials"] == {row["trial"]: row["units"][kind] for row in trials}
        nested = read_logged_run(
            settings, "cloud-hpc-digits-pipeline", f"{line['run']}/trials/{best['trial']}"
        )
        assert nested["metrics"]["accuracy"] == pytest.approx(best["metrics"]["accuracy"])
        parent = read_logged_run(settings, "cloud-hpc-digits-pipeline", line["run"])
        assert parent["params"]["hp-seed"] == str(best["values"]["seed"])
    finally:
        del os.environ["KIT_RESULTS_DIR"]
    notebook = Path(folder / "sweep.ipynb").read_text()
    assert "of no trial (start, end, idle slots)" in notebook


def registered(site):
    """The runs behind the versions of the registered model of the digits."""
    with mlflow_client.connect(site.cloud.mlflow_url, Path(site.cloud.mlflow_env_file)) as client:
        versions = client.search_model_versions("name='CLOUD-HPC-DIGITS'")
        return [version.tags["kit.run_id"] for version in versions]


def _progress(results, jobs):
    """What the job of the one run there is has reported."""
    for run in results.glob("sandbox/runs/cloud-hpc-*"):
        return (jobs.read(run.name, "progress") or {}).get("training") or {}
    return {}
