"""Sweeps in one job of the real Slurm: time limit, cancel, halving; no trial is run twice."""

import dataclasses
import json
import secrets

import pytest
from hpc_bench import Bench, nothing_runs, processes
from kit_sandbox import services as sandbox_services
from waiting import until

from kit.base.settings import load
from kit.billing import usages
from kit.runs.follow import follow
from kit.runs.requests import RunState
from kit.sweeps import Sweep

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bench(sandbox):
    profile = load("sandbox")
    store = dataclasses.replace(profile.store, bucket_prefix=f"t{secrets.token_hex(4)}")
    made = Bench(dataclasses.replace(profile, store=store))
    yield made
    made.close()
    until(nothing_runs, 60)


def counts(bench, run):
    """What the job of a sweep has reported of its trials."""
    return (bench.training(run) or {}).get("trials", {})


def table(bench, run):
    result = follow(bench.requests, run, 0, lambda _: None)
    return result, json.loads(bench.submitter.data.get(result["files"]["trials.json"]["key"]))


def test_a_time_limit_in_the_middle_costs_no_finished_trial(bench, seen):
    trials = [{"seed": n, "epochs": 100} for n in range(8)]
    run = bench.ask(workers=2, sweep=Sweep(trials=trials))
    bench.passes_until(run, lambda: counts(bench, run).get("done", 0) >= 2)
    job = bench.job(run)
    with bench.frozen(run):  # its trials stay as they are until the limit is near
        argv = ["scontrol", "update", f"JobId={job}", "TimeLimit=1"]
        sandbox_services.run(bench.profile.sandbox_dir, argv, check=True)
        assert bench.finish(run).state is RunState.ENDED
    bench.requests.ask_again(run)
    status = bench.finish(run)
    assert (status.state, status.number) == (RunState.DONE, 2)
    result, rows = table(bench, run)
    assert [row["state"] for row in rows] == ["done"] * 8
    text = bench.submitter.data.get(result["files"]["sacct-tries.txt"]["key"]).decode()
    _, second = usages(bench.profile, text)
    began = second.rows[0].start
    kept = [row for row in rows if row["end"] < began]
    assert len(kept) >= 2
    assert [row for row in rows if row["start"] < began] == kept  # none was begun in both
    assert bench.ended(run, 1) in (["FAILED"], ["TIMEOUT"])
    assert bench.ended(run, 2) == ["COMPLETED"]
    seen("sweep: time limit in the middle", f"{len(kept)} of 8 trials kept, the others run next")


def test_a_cancelled_sweep_frees_its_nodes_and_leaves_no_process(bench, seen):
    trials = [{"seed": n, "epochs": 3000} for n in range(4)]
    run = bench.ask(workers=2, sweep=Sweep(trials=trials))
    bench.passes_until(run, lambda: counts(bench, run).get("running") == 2)
    bench.requests.cancel(run)
    assert bench.finish(run).state is RunState.CANCELLED
    assert bench.ended(run) == ["CANCELLED"]
    until(lambda: not processes("ray::"), 60)
    seen("sweep: cancelled while trials run", "job CANCELLED, no process left")


def test_halving_in_the_job_decides_as_on_this_machine(bench, seen):
    rates = (0.1, 0.01, 0.001, 0.0001)
    trials = [{"learning_rate": rate, "epochs": 4} for rate in rates]
    run = bench.ask(workers=2, sweep=Sweep(trials=trials, stop_early=True))
    assert bench.finish(run).state is RunState.DONE
    result, rows = table(bench, run)
    states = [row["state"] for row in rows]
    assert states.count("done") == 1
    best = rows[states.index("done")]
    metrics = json.loads(bench.submitter.data.get(result["files"]["metrics.json"]["key"]))
    assert metrics["metrics"] == best["metrics"]
    assert bench.ended(run) == ["COMPLETED"]
    seen("sweep: halving of 4 trials in one job", f"{len(rows) - 1} stopped early, one job")
