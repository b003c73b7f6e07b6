"""What every run begins with: the profile, the data set, the run's folder."""

import pytest

from kit.base import DataError, UsageError
from kit.experiments import load_experiment
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


@pytest.mark.parametrize(("workers", "device"), [(3, "cpu"), (1, "cuda")])
def test_more_workers_than_the_job_has_are_refused_before_anything_starts(workers, device):
    settings = open_target("sandbox", "cloud-hpc")
    refuse_workers(settings, "cloud-hpc", 2, "cpu")
    refuse_workers(settings, "local", 99, "cpu")
    with pytest.raises(DataError, match=f"workers = {workers} on {device}"):
        refuse_workers(settings, "cloud-hpc", workers, device)
