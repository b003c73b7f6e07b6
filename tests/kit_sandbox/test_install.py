"""The install step, with a package manager that only writes down what it was asked."""

import os
import socket
import stat
from pathlib import Path

import pytest
from kit_sandbox import install as sandbox_install

from kit.base.errors import CommandFailed, UsageError

APT = """#!/bin/sh
echo "$(basename "$0") $*" >>{log}
cat {policy} >>{log} 2>/dev/null
ln -sf /lib/systemd/system/new.service {units}/new.service
exit {code}
"""
DPKG = """#!/bin/sh
# the answer of dpkg-query 1.21 for one package there, one removed, the others unknown
echo "curl installed"
echo "munge config-files"
echo "dpkg-query: no packages found matching lmod" >&2
exit 1
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose package tools, policy file and units are below a folder."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "old.service").symlink_to("/lib/systemd/system/old.service")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(sandbox_install, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(sandbox_install, "ENABLED", (tmp_path / "units", tmp_path / "absent"))
    monkeypatch.setattr(sandbox_install, "missing_accounts", list)
    monkeypatch.setattr(sandbox_install, "missing_apps", list)
    for name in ("CI", "KIT_SANDBOX_INSTALL"):
        monkeypatch.delenv(name, raising=False)
    program(tmp_path, "dpkg-query", DPKG)
    apt(tmp_path)
    return tmp_path


def program(machine, name, text):
    path = machine / "bin" / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def apt(machine, code=0):
    text = APT.format(
        log=machine / "log", policy=machine / "policy-rc.d", units=machine / "units", code=code
    )
    program(machine, "apt-get", text)


def as_root(monkeypatch, uid=0):
    monkeypatch.setattr(sandbox_install.os, "getuid", lambda: uid)


def test_only_what_is_missing_is_asked_of_apt(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("KIT_SANDBOX_INSTALL", "yes")
    said = []
    sandbox_install.install(said.append)
    update, policy, *_, install, _, _, _ = (machine / "log").read_text().splitlines()
    assert update == "apt-get -q -y -o DPkg::Lock::Timeout=150 update"
    assert policy == "#!/bin/sh", "no daemon may start while packages are installed"
    assert install.startswith("apt-get -q -y -o DPkg::Lock::Timeout=150 install --no-install-rec")
    assert " munge " in install
    assert " lmod " in install
    assert " curl" not in install
    assert "munge" in said[0]


def test_units_that_came_with_the_packages_are_disabled_and_others_are_not(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("CI", "true")
    sandbox_install.install(lambda text: None)
    assert [path.name for path in (machine / "units").iterdir()] == ["old.service"]
    assert not (machine / "policy-rc.d").exists()


def test_a_policy_that_was_there_stays_as_it_was(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("CI", "true")
    (machine / "policy-rc.d").write_text("the administrator's own\n")
    sandbox_install.install(lambda text: None)
    assert (machine / "policy-rc.d").read_text() == "the administrator's own\n"


def test_a_failed_installation_says_what_apt_said_and_leaves_no_policy(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("CI", "true")
    apt(machine, code=100)
    with pytest.raises(CommandFailed, match="apt-get .* ended with exit code 100"):
        sandbox_install.install(lambda text: None)
    assert not (machine / "policy-rc.d").exists()


def test_an_ordinary_user_gets_the_one_command_and_nothing_is_installed(machine, monkeypatch):
    as_root(monkeypatch, uid=1000)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(UsageError) as caught:
        sandbox_install.install(lambda text: None)
    assert caught.value.exit_code == 2
    assert "munge" in caught.value.got
    assert caught.value.next_step.startswith("sudo KIT_SANDBOX_INSTALL=yes ")
    assert caught.value.next_step.endswith("/kit sandbox install")
    assert not (machine / "log").exists()


def test_without_a_terminal_and_without_leave_nothing_is_installed(machine, monkeypatch):
    as_root(monkeypatch)
    with pytest.raises(UsageError, match="nobody can be asked"):
        sandbox_install.install(lambda text: None)
    assert not (machine / "log").exists()


def test_a_machine_without_dpkg_is_pointed_to_the_image(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="no dpkg") as caught:
        sandbox_install.missing_packages()
    assert "Dockerfile" in caught.value.next_step


def test_an_account_that_is_somebodys_is_not_taken(monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setattr(sandbox_install, "users", lambda: ("daemon",) * 3)
    with pytest.raises(UsageError, match="account daemon exists and is not the sandbox's"):
        sandbox_install.missing_accounts()


def test_an_environment_counts_only_when_it_was_finished_from_this_list(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox_install, "apps_folder", lambda: tmp_path)
    assert sandbox_install.missing_apps() == ["pytorch", "keystone"]
    (tmp_path / "pytorch").mkdir()
    stamp = tmp_path / "pytorch" / ".complete"
    stamp.write_text("of an older list")
    assert "pytorch" in sandbox_install.missing_apps()
    stamp.write_text(sandbox_install._wanted("pytorch"))
    assert sandbox_install.missing_apps() == ["keystone"]


@pytest.fixture
def off_every_network(machine, monkeypatch):
    """A machine with loopback addresses only, and an `ip` that only writes down its calls."""

    def nothing_found(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(sandbox_install.socket, "getaddrinfo", nothing_found)
    program(machine, "ip", f'#!/bin/sh\necho "ip $*" >>{machine}/log\n')
    (machine / "run").mkdir()
    return machine


def test_a_machine_off_every_network_gets_an_address_until_down(off_every_network, monkeypatch):
    as_root(monkeypatch)
    said = []
    sandbox_install.lend_address(off_every_network, said.append)
    sandbox_install.take_back_address(off_every_network)
    sandbox_install.take_back_address(off_every_network)
    calls = (off_every_network / "log").read_text().splitlines()
    assert calls == [f"ip address {verb} 192.0.2.1/32 dev lo" for verb in ("add", "del")]
    assert "off every network" in said[0]


def test_off_every_network_an_ordinary_user_gets_the_one_command(off_every_network, monkeypatch):
    as_root(monkeypatch, uid=1000)
    with pytest.raises(UsageError, match="off every network") as caught:
        sandbox_install.lend_address(off_every_network, lambda text: None)
    assert caught.value.next_step == "sudo ip address add 192.0.2.1/32 dev lo"


def test_on_a_network_no_address_is_added(machine, monkeypatch):
    monkeypatch.setattr(sandbox_install.socket, "getaddrinfo", lambda *args, **options: [])
    sandbox_install.lend_address(machine, lambda text: None)
    assert not (machine / "log").exists()


def test_every_package_of_the_list_is_named_once():
    lines = (Path(sandbox_install.SOURCE) / "apt.txt").read_text().splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
