"""The doctor: a healthy sandbox, seeded faults, checks that hang or cannot be."""

import dataclasses
import json
import subprocess
import sys
import time
import warnings

import pytest

from kit import doctor, settings
from kit.errors import KitError
from kit.profiles import Cloud, Site

BARE = dataclasses.replace(settings.load("sandbox"), store=None, hpc=None, cloud=None)


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_a_profile_that_does_not_exist_is_the_only_finding():
    (finding,) = doctor.examine("atlantis")
    assert (finding.name, finding.state) == ("profile", "failed")
    assert "sandbox" in finding.next_step


def test_a_profile_with_nothing_set_up_has_nothing_to_check():
    assert [(f.name, f.state) for f in doctor.look(BARE)] == [("profile", "ok")]


def test_a_closed_site_says_its_sentence():
    closed = dataclasses.replace(BARE, site=Site("old", "Old", closed="closed in 2026: use new"))
    (finding,) = doctor.look(closed)
    assert (finding.state, finding.answer) == ("failed", "closed in 2026: use new")


def test_a_check_that_hangs_is_told_and_does_not_hold_up_the_others(monkeypatch):
    def hangs(_loaded):
        time.sleep(60)
        return "never"

    monkeypatch.setattr(doctor, "_checks", lambda _: [("slow", hangs), ("quick", lambda _: "yes")])
    begin = time.monotonic()
    found = by_name(doctor.look(BARE, limit_s=0.3))
    assert time.monotonic() - begin < 5
    assert (found["slow"].state, found["slow"].answer) == ("failed", "no answer in 0.3 s")
    assert found["quick"].answer == "yes"


@pytest.mark.parametrize(
    ("raised", "state"),
    [
        (KitError("broken", "noise", "mend it"), "failed"),
        (doctor.Warned("soon", "", "mend it"), "warning"),
    ],
)
def test_an_error_becomes_a_finding_with_its_next_step(monkeypatch, raised, state):
    def check(_loaded):
        raise raised

    monkeypatch.setattr(doctor, "_checks", lambda _: [("it", check)])
    found = by_name(doctor.look(BARE))["it"]
    assert (found.state, found.next_step) == (state, "mend it")
    assert raised.tried in found.answer


def test_a_runner_that_is_away_is_told():
    cloud = Cloud(runner="cluster", kfp_url="http://127.0.0.1:9")
    found = by_name(doctor.look(dataclasses.replace(BARE, cloud=cloud)))["pipeline runner"]
    assert found.state == "failed"
    assert "127.0.0.1:9" in found.answer


# -- the sandbox -------------------------------------------------------------------------------


@pytest.fixture
def loaded(sandbox, monkeypatch):
    monkeypatch.delenv("KIT_ENV_FILE", raising=False)
    return settings.load("sandbox")


@pytest.mark.sandbox
def test_a_healthy_sandbox_passes_every_check(loaded):
    found = doctor.look(loaded)
    assert [f for f in found if f.state != "ok"] == []
    assert len(found) == 11


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("section", "change", "check", "words"),
    [
        ("hpc", {"partition": "huge"}, "Slurm account and partition", "no partition 'huge'"),
        ("hpc", {"account": "project_9"}, "Slurm account and partition", "account 'project_9'"),
        ("hpc", {"modules": ("tensorfloor",)}, "modules", "tensorfloor"),
        ("hpc", {"seff": True}, "seff", "has no seff"),
        ("hpc", {"ssh_host": "nowhere.invalid"}, "ssh", "nowhere.invalid"),
        ("store", {"auth_url": "http://127.0.0.1:9/v3"}, "token", "127.0.0.1:9"),
        ("store", {"url": "https://127.0.0.1:9"}, "store", "127.0.0.1:9"),
        ("store", {"kind": "tape"}, "store", "'tape'"),
        ("cloud", {"mlflow_url": "http://127.0.0.1:9"}, "MLflow", "127.0.0.1:9"),
        ("cloud", {"mlflow_env_file": ""}, "MLflow", "5000"),
    ],
)
def test_a_seeded_fault_has_its_own_finding(loaded, section, change, check, words):
    part = dataclasses.replace(getattr(loaded, section), **change)
    found = by_name(doctor.look(dataclasses.replace(loaded, **{section: part})))
    assert found[check].state == "failed"
    assert words in found[check].answer
    assert found[check].next_step


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("old", "new", "check", "state", "words"),
    [
        ("CSC_PASSWORD=", "CSC_PASSWORD=wrong-", "token", "failed", "401"),
        ("CSC_PROJECT_NAME=", "CSC_PROJECT_NAME=no_", "token", "failed", "401"),
        ("CSC_USERNAME=", "CSC_NAME=", ".env", "failed", "CSC_USERNAME"),
        ("", "", ".env", "warning", "can be read by others"),
    ],
)
def test_a_fault_of_the_env_file_is_named(loaded, tmp_path, old, new, check, state, words):
    file = tmp_path / ".env"
    text = loaded.env_file.read_text().replace('"', "")
    file.write_text(text.replace(old, new) if old else text)
    file.chmod(0o644 if state == "warning" else 0o600)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = by_name(doctor.look(dataclasses.replace(loaded, env_file=file)))
    assert found[check].state == state
    assert words in found[check].answer
    assert found[check].next_step


@pytest.mark.sandbox
def test_the_command_prints_json_and_its_exit_code_tells(loaded):
    done = subprocess.run(
        [sys.executable, "-m", "kit", "doctor", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert {row["state"] for row in json.loads(done.stdout)} == {"ok"}
    bad = subprocess.run([sys.executable, "-m", "kit", "doctor", "atlantis"], capture_output=True)
    assert bad.returncode == 1


@pytest.mark.sandbox
@pytest.mark.slow
def test_the_race_is_run_on_request_and_its_cost_is_said(loaded):
    argv = [sys.executable, "-m", "kit", "doctor", "--race", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert found["link primitive"]["state"] == "ok", found["link primitive"]
    assert "no dispute" in found["link primitive"]["answer"]
    assert "it costs one core" in done.stderr
