"""Machines, accounts and file systems that a sandbox cannot run on: each with its way out."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from click.testing import CliRunner
from kit_sandbox import commands, files, machine, roots

from kit.base import ROOT, KitError, UsageError
from kit.base.settings import load

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:40 / /users rw,relatime shared:2 - nfs4 server:/users rw,vers=4.2
24 22 0:41 / /my\\040data rw,nosuid,nodev shared:3 - ext4 /dev/sdb1 rw
25 22 0:42 / /scratch rw,noexec - tmpfs tmpfs rw,size=1024k
26 22 0:43 / /image rw - squashfs /dev/loop0 ro
27 23 0:44 / /users/local rw - xfs /dev/sdc1 rw
28 22 0:45 / /scratch rw,relatime - xfs /dev/sdd1 rw
29 22 0:46 / /usb rw,noexec - vfat /dev/sde1 rw
no mount at all
"""
# for an ordinary user the kernel has these three, and any of them may forbid a user namespace
SETTINGS = {
    "user.max_user_namespaces": ("15000", "0"),
    "kernel.unprivileged_userns_clone": ("1", "0"),
    "kernel.apparmor_restrict_unprivileged_userns": ("0", "1"),
}


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A /proc of the machine where nothing is forbidden; its user is an ordinary one."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "self" / "mountinfo").write_text(MOUNTS)
    (folder / "self" / "status").write_text("Name:\tpython\nSeccomp:\t0\n")
    for name, (good, _) in SETTINGS.items():
        file = folder / "sys" / name.replace(".", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{good}\n")
    monkeypatch.setattr(machine, "PROC", folder)
    return folder


@pytest.fixture
def short_folder():
    """A folder with a short path, as Unix sockets want it."""
    with tempfile.TemporaryDirectory(prefix="kit-", dir="/tmp") as folder:
        yield machine.Path(folder)


@pytest.fixture
def every_folder_exists(monkeypatch):
    monkeypatch.setattr(machine.os.path, "exists", lambda path: True)
    monkeypatch.setattr(machine.os.path, "realpath", str)


@pytest.fixture
def program(tmp_path, monkeypatch):
    def write(name, text):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)

    return write


@pytest.mark.parametrize(
    ("folder", "kind", "point"),
    [
        ("/", "ext4", "/"),
        ("/usersland", "ext4", "/"),
        ("/users/ada", "nfs4", "/users"),
        ("/users/local/ada", "xfs", "/users/local"),
        ("/my data/x", "ext4", "/my data"),
        ("/scratch", "xfs", "/scratch"),  # the later one on the same point
    ],
)
def test_file_system_of_a_folder_is_the_innermost(proc, every_folder_exists, folder, kind, point):
    mount = machine.mount_of(machine.Path(folder))
    assert (mount.kind, mount.point) == (kind, point)


@pytest.mark.parametrize(
    ("folder", "got"),
    [
        ("/usb/s", r"mounted noexec \(/usb\)"),
        ("/image/s", r"mounted read-only \(/image\)"),
        ("/users/ada/s", r"on a network file system \(nfs4, /users\)"),
    ],
)
def test_state_folder_on_an_unfit_file_system_is_refused(proc, every_folder_exists, folder, got):
    with pytest.raises(UsageError, match=got) as caught:
        machine.check_state(machine.Path(folder))
    assert caught.value.next_step.startswith("set KIT_SANDBOX_DIR to a folder ")


def test_software_on_a_network_file_system_is_slow_and_reported(proc, every_folder_exists):
    said = []
    machine.check_cache(machine.Path("/my data/c"), said.append)
    assert said == [], "a mount without setuid programs is good enough"
    machine.check_cache(machine.Path("/users/ada/.cache"), said.append)
    assert "network file system (nfs4)" in said[0]
    assert "KIT_CACHE_DIR" in said[0]
    with pytest.raises(UsageError, match="noexec") as caught:
        machine.check_cache(machine.Path("/usb/c"), said.append)
    assert caught.value.next_step == "set KIT_CACHE_DIR to a folder where programs may run"


