"""What `make reproduce` runs, and what it says where the sandbox cannot be had."""

import pytest

from kit.base import Busy, UsageError
from kit.base.settings import load
from kit.report.article import reproduce
from kit.runs import notebooks

NEEDS = UsageError("packages are missing", "slurmctld", "sudo kit sandbox install")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The notebooks that were run, with their parameters; nothing is executed."""
    names = []
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(
        notebooks, "run", lambda _settings, name, values: names.append((name, values))
    )
    return names


def run(said, start_sandbox=lambda: None):
    return reproduce.reproduce(load("sandbox"), said.append, start_sandbox)


def test_every_notebook_is_run_in_order_then_table_and_report(ran, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    said = []
    assert run(said) == 0
    assert ran == [
        ("local", {}),
        ("cloud", {}),
        ("cloud-hpc", {"configured": False}),
        ("cloud-hpc", {"configured": True}),
        ("Notebook_Size_Comparison", {}),
        ("report", {}),
    ]
    table, reproduction, page = said[-3:]
    assert "training s" in table
    assert "Reproduction report: " in reproduction
    assert page.endswith("reproduction.html")


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_without_the_sandboxs_packages_the_rest_runs_and_the_command_is_named(
    ran, monkeypatch, ci, code
):
    def missing():
        raise NEEDS

    monkeypatch.setenv("CI", ci)
    said = []
    assert run(said, missing) == code
    assert [name for name, _ in ran] == ["local", "Notebook_Size_Comparison", "report"]
    assert "Not run: cloud; cloud-hpc, configured = False; cloud-hpc, configured = T" in said[-1]
    assert "sudo kit sandbox install" in said[-1]


def test_another_fault_of_the_sandbox_is_not_taken_for_missing_packages(ran):
    def broken():
        raise Busy("port 5000 is taken")

    with pytest.raises(Busy, match="port 5000"):
        run([], broken)
    assert ran == []


def test_the_summary_of_a_run_has_its_figures():
    record = {"run": "local-a-1", "figures": {"accuracy": 0.5}, "data": {}}
    assert reproduce.summary(record) == "  local-a-1: accuracy 0.5"
    assert reproduce.summary(None) == "  done"
