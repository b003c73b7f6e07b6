"""A trial of an experiment, in a clean process."""

import pytest
from own_experiments import GOOD, changed, write

from kit.base import DataError, UsageError
from kit.experiments.trial import check


def test_experiment_that_keeps_nothing_begins_again(tmp_path):
    checked = check(write(tmp_path, GOOD))
    assert (checked.reported, checked.data) == (True, "three numbers")
    assert checked.metrics == {"error": 0.0}
    assert checked.files == ("model.json",)
    assert checked.problems == ()


def test_parameters_are_those_of_the_call(tmp_path):
    with pytest.raises(UsageError, match="steps"):
        check(write(tmp_path, GOOD), steps=0)


def test_data_that_are_not_there_are_the_experiments_own_error(tmp_path):
    path = write(tmp_path, changed('(folder / "numbers.json").write_text("[1, 2, 3]")', "pass"))
    with pytest.raises(DataError, match="wrote no file"):
        check(path)


def test_names_of_the_module_that_started_it_are_not_there(tmp_path, monkeypatch):
    """What only this process has would be missing in a pipeline's pod and on a site."""
    monkeypatch.setenv("PYTHONPATH", "")
    path = write(tmp_path, changed("import json\n", "import json, sys\nassert sys.kit_test\n"))
    monkeypatch.setattr("sys.kit_test", True, raising=False)
    with pytest.raises(UsageError, match="no attribute .kit_test"):
        check(path)


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_training_that_ends_its_process_is_reported(tmp_path, end):
    path = write(tmp_path, changed("    numbers =", f"    {end}\n    numbers ="))
    with pytest.raises(UsageError, match=r"check .*mean_model"):
        check(path)
