"""The steps of the notebook `sweep` on this machine: plan, trials, comparison, records."""

import json
import os
import subprocess
import sys

import pytest
from memory_store import MemoryStore

import kit
from kit import tracking
from kit.base import DataError, UsageError, append_history, read_history
from kit.notebook import sweep
from kit.runs.requests import RunRequests

PARAMETERS = {"epochs": 3}
SPACE = {"learning_rate": "0.01,0.1", "seed": "1..2"}


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """Results in a folder of the test; nothing is logged."""
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("KIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tracking, "log_run", lambda settings, run: logged(run))
    monkeypatch.setattr(tracking, "log_runs", lambda settings, runs: [logged(r) for r in runs])
    return tmp_path / "results"


def logged(run):
    return tracking.Logged(run.run_id, "logged")


def start(**options):
    fields = {"experiment": "digits", "at_once": 2, **options}
    return kit.start_sweep("laptop", "local", PARAMETERS, fields.pop("space", SPACE), **fields)


@pytest.mark.slow
def test_a_sweep_from_plan_to_records(environ, monkeypatch):
    logs, parents = [], []
    monkeypatch.setattr(tracking, "log_run", lambda _, log: parents.append(log) or logged(log))
    monkeypatch.setattr(tracking, "log_runs", lambda settings, runs: logs.extend(runs) or [])
    run = start()
    assert "sweep: 4 trials, 2 at once" in repr(run)
    plan = run.show_plan().frame["sweep"]
    assert (plan["trials"], plan["at once"]) == ("4", "2")
    assert "not known" in plan["core-hours"]
    for early in (run.show_trials, run.show_parallel, run.finish):
        with pytest.raises(UsageError, match="came too early"):
            early()
    assert run.run_trials().startswith("4 done; best accuracy ")
    record = run.finish()
    assert record["sweep"]["done"] == 4
    frame = run.show_trials().frame
    assert list(frame["accuracy"]) == sorted(frame["accuracy"], reverse=True)
    assert "over 2 seeds" in run.noise()
    assert "may be noise" in repr(run.show_noise())
    for figure in (run.show_parallel(), run.show_cost(), run.show_loss()):
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert (run.run.folder / "out" / "model.npy").exists()

    (line,) = read_history(environ / "laptop/history.jsonl")[0]
    assert line["metrics"] == record["metrics"]
    trials = read_history(environ / "laptop/trials.jsonl")[0]
    assert [row["run"] for row in trials] == [run.run.id] * 4
    assert [log.parent for log in logs] == [run.run.id] * 4
    assert {log.target for log in logs} == {"local"}
    (parent,), values = parents, record["sweep"]["best"]
    assert {n: parent.params[f"hp-{n}"] for n in values} == {n: str(values[n]) for n in values}
    published = json.loads((environ / f"laptop/sweeps/{run.run.id}.json").read_text())
    assert published["best"] == record["sweep"]["best"]
    assert not (environ / "laptop/local").exists()  # no file of a run is replaced
    assert kit.compare_runs(run.settings, "digits").empty  # no measurement of one training


@pytest.mark.slow
def test_an_interrupted_sweep_resumes_and_adds_each_line_once(environ):
    first = start()
    first.run_trials()
    results = {p: p.stat().st_mtime_ns for p in first.run.folder.glob("trials/*/rung-0.json")}
    first.run.lock.release(force=True)
    second = start()
    assert second.run.id == first.run.id
    assert second.run.resumed
    second.run_trials()
    assert {p: p.stat().st_mtime_ns for p in results} == results
    second.finish()
    second._add_lines()
    assert len(read_history(environ / "laptop/trials.jsonl")[0]) == 4


@pytest.mark.slow
def test_trials_of_an_earlier_run_are_in_every_record_with_its_id(environ, monkeypatch):
    logs = []
    monkeypatch.setattr(tracking, "log_runs", lambda settings, runs: logs.extend(runs) or [])
    run = start()
    run.run_trials()
    earlier = "cloud-hpc-0123456789ab-1"
    run.rows[0] |= {"from_run": earlier, "why": f"from {earlier}", "slot_seconds": 0.0}
    assert run.finish()["sweep"]["taken_over"] == 1
    why = dict(zip(run.show_trials().frame["why"], run.show_trials().frame["seconds"], strict=True))
    assert why[f"from {earlier}"] == 0
    (drawn,) = [line for line in run.show_cost().axes[0].lines if len(line.get_xdata())]
    assert len(drawn.get_xdata()) == 3
    lines = read_history(environ / "laptop/trials.jsonl")[0]
    assert [line.get("from_run") for line in lines] == [earlier] + [None] * 3
    assert {log.tags["kit.state"] for log in logs} == {"done"}
    assert all("training-seconds" in {key for key, *_ in log.metrics} for log in logs)
    run.rows = [{**row, "metrics": {"accuracy": 0.5}} for row in run.rows]
    assert run.noise().endswith("the seed makes no difference to accuracy")
    tags = [log.tags.get("kit.from_run") for log in logs]
    assert tags == [earlier] + [None] * 3


def on_the_site(**options):
    return kit.start_sweep(
        "sandbox", "cloud-hpc", {}, {"seed": "1..4"}, experiment="digits", **options
    )


def test_the_same_command_continues_a_cancelled_sweep(environ, monkeypatch):
    first = on_the_site()
    assert first.request.sweep.continues == []
    first.run.more = {"sweep": {"not_run": 3}}
    first.run.finish({}, {})
    second = on_the_site()
    assert f"continues 3 of 4 trials, the others are finished in {first.run.id}" in repr(second)
    assert second.request.sweep.continues == [first.run.id]
    plan = second.show_plan().frame["sweep"]
    assert (plan["trials"], plan["left to run"], plan["trainings' worth"]) == ("4", "3", "3")
    second.run.lock.release(force=True)
    requests = RunRequests(MemoryStore())
    requests.ask(second.request)
    requests.cancel(second.run.id)
    monkeypatch.setattr(sweep, "bucket_name", lambda settings, role: role)
    monkeypatch.setattr(sweep, "open_store", lambda settings, bucket: requests.store)
    assert on_the_site().run.id == second.run.id  # its job may still run
    second.run.lock.release(force=True)
    requests.write(second.run.id, "try-1/ended", {})
    third = on_the_site()
    assert f"\ncontinues {second.run.id}" in repr(third)
    assert third.request.sweep.continues == [second.run.id, first.run.id]
    assert "left to run" not in third.show_plan().frame["sweep"]
    assert on_the_site(fresh=True).request.sweep.continues == []


def swept(folder, *seeds, log):
    """Start `kit sweep` with results in a folder; one sweep for each text of seeds."""
    argv = [sys.executable, "-m", "kit", "sweep", "local", "--profile", "laptop"]
    argv += ["--experiment", "digits", "-p", "epochs", "3", "-p", "seed"]
    environ = {**os.environ, "KIT_RESULTS_DIR": str(folder)}
    with log.open("w") as file:
        return [
            subprocess.Popen([*argv, text], env=environ, stdout=file, stderr=file) for text in seeds
        ]


@pytest.mark.slow
def test_two_sweeps_in_one_folder_at_once_have_all_lines_each_once(tmp_path):
    results, log = tmp_path / "results", tmp_path / "log"
    children = swept(results, "1..3", "4..6", log=log)
    assert [child.wait() for child in children] == [0, 0], log.read_text()
    lines = read_history(results / "laptop/history.jsonl")[0]
    assert [line["sweep"]["done"] for line in lines] == [3, 3]
    trials = read_history(results / "laptop/trials.jsonl")[0]
    assert sorted(row["values"]["seed"] for row in trials) == [1, 2, 3, 4, 5, 6]
    for line in lines:
        own = {row["values"]["seed"] for row in trials if row["run"] == line["run"]}
        assert own in ({1, 2, 3}, {4, 5, 6})
        assert line["sweep"]["best"]["seed"] in own
    shown = log.read_text()
    assert all(f"of 3, seed {seed}: done, accuracy 0." in shown for seed in range(1, 7))


@pytest.mark.slow
def test_the_same_sweep_started_twice_at_once_is_one(tmp_path):
    results, log = tmp_path / "results", tmp_path / "log"
    codes = [child.wait() for child in swept(results, "1..4", "1..4", log=log)]
    assert sorted(codes) != [1, 1], log.read_text()
    if 1 in codes:  # the other one may have ended before this one looked
        assert "is being executed by another process" in log.read_text()
    trials = read_history(results / "laptop/trials.jsonl")[0]
    assert sorted(row["values"]["seed"] for row in trials) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"space": {}}, "nothing"),
        ({"space": {"wrong": "1..2"}}, "unknown parameter"),
        ({"space": {"epochs": "0..2"}}, "trial 1 of the sweep"),
        ({"space": {"epochs": "1..2"}, "stop_early": True}, "epochs differs"),
        ({"space": {"seed": "1..2000"}}, "2,000 values"),
        ({"at_once": 0}, "at once"),
        ({"trials": 9}, "different combinations"),
        ({"trial_limit_s": -1.0}, "trial_limit_s"),
    ],
)
def test_what_is_not_possible_is_refused_before_anything_is_written(environ, fields, words):
    with pytest.raises(UsageError) as caught:
        start(**fields)
    assert words in str(caught.value)
    assert not (environ / "laptop" / "runs").exists()


