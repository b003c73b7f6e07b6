"""Kubeflow pipelines run here: states, logs and errors of real small pipelines."""

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import captured
import pytest

from kit.runs.kfp_here import ComponentState, LogReader, PipelineFailed, States, run_local

TESTS = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def captured_lines() -> list[str]:
    return captured.read("kfp-2.17.0/failing-pipeline.txt").splitlines()


# -- reading a log -----------------------------------------------------------------------------


def test_a_real_log_gives_states_messages_and_each_component_s_own_lines() -> None:
    reader = LogReader(["first-step", "failing-step"])
    for now, line in enumerate(captured_lines()):
        reader.feed(line, float(now))
    first, failing = reader.states.values()
    assert first == ComponentState("first-step", "done", 2.0, 28.0, "epoch 2 of 2", 1)
    assert dataclasses.replace(failing, start=None, end=None) == ComponentState(
        "failing-step", "failed", None, None, "RuntimeError: outer", 1
    )
    assert [line for line in reader.logs["first-step"] if line] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert reader.logs["failing-step"][0] == "about to fail"
    assert reader.failed() == "failing-step"


def test_a_component_is_running_between_its_two_lines() -> None:
    reader = LogReader(["first-step", "failing-step"])
    for line in captured_lines()[:22]:
        reader.feed(line, 10.0)
    assert [state.state for state in reader.states.values()] == ["running", "pending"]
    assert reader.states["first-step"].seconds(now=12.5) == 2.5
    assert reader.states["failing-step"].seconds(now=12.5) == 0.0


def test_colours_are_taken_out_and_foreign_lines_change_nothing() -> None:
    reader = LogReader(["one"])
    assert reader.feed("21:44:39.922 - INFO - Running \x1b[95m'bad'\x1b[0m\n", 0) == (
        "21:44:39.922 - INFO - Running 'bad'"
    )
    for line in ("", "    indented before anything runs", "Executing task 'one'", "\x00\ufffd"):
        reader.feed(line, 1.0)
    assert reader.states == {"one": ComponentState("one")}


def test_a_component_cannot_end_another_one_by_what_it_prints() -> None:
    reader = LogReader(["one", "two"])
    reader.feed("21:44:39.922 - INFO - Executing task 'one'", 1.0)
    reader.feed("    21:44:39.922 - INFO - Task 'one' finished with status FAILURE", 2.0)
    assert reader.states["one"].state == "running"


def test_a_component_that_nobody_named_is_kept_as_well() -> None:
    reader = LogReader(["one"])
    reader.feed("21:44:39.922 - INFO - Executing task 'two'", 1.0)
    reader.feed("    hello", 1.5)
    reader.feed("21:44:39.922 - INFO - Task 'three' finished with status FAILURE", 2.0)
    assert [(s.name, s.state) for s in reader.states.values()] == [
        ("one", "pending"),
        ("two", "running"),
        ("three", "failed"),
    ]


@pytest.mark.parametrize(
    ("traceback", "text"),
    [
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n'
            "kit.base.errors.DataError: tried\n",
            "kit.base.errors.DataError: tried",
        ),
        ("", "line 2\nline 3\nline 4\nline 5\nline 6"),
    ],
)
def test_a_failed_component_shows_its_own_error_or_the_end_of_its_log(
    traceback: str, text: str
) -> None:
    log = "\n".join(f"line {number}" for number in range(7))
    error = PipelineFailed("step", traceback, log, (), "the log")
    assert error.got == text
    assert (traceback.rstrip() or "line 0") in str(error)


# -- running -----------------------------------------------------------------------------------


def test_a_pipeline_runs_and_reports_its_state(tmp_path: Path) -> None:
    seen: list[States] = []
    mark, path = tmp_path / "mark", tmp_path / "run" / "pipeline.log"

    def look(states: States) -> None:
        seen.append(states)
        assert states[0].message in path.read_text(), "a person who reads the log sees it at once"

    states = run_local(
        "kfp_examples:good",
        ["first-step", "second-step"],
        {"mark": str(mark), "n": 5},
        tmp_path / "run",
        on_change=look,
        tick_s=0.1,
    )
    assert mark.read_text() == "xxxxx"
    assert [state.state for state in states] == ["done", "done"]
    assert 0.4 <= states[0].seconds(0) < 20
    assert [state.state for state in seen[0]] == ["pending", "pending"]
    assert len([states for states in seen if states == seen[0]]) >= 3  # while nothing changes too
    assert {"running", "done"} <= {state[0].state for state in seen}
    assert {"epoch 1 of 2", "epoch 2 of 2"} <= {state[0].message for state in seen}
    log = path.read_text()
    assert "epoch 2 of 2" in log
    assert "\x1b" not in log
    assert not (tmp_path / "run" / "tmp").exists()


