"""Profiles and variables: good and bad."""

from pathlib import Path

import pytest

from kit import profiles, settings
from kit.errors import UsageError

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
    return profiles.read(path, {"KIT_SANDBOX_DIR": "/tmp/s"})


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
        settings.load("atlantis")


@pytest.mark.parametrize("name", ["../sandbox", "/etc/passwd", ""])
def test_a_profile_is_a_name_and_no_path(name):
    if name:
        with pytest.raises(UsageError, match="there is no profile"):
            settings.load(name)
    else:
        assert settings.load(name, {}).profile == "sandbox"


@pytest.mark.parametrize("name", settings.profile_names())
def test_every_profile_that_is_shipped_can_be_read(name):
    assert settings.load(name, {}).site.title


def test_the_variables_win_over_the_defaults(tmp_path):
    environ = {
        "KIT_PROFILE": "sandbox",
        "KIT_RESULTS_DIR": str(tmp_path / "r"),
        "KIT_CACHE_DIR": str(tmp_path / "c"),
        "KIT_DATA_DIR": str(tmp_path / "d"),
        "KIT_ENV_FILE": str(tmp_path / "e"),
        "KIT_SANDBOX_DIR": str(tmp_path / "s"),
    }
    loaded = settings.load(None, environ)
    assert loaded.profile_dir == tmp_path / "r" / "sandbox"
    assert (loaded.cache_dir, loaded.data_dir) == (tmp_path / "c", tmp_path / "d")
    assert (loaded.env_file, loaded.sandbox_dir) == (tmp_path / "e", tmp_path / "s")


def test_results_are_found_from_the_checkout_and_not_from_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert settings.load("sandbox", {}).results_dir == settings.ROOT / "results"
