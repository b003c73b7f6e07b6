"""The engine: each trial once, resumed, halved, failed ones reported, none run twice."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kit.base import DataError, UsageError
from kit.experiments import Goal, load_experiment
from kit.sweeps import Sweep, expand, run_sweep, stored_results, table_of, trials_of
from kit.sweeps.engine import (
    CUT_OFF,
    KILLED_CAUSE,
    MAX_TRIALS_BYTES,
    POLL_S,
    REMOVED,
    best_row,
    progress_of,
    publish_best,
    rungs_of,
    training_of,
)

DIGITS = load_experiment("digits")


class Scripted:
    """Slots that carry out nothing: a trial's metric is a function of its parameters."""

    def __init__(self, count=2, metric=lambda p: p["seed"] / 100, fails=None, hangs=(), size=1):
        self.count, self.metric, self.fails, self.hangs = count, metric, fails or {}, hangs
        self.size = size
        self.started, self.running, self.most, self.killed = [], {}, 0, []

    def start(self, trial, parameters, folder, rung):
        self.started.append((parameters["seed"], parameters["epochs"]))
        self.running[trial] = parameters, folder, rung
        self.most = max(self.most, len(self.running))

    def ended(self, timeout_s):
        found = {}
        for trial, (parameters, folder, rung) in list(self.running.items()):
            if parameters["seed"] in self.hangs:
                continue
            del self.running[trial]
            why = self.fails.get(parameters["seed"], "")
            if isinstance(why, BaseException):
                raise why
            if not why:
                (folder / "out").mkdir(exist_ok=True)
                (folder / "out" / "model.npy").write_text(str(parameters))
                (folder / "losses.json").write_text("[]")
                times = {"total-seconds": 1.0}
                result = {"state": "done", "metrics": {"accuracy": self.metric(parameters)}}
                result |= {"start": 1.0, "end": 3.5, "training": times, "files": {"model.npy": "0"}}
                result["bytes"] = self.size
                (folder / rung).write_text(json.dumps(result))
            found[trial] = why
            break
        return found

    def kill(self, trial):
        if trial in self.running:
            self.killed.append(self.running.pop(trial)[0]["seed"])


def sweep_of(space, **options):
    trials = expand(space)
    return Sweep(trials=trials, **options), trials_of(DIGITS, {"epochs": 5}, trials)


def test_every_trial_is_run_once_in_order_at_most_as_many_at_once_as_there_are_slots(tmp_path):
    sweep, trials = sweep_of({"seed": "1..5"})
    slots, shown = Scripted(count=2), []
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, slots, shown.append)
    assert [seed for seed, _ in slots.started] == [1, 2, 3, 4, 5]
    assert slots.most == 2
    assert [row["state"] for row in rows] == ["done"] * 5
    assert [row["slot_seconds"] for row in rows] == [2.5] * 5
    assert best_row(rows, Goal("accuracy"))["values"] == {"seed": 5}
    assert shown[-1]["step"] == shown[-1]["steps"] == 5
    assert shown[-1]["trials"]["best"] == "accuracy 0.0500: seed 5"
    assert shown[0]["trials"]["running"] == 2  # what runs is shown before any has ended


