"""The shell programs of the submitter are valid and agree with the Python code."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from kit.onsite import names
from kit.submitter.scripts import script

FOLDER = Path(__file__).parents[2] / "kit" / "submitter" / "scripts"
FILES = sorted(FOLDER.glob("*.sh"))


def shells(path):
    posix = path.read_text().startswith("#!/bin/sh\n")
    return ["bash", "dash"] if posix else ["bash"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shell_reads_the_program(path):
    for shell in shells(path):
        done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shellcheck_accepts_the_program(path):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_code_that_was_changed_is_not_executed(tmp_path):
    code = tmp_path / "code.zip"
    code.write_bytes(b"other code")
    environ = {"PATH": "/usr/bin:/bin", "KIT_CODE": str(code), "KIT_CODE_HASH": "0" * 64}
    argv = ["bash", "-c", script("job_begin") + "echo executed"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (names.CODE_CHANGED, "")
    assert "is not the code that was staged" in done.stderr


def test_environment_of_one_attempt_goes_with_its_symlink_when_the_job_ends(tmp_path):
    venv, code = tmp_path / "venvs" / "key.1", tmp_path / "code.zip"
    venv.mkdir(parents=True)
    (tmp_path / "venvs" / "attempt-0123456789ab").symlink_to(venv.name)
    (tmp_path / "venvs" / "attempt-ffffffffffff").symlink_to("key.2")
    code.write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    environ = {"PATH": "/usr/bin:/bin", "KIT_CODE": str(code), "KIT_CODE_HASH": digest}
    environ |= {"attempt": "/proj/kit/tries/0123456789ab", "venv": str(venv)}
    program = script("job_begin") + 'private=$venv; test -d "$venv"; exit'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "venvs").iterdir()] == ["attempt-ffffffffffff"]
