"""`kit port-forward`: one ssh connection, the services behind it, and that it comes back.

Ports at an address: against the sandbox's own VM. Services of Kubernetes: no cluster takes part;
a real sshd of the test's own has a small stand-in for kubectl on its PATH (stand_in_kubectl.py).
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from private_sshd import PrivateSshd, free_port
from waiting import until

from kit.base import SSHHost
from kit.base.settings import Port, load
from kit.deploy import port_forward
from kit.deploy.forwards import Forward, list_forwards
from kit.deploy.port_forward import SILENCE_S, Connection

KIT = [sys.executable, "-m", "kit", "port-forward"]
# the forwards listen here, one address for each worker; the VM's loopback is 127.0.0.1
WORKER = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
HERE, OTHER = f"127.0.3.{3 + WORKER}", f"127.0.4.{3 + WORKER}"
SANDBOX = f"127.0.5.{3 + WORKER}"  # of its own: the slow tests may run beside those of the sandbox


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def answers(url):
    try:
        return bool(get(url))
    except OSError:
        return False


class Running:
    """`kit port-forward` as a person has it in a terminal."""

    def __init__(self, folder, *words, **environ):
        self.out, self.err = folder / "out", folder / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*KIT, *words], env=os.environ | environ, stdout=out, stderr=err
            )

    def ready(self):
        until(lambda: self.out.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.err.read_text()

    def said(self, words):
        until(lambda: words in self.err.read_text())

    def ssh(self):
        """The pids of its ssh processes: the connection, and one for each service."""
        children = psutil.Process(self.process.pid).children()
        return [child.pid for child in children if child.name() == "ssh"]

    def master(self):
        """The one that holds the forwards."""
        (pid,) = [p for p in self.ssh() if b"\0-M\0" in Path(f"/proc/{p}/cmdline").read_bytes()]
        return pid

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        return self.process.wait(15)


@pytest.fixture
def started(tmp_path):
    """A function that starts `kit port-forward` and waits for its table."""
    running = []

    def start(*words, **environ):
        running.append(Running(tmp_path, *words, **environ))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            each.stop(signal.SIGTERM)


@pytest.fixture
def cluster(tmp_path):
    """A profile whose VM is a private sshd with the stand-in for kubectl on its PATH."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "kubectl"
    stand_in = bin_folder / "stand_in_kubectl.py"  # a copy: its processes are this test's
    shutil.copy(Path(__file__).parents[1] / "support/stand_in_kubectl.py", stand_in)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -u {stand_in} "$@"\n')
    program.chmod(0o755)
    sshd = PrivateSshd(tmp_path / "sshd", setenv=f"PATH={bin_folder}:/usr/bin:/bin").start()
    ports = {"grafana": free_port(), "mlflow": free_port()}
    (tmp_path / "vm.toml").write_text(
        f"""\
[site]
name = "vm"
title = "A VM"
[hpc]
ssh_host = "site"
ssh_config = "{sshd.folder}/config"
project_dir = "/none"
[cloud]
ssh_host = "site"
forward_address = "{HERE}"
[ports.grafana]
svc = "grafana"
namespace = "monitoring"
port = {ports["grafana"]}
target = 3000
user = "admin"
password = "cat /where/it/is"
[ports.mlflow]
svc = "mlflow"
namespace = "mlflow"
port = {ports["mlflow"]}
"""
    )
    yield tmp_path, sshd, {name: f"http://{HERE}:{port}" for name, port in ports.items()}
    sshd.stop()
    assert_none_is_left(stand_in)


def kubectls(folder):
    """The pids of this test's stand-ins that run."""
    return running_with(f"{folder}/bin/stand_in_kubectl.py")


def running_with(word):
    """The pids of the processes with this word among their arguments."""
    rows = psutil.process_iter(["cmdline"])
    return [row.pid for row in rows if word in (row.info["cmdline"] or [])]


def assert_none_is_left(program, seconds=10.0):
    """Wait until no process of this program runs; kill those that are left, and fail."""
    deadline = time.monotonic() + seconds
    while (left := running_with(str(program))) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"{len(left)} process(es) of {program} left"


def sockets(address=HERE):
    folder = Path(f"/tmp/kit-ssh-{os.getuid()}") / f"forward-{address}"
    return list(folder.iterdir()) if folder.exists() else []


