"""The install step, with a package manager that only records its calls."""

import os
import socket
import stat
from pathlib import Path

import pytest
from kit_sandbox import install

from kit.base import CommandFailed, UsageError

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
    monkeypatch.setattr(install, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(install, "ENABLED", (tmp_path / "units", tmp_path / "absent"))
    monkeypatch.setattr(install, "missing_accounts", list)
    monkeypatch.setattr(install, "missing_apps", list)
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
    monkeypatch.setattr(install.os, "getuid", lambda: uid)


def test_apt_installs_only_missing_packages(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("KIT_SANDBOX_INSTALL", "yes")
    said = []
    install.install(said.append)
    update, policy, *_, command, _, _, _ = (machine / "log").read_text().splitlines()
    assert update == "apt-get -q -y -o DPkg::Lock::Timeout=150 update"
    assert policy == "#!/bin/sh", "no daemon may start while packages are installed"
    assert command.startswith("apt-get -q -y -o DPkg::Lock::Timeout=150 install --no-install-rec")
    assert " munge " in command
    assert " lmod " in command
    assert " curl" not in command
    assert "munge" in said[0]


def test_units_of_new_packages_are_disabled_and_others_are_not(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("CI", "true")
    install.install(lambda text: None)
    assert [path.name for path in (machine / "units").iterdir()] == ["old.service"]
    assert not (machine / "policy-rc.d").exists()


def test_existing_policy_stays_as_it_was(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("CI", "true")
    (machine / "policy-rc.d").write_text("the administrator's own\n")
    install.install(lambda text: None)
    assert (machine / "policy-rc.d").read_text() == "the administrator's own\n"


def test_failed_installation_reports_apt_and_leaves_no_policy(machine, monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setenv("CI", "true")
    apt(machine, code=100)
    with pytest.raises(CommandFailed, match="apt-get .* ended with exit code 100"):
        install.install(lambda text: None)
    assert not (machine / "policy-rc.d").exists()


def test_ordinary_user_gets_the_command_and_nothing_is_installed(machine, monkeypatch):
    as_root(monkeypatch, uid=1000)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(UsageError) as caught:
        install.install(lambda text: None)
    assert caught.value.exit_code == 2
    assert "munge" in caught.value.got
    assert caught.value.next_step.startswith("sudo KIT_SANDBOX_INSTALL=yes ")
    assert caught.value.next_step.endswith("/kit sandbox install")
    assert not (machine / "log").exists()


def test_nothing_is_installed_without_a_terminal_or_permission(machine, monkeypatch):
    as_root(monkeypatch)
    with pytest.raises(UsageError, match="nobody can be asked"):
        install.install(lambda text: None)
    assert not (machine / "log").exists()


def test_machine_without_dpkg_is_referred_to_the_image(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="has no dpkg|Debian") as caught:
        install.missing_packages()
    assert "Dockerfile" in caught.value.next_step


def test_existing_account_of_somebody_else_is_refused(monkeypatch):
    as_root(monkeypatch)
    monkeypatch.setattr(install, "account_names", lambda: ("daemon",) * 3)
    with pytest.raises(UsageError, match="account daemon exists and is not the sandbox's"):
        install.missing_accounts()


def test_environment_counts_only_if_finished_from_this_list(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "apps_folder", lambda: tmp_path)
    assert install.missing_apps() == ["pytorch", "keystone"]
    (tmp_path / "pytorch").mkdir()
    stamp = tmp_path / "pytorch" / ".complete"
    stamp.write_text("of an older list")
    assert "pytorch" in install.missing_apps()
    stamp.write_text(install._expected_stamp("pytorch"))
    assert install.missing_apps() == ["keystone"]


@pytest.mark.parametrize("plant", ["writable", "symlink", "stranger"])
def test_environment_that_somebody_else_could_write_is_refused(tmp_path, monkeypatch, plant):
    """Its `.complete` file proves nothing about who wrote it."""
    monkeypatch.setattr(install, "apps_folder", lambda: tmp_path)
    place = tmp_path / "keystone"
    target = tmp_path / "elsewhere" if plant == "symlink" else place
    target.mkdir()
    (target / ".complete").write_text(install._expected_stamp("keystone"))
    if plant == "symlink":
        place.symlink_to(target)
    elif plant == "writable":
        place.chmod(0o777)
    else:
        own, checked = os.getuid(), install.check_owner
        monkeypatch.setattr(
            install, "check_owner", lambda path, uid, step: checked(path, own + 1, step)
        )
    with pytest.raises(UsageError, match="keystone cannot be used by the sandbox"):
        install.missing_apps()


@pytest.fixture
def without_network(machine, monkeypatch):
    """A machine with loopback addresses only, and an `ip` that only writes down its calls."""

    def nothing_found(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(install.socket, "getaddrinfo", nothing_found)
    program(machine, "ip", f'#!/bin/sh\necho "ip $*" >>{machine}/log\n')
    (machine / "run").mkdir()
    return machine


def test_machine_without_network_gets_an_address_until_down(without_network, monkeypatch):
    as_root(monkeypatch)
    said = []
    install.lend_address(without_network, said.append)
    install.take_back_address(without_network)
    install.take_back_address(without_network)
    calls = (without_network / "log").read_text().splitlines()
    assert calls == [f"ip address {verb} 192.0.2.1/32 dev lo" for verb in ("add", "del")]
    assert "no network" in said[0]


def test_ordinary_user_without_network_gets_the_command(without_network, monkeypatch):
    as_root(monkeypatch, uid=1000)
    with pytest.raises(UsageError, match="without a network") as caught:
        install.lend_address(without_network, lambda text: None)
    assert caught.value.next_step == "sudo ip address add 192.0.2.1/32 dev lo"


def test_no_address_is_added_on_a_network(machine, monkeypatch):
    monkeypatch.setattr(install.socket, "getaddrinfo", lambda *args, **options: [])
    install.lend_address(machine, lambda text: None)
    assert not (machine / "log").exists()


def test_each_package_is_listed_once():
    lines = (Path(install.SOURCE) / "apt.txt").read_text().splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
