"""Experiments that are not the article's: killed and resumed on all three targets.

`digits` comes with the kit; `net` is what a person makes of the file that `kit new` writes: a
PyTorch model that several workers can train, with a package that the site does not have.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from hpc_bench import ended_jobs, processes
from notebook_runs import history, kit
from own_experiments import changed
from waiting import until

from kit.base import ROOT, SSHHost
from kit.base.settings import load
from kit.onsite import PROGRESS
from kit.runs.notebooks import NOTEBOOKS
from kit.runs.requests import attempt_id

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
    a, b = model.weight.item(), model.bias.item()
    (ctx.out / "model.json").write_text(json.dumps({"a": a, "b": b}))

'''
PRIMARY = 'PRIMARY, BEST = "error", "lowest"\n'  # as `kit new` writes it
LONG = {"digits": ("epochs", "1500"), "net": ("steps", "20000")}
WAYS = ("command", "papermill", "notebook")
NOTEBOOK = """
import json, sys
import kit
target, experiment, parameters = sys.argv[1:]
run = kit.start("sandbox", target, json.loads(parameters), experiment=experiment)
if target == "local":
    run.train()
    run.evaluate()
else:
    run.run_pipeline()
run.finish()
"""


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


def steps(target, tmp_path):
    """How far the one run there is has come, as this machine has seen it."""
    for run in tmp_path.glob(f"sandbox/runs/{target}-*"):
        if target == "cloud-hpc":  # what the component that follows the job has logged
            log = run / "pipeline.log"
            found = re.findall(r"step (\d+)/", log.read_text() if log.exists() else "")
            return int(found[-1]) if found else 0
        kept = run if target == "local" else load("sandbox").cache_dir / "stages" / run.name
        lines = [line for path in kept.rglob("losses.jsonl") for line in path.open() if "]" in line]
        return json.loads(lines[-1])[0] if lines else 0
    return 0


def argv_of(way, target, experiment, folder, tmp_path):
    """The program that a person starts: `kit run`, papermill, or the steps of a notebook."""
    name, value = LONG[experiment]
    if way == "command":
        words = ["run", target, "-p", "experiment", experiment, "-p", name, value]
        return [sys.executable, "-m", "kit", *words]
    parameters = {name: int(value)}
    if way == "notebook":
        return [sys.executable, "-c", NOTEBOOK, target, experiment, json.dumps(parameters)]
    values = {"profile": "sandbox", "experiment": experiment, "parameters": parameters}
    notebook = NOTEBOOKS / f"{target}.ipynb"
    if experiment == "net":  # the one that `kit new` wrote
        notebook, values["target"] = folder / "net.ipynb", target
    words = [str(notebook), str(tmp_path / "out.ipynb"), "-y", json.dumps(values)]
    return [sys.executable, "-m", "papermill", *words]


def kill_in_the_middle(argv, environ, folder, progress, log, meanwhile):
    """Start a program, and kill it when the training has come further."""
    before = progress()
    with log.open("w") as file:
        child = subprocess.Popen(argv, env=environ, cwd=folder, stdout=file, stderr=file)
    while progress() <= before:
        assert child.poll() is None, log.read_text()[-4000:]
        meanwhile()
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()


def nothing_works(tmp_path):
    """Whether no process of a killed start is left: its kernel and components notice soon."""
    stages = load("sandbox").cache_dir / "stages"
    for path in (*tmp_path.glob("sandbox/runs/*/.lock"), *stages.glob("*.lock")):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
    return True


class Hold:
    """Holds the training on the site still from its first step on, for as long as the block."""

    def __init__(self, target, tmp_path):
        self.runs = tmp_path / "sandbox/runs" if target == "cloud-hpc" else None
        self.pids = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)

    def look(self):
        for run in self.runs.glob("cloud-hpc-*") if self.runs and not self.pids else ():
            tries = Path(load("sandbox").hpc.project_dir) / "kit/tries"
            if (tries / attempt_id(run.name, 1) / PROGRESS).exists():
                self.pids = [int(line.split()[0]) for line in processes("ray::work")]
                for pid in self.pids:
                    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("target", ["local", "cloud", "cloud-hpc"])
@pytest.mark.parametrize("experiment", ["digits", "net"])
def test_run_killed_by_every_way_is_resumed_by_every_other(
    no_submitter, folder, tmp_path, experiment, target
):
    """Each way to start a run takes over what another one has begun, and is killed in turn."""
    first = ("digits", "net").index(experiment) + ("local", "cloud", "cloud-hpc").index(target)
    ways = [*WAYS[first % 3 :], *WAYS[: first % 3]]
    started = {way: argv_of(way, target, experiment, folder, tmp_path) for way in ways}
    where = results(tmp_path), folder, lambda: steps(target, tmp_path), tmp_path / "killed.log"
    with Hold(target, tmp_path) as hold:
        for way in ways:
            for old in tmp_path.rglob("pipeline.log"):
                old.unlink()  # what the next start logs is its own
            kill_in_the_middle(started[way], *where, hold.look)
            until(lambda: nothing_works(tmp_path))
    environ = results(tmp_path)
    ended = subprocess.run(
        started[ways[0]], env=environ, cwd=folder, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = history(environ)
    assert line["resumed"] is True
    assert line["experiment"] == experiment
    run = tmp_path / "sandbox/runs" / line["run"]
    if target == "cloud":
        stages = json.loads((run / "stages.json").read_text())
        assert stages["preprocess-train"]["resumed_step"] > 0
    if target == "cloud-hpc":
        site = load("sandbox")
        host = SSHHost(site.hpc.ssh_host, site.hpc.ssh_config, site.hpc.user)
        assert ended_jobs(host, line["run"]) == [(line["slurm"]["job"]["id"], "COMPLETED")]


def test_ported_script_is_trained_on_two_nodes_by_the_submitter_that_is_at_work(sandbox, tmp_path):
    """The page as it is, and a package that only the site has, by REQUIREMENTS.

    The sandbox's submitter was started before the file was written, with other variables.
    """
    page = (ROOT / "docs" / "port-pytorch.md").read_text()
    _, ported, commands = re.findall(r"```(?:python|console)\n(.*?)```", page, re.DOTALL)
    words = commands.splitlines()[-1].split()
    assert words[:3] == ["kit", "run", "cloud-hpc"]
    assert words[-2:] == ["workers", "2"]
    names = "DISTRIBUTED = True", 'REQUIREMENTS = ("iniconfig",)\nDISTRIBUTED = True'
    body = "def train(ctx):\n", "def train(ctx):\n    import iniconfig\n\n    assert iniconfig\n"
    (tmp_path / "net.py").write_text(changed(*names, changed(*body, ported)))
    environ = results(tmp_path)
    environ.pop("KIT_EXPERIMENTS", None)
    ended = kit(environ, *words[1:], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = history(environ)
    assert line["metrics"]["accuracy"] > 0.8
    assert line["parameters"]["epochs"] == 20
    log = (tmp_path / "sandbox/runs" / line["run"] / "submitter.log").read_text()
    assert "another submitter is at work here: standing by" in log
    assert "no other submitter" not in log


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
