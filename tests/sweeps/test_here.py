"""The slots of this machine, with real processes: a trial that fails, is killed, never ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from waiting import until

from kit.experiments import load_experiment, running
from kit.experiments.contract import Context
from kit.sweeps import Sweep, run_sweep, trials_of
from kit.sweeps.engine import KILLED_CAUSE
from kit.sweeps.here import ProcessSlots

pytestmark = pytest.mark.slow

BAD = """
import os, signal, subprocess, time
import kit
from pydantic import Field

NAME, PRIMARY = "misbehaving", "score"


class Parameters(kit.Parameters):
    way: str = Field(default="well", description="how the trial behaves")


def data(folder, source):
    (folder / "x").write_text("1")
    return kit.DataInfo(title="one", test_items=1)


def train(ctx):
    way = ctx.parameters.way
    if way == "raises":
        raise RuntimeError("it raised")
    if way == "diverges":
        ctx.report(1, 2, float("nan"))
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "hangs":
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)
    if way == "exits":
        os._exit(0)
    if way == "large":  # a file with nothing in it, which takes no room
        (ctx.out / "samples").touch()
        os.truncate(ctx.out / "samples", 6 * 2**30)
    print("a line of the trial")
    (ctx.out / "model.txt").write_text(way)


def evaluate(ctx):
    return {"score": 1.0} if ctx.parameters.way != "text" else {"score": "good"}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    experiment = load_experiment("digits")
    return experiment, running.make_data(experiment, tmp_path_factory.mktemp("cache"), None)


def swept(experiment, data, folder, rows, count=2, **options):
    sweep = Sweep(trials=rows, **options)
    trials = trials_of(experiment, {}, sweep)
    return run_sweep(experiment, sweep, trials, folder, ProcessSlots(experiment, data, count))


def test_a_trial_gives_the_bits_of_a_run_with_its_parameters(digits, tmp_path):
    experiment, data = digits
    rows = swept(experiment, data.folder, tmp_path, [{"epochs": 3, "seed": n} for n in (1, 2, 3)])
    assert [row["state"] for row in rows] == ["done"] * 3
    for row in rows:
        values = experiment.parameters(**row["values"])
        ctx = Context(data.folder, tmp_path / "alone" / row["trial"], values)
        running.train(experiment, ctx)
        assert running.evaluate(experiment, ctx) == row["metrics"]
        model = tmp_path / "trials" / row["trial"] / "out" / "model.npy"
        assert model.read_bytes() == (ctx.out / "model.npy").read_bytes()


def test_halving_resumes_each_trial_and_gives_the_bits_of_a_whole_training(digits, tmp_path):
    experiment, data = digits
    rows = [{"epochs": 8, "learning_rate": rate} for rate in (0.5, 0.05, 0.005, 0.0005)]
    whole = swept(experiment, data.folder, tmp_path / "whole", rows)
    halved = swept(experiment, data.folder, tmp_path / "halved", rows, stop_early=True)
    for one, other in zip(whole, halved, strict=True):
        if other["state"] == "done":
            assert one["metrics"] == other["metrics"]
    assert [row["state"] for row in halved].count("stopped early") == 3


def test_a_trial_that_misbehaves_harms_no_other(tmp_path):
    path = tmp_path / "misbehaving.py"
    path.write_text(BAD)
    experiment = load_experiment(str(path))
    data = running.make_data(experiment, tmp_path / "cache", None)
    ways = ("raises", "diverges", "killed", "hangs", "exits", "text", "large", "well")
    rows = swept(
        experiment,
        data.folder,
        tmp_path / "run",
        [{"way": way} for way in ways],
        trial_limit_s=15.0,
    )
    why = {row["values"]["way"]: row["why"] for row in rows}
    assert {way for way in ways if not why[way]} == {"well"}
    assert "RuntimeError: it raised" in why["raises"]
    assert "diverged" in why["diverges"] or "loss is nan" in why["diverges"]
    assert why["killed"] == KILLED_CAUSE
    assert "limit of 15 s" in why["hangs"]
    assert why["exits"] == "it left no result"
    assert why["text"]
    assert "6.0 GiB, at most 5 GiB can be stored" in why["large"]
    log = (tmp_path / "run" / "trials" / rows[-1]["trial"] / "trial.log").read_text()
    assert log == "a line of the trial\n"
    listed = subprocess.run(["ps", "axww", "-o", "args="], capture_output=True, text=True).stdout
    assert "sleep 600" not in listed


PROGRAM = """
import sys, json
from pathlib import Path
from kit.experiments import load_experiment
from kit.sweeps import Sweep, run_sweep, trials_of
from kit.sweeps.here import ProcessSlots

if __name__ == "__main__":
    data, folder = map(Path, sys.argv[1:3])
    experiment = load_experiment("digits")
    sweep = Sweep(trials=[{"epochs": int(sys.argv[3]), "seed": n} for n in range(4)])
    trials = trials_of(experiment, {}, sweep)
    rows = run_sweep(experiment, sweep, trials, folder, ProcessSlots(experiment, data, 2))
    print(json.dumps(rows))
"""


def test_trials_end_with_a_killed_sweep_and_the_next_start_resumes_them(digits, tmp_path):
    _, data = digits
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    argv = [sys.executable, str(program), str(data.folder), str(tmp_path / "run"), "400"]
    child = subprocess.Popen(argv)
    until(lambda: len(list(tmp_path.glob("run/trials/*/checkpoint/losses.jsonl"))) >= 2, 60)
    time.sleep(0.5)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    def quiet():
        before = snapshot(tmp_path)
        time.sleep(1.5)
        return snapshot(tmp_path) == before

    until(quiet, 20)
    done = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("run/*/*/rung-*")}
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=True)
    rows = json.loads(ended.stdout.splitlines()[-1])
    assert [row["state"] for row in rows] == ["done"] * 4
    for path in tmp_path.glob("run/*/*/rung-*"):
        assert done.get(path.parent.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("run/trials/*/checkpoint/*")}