def without_fail(line: str) -> str:
    return line.replace("about to fail", "about to (a secret)")


def test_a_failing_component_is_reported_with_its_log(tmp_path: Path) -> None:
    names = ["first-step", "failing-step"]
    with pytest.raises(PipelineFailed) as caught:
        run_local("kfp_examples:bad", names, {}, tmp_path, hide=without_fail)
    error = caught.value
    assert error.component == "failing-step"
    assert "RuntimeError: outer" in error.got
    assert "ValueError: bad xxx\nsecond line" in error.log
    assert error.log.startswith("about to (a secret)\n")
    assert "about to (a secret)\n" in (tmp_path / "pipeline.log").read_text()
    assert [state.state for state in error.states] == ["done", "failed"]
    assert "RuntimeError: outer" in str(error)
    assert str(tmp_path / "pipeline.log") in error.next_step
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.slow
def test_a_component_that_dies_without_a_word_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(PipelineFailed, match="vanishing-step") as caught:
        run_local("kfp_examples:vanishing", ["vanishing-step"], {}, tmp_path)
    assert caught.value.got == "last words"
    assert caught.value.traceback == ""


@pytest.mark.slow
def test_a_second_try_that_works_is_a_success(tmp_path: Path) -> None:
    names = ["second-time-lucky"]
    arguments = {"mark": str(tmp_path / "mark")}
    (state,) = run_local("kfp_examples:lucky", names, arguments, tmp_path)
    assert (state.state, state.tries, state.message) == ("done", 2, "the second attempt does not")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipeline", "arguments", "words"),
    [
        ("kfp_examples:absent", {}, "absent"),
        ("no_such_module:good", {}, "no_such_module"),
        ("kfp_examples:good", {"mark": "m", "n": "three"}, "NUMBER_INTEGER"),
        ("kfp_examples:good", {"mark": "m", "unknown": 1}, "unknown"),
        ("kfp_examples:good", {}, "mark"),
    ],
    ids=["no such object", "no such module", "wrong type", "unknown argument", "one missing"],
)
def test_a_pipeline_that_cannot_start_says_why(
    tmp_path: Path, pipeline: str, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(PipelineFailed, match="the pipeline failed") as caught:
        run_local(pipeline, ["first-step"], arguments, tmp_path)
    assert words in caught.value.got
    assert caught.value.states == (ComponentState("first-step"),)


def _wait_for(path: Path) -> int:
    for _ in range(300):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.1)
    raise TimeoutError(f"{path} did not appear")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.slow
def test_an_interrupt_ends_the_components_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def interrupt(states: States) -> None:
        if mark.exists() and mark.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(
            "kfp_examples:sleeping", ["sleeping-step"], {"mark": str(mark)}, tmp_path, interrupt
        )
    _see_it_end(_wait_for(mark))


def _see_it_end(pid: int) -> None:
    for _ in range(100):
        if not _is_alive(pid):
            return
        time.sleep(0.1)
    raise AssertionError(f"the component (pid {pid}) outlived its caller")


@pytest.mark.slow
def test_a_killed_caller_leaves_no_component_behind(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "import sys; from pathlib import Path; from kit.runs.kfp_here import run_local; "
        "run_local('kfp_examples:sleeping', ['sleeping-step'], {'mark': sys.argv[1]}, "
        "Path(sys.argv[2]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(mark), str(tmp_path)]) as caller:
        pid = _wait_for(mark)
        caller.kill()
    _see_it_end(pid)


def test_the_runner_imports_kfp_only_in_its_child() -> None:
    heavy = "import sys, kit.runs.kfp_here; sys.exit('kfp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0
