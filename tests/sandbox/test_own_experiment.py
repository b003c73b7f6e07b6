"""Experiments that are not the article's: killed and resumed on all three targets.

`digits` comes with the kit; `net` is what a person makes of the file that `kit new` writes: a
PyTorch model that several workers can train, with a package that the site does not have.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hpc_bench import ended_jobs
from notebook_runs import history, kit
from own_experiments import changed

from kit import store
from kit.base import SSHHost
from kit.base.settings import load
from kit.runs.requests import RunRequests

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(600)]
TRAINING = '''
def train(ctx):
    """Fit the line by PyTorch; all ranks step together."""
    import torch

    points = torch.tensor(json.loads((ctx.data / "points.json").read_text()))
    model, saved = torch.nn.Linear(1, 1), ctx.checkpoint / "state.json"
    state = {"step": 0, "weight": [[0.0]], "bias": [0.0]}
    if saved.exists():
        state = json.loads(saved.read_text())
    model.load_state_dict({name: torch.tensor(state[name]) for name in ("weight", "bias")})
    net, steps = ctx.prepare(model), ctx.parameters.steps
    rate = ctx.parameters.learning_rate
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(state["step"] + 1, steps + 1):
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(step))
        mine = points[ctx.order(order)]
        loss = torch.nn.functional.mse_loss(net(mine[:, :1]), mine[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps:
            values = {name: value.tolist() for name, value in model.state_dict().items()}
            new = saved.with_suffix(".new")
            new.write_text(json.dumps({"step": step, **values}))
            new.replace(saved)
            ctx.report(step, steps, loss.item())
    if ctx.workers > 1:
        import iniconfig  # only the site has it, by REQUIREMENTS

        assert iniconfig
    a, b = model.weight.item(), model.bias.item()
    (ctx.out / "model.json").write_text(json.dumps({"a": a, "b": b}))

'''
PRIMARY = 'PRIMARY, BEST = "error", "lowest"\n'  # as `kit new` writes it
LONG = {"digits": ("epochs", "1500"), "net": ("steps", "20000")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A person's folder with the experiment."""
    folder = tmp_path_factory.mktemp("own")
    made = kit(dict(os.environ), "new", "net", cwd=folder)
    assert made.returncode == 0, made.stderr
    path = folder / "net.py"
    text = path.read_text()
    i, j = text.index("def train"), text.index("def evaluate")
    text = text[:i] + TRAINING.lstrip() + "\n" + text[j:]
    names = 'DISTRIBUTED = True\nREQUIREMENTS = ("iniconfig",)\n'
    path.write_text(changed(PRIMARY, PRIMARY + names, text))
    return folder


def results(tmp_path):
    return {**os.environ, "KIT_RESULTS_DIR": str(tmp_path)}


def training(target, tmp_path, jobs):
    """Whether the one run there is has kept a part of its training."""
    for run in tmp_path.glob(f"sandbox/runs/{target}-*"):
        if target == "cloud-hpc":
            return bool((jobs.read(run.name, "progress") or {}).get("training"))
        kept = run if target == "local" else load("sandbox").cache_dir / "stages" / run.name
        return any(path.stat().st_size for path in kept.rglob("checkpoint/losses.jsonl"))
    return False


@pytest.mark.parametrize("target", ["local", "cloud", "cloud-hpc"])
@pytest.mark.parametrize("experiment", ["digits", "net"])
def test_killed_run_of_any_experiment_resumes_on_every_target(
    no_submitter, folder, tmp_path, experiment, target
):
    environ, site = results(tmp_path), load("sandbox")
    jobs = RunRequests(store.open_store(site, store.bucket_name(site, "submitter")))
    words = ["run", target, "-p", "experiment", experiment, "-p", *LONG[experiment]]
    argv = [sys.executable, "-m", "kit", *words]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(argv, env=environ, cwd=folder, stdout=log, stderr=log)
    while not training(target, tmp_path, jobs):
        assert first.poll() is None, (tmp_path / "first.log").read_text()[-4000:]
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    ended = kit(environ, *words, cwd=folder)
    while "is being executed by another process" in ended.stderr:  # its kernel notices soon
        ended = kit(environ, *words, cwd=folder)
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = history(environ)
    assert line["resumed"] is True
    assert line["experiment"] == experiment
    if target == "cloud-hpc":
        host = SSHHost(site.hpc.ssh_host, site.hpc.ssh_config, site.hpc.user)
        assert ended_jobs(host, line["run"]) == [(line["slurm"]["job"]["id"], "COMPLETED")]


def test_two_workers_train_it_on_two_nodes_with_a_package_of_its_own(
    no_submitter, folder, tmp_path
):
    environ = results(tmp_path)
    words = ["run", "cloud-hpc", "-p", "experiment", "net", "-p", "workers", "2"]
    ended = kit(environ, *words, cwd=folder)
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = history(environ)
    assert line["metrics"]["error"] < 0.2
    assert line["parameters"]["steps"] == 200


def test_bill_and_report_of_the_digits_have_units_beside_the_metric(no_submitter, tmp_path):
    environ = results(tmp_path)
    ended = kit(environ, "run", "cloud-hpc", "-p", "experiment", "digits", "-p", "epochs", "30")
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = history(environ)
    bill = json.loads(kit(environ, "bill", line["run"], "--json").stdout)
    prices = {row["kind"]: float(row["bu"]) for row in bill["lines"]}
    assert prices["CPU BU"] > 0, "the job took a second or more"
    assert prices["Cloud BU"] > 0
    report = kit(environ, "report").stdout
    digits = report[report.index("Experiment digits") : report.index("The published figures")]
    rows = {row.partition("  ")[0]: row.split()[-1] for row in digits.splitlines() if row}
    assert rows["accuracy"] == f"{line['metrics']['accuracy']:.4f}"
    assert float(rows["CPU BU, newest run"]) > 0
    assert float(rows["Cloud BU, newest run"]) > 0
