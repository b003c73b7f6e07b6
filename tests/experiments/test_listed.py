"""A person's run lists the file of its experiment for submitters that were started before."""

import json
import stat

import pytest
from own_experiments import write

from kit.base import DataError
from kit.experiments.listed import FOLDER, list_experiment, listed_files
from kit.experiments.loader import load_experiment


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the list in an empty cache; no sandbox was set up."""
    monkeypatch.setenv("KIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KIT_SANDBOX_DIR", str(tmp_path / "sandbox"))
    return tmp_path / "cache" / FOLDER


def listed(folder, name="mean_model"):
    path = write(folder, name=name)
    list_experiment(load_experiment(str(path)))
    return path


def test_file_is_found_by_its_name_and_the_list_is_private(tmp_path, cache):
    assert listed_files("mean_model") == []
    paths = {listed(tmp_path / name) for name in ("one", "other", "one")}
    listed(tmp_path / "one", "net")
    assert set(listed_files("mean_model")) == paths
    entries = list(cache.iterdir())
    assert len(entries) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in entries} == {0o600}
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_built_in_experiment_is_not_listed(cache):
    list_experiment(load_experiment("digits"))
    assert not cache.exists()


def test_file_that_is_gone_is_not_found_and_leaves_the_list(tmp_path, cache):
    listed(tmp_path / "one").unlink()
    assert listed_files("mean_model") == []
    assert len(list(cache.iterdir())) == 1
    other = listed(tmp_path / "other")
    assert [json.loads(path.read_text()) for path in cache.iterdir()] == [str(other)]


@pytest.mark.parametrize("content", ["", "[", "7", '"mean_model.py"', '["/x/mean_model.py"]'])
def test_damaged_entry_lists_nothing(tmp_path, cache, content):
    path = listed(tmp_path / "one")
    (cache / "other.json").write_text(content)
    assert listed_files("mean_model") == [path]


def test_folder_that_others_can_write_to_is_not_trusted(tmp_path, cache):
    listed(tmp_path / "one")
    cache.chmod(0o777)
    assert listed_files("mean_model") == []
    cache.chmod(0o700)
    cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(tmp_path / "elsewhere")
    assert listed_files("mean_model") == []


def test_services_of_a_sandbox_find_it_in_the_sandboxs_own_state(tmp_path, monkeypatch):
    state = tmp_path / "sandbox" / "state"
    state.mkdir(parents=True, mode=0o711)
    path = listed(tmp_path / "one")
    monkeypatch.setenv("KIT_CACHE_DIR", str(tmp_path / "cache of the services"))
    assert listed_files("mean_model") == [path]
    (tmp_path / "sandbox").chmod(0o777)
    assert listed_files("mean_model") == []


def test_folder_without_a_sandbox_gets_no_file(tmp_path):
    (tmp_path / "sandbox").mkdir()
    listed(tmp_path / "one")
    assert list((tmp_path / "sandbox").iterdir()) == []


def test_list_that_cannot_be_written_is_an_error_that_names_the_setting(tmp_path, cache):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"list \S+mean_model\.py") as caught:
        listed(tmp_path / "one")
    assert "KIT_CACHE_DIR" in caught.value.next_step
