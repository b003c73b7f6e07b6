"""MLflow in a process of its own that is started ahead."""

import sys

import pytest

from kit.base.settings import load
from kit.tracking import RunLog, ahead, delivery, log_run, read_logged_run

RUN, START_MS = "local-0123456789ab-1", 1_700_000_000_000


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The profile `laptop` with its results in a folder of the test, MLflow not imported."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setattr(ahead, "_processes", {})
    return load("laptop")


def started(settings, monkeypatch):
    """Start the process as where MLflow was not imported yet; return it."""
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "mlflow", raising=False)
        ahead.start_ahead(settings, "local")
    return ahead._processes[settings.profile]


def a_log():
    return RunLog(
        experiment="local-fmnist",
        run_name=RUN,
        run_id=RUN,
        start_ms=START_MS,
        end_ms=START_MS + 1500,
        params={"epochs": "5"},
        metrics=(("accuracy", 0.75, 0, START_MS),),
        tags={"kit.target": "local"},
    )


def test_log_is_delivered_by_the_process_that_was_started_ahead(settings, monkeypatch):
    process = started(settings, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "_deliver", None)  # not here
        logged = log_run(settings, a_log())
    assert (logged.state, logged.run_id, process.returncode) == ("logged", RUN, 0)
    assert read_logged_run(settings, "local-fmnist", RUN)["metrics"] == {"accuracy": 0.75}


def test_process_that_was_killed_is_replaced_by_a_delivery_from_here(settings, monkeypatch):
    started(settings, monkeypatch).kill()
    logged = log_run(settings, a_log())
    assert logged.state == "logged"
    assert read_logged_run(settings, "local-fmnist", RUN)["metrics"] == {"accuracy": 0.75}


def test_process_that_is_not_needed_ends_with_its_stdin(settings, monkeypatch):
    process = started(settings, monkeypatch)
    with process:
        process.stdin.close()
        assert process.wait(60) == 0


def test_nothing_is_started_where_mlflow_is_imported_already(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", object())
    ahead.start_ahead(settings, "local")
    assert ahead.deliver_ahead(settings, []) is None