def test_a_sweep_that_is_run_again_runs_what_is_missing_only(tmp_path):
    sweep, trials = sweep_of({"seed": "1..4"})
    broken = Scripted(1, fails={3: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run_sweep(DIGITS, sweep, trials, tmp_path, broken)
    assert [seed for seed, _ in broken.started] == [1, 2, 3]
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, again := Scripted(1))
    assert [seed for seed, _ in again.started] == [3, 4]
    assert [row["state"] for row in rows] == ["done"] * 4


def test_what_is_left_of_a_broken_sweep_is_killed(tmp_path):
    sweep, trials = sweep_of({"seed": "1..4"})
    slots = Scripted(2, fails={1: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run_sweep(DIGITS, sweep, trials, tmp_path, slots)
    assert slots.killed == [2]


def test_a_failed_trial_costs_only_itself_and_says_why(tmp_path):
    sweep, trials = sweep_of({"seed": "1..3"})
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, Scripted(fails={2: "ValueError: no"}))
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert rows[1]["why"] == "ValueError: no"
    run_sweep(DIGITS, sweep, trials, tmp_path, again := Scripted())
    assert again.started == []  # it has its end


def test_a_sweep_whose_trials_all_fail_fails_with_the_first_reason(tmp_path):
    sweep, trials = sweep_of({"seed": "1..2"})
    slots = Scripted(fails={1: "OSError: disk", 2: "no"})
    with pytest.raises(DataError, match="all failed; the first one: OSError: disk"):
        run_sweep(DIGITS, sweep, trials, tmp_path, slots)


def test_a_trial_that_never_ends_is_ended_after_its_limit(tmp_path, monkeypatch):
    sweep, trials = sweep_of({"seed": "1..3"}, trial_limit_s=0.05)
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, slots := Scripted(1, hangs={2}))
    assert slots.killed == [2]
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert "its limit of 0.05 s" in rows[1]["why"]
    assert POLL_S


def test_a_trial_that_leaves_no_result_has_failed(tmp_path):
    class Silent(Scripted):
        def ended(self, timeout_s):
            return {self.running.popitem()[0]: ""} if self.running else {}

    sweep, trials = sweep_of({"seed": "1..2"})
    with pytest.raises(DataError, match="it left no result"):
        run_sweep(DIGITS, sweep, trials, tmp_path, Silent())


def test_halving_trains_all_a_little_and_the_best_to_the_end(tmp_path):
    sweep, trials = sweep_of({"seed": "1..24"}, stop_early=True)
    assert rungs_of(DIGITS, sweep, trials) == [1, 2, 5]
    slots = Scripted(4)
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, slots)
    epochs = [epochs for _, epochs in slots.started]
    assert [epochs.count(n) for n in (1, 2, 5)] == [24, 12, 6]
    states = [row["state"] for row in rows]
    assert states == ["stopped early"] * 18 + ["done"] * 6
    assert rows[-1]["slot_seconds"] == 7.5  # of all its starts
    assert rows[0]["slot_seconds"] == 2.5


def test_a_halved_sweep_that_is_run_again_decides_the_same(tmp_path):
    sweep, trials = sweep_of({"seed": "1..8"}, stop_early=True)

    class Broken(Scripted):
        def start(self, trial, parameters, folder, rung):
            if len(self.started) == 9:
                raise KeyboardInterrupt
            super().start(trial, parameters, folder, rung)

    broken = Broken(1)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(DIGITS, sweep, trials, tmp_path, broken)
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, again := Scripted(1))
    both = broken.started[:8] + again.started
    assert both.count((8, 1)) == 1
    assert [row["state"] for row in rows].count("done") == 2


def lowest():
    """The digits, as if less of their metric were better."""
    return replace(DIGITS, module=SimpleNamespace(**{**vars(DIGITS.module), "BEST": "lowest"}))


def test_the_best_trial_of_a_loss_is_the_lowest_from_the_first_halving_to_the_results(tmp_path):
    sweep, trials = sweep_of({"seed": "1..4"}, stop_early=True)
    shown = []
    rows = run_sweep(lowest(), sweep, trials, tmp_path, Scripted(), shown.append)
    assert [row["state"] for row in rows] == ["done", "stopped early"] + 2 * ["stopped early"]
    assert shown[-1]["trials"]["best"] == "accuracy 0.0100: seed 1"
    assert publish_best(tmp_path, rows, lowest().goal)["values"] == {"seed": 1}
    assert lowest().goal.worth({}) < lowest().goal.worth({"accuracy": 1e300})


def test_a_failed_trial_is_not_among_the_best(tmp_path):
    sweep, trials = sweep_of({"seed": "1..4"}, stop_early=True)
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, Scripted(fails={4: "no", 3: "no"}))
    assert best_row(rows, Goal("accuracy"))["values"] == {"seed": 2}


