"""Every fault of `doctor_faults.py` is seeded, and each yields its own diagnosis."""

import pytest
from doctor_bench import Bench
from doctor_faults import FAULTS, SANDBOX

from kit.base import ROOT
from kit.doctor.findings import DIAGNOSES, table

DOCUMENT = ROOT / "docs" / "doctor.md"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.delenv("KIT_ENV_FILE", raising=False)
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.close()


def holds(fault, found):
    """The diagnosis is there, by the check that its row of the table names, and says what to do."""
    known = DIAGNOSES[fault.diagnosis]
    named = [each for each in found if each.diagnosis == fault.diagnosis]
    assert named, found
    assert known.check == "any" or any(each.name.startswith(known.check) for each in named)
    for each in named:
        assert fault.word in each.answer
        assert each.state == known.state
        assert each.next_step


@pytest.mark.filterwarnings("ignore:.*can be read by others")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_seeded_fault_has_its_own_diagnosis(bench, fault):
    holds(fault, fault.seed(bench))


@pytest.mark.sandbox
@pytest.mark.parametrize("fault", SANDBOX, ids=str)
def test_a_fault_of_the_sandbox_has_its_own_diagnosis(sandbox, bench, fault):
    holds(fault, fault.seed(bench))


def test_every_diagnosis_is_seeded_and_every_seeded_one_is_known():
    assert {fault.diagnosis for fault in [*FAULTS, *SANDBOX]} == set(DIAGNOSES)


def test_the_document_has_the_table_and_names_what_was_tried_on_recorded_outputs():
    text = DOCUMENT.read_text()
    assert table() in text
    rows = [fault for fault in [*FAULTS, *SANDBOX] if fault.how == "recorded"]
    named = ", ".join(f"`{name}`" for name in dict.fromkeys(each.diagnosis for each in rows))
    assert f"on recorded outputs: {named}." in " ".join(text.split())
    assert f"{len(FAULTS) + len(SANDBOX)} faults" in text


def test_a_healthy_vm_on_recorded_outputs_has_no_fault(bench):
    found = {each.name: each for each in bench.cluster()}
    for name in ("VM", "VM from the site", "Docker", "kind", "pods"):
        assert found[name].state == "ok", found[name]
    assert found["Docker"].answer == "2 containers"
    assert found["pods"].answer == "2 pods are ready, every image is there"
