"""The page of own experiments: its commands are run as a new user would, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.base import ROOT

PAGE = ROOT / "docs" / "own-experiment.md"


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_an_empty_folder(tmp_path):
    (text,) = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    own |= {"KIT_RESULTS_DIR": str(tmp_path / "results"), "KIT_CACHE_DIR": str(tmp_path / "cache")}
    environ = {**os.environ, **own}
    for name in ("KIT_DATA_DIR", "KIT_EXPERIMENTS", "MLFLOW_TRACKING_URI"):
        environ.pop(name, None)
    done = subprocess.run(
        ["bash", "-eu"], input=text, cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "again: resumed after step 100" in done.stdout
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    notebook_run = [sys.executable, "-m", "papermill", "my_model.ipynb", "done.ipynb"]
    for argv in (pytest_run, notebook_run):
        made = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    table = done.stdout.partition("Experiment my_model")[2]
    assert re.search(r"local +cloud", table)
    assert re.search(r"error +0\.00\d\d +0\.06\d\d", table)