@pytest.mark.parametrize(
    ("space", "words"),
    [({"epochs": "1..3"}, "epochs differs between the trials")],
)
def test_halving_needs_one_budget(space, words):
    sweep, trials = sweep_of(space, stop_early=True)
    with pytest.raises(UsageError, match=words):
        rungs_of(DIGITS, sweep, trials)


def test_a_later_attempt_takes_over_the_newest_state_of_each_trial(tmp_path):
    sweep, trials = sweep_of({"seed": "1..4"})
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    for folder, ran in ((first, trials[:2]), (second, trials[1:3])):
        run_sweep(DIGITS, sweep, ran, folder, Scripted())
    killed = second / "trials" / trials[2].id
    failed = {"state": "failed", "why": KILLED_CAUSE, "again": True, "start": 1, "end": 2}
    (killed / "rung-0.json").write_text(json.dumps(failed))
    (killed / "checkpoint").mkdir()
    (killed / "checkpoint" / "weights").write_text("w")
    stored_results([second, first, tmp_path / "none"], third)
    assert (third / "trials" / trials[2].id / "checkpoint" / "weights").read_text() == "w"
    rows = run_sweep(DIGITS, sweep, trials, third, again := Scripted(1))
    assert [seed for seed, _ in again.started] == [3, 4]
    assert [row["state"] for row in rows] == ["done"] * 4


def test_trials_of_an_earlier_run_are_taken_over_and_their_bill_stays_there(tmp_path):
    sweep, trials = sweep_of({"seed": "1..5"})
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    run_sweep(DIGITS, sweep, trials[:2], first, Scripted())
    (first / "trials" / trials[2].id).mkdir()  # begun, without a result
    stored_results([first], second, "run-1")
    rows = run_sweep(DIGITS, sweep, trials[:4], second, again := Scripted(1))
    assert [seed for seed, _ in again.started] == [3, 4]
    assert [row.get("from_run") for row in rows] == ["run-1", "run-1", None, None]
    assert [row["why"] for row in rows] == ["from run-1"] * 2 + [""] * 2
    assert [row["slot_seconds"] for row in rows] == [0, 0, 2.5, 2.5]
    assert [row["state"] for row in rows] == ["done"] * 4
    assert training_of(rows) == (1.0, 3.5, 2.0)  # two trainings of one second
    assert training_of(rows[:2]) == (1.0, 3.5, 2.0)
    stored_results([second], third, "run-2")  # each trial keeps the run that has paid for it
    rows = run_sweep(DIGITS, sweep, trials, third, again := Scripted(1))
    assert [seed for seed, _ in again.started] == [5]
    assert [row.get("from_run") for row in rows] == ["run-1", "run-1", "run-2", "run-2", None]
    assert publish_best(third, rows, Goal("accuracy"))["values"] == {"seed": 5}


def test_a_later_attempt_knows_what_the_one_before_had_taken_over(tmp_path):
    sweep, trials = sweep_of({"seed": "1..3"})
    other, first, second = (tmp_path / name for name in ("0", "1", "2"))
    run_sweep(DIGITS, sweep, trials[:1], other, Scripted())
    stored_results([other], first, "run-1")
    (first / "trials" / f"{trials[1].id}.taken").mkdir()  # it was killed while it copied
    stored_results([first], second)
    stored_results([other], second, "run-1")
    rows = run_sweep(DIGITS, sweep, trials, second, again := Scripted(1))
    assert [seed for seed, _ in again.started] == [2, 3]
    assert [row.get("from_run") for row in rows] == ["run-1", None, None]