def test_table_shows_users_and_the_way_to_their_passwords(cluster, started):
    folder, _, url = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    assert get(url["grafana"]) == "monitoring svc/grafana 3000"
    assert get(url["mlflow"]).startswith("mlflow svc/mlflow ")
    (row,) = [line for line in running.out.read_text().splitlines() if "Grafana" in line]
    assert row.split(maxsplit=3) == ["Grafana", url["grafana"], "admin", "cat /where/it/is"]
    (socket_file,) = sockets()
    assert stat.S_IMODE(socket_file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_it_stopped(cluster, started, number):
    folder, sshd, url = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    assert (len(running.ssh()), len(kubectls(folder))) == (3, 2)
    assert running.stop(number) == 0, running.err.read_text()
    until(lambda: not kubectls(folder))
    assert (sockets(), sshd.sessions(), answers(url["grafana"])) == ([], [], False)
    assert running_with(f"{folder}/sshd/config") == []


@pytest.mark.parametrize("cut", ["the client's", "the VM's"])
def test_killed_connection_comes_back_with_its_services(cluster, started, cut):
    folder, sshd, url = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    old, first = running.master(), kubectls(folder)
    if cut == "the VM's":
        sshd.cut()
    else:
        os.kill(old, signal.SIGKILL)
    running.said("forwarding again")
    assert all(map(answers, url.values()))
    assert running.master() != old
    until(lambda: len(kubectls(folder)) == 2)
    assert not set(first) & set(kubectls(folder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_loop_on_the_vm_leaves_no_kubectl(cluster, started, number):
    folder, _, _ = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    first = kubectls(folder)
    for pid in first:
        os.kill(os.getpgid(pid), number)  # the shell that sshd started leads the group
    running.said("forwarding again")
    until(lambda: not set(first) & set(kubectls(folder)))


@pytest.mark.slow
def test_kubectl_on_the_vm_ends_when_the_client_falls_silent(cluster, started):
    """A network that vanishes closes no connection: sshd and kubectl see nothing at all."""
    folder, _, _ = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    time.sleep(SILENCE_S + 2)
    silent = [running.process.pid, *running.ssh()]
    assert len(kubectls(folder)) == 2, "while it is heard from, they stay"
    for pid in silent:
        os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: not kubectls(folder), SILENCE_S + 5)
    finally:
        for pid in silent:
            os.kill(pid, signal.SIGCONT)
    running.said("forwarding again")
    until(lambda: len(kubectls(folder)) == 2)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_kubectl_loop_ends_without_a_heartbeat_and_stays_with_one(tmp_path, shell):
    (tmp_path / "kubectl").write_text("#!/bin/sh\nwhile :; do sleep 1; done\n")
    (tmp_path / "kubectl").chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = Path(port_forward.__file__).parent / "scripts" / "kubectl_loop.sh"
    argv = [shell, script, "2", "port-forward"]
    with subprocess.Popen(
        argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as loop:
        for _ in range(8):
            loop.stdin.write(b"\n")
            loop.stdin.flush()
            time.sleep(0.5)
        assert loop.poll() is None
        assert loop.wait(6) != 0
    assert_none_is_left(tmp_path / "kubectl")


def test_vm_that_is_away_is_reported_and_tried_again(cluster, started):
    folder, sshd, url = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    sshd.stop()
    running.said("Connection refused")
    sshd.start()
    running.said("forwarding again")
    assert answers(url["mlflow"])


def test_changed_host_key_ends_it(cluster, started):
    folder, sshd, _ = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    sshd.know((sshd.folder / "user_ca.pub").read_text())
    sshd.cut()
    assert running.process.wait(20) == 3
    assert "compare its fingerprint" in running.err.read_text()


def test_kubectl_that_ends_is_reported_and_started_again(cluster, started):
    folder, _, url = cluster
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    running.ready()
    master, first = running.master(), kubectls(folder)
    os.kill(first[0], signal.SIGKILL)
    running.said("started again")
    until(lambda: all(map(answers, url.values())))
    assert re.search(
        r"(Grafana|MLflow): (Killed|kubectl ended with \d+); started again", running.err.read_text()
    )
    assert running.master() == master
    assert set(kubectls(folder)) != set(first)


def test_missing_service_is_reported_once_and_delays_no_other(cluster, started):
    folder, _, url = cluster
    profile = folder / "vm.toml"
    profile.write_text(profile.read_text().replace('svc = "mlflow"', 'svc = "missing"'))
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    until(lambda: answers(url["grafana"]))
    running.said("not there yet: MLflow")
    time.sleep(4)  # it has been started again at least once more
    rows = [line for line in running.err.read_text().splitlines() if "started again" in line]
    assert len(rows) == 1
    assert 'services "missing" not found' in rows[0]


def test_taken_port_is_named_with_its_holder(cluster, started):
    folder, _, url = cluster
    port = int(url["grafana"].rpartition(":")[2])
    with socket.socket() as holder:
        holder.bind((HERE, port))
        holder.listen()
        done = started("--profile", "vm", KIT_SITES_DIR=str(folder))
        assert done.process.wait(15) == 1
    said = done.err.read_text()
    assert f"{port} (Grafana) by pid {os.getpid()} (" in said
    assert "kit port-forward --bind" in said
    assert done.out.read_text() == ""
    elsewhere = started("--profile", "vm", "--bind", OTHER, KIT_SITES_DIR=str(folder))
    elsewhere.ready()
    assert answers(f"http://{OTHER}:{port}")


def test_unknown_key_is_refused_before_anything_is_opened(cluster, started):
    folder, sshd, _ = cluster
    (sshd.folder / "authorized_keys").write_text("")
    running = started("--profile", "vm", KIT_SITES_DIR=str(folder))
    assert running.process.wait(15) == 1
    assert "site refuses the login" in running.err.read_text()
    assert sockets() == []


def test_printed_commands_work_when_typed(cluster):
    folder, sshd, url = cluster
    environ = os.environ | {"KIT_SITES_DIR": str(folder)}
    argv = [*KIT, "--profile", "vm", "--print"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    assert all(address.rstrip("/") in done.stderr for address in url.values()), done.stderr
    ssh, *services = map(shlex.split, done.stdout.splitlines())
    config = ["-F", f"{sshd.folder}/config"]
    assert ssh[:4] == ["ssh", *config, "-N"]
    assert ssh[-1] == "site"
    assert [line[:5] for line in services] == [["ssh", *config, "site", "kubectl"]] * 2
    running = [subprocess.Popen(line) for line in (ssh, *services)]
    try:
        until(lambda: all(map(answers, url.values())))
    finally:
        for each in running:
            each.terminate()
            each.wait()
        for pid in kubectls(folder):  # plain lines leave their kubectl: that is why there is more
            os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("shell", ["bash", "dash", "csh", "tcsh"])
def test_kubectl_loop_is_one_command_for_every_login_shell(tmp_path, shell):
    """The loop runs under sh whatever the login shell is, and ends with its stdin."""
    (tmp_path / "kubectl").write_text(
        '#!/bin/sh\necho "Forwarding from $*"\nwhile :; do sleep 1; done\n'
    )
    (tmp_path / "kubectl").chmod(0o755)
    row = Forward("grafana", HERE, Port(5050, "grafana", "monitoring", target=3000))
    host = SSHHost("vm", folder=tmp_path / "c")
    command = Connection(host, [row], print)._loop(row)[-1]
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [shell, "-c", command],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        line = child.stdout.readline().decode()
        assert line.startswith("Forwarding from port-forward --namespace monitoring")
        child.stdin.close()
        child.wait(10)
    assert_none_is_left(tmp_path / "kubectl")


def test_connection_that_ends_while_kubectl_starts_leaves_none(tmp_path):
    """A signal that arrives between a shell's fork and the start of kubectl is not lost."""
    program = tmp_path / "kubectl"
    program.write_text("#!/bin/sh\nwhile :; do sleep 1; done\n")
    program.chmod(0o755)
    row = Forward("grafana", HERE, Port(5050, "grafana", "monitoring", target=3000))
    argv = shlex.split(
        Connection(SSHHost("vm", folder=tmp_path / "c"), [row], print)._loop(row)[-1]
    )
    environ = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    loops = [
        subprocess.Popen(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(800)
    ]
    for loop in loops:
        loop.wait(10)
    assert_none_is_left(program)


@pytest.mark.sandbox
def test_sandbox_services_come_back_after_a_killed_connection(sandbox, started):
    running = started("--profile", "sandbox", "--bind", SANDBOX)
    running.ready()
    table = running.out.read_text()
    rows = {each.name: each for each in list_forwards(load("sandbox"), SANDBOX)}
    assert set(rows) == {"mlflow", "prometheus", "forwarder", "flower", "worker", "ray"}

    def healthy():
        return answers(f"http://{SANDBOX}:{rows['mlflow'].to.port}/health")

    assert healthy()
    os.kill(running.master(), signal.SIGKILL)
    running.said("forwarding again")
    assert healthy()
    for each in rows.values():
        assert each.title in table
        if each.to.password:
            done = subprocess.run(shlex.split(each.to.password), capture_output=True, text=True)
            assert done.returncode == 0
            secret = done.stdout.split("=")[-1].strip()
            assert secret not in table + running.err.read_text()
    assert running.stop() == 0
    assert not healthy()
    assert sockets(SANDBOX) == []
