"""What every run begins with: the profile, the data set, the run's folder."""

import subprocess
import sys

import pytest
from own_experiments import changed, write

from kit.base import DataError, UsageError
from kit.experiments import load_experiment
from kit.notebook import opening
from kit.notebook.opening import open_target, refuse_workers, stored_run


def test_a_profile_without_a_site_cannot_open_cloud_hpc():
    assert open_target("laptop", "local").profile == "laptop"
    with pytest.raises(UsageError, match="hpc"):
        open_target("laptop", "cloud-hpc")
    with pytest.raises(UsageError, match="decommissioned|closed|ended"):
        open_target("mahti-2024", "cloud-hpc")


def test_a_runner_that_the_profile_does_not_have_is_refused():
    with pytest.raises(UsageError, match="names no Kubeflow cluster"):
        open_target("laptop", "cloud", "cluster")


def test_the_seconds_of_the_data_set_are_among_those_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("KIT_CACHE_DIR", str(tmp_path / "cache"))
    settings, digits = open_target("laptop", "local"), load_experiment("digits")
    run, data = stored_run(settings, "local", digits, {"epochs": 1}, fresh=False)
    assert data.info.test_items == 360
    assert "data" in run.timeline.seconds()
    assert run.folder.is_dir()


IN_ADVANCE = """
import sys, threading
from kit.experiments import load_experiment
from kit.notebook.opening import import_in_advance
import_in_advance(load_experiment(sys.argv[1]))
[t.join() for t in threading.enumerate() if t is not threading.main_thread()]
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(("name", "imported"), [("fashion_mnist", True), ("digits", False)])
def test_slow_package_is_imported_while_the_data_set_is_read(name, imported):
    argv = [sys.executable, "-c", IN_ADVANCE, name]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"{imported}\n"


def test_package_that_cannot_be_imported_is_left_to_the_training(monkeypatch):
    monkeypatch.setattr(opening, "SLOW_IMPORTS", ("no_such_package",))
    monkeypatch.setattr(opening, "imported_modules", lambda _: {"no_such_package"})
    (thread,) = opening.import_in_advance(load_experiment("digits"))
    thread.join(10)
    assert not thread.is_alive()


DATA_IMPORTS = """
import sys
from pathlib import Path
from kit.experiments import load_experiment
from kit.notebook.opening import import_in_advance
experiment = load_experiment(sys.argv[1])
threads = import_in_advance(experiment)
experiment.module.data(Path(sys.argv[2]), None)
print(len(threads), "torch.utils.data" in sys.modules)
"""


def test_data_set_of_ones_own_experiment_may_import_parts_of_a_slow_package(tmp_path):
    text = changed("def train(ctx):\n", "def train(ctx):\n    import torch\n")
    into = "def data(folder, source):\n"
    text = changed(into, into + "    import torch.utils.data\n", text)
    argv = [sys.executable, "-c", DATA_IMPORTS, str(write(tmp_path, text)), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


@pytest.mark.parametrize(("workers", "device"), [(3, "cpu"), (1, "cuda")])
def test_more_workers_than_the_job_has_are_refused_before_anything_starts(workers, device):
    settings = open_target("sandbox", "cloud-hpc")
    refuse_workers(settings, "cloud-hpc", 2, "cpu")
    refuse_workers(settings, "local", 99, "cpu")
    with pytest.raises(DataError, match=f"workers = {workers} on {device}"):
        refuse_workers(settings, "cloud-hpc", workers, device)
