"""The profile of the sandbox with an empty folder of results."""

import pytest

from kit.base.settings import load


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    return load("sandbox")