def up_in_a_mount(options, folder):
    """Call `kit sandbox up` with its state on a tmpfs of these options; return the process."""
    own = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && exec "$3" -m kit sandbox up'
    words = [options, str(folder), sys.executable]
    environ = os.environ | {"KIT_SANDBOX_DIR": f"{folder}/s"}
    argv = [*own, "sh", "-c", script, "-", *words]
    return subprocess.run(argv, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "got"),
    [
        ("noexec,mode=700", "mounted noexec"),
        ("ro", "mounted read-only"),
        ("size=30M,mode=700", "31 MB are free, it needs 500 MB"),
    ],
)
def test_real_mount_that_is_unfit_is_refused_at_once(short_folder, options, got):
    done = up_in_a_mount(options, short_folder)
    assert done.returncode == 2, done.stderr
    assert got in done.stderr
    assert "KIT_SANDBOX_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_disk_ends_the_wait_for_services(tmp_path, monkeypatch):
    machine.check_not_full(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(KitError, match="is full, so services fail") as caught:
        machine.check_not_full(tmp_path)
    assert caught.value.got == "1 MB are free"


def test_quota_that_is_reached_while_files_are_written_is_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(files, "prepare", full)
    with pytest.raises(KitError, match="write the sandbox's files") as caught:
        commands._prepare(load("sandbox"), tmp_path, tmp_path)
    assert "Disk quota exceeded" in caught.value.got


def test_both_sites_are_refused_at_once_if_one_name_is_too_long(monkeypatch):
    """The second site's folder is below the first one's."""
    monkeypatch.setenv("KIT_SANDBOX_DIR", "/var/tmp/" + "x" * 48)
    monkeypatch.setattr(commands, "up", lambda *_: pytest.fail("the first site was started"))
    result = CliRunner().invoke(commands.group, ["up", "--site", "both"])
    assert isinstance(result.exception, UsageError), result.exception
    assert "64 bytes, at most 60" in result.exception.got


@pytest.mark.parametrize("command", ["up", "install", "down", "status"])
def test_user_without_an_account_is_refused_before_anything_else(monkeypatch, command):
    """Such a user may have no home folder either, and the profile could not be read."""

    def none(uid):
        raise KeyError(uid)

    monkeypatch.setattr(machine.pwd, "getpwuid", none)
    monkeypatch.setattr(machine.os, "getuid", lambda: 54321)
    monkeypatch.setattr(commands, "load", lambda _: pytest.fail("it was read"))
    result = CliRunner().invoke(commands.group, [command])
    assert isinstance(result.exception, UsageError), result.exception
    assert result.exception.tried == "find the account of uid 54321"
    assert "kit:x:54321:" in result.exception.next_step


@pytest.mark.parametrize(("name", "values"), SETTINGS.items())
def test_setting_that_forbids_namespaces_is_named(proc, program, monkeypatch, name, values):
    program("unshare", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(machine.os, "getuid", lambda: 1000)
    (proc / "sys" / name.replace(".", "/")).write_text(f"{values[1]}\n")
    with pytest.raises(UsageError, match="as an ordinary user") as caught:
        machine.check_machine(roots.ENTER)
    assert f"Operation not permitted ({name} is {values[1]})" in caught.value.got
    assert caught.value.next_step.startswith(f"sudo sysctl {name}=")
    assert "--cap-add SYS_ADMIN" in caught.value.next_step


@pytest.mark.parametrize("uid", [0, 1000])
def test_seccomp_filter_of_a_container_is_named(proc, program, monkeypatch, uid):
    program("unshare", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(machine.os, "getuid", lambda: uid)
    (proc / "self" / "status").write_text("Name:\tpython\nSeccomp:\t2\n")
    with pytest.raises(UsageError, match="which a Debian root needs") as caught:
        machine.check_machine(roots.ENTER)
    assert "a seccomp filter" in caught.value.got
    assert "seccomp=unconfined" in caught.value.next_step


def test_unknown_cause_has_all_ways_out(proc, program, monkeypatch):
    """Ubuntu 24.04 makes the namespace, but it gives no rights."""
    program("mount", "echo '/proc: permission denied' >&2; exit 1")
    with pytest.raises(UsageError, match="mount in a namespace of one's own") as caught:
        machine.check_machine(roots.ENTER)
    assert caught.value.got == "/proc: permission denied"
    for word in ("apparmor_restrict_unprivileged_userns=0", "run the sandbox as root", "container"):
        assert word in caught.value.next_step


def test_another_architecture_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    with pytest.raises(UsageError, match="aarch64, the locked packages are for x86_64"):
        roots.make(tmp_path / "cache", "bookworm", print)


def test_machine_without_apt_is_pointed_to_the_container(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no apt-get") as caught:
        roots.make(tmp_path / "cache", "bookworm", print)
    assert "Dockerfile" in caught.value.next_step
