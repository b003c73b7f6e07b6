"""Profiles and variables: good and bad."""

import dataclasses
import re
from pathlib import Path

import pytest

from kit.base import ROOT, UsageError
from kit.base.settings import SITES, load, profile_names, read_profile

GOOD = """
[site]
name = "x"
title = "X"
[hpc]
ssh_host = "hpc"
project_dir = "${KIT_SANDBOX_DIR}/project"
modules = ["pytorch"]
poll_floor_s = 15
[ports.mlflow]
port = 5000
[rates.node]
per = "node-h"
unit = "BU"
kind = "CPU"
rate = "100"
source = "price list"
checked = "2026-11-01"
[budget]
CPU = 10
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "x.toml"
    path.write_text(text)
    return read_profile(path, {"KIT_SANDBOX_DIR": "/tmp/s"})


def test_a_profile_is_read_with_types_defaults_and_names_filled_in(tmp_path):
    sections = read(tmp_path, GOOD)
    assert sections["hpc"].project_dir == "/tmp/s/project"
    assert sections["hpc"].modules == ("pytorch",)
    assert sections["hpc"].poll_floor_s == 15.0
    assert sections["ports"]["mlflow"].port == 5000
    assert sections["rates"]["node"].rate == "100"
    assert sections["budget"] == {"CPU": "10"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[site]", "[site]\ncolour = 1"), "unknown key 'colour' at [site]"),
        (("[hpc]", "[hpcc]"), "unknown key 'hpcc' at top level"),
        (("poll_floor_s = 15", "poll_floor_s = 'fast'"), "poll_floor_s = 'fast' is a str"),
        (("port = 5000", "port = true"), "port = True is a bool"),
        (('ssh_host = "hpc"\n', ""), "[hpc] lacks ssh_host"),
        (('name = "x"\n', ""), "[site] lacks name"),
        (("[site]", "[site"), "is not valid TOML"),
        (('modules = ["pytorch"]', 'modules = "pytorch"'), "modules = 'pytorch' is a str"),
        (("[ports.mlflow]\nport = 5000", "[ports]\nmlflow = 5000"), "[ports.mlflow]"),
    ],
)
def test_a_mistake_in_a_profile_is_named_with_its_file(tmp_path, change, message):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, GOOD.replace(*change))
    assert message in str(caught.value)
    assert "x.toml" in str(caught.value)


def test_a_syntax_error_names_the_line(tmp_path):
    with pytest.raises(UsageError, match="line 2"):
        read(tmp_path, "[site]\nname = \n")


def test_an_unknown_profile_names_those_that_exist():
    with pytest.raises(UsageError, match="sandbox"):
        load("atlantis")


@pytest.mark.parametrize("name", ["../sandbox", "/etc/passwd", ""])
def test_a_profile_is_a_name_and_no_path(name):
    if name:
        with pytest.raises(UsageError, match="there is no profile"):
            load(name)
    else:
        assert load(name, {}).profile == "sandbox"


TO_FILL_IN = ("slurm",)  # profiles that are no good before somebody has


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


def test_an_own_slurm_needs_six_values_each_named_until_it_is_there(tmp_path):
    path, text = tmp_path / "slurm.toml", (SITES / "slurm.toml").read_text()
    assert sum(line.count(' = "<') for line in text.splitlines()) == 6
    environ = {"KIT_SITES_DIR": str(tmp_path)}
    for section, values in SIX.items():
        for key, value in values.items():
            path.write_text(text)
            with pytest.raises(UsageError) as caught:
                load("slurm", environ)
            assert f"{path}: [{section}] {key} is not filled in" in str(caught.value)
            assert caught.value.next_step
            text = re.sub(f"^{key} = .*$", f"{key} = {value!r}", text, flags=re.MULTILINE)
    path.write_text(text)
    loaded = load("slurm", environ)
    assert (loaded.store.kind, loaded.store.url) == ("directory", "/srv/kit")
    assert dataclasses.asdict(loaded.hpc).items() >= SIX["hpc"].items()
    assert (loaded.store.auth_url, loaded.cloud) == ("", None)


def test_a_profile_of_ones_own_is_found_beside_the_shipped_ones(tmp_path):
    (tmp_path / "mine.toml").write_text("[site]\nname = 'mine'\ntitle = 'Mine'\n")
    environ = {"KIT_SITES_DIR": str(tmp_path)}
    assert load("mine", environ).site.title == "Mine"
    assert load("sandbox", environ).site.name == "sandbox"
    assert "mine" in profile_names(tmp_path)
    with pytest.raises(UsageError, match="there is no profile 'other'") as caught:
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


def test_results_are_found_from_the_checkout_and_not_from_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert load("sandbox", {}).results_dir == ROOT / "results"
