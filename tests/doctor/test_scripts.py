"""The room's shell files: bash parses them, and shellcheck finds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit import doctor

SCRIPTS = sorted((Path(doctor.__file__).parent / "scripts").glob("*.sh"))
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_parses_the_script(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True).stderr == b""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    argv = [SHELLCHECK, "--shell=bash", path]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