def test_the_target_cloud_is_refused_with_the_reason(environ):
    with pytest.raises(UsageError, match="trains once") as caught:
        kit.start_sweep("laptop", "cloud", {}, SPACE, experiment="digits")
    assert "cloud-hpc" in caught.value.next_step


def test_a_plan_with_halving_counts_what_is_trained(environ):
    space = {"seed": "1..8"}
    run = kit.start_sweep(
        "laptop", "local", {"epochs": 8}, space, experiment="digits", stop_early=True
    )
    # 8 trials of one epoch, 4 of one more, 2 of two more, 1 of four more: 20 of 64 epochs
    assert run.show_plan().frame["sweep"]["trainings' worth"] == "2.5"


def test_a_plan_has_the_figures_of_earlier_runs_and_trials(environ):
    kinds = {"experiment": "digits", "target": "cloud-hpc"}
    folder = environ / "sandbox"
    folder.mkdir(parents=True)
    runs = [
        {**kinds, "figures": {"training_s": 80.0}},
        {**kinds, "figures": {"training_s": 120.0}},
        {**kinds, "figures": {"training_s": 9.0}, "sweep": {}},
        {**kinds, "figures": {"training_s": 9.0}, "target": "local"},
        {**kinds, "figures": {"training_s": 9.0}, "experiment": "other"},
        {**kinds, "figures": {}},
    ]
    trials = [
        {**kinds, "state": "done", "training": {"total-seconds": 90.0}},
        {**kinds, "state": "failed", "training": {}},
    ]
    for name, lines in (("history.jsonl", runs), ("trials.jsonl", trials)):
        for number, line in enumerate(lines):
            append_history(folder / name, {"run": f"r-{number}", **line})
    run = kit.start_sweep("sandbox", "cloud-hpc", {}, {"seed": "1..4"}, experiment="digits")
    plan = run.show_plan().frame["sweep"]
    # the median of 80, 90 and 120 s, four times; two at once
    assert plan["core-hours"] == "about 0.1"
    assert plan["takes"] == "about 180 s of training"
    # 180 s with 6 GiB at 0.375 an hour each, which is more than the 2 CPUs
    assert plan["CPU BU"].startswith("about 0.112, without the start")


def test_a_plan_on_a_site_says_what_the_job_has_and_may_cost(environ):
    run = kit.start_sweep("sandbox", "cloud-hpc", {}, {"seed": "1..4"}, experiment="digits")
    plan = run.show_plan()
    assert plan.frame["sweep"]["the job has"].startswith("2 CPUs, 0 GPUs, ")
    assert plan.notes
    with pytest.raises(DataError, match="workers = 5"):
        kit.start_sweep("sandbox", "cloud-hpc", {}, {"seed": "1..4"}, at_once=5)
