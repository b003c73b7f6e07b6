"""The shell programs of the submitter are valid and agree with the Python code."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit.onsite import TUNNEL_KEY as KEY
from kit.onsite import names
from kit.submitter import collect
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


def test_names_and_exit_codes_are_those_of_the_programs_on_the_site():
    run, begin = script("job_run"), script("job_begin")
    assert f"commit {names.MANIFEST}\n" in run
    assert f"exit {names.KILLED}\n" in run
    assert f">{names.RAY_TOKEN}\n" in run
    assert f"rm -f {names.RAY_TOKEN} {KEY}\n" in run
    assert f"exit {names.CODE_CHANGED}\n" in begin
    assert f'"$attempt/{KEY}" "$attempt/{names.RAY_TOKEN}"' in script("drop_secrets")
    for file in collect.PROGRESS_FILES:
        assert file in script("read_progress")


def test_code_that_was_changed_is_not_executed(tmp_path):
    code = tmp_path / "code.zip"
    code.write_bytes(b"other code")
    environ = {"PATH": "/usr/bin:/bin", "KIT_CODE": str(code), "KIT_CODE_HASH": "0" * 64}
    argv = ["bash", "-c", script("job_begin") + "echo executed"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (names.CODE_CHANGED, "")
    assert "is not the code that was staged" in done.stderr


@pytest.mark.parametrize("code", [88, 89, 90, 91, 92, 93, 94, 95])
def test_every_exit_code_has_a_sentence(code):
    assert names.EXIT_MEANINGS[code]
