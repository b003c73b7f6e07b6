"""Where the seconds of a run went, from the command to the last picture."""

import os
import time

import IPython
import pytest

from kit.base import process_began
from kit.notebook import timeline
from kit.runs.history import RunTimeline


class Events:
    """IPython's hooks, called by the test."""

    def __init__(self):
        self.hooks = []

    def register(self, event, function):
        self.hooks.append((event, function))

    def unregister(self, event, function):
        self.hooks.remove((event, function))

    def trigger(self, event):
        for name, function in self.hooks:
            if name == event:
                function(None)


@pytest.fixture
def kernel(monkeypatch):
    """This process as a notebook's kernel: its hooks."""
    shell = type("Shell", (), {"kernel": None, "events": Events()})()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(timeline, "_hooks", [])
    return shell.events


def test_time_before_a_run_is_that_of_command_and_kernel_once(monkeypatch):
    began, now = process_began(), time.time()
    monkeypatch.setenv(timeline.COMMAND_BEGAN, repr(began - 1.5))
    command, kernel = timeline.spans_before(now)
    assert (command["name"], kernel["name"]) == ("command", "kernel")
    assert command["total-seconds"] == pytest.approx(1.5, abs=0.05)
    assert kernel["end-time"] == now
    assert timeline.COMMAND_BEGAN not in os.environ
    assert timeline.spans_before(now) == [], "the second run of the same kernel"


def test_notebook_that_a_person_opened_begins_with_its_run(monkeypatch):
    monkeypatch.delenv(timeline.COMMAND_BEGAN, raising=False)
    assert timeline.spans_before(time.time()) == []


def test_time_in_and_between_cells_has_a_name(tmp_path, monkeypatch, kernel):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def pass_time():
        now[0] += 1

    run = RunTimeline(tmp_path / "timeline.json")
    with run.span("data"):
        pass_time()
    timeline.follow_cells(run)
    pass_time()  # the rest of the first cell
    for _ in range(2):
        kernel.trigger("post_run_cell")
        pass_time()
        kernel.trigger("pre_run_cell")
        with run.span("training"):
            pass_time()
        pass_time()
    kernel.trigger("post_run_cell")
    assert run.seconds() == {
        "data": 1.0,
        timeline.IN_CELLS: 3.0,
        timeline.BETWEEN_CELLS: 2.0,
        "training": 2.0,
    }
    assert run.other(0.0) == 0.0


def test_cells_count_for_the_newest_run_of_a_kernel(tmp_path, kernel):
    runs = [RunTimeline(tmp_path / f"{n}.json") for n in range(2)]
    for run in runs:
        with run.span("data"):
            pass
        timeline.follow_cells(run)
    assert len(kernel.hooks) == 2
    kernel.trigger("post_run_cell")
    kernel.trigger("pre_run_cell")
    assert timeline.BETWEEN_CELLS not in runs[0].seconds()
    assert timeline.BETWEEN_CELLS in runs[1].seconds()


def test_outside_of_a_notebook_nothing_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    run = RunTimeline(tmp_path / "timeline.json")
    timeline.follow_cells(run)
    assert run.background == ""


def test_a_pipeline_is_drawn_by_its_parts_within_its_run():
    seconds = {"data": 1.0, "pipeline": 10.0, "records": 2.0, "other": 0.0}
    parts = {"data": 3.0, "training": 6.0, "starting components": 1.0}
    assert timeline.with_pipeline(seconds, parts) == {
        "data": 4.0,
        "records": 2.0,
        "other": 0.0,
        "training": 6.0,
        "starting components": 1.0,
    }
