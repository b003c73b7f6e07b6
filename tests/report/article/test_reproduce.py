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
        notebooks,
        "run_notebook",
        lambda settings, name, values: names.append((name, values, settings.profile)),
    )
    return names


def run(said, start_sandbox=lambda: None):
    return reproduce.reproduce(load("sandbox"), said.append, start_sandbox)


def test_every_notebook_is_run_in_order_then_table_and_report(ran, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    said = []
    assert run(said) == 0
    assert ran == [
        ("local", {}, "sandbox"),
        ("cloud", {}, "sandbox"),
        ("cloud-hpc", {"configured": False}, "sandbox"),
        ("cloud-hpc", {"configured": True}, "sandbox"),
        ("Notebook_Size_Comparison", {}, "sandbox"),
        ("report", {}, "sandbox"),
    ]
    table, reproduction, page = said[-3:]
    assert "training s" in table
    assert "Reproduction report: " in reproduction
    assert page.endswith("reproduction.html")


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_without_the_sandbox_local_and_cloud_run_without_services(ran, monkeypatch, ci, code):
    def missing():
        raise NEEDS

    monkeypatch.setenv("CI", ci)
    said = []
    assert run(said, missing) == code
    assert [name for name, _, _ in ran] == ["local", "cloud", "Notebook_Size_Comparison", "report"]
    assert {profile for _, _, profile in ran} == {"laptop"}
    assert "Not run: cloud-hpc, configured = False; cloud-hpc, configured = True" in said[-1]
    assert "sudo kit sandbox install" in said[-1]


def test_a_profile_without_a_site_leaves_the_supercomputer_out_and_says_so(ran, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    said = []
    assert reproduce.reproduce(load("laptop"), said.append, pytest.fail) == 0
    assert [name for name, _, _ in ran] == ["local", "cloud", "Notebook_Size_Comparison", "report"]
    assert said[-1].endswith("profile laptop has no section [hpc]")


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


def test_the_summary_of_a_resumed_pipeline_says_what_its_seconds_are():
    figures = {"pipeline_s": 44.0}
    record = {"run": "cloud-a-1", "figures": figures, "data": {}, "resumed": False}
    assert "interrupted" not in reproduce.summary(record)
    words = " ".join(reproduce.summary(record | {"resumed": True}).split())
    assert "pipeline s is the last start and what the components had done before it" in words
    local = {"run": "local-a-1", "figures": {"training_s": 1.0}, "data": {}, "resumed": True}
    assert "pipeline" not in reproduce.summary(local)


def test_the_summary_names_a_fault_of_the_data_and_a_run_that_waits_for_mlflow():
    record = {
        "run": "local-a-1",
        "figures": {"accuracy": 0.5},
        "data": {"warning": "no training image of 9 classes"},
        "tracking": {"run_id": "local-a-1", "state": "waiting", "reason": "no answer"},
    }
    _, data, mlflow = reproduce.summary(record).splitlines()
    assert data == "  data: no training image of 9 classes"
    assert "MLflow does not have run local-a-1 yet (no answer)" in mlflow
    assert "`kit sync`" in mlflow
