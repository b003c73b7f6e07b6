"""The sections of a profile: types, defaults, and what they refuse."""

from pathlib import Path

import pytest

from kit.base import UsageError
from kit.base.settings import read_profile

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


OPTION_KEYS = (
    *("account", "partition", "time", "mem", "mem_per_cpu", "gres", "gpus_per_node", "qos"),
    *("constraint", "clusters", "licenses", "reservation", "nodelist", "exclude"),
    *("mail_type", "mail_user", "burst_buffer"),
)


@pytest.mark.parametrize("key", OPTION_KEYS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ('"x\\n#SBATCH --wrap=id"', "control character"),
        ('"x\\u0007"', "control character"),
        ('"--wrap=id"', "sbatch would read"),
        ("3", "valid string"),
        ("[]", "valid string"),
    ],
)
def test_value_that_sbatch_could_misread_is_refused(tmp_path, key, value, reason):
    with pytest.raises(UsageError, match=rf"\[hpc\] {key} = ") as caught:
        read(tmp_path, GOOD.replace("[hpc]", f"[hpc]\n{key} = {value}"))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        *("nodes = 0", "nodes = -1", "cpus = 0", "nodes = 1.5", "nvme = -1", "nvme = 100001"),
        *("nvme = true", "exclusive = 1", 'exclusive = "yes"'),
    ],
)
def test_number_out_of_range_is_refused(tmp_path, line):
    with pytest.raises(UsageError, match=rf"\[hpc\] {line.split()[0]} = "):
        read(tmp_path, GOOD.replace("[hpc]", f"[hpc]\n{line}"))


@pytest.mark.parametrize(
    ("key", "step"),
    [
        ("tasks_per_node = 2", "write cpus, or `kit submit --ntasks`"),
        ('proxy_jump = "gate"', "write ProxyJump in ~/.ssh/config"),
    ],
)
def test_key_that_people_look_for_is_refused_with_what_to_write(tmp_path, key, step):
    with pytest.raises(UsageError, match="is not a key") as caught:
        read(tmp_path, GOOD.replace("[hpc]", f"[hpc]\n{key}"))
    assert step in str(caught.value)


def test_memory_is_written_for_a_node_or_for_a_core(tmp_path):
    both = GOOD.replace("[hpc]", '[hpc]\nmem = "{}"\nmem_per_cpu = "1G"')
    with pytest.raises(UsageError, match=r"\[hpc\] has both mem and mem_per_cpu"):
        read(tmp_path, both.replace("{}", "3G"))
    assert read(tmp_path, both.replace("{}", ""))["hpc"].mem_per_cpu == "1G"


@pytest.mark.parametrize("value", ["10.0.0.5", "10.0.0.5/32", "193.167.209.128/26"])
def test_egress_address_may_be_a_block(tmp_path, value):
    text = GOOD.replace("[hpc]", f'[hpc]\negress_addresses = ["{value}"]')
    assert read(tmp_path, text)["hpc"].egress_addresses == (value,)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("10.0.0.5/24", "host bits set"),
        ("10.0.0.300", "Octet"),
        ("10.0.0.0/33", "netmask"),
        ("login.example", "Expected 4 octets"),
        ("2001:db8::/64", "Expected 4 octets"),
        ("0.0.0.0/0", "whole internet"),
        ("", "write an address"),
    ],
)
def test_egress_address_that_is_no_block_is_refused(tmp_path, value, reason):
    with pytest.raises(UsageError, match=r"\[hpc\] egress_addresses") as caught:
        read(tmp_path, GOOD.replace("[hpc]", f'[hpc]\negress_addresses = ["{value}"]'))
    assert reason in str(caught.value)


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
