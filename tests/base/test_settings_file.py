"""A profile on a base: what it takes from it, and what is refused."""

import re
from pathlib import Path

import pytest

from kit.base import UsageError
from kit.base.settings import load, read_profile

BASE = """
[site]
name = "centre"
title = "The centre"
[hpc]
ssh_host = "login"
project_dir = "/p"
modules = ["a", "b"]
[partitions]
small = { time = "1:00:00", nodes = 1, cores = 4, gib = 8, rate = "cpu" }
[rates.cpu]
per = "h"
unit = "BU"
kind = "CPU"
max = { cores = "0.75", gib = "0.375" }
source = "price list"
checked = "2026-08"
[budget]
CPU = 10
"""
OWN = '[site]\nname = "own"\nbase = "centre"\n'


@pytest.fixture
def write(tmp_path):
    """Write profiles into a folder of one's own; return what loads one of them."""

    def write(**texts: str):
        for name, text in texts.items():
            (tmp_path / f"{name}.toml").write_text(text)
        return lambda name="own": load(name, {"KIT_SITES_DIR": str(tmp_path)})

    return write


def test_profile_has_what_its_base_has_and_its_own_name(write, tmp_path):
    loaded = write(centre=BASE, own=OWN)()
    assert (loaded.profile, loaded.site.name, loaded.site.title) == ("own", "own", "The centre")
    assert (loaded.hpc.ssh_host, loaded.hpc.modules) == ("login", ("a", "b"))
    assert loaded.partitions["small"].cores == 4
    assert loaded.budget == {"CPU": "10"}
    assert (loaded.file, loaded.bases) == (tmp_path / "own.toml", (tmp_path / "centre.toml",))


def test_profile_replaces_its_base_key_by_key(write):
    more = (
        '[hpc]\nssh_host = "gpu"\nmodules = ["c"]\n'
        "[partitions]\nsmall = { nodes = 2 }\n"
        '[partitions.large]\ntime = "2:00:00"\nnodes = 9\ncores = 8\ngib = 16\nrate = "cpu"\n'
        '[rates.cpu]\nmax = { cores = "1" }\n[budget]\nGPU = 2\n'
    )
    loaded = write(centre=BASE, own=OWN + more)()
    assert (loaded.hpc.ssh_host, loaded.hpc.project_dir) == ("gpu", "/p")
    assert loaded.hpc.modules == ("c",)  # a list is one value
    small = loaded.partitions["small"]
    assert (small.nodes, small.cores, small.time) == (2, 4, "1:00:00")
    assert loaded.partitions["large"].nodes == 9
    assert loaded.rates["cpu"].max == {"cores": "1"}  # a price is one value
    assert loaded.rates["cpu"].source == "price list"
    assert loaded.budget == {"CPU": "10", "GPU": "2"}


def test_base_may_have_a_base(write):
    middle = '[site]\nname = "middle"\nbase = "centre"\n[hpc]\ncpus = 7\nmem = "7G"\n'
    own = OWN.replace("centre", "middle") + '[hpc]\nmem = "9G"\n'
    loaded = write(centre=BASE, middle=middle, own=own)()
    assert (loaded.hpc.ssh_host, loaded.hpc.cpus, loaded.hpc.mem) == ("login", 7, "9G")
    assert [path.stem for path in loaded.bases] == ["middle", "centre"]


def test_own_profile_may_have_the_shipped_one_of_its_name_as_base(write):
    text = '[site]\nname = "roihu"\nbase = "roihu"\n[hpc]\naccount = "project_9"\n'
    loaded = write(roihu=text)("roihu")
    assert (loaded.hpc.account, loaded.hpc.partition) == ("project_9", "small")
    assert loaded.bases[0] == load("roihu", {}).file


def test_closed_base_closes_the_profile_too(write):
    text = OWN.replace("centre", "mahti-2024")
    assert write(own=text)().site.closed == load("mahti-2024", {}).site.closed


@pytest.mark.parametrize(
    ("files", "got"),
    [
        ({"own": OWN}, "this profile does not exist"),
        ({"own": OWN.replace("centre", "own")}, "this profile does not exist"),
        ({"own": OWN.replace("centre", "../centre"), "centre": BASE}, "does not exist"),
        ({"own": OWN.replace("centre", "mahti")}, "another name of 'mahti-2024'"),
        (
            {"own": OWN, "centre": BASE.replace("[hpc]", 'base = "own"\n[hpc]')},
            "in a circle: own -> centre -> own",
        ),
    ],
)
def test_base_that_cannot_be_used_is_named_with_file_and_key(write, tmp_path, files, got):
    with pytest.raises(UsageError, match=r"\[site\] base = ") as caught:
        write(**files)()
    assert str(tmp_path) in str(caught.value)
    assert got in caught.value.got
    assert caught.value.next_step


@pytest.mark.parametrize("value", ["1", "[]", "true"])
def test_base_that_is_not_a_text_is_refused(write, value):
    with pytest.raises(UsageError, match=r"\[site\] base = .*: input should be a valid string"):
        write(own=f'[site]\nname = "own"\ntitle = "x"\nbase = {value}\n')()


def test_mistake_in_a_base_names_the_base(write, tmp_path):
    wrong = BASE.replace('ssh_host = "login"', "ssh_host = 1\ncolour = 2").replace("4,", '"4",')
    load_own = write(centre=wrong, own=OWN + "[hpc]\ncpus = 'x'\n")
    with pytest.raises(UsageError, match="own.toml has 4 mistakes") as caught:
        load_own()
    assert caught.value.got.count(f"(in its base, {tmp_path / 'centre.toml'})") == 3
    assert re.search(r"cpus = 'x': [^(]*(; |$)", caught.value.got)


def test_syntax_error_of_a_base_names_its_file(write):
    with pytest.raises(UsageError, match=r"centre\.toml is not valid TOML"):
        write(centre="[site", own=OWN)()


def test_placeholder_of_a_base_is_filled_in_by_the_profile(write):
    centre = BASE.replace('"login"', '"<login node>"')
    load_own = write(centre=centre, own=OWN)
    with pytest.raises(UsageError, match=r"ssh_host is not filled in.*centre\.toml"):
        load_own()
    assert write(own=OWN + '[hpc]\nssh_host = "x"\n')().hpc.ssh_host == "x"


def test_old_key_of_a_base_does_not_win_over_the_new_one(write):
    old = BASE.replace('ssh_host = "login"', 'ssh_host = "login"\nnat = ["10.0.0.1"]')
    load_own = write(centre=old, own=OWN + '[hpc]\negress_addresses = ["10.0.0.2"]\n')
    with pytest.warns(UserWarning, match=r"centre\.toml: \[hpc\] nat is now named"):
        assert load_own().hpc.egress_addresses == ("10.0.0.2",)


def test_section_that_is_not_a_table_replaces_nothing_silently(tmp_path):
    path = Path(tmp_path / "own.toml")
    path.write_text('ports = 1\n[site]\nname = "own"\nbase = "roihu"\n')
    with pytest.raises(UsageError, match=r"\[ports\] is 1"):
        read_profile(path, {})
