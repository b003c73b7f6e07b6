"""Profiles and variables: good and bad."""

import dataclasses
import pwd
import re
from pathlib import Path

import pytest

from kit.base import ROOT, UsageError
from kit.base.sections import SECTIONS, TABLES
from kit.base.settings import (
    SITES,
    cache_dir,
    load,
    profile_names,
    profile_template,
    read_profile,
    reference,
)


def read(tmp_path: Path, text: str):
    path = tmp_path / "x.toml"
    path.write_text(text)
    return read_profile(path, {"KIT_SANDBOX_DIR": "/tmp/s"})


def test_missing_section_is_one_error_that_names_the_file():
    bare = dataclasses.replace(load("sandbox", {}), hpc=None, store=None, cloud=None)
    for section in ("hpc", "store", "cloud"):
        with pytest.raises(UsageError, match=rf"no section \[{section}\]") as caught:
            getattr(bare, f"{section}_section")()
        assert "sandbox.toml" in caught.value.got
    with pytest.raises(UsageError, match="accepts no jobs"):
        load("mahti-2024", {}).hpc_section(accepts_jobs=True)


def test_the_reference_page_describes_every_key():
    page = reference()
    for section, cls in [*SECTIONS.items(), *TABLES.items()]:
        assert f"`[{section}" in page
        for item in dataclasses.fields(cls):
            assert re.search(rf"^\| `{item.name}` +\|.*[a-z]", page, re.MULTILINE), item.name


def test_the_template_is_a_profile_once_it_is_filled_in(tmp_path):
    text = profile_template()
    with pytest.raises(UsageError, match="not filled in"):
        read(tmp_path, text)
    filled = re.sub('^(\\w+) = "<.*>"$', '\\1 = "x"', text, flags=re.MULTILINE)
    assert read(tmp_path, filled)["hpc"].project_dir == "x"
    assert read(tmp_path, filled.replace("\n# qos", "\nqos"))["hpc"].qos == ""


@pytest.mark.parametrize("name", ["RESULTS", "CACHE", "DATA", "SANDBOX"])
def test_tilde_in_a_variable_of_a_folder_is_the_home_folder(name):
    loaded = load("sandbox", {f"KIT_{name}_DIR": "~/kit files"})
    assert getattr(loaded, f"{name.lower()}_dir") == Path.home() / "kit files"


def test_syntax_error_names_the_line(tmp_path):
    with pytest.raises(UsageError, match="line 2"):
        read(tmp_path, "[site]\nname = \n")


def test_unknown_profile_names_those_that_exist():
    with pytest.raises(UsageError, match="sandbox"):
        load("atlantis")


@pytest.mark.parametrize("name", ["../sandbox", "/etc/passwd", ""])
def test_profile_is_a_name_not_a_path(name):
    if name:
        with pytest.raises(UsageError, match="does not exist"):
            load(name)
    else:
        assert load(name, {}).profile == "sandbox"


TO_FILL_IN = ("slurm",)  # profiles with placeholders


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_that_is_shipped_can_be_read(name):
    if name not in TO_FILL_IN:
        assert load(name, {}).site.title


SIX = {
    "store": {"url": "/srv/kit"},
    "hpc": {
        "ssh_host": "login",
        "account": "",
        "partition": "batch",
        "project_dir": "/shared/kit",
        "python": "/usr/bin/python3",
    },
}


def test_own_slurm_profile_names_each_missing_value(tmp_path):
    path, text = tmp_path / "slurm.toml", (SITES / "slurm.toml").read_text()
    assert sum(line.count(' = "<') for line in text.splitlines()) == 6
    environ = {"KIT_SITES_DIR": str(tmp_path)}
    for section, values in SIX.items():
        for key, value in values.items():
            path.write_text(text)
            with pytest.raises(UsageError) as caught:
                load("slurm", environ)
            assert str(path) in str(caught.value)
            assert f"[{section}] {key} is not filled in" in str(caught.value)
            assert caught.value.next_step
            text = re.sub(f"^{key} = .*$", f"{key} = {value!r}", text, flags=re.MULTILINE)
    path.write_text(text)
    loaded = load("slurm", environ)
    assert (loaded.store.kind, loaded.store.url) == ("directory", "/srv/kit")
    assert dataclasses.asdict(loaded.hpc).items() >= SIX["hpc"].items()
    assert (loaded.store.auth_url, loaded.cloud) == ("", None)


def test_profile_of_ones_own_is_found_beside_the_shipped_ones(tmp_path):
    (tmp_path / "mine.toml").write_text("[site]\nname = 'mine'\ntitle = 'Mine'\n")
    environ = {"KIT_SITES_DIR": str(tmp_path)}
    assert load("mine", environ).site.title == "Mine"
    assert load("sandbox", environ).site.name == "sandbox"
    assert "mine" in profile_names(tmp_path)
    with pytest.raises(UsageError, match="profile 'other' does not exist") as caught:
        load("other", environ)
    assert "mine" in caught.value.next_step


def test_the_variables_win_over_the_defaults(tmp_path):
    environ = {
        "KIT_PROFILE": "sandbox",
        "KIT_RESULTS_DIR": str(tmp_path / "r"),
        "KIT_CACHE_DIR": str(tmp_path / "c"),
        "KIT_DATA_DIR": str(tmp_path / "d"),
        "KIT_ENV_FILE": str(tmp_path / "e"),
        "KIT_SANDBOX_DIR": str(tmp_path / "s"),
    }
    loaded = load(None, environ)
    assert loaded.profile_dir == tmp_path / "r" / "sandbox"
    assert (loaded.cache_dir, loaded.data_dir) == (tmp_path / "c", tmp_path / "d")
    assert (loaded.env_file, loaded.sandbox_dir) == (tmp_path / "e", tmp_path / "s")


def test_results_are_in_the_checkout_not_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("sandbox", {}).results_dir == ROOT / "results"


def test_a_user_without_a_home_folder_is_told_to_set_one(monkeypatch):
    """A container may run as a user without a line in /etc/passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    for read in (load, cache_dir):
        with pytest.raises(UsageError, match="no line in /etc/passwd") as caught:
            read()
        assert "set HOME" in caught.value.next_step
