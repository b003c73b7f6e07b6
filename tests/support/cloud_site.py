"""A site without any service, for tests of the cloud target: folders and embedded MLflow."""

from pathlib import Path

import pytest
from idx_files import striped_images

from kit.base import settings
from kit.base.settings import Settings, load
from kit.experiments.fashion_mnist.images import Dataset
from kit.store import open_store

PROFILE = """
[site]
name = "folders"
title = "Everything in folders"
[store]
kind = "directory"
url = "{folder}/store"
[cloud]
runner = "local"
"""
BUCKET = "integration-pipeline-s0-c0-u1-tester"
IN_CHILD = Path(__file__).parents[1] / "in_child"


def make_site(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> Settings:
    """Write the profile `folders` (`more` belongs to [cloud]) and point the kit at it."""
    sites = folder / "sites"
    sites.mkdir()
    (sites / "folders.toml").write_text(PROFILE.format(folder=folder) + more)
    monkeypatch.setattr(settings, "SITES", sites)
    for name, value in {
        "KIT_TEST_SITES": sites,
        "KIT_RESULTS_DIR": folder / "results",
        "KIT_CACHE_DIR": folder / "cache",
        "KIT_PROFILE": "folders",
        "PYTHONPATH": IN_CHILD,
    }.items():
        monkeypatch.setenv(name, str(value))
    site = load("folders")
    open_store(site, BUCKET).ensure_bucket()
    return site


def small_data(train: int = 400) -> Dataset:
    """A data set that trains in a second; another one for another `train`."""
    return striped_images(train, 100)
