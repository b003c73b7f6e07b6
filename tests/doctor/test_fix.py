"""What `kit doctor --fix` does on the VM: only what was asked for, only where it is needed.

No Docker runs where the tests do: the VM is a real sshd with programs that answer from recorded
texts and log the calls that change something.
"""

import dataclasses
import os
import shutil
import subprocess
import sys

import captured
import pytest
from doctor_bench import BARE, Bench

from kit.base import CommandFailed, UsageError
from kit.base.settings import Cloud
from kit.doctor import vm as doctor_vm
from kit.doctor.context import Ground
from kit.doctor.findings import Found

LEFT, MENDED = "made/ss-docker-proxy-left.txt", "made/ss-docker.txt"
# Removing the network files lets go of the ports; other calls of sudo do nothing.
SUDO = """
case "$*" in
"-n ss -Hltnp") cat "$HOME/listeners"; exit;;
"-n rm -rf /var/lib/docker/network/files") {cp} "$HOME/mended" "$HOME/listeners";;
"-n systemctl "*|"-n pkill "*) ;;
*) echo "unknown: sudo $*" >&2; exit 99;;
esac
echo "sudo $*" >>"$HOME/log"
"""
RESTART = [
    "sudo -n systemctl stop docker.socket docker",
    "sudo -n rm -rf /var/lib/docker/network/files",
    "sudo -n systemctl start docker",
]


class Vm:
    """A VM on which docker-proxy holds ports as in `listeners`; `done` is what was changed."""

    def __init__(self, tmp_path, monkeypatch):
        self.bench, self.folder = Bench(tmp_path, monkeypatch), tmp_path

    def start(self, listeners=LEFT, mended=MENDED, sudo=SUDO, answers=None, **programs):
        (self.folder / "listeners").write_text(captured.read(listeners))
        (self.folder / "mended").write_text(captured.read(mended))
        sudo = sudo.format(cp=shutil.which("cp"))
        server = self.bench.docker_vm(answers, sudo=sudo, **programs)
        self.config = str(server.folder / "config")
        cloud = Cloud(ssh_host="site", runner="cluster", kfp_url="http://127.0.0.1:9")
        return Ground(dataclasses.replace(BARE, hpc=self.bench.site(server), cloud=cloud))

    def done(self):
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def vm(tmp_path, monkeypatch):
    made = Vm(tmp_path, monkeypatch)
    yield made
    made.bench.close()


def test_docker_proxy_is_mended_each_command_said_before(vm):
    ground, said = vm.start(), []
    doctor_vm.fix(ground, "docker-proxy-left", lambda line: said.append((line, len(vm.done()))))
    assert vm.done() == RESTART
    assert said == [*zip(RESTART, range(3), strict=True), ("mended: 2 containers", 3)]


def test_nothing_is_done_where_the_fault_is_not(vm):
    ground = vm.start(listeners=MENDED)
    with pytest.raises(UsageError, match="it is not there: 2 containers"):
        doctor_vm.fix(ground, "docker-proxy-left", print)
    with pytest.raises(UsageError, match="it is not there"):
        doctor_vm.fix(ground, "registry-stuck", print)
    assert vm.done() == []


def test_another_fault_is_not_mended_in_its_place(vm):
    with pytest.raises(UsageError, match="docker-proxy holds a port"):
        doctor_vm.fix(vm.start(), "registry-stuck", print)
    assert vm.done() == []


def test_what_has_no_fix_is_refused_before_anything_is_reached():
    with pytest.raises(UsageError, match="no fix for 'key-mode'") as caught:
        doctor_vm.fix(Ground(BARE), "key-mode", print)
    assert caught.value.next_step == "docker-proxy-left, registry-stuck"


def test_a_fix_that_did_not_help_says_what_is_still_there(vm):
    with pytest.raises(Found, match="port 8080"):
        doctor_vm.fix(vm.start(mended=LEFT), "docker-proxy-left", print)
    assert vm.done() == RESTART


def test_a_command_that_fails_ends_the_fix(vm):
    ground = vm.start(sudo=SUDO.replace('"-n systemctl "*|', ""))
    with pytest.raises(CommandFailed, match="systemctl stop"):
        doctor_vm.fix(ground, "docker-proxy-left", print)
    assert vm.done() == []


def test_the_registry_is_ended_by_its_shim_and_removed(vm):
    """Its stop is in yesterday's log until it is removed."""
    ps = captured.read("made/docker-ps.txt")
    (vm.folder / "ps").write_text(ps)
    (vm.folder / "left").write_text(ps.splitlines(keepends=True)[0])
    docker = f"""
case "$1" in
ps) cat "$HOME/ps";;
rm) {shutil.which("cp")} "$HOME/left" "$HOME/ps"; echo "docker $*" >>"$HOME/log";;
*) exit 99;;
esac"""
    log = {(*doctor_vm.LOG,): "made/docker-log-registry-stuck.txt"}
    ground = vm.start(listeners="made/ss-kind.txt", answers=log, docker=docker)
    doctor_vm.fix(ground, "registry-stuck", lambda _: None)
    kill, remove = vm.done()
    number = ps.splitlines()[1].partition("|")[0]
    assert kill == f"sudo -n pkill -KILL -f [c]ontainerd-shim.*{number}"
    assert remove == "docker rm --force kind-registry"


def test_the_command_mends_only_on_request(vm):
    vm.start()
    profile = f"""
[site]
name = "mine"
title = "Mine"
[hpc]
ssh_host = "site"
ssh_config = "{vm.config}"
project_dir = "{vm.folder}"
[cloud]
runner = "cluster"
kfp_url = "http://127.0.0.1:9"
ssh_host = "site"
"""
    (vm.folder / "mine.toml").write_text(profile)
    environ = {**os.environ, "KIT_SITES_DIR": str(vm.folder)}
    argv = [sys.executable, "-m", "kit", "doctor", "mine"]
    look = subprocess.run(argv, capture_output=True, text=True, env=environ)
    assert "[docker-proxy-left]" in look.stdout
    assert "kit doctor --fix docker-proxy-left" in look.stdout
    assert vm.done() == []
    fix = [*argv, "--fix", "docker-proxy-left"]
    mended = subprocess.run(fix, capture_output=True, text=True, env=environ)
    assert mended.returncode == 0, mended.stderr
    assert mended.stderr.splitlines() == [
        *(f"on the VM: {line}" for line in RESTART),
        "on the VM: mended: 2 containers",
    ]
    again = subprocess.run(fix, capture_output=True, text=True, env=environ)
    assert again.returncode == UsageError.exit_code
    assert "it is not there" in again.stderr
