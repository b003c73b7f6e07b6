"""The last trials of a sweep: few lines of few columns, however many trials there are."""

import json

import pytest

from kit.experiments import Goal
from kit.sweeps.engine import progress_of
from kit.sweeps.live import MAX_COLUMNS, MAX_ROWS, ended_lines, table_lines


def row(number, state="done", **more):
    metrics = {"accuracy": number / 100} if state == "done" else {}
    fields = {"trial": f"t{number}", "values": {"seed": number}, "state": state}
    fields |= {"metrics": metrics, "why": "", "slot_seconds": 0.0}
    times = {} if state == "not run" else {"end": 100.0 + number, "slot_seconds": 1.25}
    return fields | times | more


def test_a_table_has_the_trials_that_ended_and_those_that_run(monkeypatch):
    monkeypatch.setattr("kit.sweeps.engine.time.time", lambda: 110.9)
    rows = [row(1), row(2, "failed", why="ValueError:\nno"), row(3, "not run"), row(4, "not run")]
    progress = progress_of(rows, {"t3": 108.0}, Goal("accuracy"))
    assert table_lines(progress) == [
        "trial  values  state    accuracy  seconds",
        "  1/4  seed 1  done       0.0100      1.2",
        "  2/4  seed 2  failed                 1.2  ValueError: no",
        "  3/4  seed 3  running                  2",
    ]
    assert ended_lines(progress) == [
        "trial 1 of 4, seed 1: done, accuracy 0.0100, 1.2 s",
        "trial 2 of 4, seed 2: failed, 1.2 s, ValueError: no",
    ]


def test_a_trial_that_runs_again_with_more_epochs_keeps_its_metric(monkeypatch):
    monkeypatch.setattr("kit.sweeps.engine.time.time", lambda: 110.0)
    progress = progress_of([row(1), row(2)], {"t1": 107.0}, Goal("accuracy"))
    assert [line.split()[0] for line in table_lines(progress)] == ["trial", "2/2", "1/2"]
    assert table_lines(progress)[2] == "  1/2  seed 1  running    0.0100        3"


def test_before_a_trial_has_begun_there_is_no_table():
    progress = progress_of([row(1, "not run")], {}, Goal("accuracy"))
    assert table_lines(progress) == ended_lines(progress) == []


def test_a_thousand_long_trials_are_few_short_lines():
    values = {"text": "x" * 3000}
    rows = [row(n, "failed", values=values, why="y" * 3000) for n in range(500)]
    rows += [row(n, "not run") for n in range(500, 1000)]
    progress = progress_of(rows, {f"t{n}": 0.0 for n in range(500, 600)}, Goal("accuracy"))
    table = table_lines(progress)
    assert len(table) == MAX_ROWS + 1
    assert [line.split()[0] for line in table[-5:]] == [
        "500/1000",
        *(f"{n}/1000" for n in range(501, 505)),
    ]
    assert max(map(len, table + ended_lines(progress))) <= MAX_COLUMNS
    assert len(json.dumps(progress)) < 5000


@pytest.mark.parametrize(
    "progress",
    [
        {},
        {"step": 1, "steps": 2, "loss": 0.5},
        {"steps": 2, "trials": {"done": 1}},
        {"steps": 2, "trials": {"primary": "a", "last": [{}]}},
        {"steps": 2, "trials": {"primary": "a", "last": [1]}},
    ],
)
def test_a_progress_of_another_shape_is_a_usual_error(progress):
    for lines in (table_lines, ended_lines):
        with pytest.raises((KeyError, TypeError, ValueError)):
            lines(progress)
