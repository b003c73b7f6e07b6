"""Every fault of `doctor_faults.py` is seeded, and each yields its own diagnosis."""

import captured
import pytest
from doctor_bench import Bench
from doctor_faults import FAULTS, SANDBOX

from kit.base import ROOT
from kit.doctor import diagnoses, to_markdown
from kit.doctor.vm import LISTENERS, LOG

DIAGNOSES = {row.name: row for row in diagnoses()}
DOCUMENT = ROOT / "docs" / "doctor.md"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.delenv("KIT_ENV_FILE", raising=False)
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.close()


def assert_diagnosed(fault, found):
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
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, fault.seed(bench))


@pytest.mark.sandbox
@pytest.mark.parametrize("fault", SANDBOX, ids=str)
def test_sandbox_fault_has_its_own_diagnosis(sandbox, bench, fault):
    assert_diagnosed(fault, fault.seed(bench))


def test_every_diagnosis_is_seeded():
    assert {fault.diagnosis for fault in [*FAULTS, *SANDBOX]} == set(DIAGNOSES)


def test_document_has_the_table_of_diagnoses():
    text = DOCUMENT.read_text()
    assert to_markdown(diagnoses()) in text
    rows = [fault for fault in [*FAULTS, *SANDBOX] if fault.how == "recorded"]
    named = ", ".join(f"`{name}`" for name in dict.fromkeys(each.diagnosis for each in rows))
    assert f"on recorded outputs: {named}." in " ".join(text.split())
    assert f"{len(FAULTS) + len(SANDBOX)} faults" in text


def test_healthy_vm_on_recorded_outputs_has_no_fault(bench):
    found = {each.name: each for each in bench.cluster()}
    for name in ("VM", "VM from the site", "Docker", "kind", "pods"):
        assert found[name].state == "ok", found[name]
    assert found["Docker"].answer == "2 containers"
    assert found["pods"].answer == "2 pods are ready, every image is there"


def test_leftover_docker_proxy_gets_the_commands_and_nothing_is_changed(bench):
    """The program that changes something refuses; the doctor only prints what to run."""
    listeners = {(*LISTENERS,): "made/ss-docker-proxy-left.txt"}
    found = {each.name: each for each in bench.cluster(listeners)}["Docker"]
    assert found.diagnosis == "docker-proxy-left"
    for command in (
        "sudo systemctl stop docker.socket docker",
        "sudo rm -rf /var/lib/docker/network/files",
        "sudo systemctl start docker",
    ):
        assert f"`{command}`" in found.next_step


def test_stuck_registry_gets_the_command_for_its_own_shim(bench):
    log = {(*LOG,): "made/docker-log-registry-stuck.txt"}
    found = {each.name: each for each in bench.cluster(log)}["Docker"]
    number = captured.read("made/docker-ps.txt").splitlines()[1].partition("|")[0]
    assert f"`sudo pkill -KILL -f '[c]ontainerd-shim.*{number[:12]}'`" in found.next_step
    assert "`docker rm --force kind-registry`" in found.next_step
