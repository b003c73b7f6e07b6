"""`kit bill` and `kit export`: the list of bills and the run that does not exist."""

import pytest
from click.testing import CliRunner

from kit.base import append_history
from kit.base.settings import load
from kit.cli.main import cli


@pytest.fixture
def history(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    settings = load("sandbox")
    settings.profile_dir.mkdir(parents=True)
    line = {"run": "local-0123456789ab-1", "target": "local", "figures": {}, "parameters": {}}
    append_history(settings.profile_dir / "history.jsonl", line)


@pytest.mark.parametrize("words", [["bill", "x"], ["export", "x"]])
def test_an_unknown_run_names_those_that_exist_as_the_next_step(history, words):
    done = CliRunner().invoke(cli, words)
    error = done.exception
    assert error.exit_code == 2
    assert error.got == ""
    assert "local-0123456789ab-1" in error.next_step


def test_a_run_without_cost_says_so(history):
    head, row = CliRunner().invoke(cli, ["bill"]).output.splitlines()
    assert head.split() == ["RUN", "BILLING", "UNITS"]
    assert row.split() == ["local-0123456789ab-1", "none"]
