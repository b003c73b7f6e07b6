"""The page on porting a script: both versions run, and train to the same model."""

import re
import subprocess
import sys

import pytest

import kit
from kit.base import ROOT

BEFORE, AFTER = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "port-pytorch.md").read_text(), re.DOTALL
)


@pytest.mark.slow
def test_script_and_experiment_have_the_same_accuracy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BEFORE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    accuracy = float(done.stdout.split()[1])
    (tmp_path / "net.py").write_text(AFTER)
    checked = kit.check(tmp_path / "net.py")
    assert checked.problems == ()
    assert checked.resumed_step > 0  # killed halfway, with the result of a training that was not
    assert checked.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-4)
