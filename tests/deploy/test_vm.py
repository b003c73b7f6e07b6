"""`kit vm plan`: OpenStack commands that a shell accepts, with the prices of the profile."""

import dataclasses
import subprocess

import pytest

from kit.base import UsageError
from kit.base.settings import load
from kit.deploy import vm

# A stand-in for the OpenStack client: prints what it was called with, one word a line.
CLIENT = """\
openstack() { printf '<%s>' "$@"; echo; }
"""


def run(text):
    done = subprocess.run(
        ["bash", "-euc", CLIENT + text],
        capture_output=True,
        text=True,
        env={"HOME": "/home/user", "OS_PROJECT_NAME": "project_2001234", "PATH": "/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plan_of_roihu_runs_in_a_shell():
    said = run(vm.plan(load("roihu", {})))
    address = "<floating><ip><create><-f><value><-c><floating_ip_address><public>"
    rule = "<security><group><rule><create><--protocol><tcp><--dst-port><22><--remote-ip>"
    assert said.splitlines() == [
        "<keypair><create><--public-key></home/user/.ssh/local-cpouta.pem.pub><local-cpouta>",
        "<security><group><create><kit-ssh>",
        f"{rule}<192.0.2.7/32><kit-ssh>",
        f"{rule}<86.50.172.4/32><kit-ssh>",
        f"{rule}<86.50.172.5/32><kit-ssh>",
        "<server><create><--flavor><standard.xxlarge><--image><Ubuntu-24.04>"
        "<--key-name><local-cpouta><--security-group><kit-ssh><--network><project_2001234>"
        "<--wait><kit-platform>",
        f"<server><add><floating><ip><kit-platform><{address}>",
        "<server><delete><--wait><kit-platform>",
        f"<floating><ip><delete><{address}>",
    ]


def test_plan_lets_a_block_of_addresses_in():
    said = run(vm.plan(load("lumi", {})))
    assert "<--remote-ip><193.167.209.128/26><kit-ssh>" in said


@pytest.mark.parametrize(
    ("profile", "vm_price", "together"),
    [("roihu", "8.40", "8.60"), ("mahti-2024", "8.00", "8.20"), ("sandbox", "8.40", "8.60")],
)
def test_prices_are_shown_with_their_source(profile, vm_price, together):
    text = vm.plan(load(profile, {}))
    assert f": {vm_price} Cloud BU an hour (https://docs.csc.fi/cloud/pouta/vm-flavors-" in text
    assert (
        ": 0.20 Cloud BU an hour (https://docs.csc.fi/cloud/pouta/vm-flavors-and-billing/" in text
    )
    assert f"together {together} Cloud BU an hour" in text


def test_profile_without_a_cloud_or_a_price_is_refused():
    roihu = load("roihu", {})
    with pytest.raises(UsageError, match="no flavor"):
        vm.plan(dataclasses.replace(roihu, cloud=None))
    with pytest.raises(UsageError, match=r"rates.vm.*is missing"):
        vm.plan(dataclasses.replace(roihu, rates={}))