def test_a_damaged_result_is_run_again(tmp_path):
    sweep, trials = sweep_of({"seed": "1..2"})
    run_sweep(DIGITS, sweep, trials, tmp_path, Scripted())
    for text in ("{", "[]", '{"state": "done"}', "\xff"):
        (tmp_path / "trials" / trials[0].id / "rung-0.json").write_bytes(text.encode("latin-1"))
        run_sweep(DIGITS, sweep, trials, tmp_path, again := Scripted())
        assert [seed for seed, _ in again.started] == [1]


def test_the_best_trials_files_become_those_of_the_run(tmp_path):
    sweep, trials = sweep_of({"seed": "1..3"})
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, Scripted(metric=lambda p: -p["seed"]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("")
    best = publish_best(tmp_path, rows, Goal("accuracy"))
    assert best["values"] == {"seed": 1}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.npy"]
    assert json.loads((tmp_path / "trials.json").read_text()) == rows


def test_progress_before_any_trial_has_ended(tmp_path):
    sweep, trials = sweep_of({"seed": "1..3"})
    rows = table_of(DIGITS, sweep, trials, tmp_path)
    assert progress_of(rows, {}, Goal("accuracy"))["trials"]["best"] == ""
    assert {row["state"] for row in rows} == {"not run"}


def test_a_sweep_that_is_asked_to_end_keeps_what_is_done_and_begins_no_further_trial(tmp_path):
    sweep, trials = sweep_of({"seed": "1..5"})
    slots = Scripted(2, hangs={2, 3})
    rows = run_sweep(
        DIGITS, sweep, trials, tmp_path, slots, end_requested=lambda: len(slots.started) == 3
    )
    assert [row["state"] for row in rows] == ["done"] + ["not run"] * 4
    assert sorted(slots.killed) == [2, 3]
    assert publish_best(tmp_path, rows, Goal("accuracy"))["values"] == {"seed": 1}
    with pytest.raises(DataError, match="ended before one was done"):
        run_sweep(DIGITS, sweep, trials, tmp_path / "n", Scripted(), end_requested=lambda: True)


def test_what_a_cancel_has_cut_off_after_a_halving_is_not_stopped_early_but_run_later(tmp_path):
    class Cancelled(Scripted):
        def start(self, trial, parameters, folder, rung):
            super().start(trial, parameters, folder, rung)
            self.hangs = {8} if self.started[-1] == (8, 5) else set()

    sweep, trials = sweep_of({"seed": "1..8"}, stop_early=True)  # 8, then 4, then 2 to their end
    slots = Cancelled(1)
    rows = run_sweep(
        DIGITS, sweep, trials, tmp_path, slots, end_requested=lambda: bool(slots.hangs)
    )
    assert [row["state"] for row in rows] == ["stopped early"] * 6 + ["done", "not run"]
    assert rows[7]["why"] == CUT_OFF
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, again := Scripted(1))
    assert again.started == [(8, 5)]
    assert [row["state"] for row in rows] == ["stopped early"] * 6 + ["done"] * 2


def test_results_of_all_trials_that_are_too_large_cost_the_worst_their_files(tmp_path):
    sweep, trials = sweep_of({"seed": "1..5"})
    metric = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.7, 5: 0.2}
    slots = Scripted(1, metric=lambda p: metric[p["seed"]], size=MAX_TRIALS_BYTES // 3)
    rows = run_sweep(DIGITS, sweep, trials, tmp_path, slots)
    kept = [path.parents[1].name for path in tmp_path.glob("trials/*/out/model.npy")]
    assert sorted(kept) == sorted(trials[n].id for n in (0, 1, 3))
    assert [row["why"] for row in rows] == ["", "", REMOVED, "", REMOVED]
    assert [row["metrics"]["accuracy"] for row in rows] == list(metric.values())
    assert rows[2]["files"] == {}
    huge = Scripted(1, metric=lambda p: metric[p["seed"]], size=2 * MAX_TRIALS_BYTES)
    rows = run_sweep(DIGITS, sweep, trials, tmp_path / "huge", huge)
    assert publish_best(tmp_path / "huge", rows, Goal("accuracy"))["values"] == {"seed": 2}
