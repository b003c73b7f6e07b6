"""Shell files of the deployment: their shell parses them, and shellcheck finds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit import deploy
from kit.base import ROOT

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
LOOP = Path(deploy.__file__).parent / "scripts" / "kubectl_loop.sh"
SETUP = ROOT / "env" / "vm" / "setup.sh"


@pytest.mark.parametrize(
    ("path", "shell"), [(LOOP, "sh"), (LOOP, "bash"), (LOOP, "dash"), (SETUP, "bash")]
)
def test_shell_parses_the_script(path, shell):
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("path", "shell"), [(LOOP, "dash"), (SETUP, "bash")])
def test_shellcheck_finds_nothing(path, shell):
    done = subprocess.run([SHELLCHECK, f"--shell={shell}", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
