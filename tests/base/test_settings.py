"""Profiles and variables: good and bad."""

import dataclasses
import re
from pathlib import Path

import pytest

from kit.base import ROOT, UsageError
from kit.base.sections import SECTIONS, TABLES
from kit.base.settings import SITES, load, profile_names, read_profile, reference, template

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


def test_profile_is_read_with_types_defaults_and_names_filled_in(tmp_path):
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
        (("[hpc]", "[hpcc]"), "unknown section [hpcc]"),
        (
            ("poll_floor_s = 15", "poll_floor_s = 'fast'"),
            "poll_floor_s = 'fast': input should be",
        ),
        (("port = 5000", "port = true"), "port = True: input should be a valid integer"),
        (('ssh_host = "hpc"\n', ""), "[hpc] lacks ssh_host"),
        (('name = "x"\n', ""), "[site] lacks name"),
        (("[site]", "[site"), "is not valid TOML"),
        (
            ('modules = ["pytorch"]', 'modules = "pytorch"'),
            "modules = 'pytorch': input should",
        ),
        (("[ports.mlflow]\nport = 5000", "[ports]\nmlflow = 5000"), "[ports.mlflow]"),
    ],
)
def test_mistake_in_a_profile_is_named_with_its_file(tmp_path, change, message):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, GOOD.replace(*change))
    assert message in str(caught.value)
    assert "x.toml" in str(caught.value)


def test_every_wrong_key_of_a_profile_is_reported_at_once(tmp_path):
    text = GOOD.replace("[site]", "[site]\ncolour = 1").replace("port = 5000", "port = true")
    with pytest.raises(UsageError, match="x.toml has 2 mistakes") as caught:
        read(tmp_path, text)
    assert "colour" in caught.value.got
    assert "[ports.mlflow] port" in caught.value.got
    assert caught.value.next_step


@pytest.mark.parametrize("number", ["0.75", '"0.75"'])
def test_rate_may_be_a_number_or_a_text_and_stays_exact(tmp_path, number):
    text = GOOD.replace(
        'rate = "100"', f"max = {{ cores = {number} }}\nplus = {{ gib = {number} }}"
    )
    rate = read(tmp_path, text)["rates"]["node"]
    assert (rate.max, rate.plus) == ({"cores": "0.75"}, {"gib": "0.75"})


@pytest.mark.parametrize("value", ["true", "[1]", "{ cores = [1] }"])
def test_rate_that_is_not_a_number_is_refused_with_its_key(tmp_path, value):
    key = "max" if "{" in value else "rate"
    with pytest.raises(UsageError, match=rf"\[rates.node\] {key}"):
        read(tmp_path, GOOD.replace('rate = "100"', f"{key} = {value}"))


def test_unknown_time_zone_is_refused_when_the_profile_is_read(tmp_path):
    with pytest.raises(UsageError, match="timezone = 'Europe/Atlantis': this time zone does not"):
        read(tmp_path, GOOD.replace("[hpc]", '[hpc]\ntimezone = "Europe/Atlantis"'))


def test_percent_sign_in_the_project_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="project_dir = '/p/100%u': Slurm replaces %"):
        read(tmp_path, GOOD.replace("${KIT_SANDBOX_DIR}/project", "/p/100%u"))


PRICED = """
[partitions]
small = { time = "1:00:00", nodes = 1, cores = 4, gib = 8, rate = "node" }
large = { rate = "node" }
"""


def test_partitions_refer_to_rates_that_are_written_once(tmp_path):
    sections = read(tmp_path, GOOD + PRICED)
    assert sections["rates"]["small"] is sections["rates"]["node"]
    assert sections["rates"]["large"] is sections["rates"]["node"]
    assert list(sections["partitions"]) == ["small"]  # `large` has a price and takes no jobs


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (', rate = "node" }', " }", "[partitions.small] has no rate"),
        ('rate = "node" }\nlarge', 'rate = "nodes" }\nlarge', "names a missing [rates] table"),
        ('large = { rate = "node" }', "node = {}", "[partitions.node] lacks time"),
    ],
)
def test_partition_without_a_rate_is_refused_before_anything_runs(tmp_path, old, new, message):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, GOOD + PRICED.replace(old, new))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("nat", '["10.0.0.1"]', "egress_addresses"),
        ("env_in", '"login"', "build_env_on"),
        ("seff", "true", "has_seff"),
        ("certificate", "true", "needs_certificate"),
    ],
)
def test_old_keys_are_accepted_with_a_warning(tmp_path, old, value, new):
    with pytest.warns(UserWarning, match=rf"x.toml: \[hpc\] {old} is now named {new}"):
        sections = read(tmp_path, GOOD.replace("[hpc]", f"[hpc]\n{old} = {value}"))
    assert getattr(sections["hpc"], new)


def test_profile_with_the_platform_has_its_ports_and_may_replace_one(tmp_path):
    cloud = '[cloud]\nrunner = "cluster"\nkfp_url = "http://127.0.0.1:8080"\n'
    ports = read(tmp_path, GOOD + cloud)["ports"]
    assert (ports["grafana"].port, ports["grafana"].target) == (5050, 3000)
    assert ports["mlflow"].svc == ""  # the profile's own row
    assert list(read(tmp_path, GOOD)["ports"]) == ["mlflow"]


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
    text = template()
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
