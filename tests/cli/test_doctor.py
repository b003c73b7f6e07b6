"""The command of the doctor: its table, its JSON, its exit code."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from kit.base.settings import load
from kit.cli.main import cli


@pytest.fixture
def loaded(sandbox, monkeypatch):
    monkeypatch.delenv("KIT_ENV_FILE", raising=False)
    return load("sandbox")


@pytest.mark.sandbox
def test_command_prints_json_and_its_exit_code(loaded):
    done = subprocess.run(
        [sys.executable, "-m", "kit", "doctor", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert {row["state"] for row in json.loads(done.stdout)} <= {"ok", "warning"}
    bad = subprocess.run(
        [sys.executable, "-m", "kit", "doctor", "--profile", "atlantis"], capture_output=True
    )
    assert bad.returncode == 1


def test_the_doctor_accepts_its_profile_by_position_and_names_the_option(monkeypatch):
    asked = []
    monkeypatch.setattr("kit.doctor.examine", lambda profile, *_: asked.append(profile) or [])
    done = CliRunner().invoke(cli, ["doctor", "roihu", "--json"])
    assert (done.exit_code, asked) == (0, ["roihu"])
    assert "`kit doctor --profile roihu`" in done.stderr
    done = CliRunner().invoke(cli, ["doctor", "--profile", "roihu", "--json"])
    assert (done.exit_code, asked, done.stderr) == (0, ["roihu", "roihu"], "")
