"""Sweeps in one job of the real Slurm: what ends one in the middle; no trial is run twice."""

import dataclasses
import json
import os
import secrets
import signal

import pytest
from digit_sweeps import DIGITS, ask_digits, seeds, sweep_here
from hpc_bench import Bench, nothing_runs, processes
from kit_sandbox import services as sandbox_services
from slurm_site import SlurmSite
from waiting import until

from kit.base.settings import load
from kit.billing import usages
from kit.experiments import running
from kit.runs.follow import follow
from kit.runs.requests import RunState
from kit.sweeps import Sweep
from kit.sweeps.engine import KILLED_CAUSE

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]
SEEDS = seeds(6)
TIMES = {"slot_seconds", "training", "start", "end"}


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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The data set of `digits`."""
    return running.make_data(DIGITS, tmp_path_factory.mktemp("data"), None)


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory):
    """The table of the same sweep on this machine, without times: nothing interrupted it."""
    return without_times(sweep_here(digits, SEEDS, 2, tmp_path_factory.mktemp("here")))


def without_times(rows):
    return [{name: row[name] for name in row.keys() - TIMES} for row in rows]


def in_the_middle(bench, run):
    """Wait until one trial is done and others are running."""
    bench.passes_until(run, lambda: counts(bench, run).get("done", 0) and bench.workers(run))


def resume(bench, run):
    """Start the next attempt; return the table and how many trials the first one had done."""
    results = (bench.folder(run) / "trials").glob("*/rung-0.json")
    before = {p.parent.name for p in results if json.loads(p.read_bytes())["state"] == "done"}
    bench.requests.ask_again(run)
    status = bench.finish(run)
    assert (status.state, status.number) == (RunState.DONE, 2)
    assert bench.ended(run, 2) == ["COMPLETED"]
    result, rows = table(bench, run)
    text = bench.submitter.data.get(result["files"]["sacct-tries.txt"]["key"]).decode()
    began = usages(bench.profile, text)[-1].rows[0].start
    kept = {row["trial"] for row in rows if row["end"] < began}
    assert kept == before  # each that was done is from the first attempt, the rest is not
    assert all(row["start"] >= began for row in rows if row["trial"] not in kept)
    assert 0 < len(kept) < len(rows)
    return rows, len(kept)


HEADS = {
    "driver": ("bin/python -m kit.onsite.driver",),
    "batch script": ("slurm_script",),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_killed_head_costs_no_finished_trial(bench, digits, unbroken, seen, head):
    run = ask_digits(bench, digits, SEEDS)
    in_the_middle(bench, run)
    with bench.frozen(run):
        found = processes(*HEADS[head])
        assert found
        for line in found:
            os.kill(int(line.split()[0]), signal.SIGKILL)
        assert bench.finish(run).state is RunState.ENDED
    assert bench.ended(run) == ["FAILED"]
    rows, kept = resume(bench, run)
    assert without_times(rows) == unbroken
    seen(f"sweep: {head} killed", f"{kept} of {len(rows)} trials kept, table as if unbroken")


@pytest.fixture
def nodes(sandbox):
    site = SlurmSite()
    yield site
    for name in ("c1", "c2"):
        until(lambda name=name: "down" not in site.node_state(name), 90, every=1)
    site.close()


@pytest.mark.parametrize("node", ["c1", "c2"])
def test_a_lost_node_costs_no_finished_trial(bench, nodes, digits, unbroken, seen, node):
    run = ask_digits(bench, digits, SEEDS)
    in_the_middle(bench, run)
    with bench.frozen(run), nodes.frozen(f"slurmd-{node}"):
        assert bench.finish(run).state is RunState.ENDED
    assert bench.ended(run) == ["NODE_FAIL"]
    until(lambda: "down" not in nodes.node_state(node), 90, every=1)
    rows, kept = resume(bench, run)
    assert without_times(rows) == unbroken
    place = "first" if node == "c1" else "other"
    seen(f"sweep: {place} node lost", f"{kept} of {len(rows)} trials kept, table as if unbroken")


def test_a_trial_killed_for_its_memory_costs_only_itself(bench, digits, unbroken, seen):
    """The kernel ends the process that uses most, by SIGKILL; so does this test."""
    run = ask_digits(bench, digits, SEEDS)
    in_the_middle(bench, run)
    os.kill(bench.workers(run)[0], signal.SIGKILL)
    assert bench.finish(run).state is RunState.DONE
    assert bench.ended(run) == ["COMPLETED"]
    rows = without_times(table(bench, run)[1])
    (killed,) = [row for row in rows if row["state"] == "failed"]
    assert killed["why"] == KILLED_CAUSE
    assert "memory" in killed["why"]
    rest = [row for row in unbroken if row["trial"] != killed["trial"]]
    assert [row for row in rows if row is not killed] == rest
    seen("sweep: a trial killed for its memory", "it failed and says why, the other 5 done")


def test_two_sweeps_at_once_are_two_jobs_whoever_submits_them(bench, digits, unbroken, seen):
    """Each is requested twice, two submitters see them, and one is killed in the middle."""
    runs = [ask_digits(bench, digits, SEEDS[:3]), ask_digits(bench, digits, SEEDS[3:])]
    for run in runs:
        assert bench.requests.ask(bench.requests.request(run)).state is RunState.REQUESTED
    first, _ = bench.start_process(), bench.start_process()
    until(lambda: all(bench.steps(run) for run in runs), 90)
    os.kill(first.pid, signal.SIGKILL)
    for run in runs:
        status = bench.finish(run)
        assert status.state is RunState.DONE, bench.requests.ending(status)
    assert [bench.ended(run) for run in runs] == [["COMPLETED"]] * 2
    assert without_times(table(bench, runs[0])[1] + table(bench, runs[1])[1]) == unbroken
    what = "two sweeps at once, each requested twice; a submitter killed"
    seen(what, "one job each, both whole")


def end_by_time_limit(bench, run, number):
    """Hold the trials of an attempt still until its job is at its time limit."""
    job = bench.job(run, number)
    with bench.frozen(run, number):
        argv = ["scontrol", "update", f"JobId={job}", "TimeLimit=1"]
        sandbox_services.run(bench.profile.sandbox_dir, argv, check=True)
        assert bench.finish(run).state is RunState.ENDED
    assert bench.ended(run, number) in (["FAILED"], ["TIMEOUT"])
    bench.requests.ask_again(run)


def test_two_time_limits_in_the_middle_cost_no_finished_trial(bench, seen):
    trials = [{"seed": n, "epochs": 100} for n in range(10)]
    run = bench.ask(workers=2, sweep=Sweep(trials=trials))
    for number in (1, 2):
        bench.passes_until(
            run,
            lambda n=number: counts(bench, run).get("done", 0) >= 2 * n and bench.workers(run, n),
        )
        end_by_time_limit(bench, run, number)
    status = bench.finish(run)
    assert (status.state, status.number) == (RunState.DONE, 3)
    assert bench.ended(run, 3) == ["COMPLETED"]
    result, rows = table(bench, run)
    assert [row["state"] for row in rows] == ["done"] * 10
    text = bench.submitter.data.get(result["files"]["sacct-tries.txt"]["key"]).decode()
    begins = sorted(usage.rows[0].start for usage in usages(bench.profile, text))
    assert len(begins) == 3
    attempts = [sum(row["start"] >= begin for begin in begins) for row in rows]
    assert attempts == [sum(row["end"] >= begin for begin in begins) for row in rows]  # in one
    kept = [attempts.count(number) for number in (1, 2, 3)]
    assert min(kept[0], kept[1] + 1, kept[2]) >= 1, kept
    assert kept[0] >= 2
    shown = f"{kept[0]} + {kept[1]} of 10 trials kept, the others run next"
    seen("sweep: time limit in the middle, twice", shown)


def test_a_cancelled_sweep_publishes_what_is_finished_and_the_next_run_does_the_rest(bench, seen):
    trials = [{"seed": n, "epochs": 1 if n == 0 else 100} for n in range(4)]
    run = bench.ask(workers=2, sweep=Sweep(trials=trials))
    following = f"{run[:-1]}2"
    in_the_middle(bench, run)
    with bench.frozen(run):
        bench.requests.cancel(run)
        assert bench.finish(run).state is RunState.DONE
    assert bench.ended(run) == ["COMPLETED"]
    result, rows = table(bench, run)
    done = [row for row in rows if row["state"] == "done"]
    assert [row["state"] for row in rows if row not in done] == ["not run"] * (4 - len(done))
    assert 0 < len(done) < 4
    metrics = json.loads(bench.submitter.data.get(result["files"]["metrics.json"]["key"]))
    assert metrics["metrics"] == max((row["metrics"] for row in done), key=lambda m: m["accuracy"])

    bench.ask(workers=2, sweep=Sweep(trials=trials, continues=[run]), run=following)
    assert bench.finish(following).state is RunState.DONE
    assert bench.ended(following) == ["COMPLETED"]
    again = table(bench, following)[1]
    taken = [row for row in again if row.get("from_run") == run]
    as_taken = {"from_run": run, "why": f"from {run}", "slot_seconds": 0}
    assert taken == [{**row, **as_taken} for row in done]
    rest = [row for row in again if row not in taken]
    last_end = max(row["end"] for row in done)
    assert all(row["state"] == "done" and row["start"] > last_end for row in rest)
    assert len(again) == 4
    until(lambda: not processes("ray::"), 60)
    shown = f"{len(done)} of 4 trials published, the next run does the others; no process left"
    seen("sweep: cancelled while trials run", shown)


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
