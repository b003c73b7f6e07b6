"""A sandbox of an earlier version: found, explained, removed with one command."""

import pwd

import pytest
from kit_sandbox import commands, files, old

from kit.base import UsageError
from kit.base.settings import load

ACCOUNT = pwd.struct_passwd(("hpcuser", "x", 1001, 1001, old.ACCOUNT_MARK, "/h", "/bin/bash"))
PERSON = pwd.struct_passwd(("ada", "x", 1002, 1002, "Ada", "/home/ada", "/bin/bash"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an earlier sandbox: account, packages, software. Its tools record calls."""
    monkeypatch.setattr(old.pwd, "getpwall", lambda: [PERSON, ACCOUNT])
    (tmp_path / "apps").mkdir()
    monkeypatch.setattr(old, "software", lambda: [tmp_path / "apps"])
    (tmp_path / "bin").mkdir()
    answer = "echo 'munge installed'; echo 'lmod config-files'; exit 1"
    for name, text in {"dpkg-query": answer, "userdel": "", "apt-get": "", "ip": ""}.items():
        program = tmp_path / "bin" / name
        record = "" if text else f'echo "{name} $*" >>{tmp_path}/log'
        program.write_text(f"#!/bin/sh\n{record}\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path


def calls(machine):
    log = machine / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_what_is_left_is_described(machine):
    assert old.left() == f"accounts hpcuser; packages munge; software {machine}/apps"


def test_state_of_an_earlier_version_is_refused_with_the_command(machine, monkeypatch):
    monkeypatch.setattr(files, "MAX_PATH_LENGTH", 200)
    settings = load("sandbox", {"KIT_SANDBOX_DIR": str(machine / "s")})
    folder = files.state_folder(settings)
    (folder / "etc").mkdir()
    (folder / "etc" / "sandbox.env").touch()
    with pytest.raises(UsageError, match="made by an earlier version") as caught:
        commands.up(settings, print)
    assert "accounts hpcuser" in caught.value.got
    assert caught.value.next_step.startswith("kit sandbox remove")
    (folder / old.LINK).symlink_to(machine)
    assert not old.is_old(folder)


def test_root_removes_accounts_and_software_and_packages_only_on_request(machine, monkeypatch):
    monkeypatch.setattr(old.os, "getuid", lambda: 0)
    monkeypatch.setattr(old, "check_owner", lambda *_: None)
    said = []
    old.remove(False, said.append)
    assert calls(machine) == ["ip address del 192.0.2.1/32 dev lo", "userdel hpcuser"]
    assert not (machine / "apps").exists()
    assert said[1] == "its packages stay; to remove them as well: sudo apt-get -q -y purge munge"
    (machine / "apps").mkdir()
    old.remove(True, said.append)
    assert calls(machine)[-1] == "apt-get -q -y purge munge"


def test_ordinary_user_is_told_what_root_has_to_do(machine, monkeypatch):
    monkeypatch.setattr(old.os, "getuid", lambda: 1002)
    monkeypatch.setattr(old, "check_owner", lambda *_: None)
    said = []
    old.remove(False, said.append)
    assert said[0] == "left for root: sudo userdel hpcuser"
    assert calls(machine) == []


def test_machine_without_an_earlier_sandbox_has_nothing_to_remove(machine, monkeypatch):
    monkeypatch.setattr(old.pwd, "getpwall", lambda: [PERSON])
    monkeypatch.setattr(old, "software", list)
    assert old.left() == ""
