"""A sweep inside the job, with a real Ray on this machine."""

import json
import threading

import pytest
from waiting import until

from kit.base import ROOT, DataError
from kit.experiments import load_experiment, running
from kit.onsite import END_TRIALS
from kit.onsite import sweep as onsite
from kit.submitter import job as ray_job
from kit.sweeps import TRIALS

pytestmark = pytest.mark.slow

DIGITS = load_experiment("digits")


ODD = """
import os, time
import kit
from pydantic import Field

NAME, PRIMARY = "odd_trials", "score"


class Parameters(kit.Parameters):
    way: str = Field(default="well", description="how the trial behaves")


def data(folder, source):
    return kit.DataInfo(title="none")


def train(ctx):
    if ctx.parameters.way.startswith("raises"):
        raise ValueError("no")
    if ctx.parameters.way == "killed":
        os.kill(os.getpid(), 9)
    if ctx.parameters.way.startswith("hangs"):
        time.sleep(600)
    if ctx.parameters.way == "diverges":
        ctx.report(1, 2, float("nan"))
    if ctx.parameters.way == "large":  # a file with nothing in it, which takes no room
        (ctx.out / "samples").touch()
        os.truncate(ctx.out / "samples", 6 * 2**30)
    (ctx.out / "model.txt").write_text("m")


def evaluate(ctx):
    return {"score": 0.5}
"""


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory):
    """Ray on this machine, whose workers can import `odd_trials`."""
    import ray

    folder = tmp_path_factory.mktemp("modules")
    (folder / "odd_trials.py").write_text(ODD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{folder}")
        patch.syspath_prepend(folder)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture
def task(tmp_path):
    data = running.make_data(DIGITS, tmp_path / "cache", None)
    path = tmp_path / "data.zip"
    path.write_bytes(ray_job.data_archive(data.folder))
    fields = {"data": str(path), "data_hash": data.hash, "workers": 2, "continued": []}
    return fields | {"module": "kit.experiments.digits", "hyperparameters": {"epochs": 4}}


def swept(task, folder, rows, earlier=(), **options):
    folder.mkdir()
    sweep = {"trials": rows, "stop_early": False, "trial_limit_s": 0.0, **options}
    onsite.run_trials({**task, "sweep": sweep, "earlier": list(map(str, earlier))}, folder)
    return json.loads((folder / TRIALS).read_text())


def test_the_files_of_the_attempt_are_those_of_the_best_trial(ray_here, task, tmp_path):
    folder = tmp_path / "try"
    rows = swept(task, folder, [{"learning_rate": rate} for rate in (0.001, 0.1, 0.01)])
    assert [row["state"] for row in rows] == ["done"] * 3
    best = max(rows, key=lambda row: row["metrics"]["accuracy"])
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics == best["metrics"]
    model = folder / "trials" / best["trial"] / "out" / "model.npy"
    assert (folder / "out" / "model.npy").read_bytes() == model.read_bytes()
    times = json.loads((folder / "times.json").read_text())
    sums = sum(row["training"]["total-seconds"] for row in rows)
    assert times["training"]["total-seconds"] == pytest.approx(sums, abs=1e-4)
    assert times["best"] == best["values"] == {"learning_rate": best["values"]["learning_rate"]}
    assert json.loads((folder / "progress.json").read_text())["step"] == 3


def test_a_later_attempt_runs_what_no_earlier_one_has_finished(ray_here, task, tmp_path):
    rows = [{"seed": n} for n in range(4)]
    swept(task, tmp_path / "first", rows[:2])
    again = swept(task, tmp_path / "third", rows, [tmp_path / "none", tmp_path / "first"])
    for row in again[:2]:
        assert row["end"] < (tmp_path / "third").stat().st_ctime + 60
        path = f"trials/{row['trial']}/rung-0.json"
        first = tmp_path / "first" / path
        assert first.read_bytes() == (tmp_path / "third" / path).read_bytes()
    assert [row["state"] for row in again] == ["done"] * 4


def test_a_trial_that_fails_or_takes_too_long_costs_only_itself(ray_here, task, tmp_path):
    odd = {**task, "module": "odd_trials", "hyperparameters": {}}
    rows = [{"way": way} for way in ("raises", "diverges", "killed", "hangs", "large", "well")]
    found = swept(odd, tmp_path / "try", rows, trial_limit_s=15.0)
    why = {row["values"]["way"]: row["why"] for row in found}
    assert why["raises"] == "ValueError: no"
    assert "loss is nan" in why["diverges"]
    assert "killed" in why["killed"]
    assert "6.0 GiB, at most 5 GiB can be stored" in why["large"]
    assert "limit of 15 s" in why["hangs"]
    assert why["well"] == ""


def test_when_all_trials_fail_the_attempt_fails(ray_here, task, tmp_path):
    odd = {**task, "module": "odd_trials", "hyperparameters": {}}
    with pytest.raises(DataError, match="all failed; the first one: ValueError: no"):
        swept(odd, tmp_path / "try", [{"way": "raises"}, {"way": "raises too"}])


def test_a_sweep_that_is_asked_to_end_leaves_what_is_done_as_its_result(ray_here, task, tmp_path):
    folder = tmp_path / "try"
    odd = {**task, "module": "odd_trials", "hyperparameters": {}}
    end = threading.Thread(target=end_after_one, args=(folder,), daemon=True)
    end.start()
    rows = swept(odd, folder, [{"way": way} for way in ("well", "hangs", "hangs too")])
    end.join()
    assert [row["state"] for row in rows] == ["done", "not run", "not run"]
    done = rows[0]["end"] - rows[0]["start"]
    assert rows[0]["slot_seconds"] == pytest.approx(done, abs=1e-4)
    assert json.loads((folder / "metrics.json").read_text()) == {"metrics": {"score": 0.5}}
    assert json.loads((folder / "times.json").read_text())["trials"] == 1
    next_run = {**odd, "continued": [["run-1", str(folder)]]}
    again = swept(next_run, tmp_path / "next", [{"way": way} for way in ("well", "well too")])
    assert [row["state"] for row in again] == ["done", "done"]
    taken = {"from_run": "run-1", "why": "from run-1", "slot_seconds": 0}
    assert again[0] == {**rows[0], **taken}
    assert "from_run" not in again[1]
    assert again[1]["start"] > again[0]["end"]


def test_a_sweep_whose_earlier_trials_are_gone_runs_none(task, tmp_path):
    gone = {**task, "continued": [["run-1", str(tmp_path / "gone")]]}
    with pytest.raises(DataError, match="take over the trials of run-1") as caught:
        swept(gone, tmp_path / "try", [{"seed": 1}])
    assert "--fresh" in caught.value.next_step
    assert not list((tmp_path / "try").glob("trials/*"))


def end_after_one(folder):
    """Ask a sweep to end, as the submitter does, once a trial is done."""
    until(lambda: list(folder.glob("trials/*/rung-0.json")), 60)
    (folder / END_TRIALS).touch()
