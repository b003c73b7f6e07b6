"""The trials of a sweep while it runs, in a notebook and elsewhere."""

import pytest

from kit.notebook import live_trials
from kit.notebook.live_trials import LiveTrials
from kit.runs.cells import LIVE


def progress(*states):
    rows = [
        {"number": n, "values": f"seed {n}", "metric": 0.5, "why": "", "state": s, "seconds": 1.0}
        for n, s in enumerate(states, start=1)
    ]
    counts = {"running": 1, "failed": 0, "best": "", "primary": "accuracy", "last": rows}
    return {"step": 0, "steps": 2, "trials": counts}


def test_in_a_notebook_each_state_takes_the_place_of_the_one_before(monkeypatch):
    import IPython.display

    calls = []

    def note(kind):
        return lambda self, data, raw, metadata: calls.append((kind, data["text/plain"], metadata))

    monkeypatch.setattr(IPython.display.DisplayHandle, "display", note("new"))
    monkeypatch.setattr(IPython.display.DisplayHandle, "update", note("same"))
    monkeypatch.setattr(live_trials, "in_notebook", lambda: True)
    live = LiveTrials()
    live.show(progress("running"))
    live.show({"step": 1, "steps": 5, "loss": 0.1})  # not a sweep's
    live.show(progress("done", "running"))
    (first, text, none), (second, later, lines) = calls
    assert (first, second) == ("new", "same")
    assert text.splitlines()[0] == "trial 0/2, 1 running"
    assert [line.split()[:4] for line in later.splitlines()[2:]] == [
        ["1/2", "seed", "1", "done"],
        ["2/2", "seed", "2", "running"],
    ]
    assert none == {LIVE: []}
    assert lines == {LIVE: ["trial 1 of 2, seed 1: done, accuracy 0.5000, 1.0 s"]}


def test_elsewhere_each_trial_that_has_ended_is_a_line(capsys):
    live = LiveTrials()
    for states in (("running",), ("done", "running"), ("done", "failed")):
        live.show(progress(*states))
    assert capsys.readouterr().err.splitlines() == [
        "trial 1 of 2, seed 1: done, accuracy 0.5000, 1.0 s",
        "trial 2 of 2, seed 2: failed, accuracy 0.5000, 1.0 s",
    ]


@pytest.mark.parametrize("damaged", [{}, [], None, {"trials": None}, {"trials": {"last": 3}}])
def test_a_damaged_progress_is_left_out(damaged, capsys):
    LiveTrials().show(damaged)
    assert capsys.readouterr().err == ""
