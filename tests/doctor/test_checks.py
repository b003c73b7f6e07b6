"""The doctor: a healthy sandbox, checks that hang or cannot run, packages that are missing."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import pytest
from doctor_faults import FAULTS, SANDBOX, assert_diagnosed, by_name, faults_of

from kit.base import KitError, Unreachable
from kit.base.settings import Site, load
from kit.doctor import checks as doctor
from kit.doctor import diagnoses, diagnosis
from kit.doctor.context import Check, CheckContext

BARE = dataclasses.replace(load("sandbox"), store=None, hpc=None, cloud=None, ports={})


def look(loaded, **more):
    return doctor.run_checks(CheckContext(loaded), **more)


@pytest.mark.parametrize("fault", [*faults_of(doctor), *faults_of(diagnosis)])
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, bench)


def test_every_diagnosis_is_seeded():
    assert {fault.diagnosis for fault in [*FAULTS, *SANDBOX]} == set(diagnoses())


def test_missing_profile_is_the_only_finding():
    (finding,) = doctor.examine("atlantis")
    assert (finding.name, finding.diagnosis) == ("profile", "profile-unknown")
    assert "sandbox" in finding.next_step


def test_empty_profile_checks_this_machine_only():
    assert [(f.name, f.state) for f in look(BARE)] == [("profile", "ok"), ("results folder", "ok")]


def test_closed_site_is_reported_with_its_reason():
    closed = dataclasses.replace(BARE, site=Site("old", "Old", closed="closed in 2026: use new"))
    (finding,) = look(closed)
    assert finding.diagnosis == "site-closed"
    assert "closed in 2026: use new" in finding.answer


@pytest.mark.slow
def test_check_that_hangs_is_reported_and_delays_no_other(monkeypatch):
    def hangs(_ground):
        time.sleep(60)
        return "never"

    checks = [Check("slow", hangs, {}), Check("quick", lambda _: "yes", {})]
    monkeypatch.setattr(doctor, "_checks", lambda *_: checks)
    begin = time.monotonic()
    found = by_name(look(BARE, limit_s=0.3))
    assert time.monotonic() - begin < 5
    assert (found["slow"].diagnosis, found["slow"].seconds) == ("late", 0.3)
    assert found["quick"].answer == "yes"


@pytest.mark.parametrize(
    ("raised", "state", "diagnosis", "step"),
    [
        (KitError("broken", "noise", "fix it"), "failed", "", "fix it"),
        (Unreachable("broken", "noise", ""), "failed", "vm-away", "check that the VM is running"),
        (
            diagnosis.DiagnosisError("certificate-short", "broken"),
            "warning",
            "certificate-short",
            "new one",
        ),
        (diagnosis.CheckSkipped("broken"), "skipped", "", ""),
    ],
)
def test_error_becomes_a_finding_with_its_next_step(monkeypatch, raised, state, diagnosis, step):
    def check(_ground):
        raise raised

    known = {Unreachable: "vm-away"}
    monkeypatch.setattr(doctor, "_checks", lambda *_: [Check("it", check, known)])
    found = by_name(look(BARE))["it"]
    assert (found.state, found.diagnosis) == (state, diagnosis)
    assert "broken" in found.answer
    assert step in found.next_step


@pytest.mark.parametrize("profile", ["sandbox", "roihu", "lumi"])
def test_reports_what_is_missing_with_nothing_set_up(tmp_path, profile):
    environ = {"HOME": str(tmp_path), "KIT_SANDBOX_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    argv = [sys.executable, "-m", "kit", "doctor", "--profile", profile]
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (1, "")
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert found[".env"]["diagnosis"] == "env-missing"
    assert found["ssh key"]["diagnosis"] in ("key-missing", "ssh-settings")
    assert found["token"]["answer"] == "not tried: it needs .env"
    assert {found[name]["state"] for name in ("ssh", "Slurm", "links")} == {"skipped"}
    text = subprocess.run(argv, capture_output=True, text=True, env=environ).stdout
    assert "[env-missing]" in text
    assert text.count("it needs ssh to the site") == 1, "skipped checks are listed by their reason"
    assert re.match(r"\d+ ok, (\d+ warning, )?\d+ failed, ", text.splitlines()[-1])


def test_missing_package_is_a_sentence_not_a_traceback(monkeypatch):
    """After `make local` keystoneauth1 is not installed."""

    def check(_context):
        raise ModuleNotFoundError("No module named 'keystoneauth1'")

    monkeypatch.setattr(doctor, "_checks", lambda *_: [Check("token", check, {})])
    found = by_name(look(BARE))["token"]
    assert (found.state, found.diagnosis) == ("failed", "package-missing")
    assert "keystoneauth1" in found.answer
    assert found.next_step == "`make setup`"


# -- the sandbox -------------------------------------------------------------------------------


@pytest.fixture
def loaded(sandbox, monkeypatch):
    for name in ("KIT_ENV_FILE", "KIT_DATA_DIR"):  # each adds or changes a check
        monkeypatch.delenv(name, raising=False)
    return load("sandbox")


@pytest.mark.sandbox
def test_healthy_sandbox_passes_every_check(loaded):
    found = look(loaded)
    state = {f.name: f.diagnosis for f in found if f.state != "ok"}
    assert {name: got for name, got in state.items() if got != "environment-missing"} == {}
    assert len(found) == 24


@pytest.mark.sandbox
@pytest.mark.slow
def test_race_runs_on_request_and_reports_its_cost(loaded):
    argv = [sys.executable, "-m", "kit", "doctor", "--race", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert found["links against a job"]["state"] == "ok", found["links against a job"]
    assert "no dispute" in found["links against a job"]["answer"]
    assert "it costs one core" in done.stderr


def test_no_two_checks_import_a_room_at_the_same_time(tmp_path):
    """Python 3.11 may refuse that; a module of a room that is there already does no harm."""
    program = """
import sys, threading
from kit.base.settings import load
from kit.doctor import checks
from kit.doctor.context import CheckContext

before, start = [], threading.Thread.start

def first_start(thread):
    if not before:
        before.extend(sys.modules)
    start(thread)

threading.Thread.start = first_start
checks.run_checks(CheckContext(load("sandbox")), 20)
later = {name.rpartition(".")[0] for name in sys.modules if name.startswith("kit.")} - {*before}
print(len(before) > 0, sorted(later))
"""
    environ = {**os.environ, "KIT_SANDBOX_DIR": str(tmp_path)}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
