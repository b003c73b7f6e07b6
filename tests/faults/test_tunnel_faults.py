"""The reverse tunnel on the sandbox's real VM sshd, Slurm and Ray: a window that harms no run."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from allas_site import AllasSite
from hpc_bench import nothing_runs, processes, ps
from kit_sandbox import services as sandbox_services
from tunnel_bench import (
    ADDRESS,
    KEYS,
    LONG,
    TUNNEL_USER,
    answer,
    answers,
    connections,
    connects,
    end,
    own_bench,
    taken,
    window,
)
from waiting import until

from kit.base.ports import TUNNEL_PORTS as PORTS
from kit.base.settings import load
from kit.onsite import TUNNEL_KEY as KEY
from kit.onsite import TUNNEL_STATE as STATE
from kit.runs.requests import RunState

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def vm(sandbox):
    """The sandbox's services, the VM's sshd among them; keys of other runs stay what they are."""
    before = KEYS.read_text()
    site = AllasSite()
    yield site
    until(nothing_runs, 30)
    assert KEYS.read_text() == before
    assert not [port for port in PORTS if taken(port)]


@pytest.fixture(scope="module")
def bench(vm):
    with own_bench() as made:
        yield made


@pytest.fixture(scope="module")
def running(bench):
    """A job that trains until its module ends, with its tunnel open."""
    run = bench.ask(epochs=LONG)
    window(bench, run)
    bench.passes_until(run, lambda: bench.training(run))
    return run


def test_the_dashboard_answers_through_the_tunnel_to_the_owner_of_its_token(bench, running, seen):
    shown = bench.shown(running)["tunnel"]
    assert shown["address"] == ADDRESS
    assert shown["port"] in PORTS
    assert answer(shown["port"])[0] == 401
    assert answer(shown["port"], "0" * 64)[0] in (401, 403)
    token = (bench.folder(running) / "ray.token").read_text()
    code, answered = answer(shown["port"], token)
    assert (code, answered["session_name"].startswith("session_")) == (200, True)
    seen("dashboard through the tunnel without, with a wrong, with Ray's token", "401, 403, 200")


# What the key can do besides.


@pytest.fixture
def key(bench, running, tmp_path):
    """A thief's copy of the job's key."""
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_bytes((bench.folder(running) / KEY).read_bytes())
    config = bench.profile.hpc.ssh_config
    answered = subprocess.run(["ssh", "-F", config, "-G", "cloud"], capture_output=True, text=True)
    found = dict(line.split(" ", 1) for line in answered.stdout.splitlines() if " " in line)
    return [
        "-F",
        "/dev/null",
        "-i",
        str(file),
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "BatchMode=yes",
        "-o",
        f"UserKnownHostsFile={found['userknownhostsfile']}",
        "-o",
        "IdentityAgent=none",
        "-o",
        "ExitOnForwardFailure=yes",
        "-o",
        "ConnectTimeout=10",
        *(["-o", f"HostKeyAlias={found['hostkeyalias']}"] if "hostkeyalias" in found else []),
        "-p",
        found["port"],
        "-l",
        TUNNEL_USER,
        found["hostname"],
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["-N", "-R", f"{ADDRESS}:9000:127.0.0.1:22"],
        ["-N", "-R", f"127.0.0.1:{PORTS[5]}:127.0.0.1:22"],
        ["-N", "-R", f"0.0.0.0:{PORTS[5]}:127.0.0.1:22"],
        ["-N", "-R", f"{PORTS[5]}:127.0.0.1:22"],
        ["-N", "-R", "/tmp/kit-stolen.sock:127.0.0.1:22"],
        ["-W", "127.0.0.1:5000"],
        ["-W", "127.0.0.1:1"],
        ["-N", "-w", "5"],
    ],
    ids=" ".join,
)
def test_the_key_forwards_nothing_else(key, options, seen):
    began = time.monotonic()
    done = subprocess.run(
        ["ssh", *options, *key], capture_output=True, timeout=20, stdin=subprocess.DEVNULL
    )
    said = done.stderr.decode().strip()
    assert done.returncode != 0, said
    assert re.search("refused|failed|prohibited|forwarding|ended|closed", said, re.I), said
    assert "Permission denied (publickey" not in said  # the key itself is taken: the limit bars it
    assert time.monotonic() - began < 15
    assert not (load("sandbox").sandbox_dir / "tmp" / "kit-stolen.sock").exists()
    seen(f"the tunnel's key used for {' '.join(options)}", "refused")


def test_the_key_forwards_nothing_from_the_vm(key, seen):
    """`-L`: ssh listens here, and what comes is refused at the VM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = ["ssh", "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:5000", *key]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as ssh:
        try:
            until(lambda: connects("127.0.0.1", port), 10)
            with socket.create_connection(("127.0.0.1", port), 10) as stream:
                got = b""
                with contextlib.suppress(ConnectionError):
                    stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    got = stream.recv(100)
        finally:
            ssh.terminate()
        said = ssh.stderr.read().decode()
    assert got == b""
    assert "administratively prohibited" in said
    seen("the tunnel's key used for -L", "administratively prohibited")


def test_the_key_is_no_way_to_other_machines(key, seen):
    """`-D`: ssh offers a SOCKS proxy here, and what it is asked for is refused at the VM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = ["ssh", "-N", "-D", f"127.0.0.1:{port}", *key]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as ssh:
        try:
            until(lambda: connects("127.0.0.1", port), 10)
            with socket.create_connection(("127.0.0.1", port), 10) as stream:
                stream.sendall(b"\x05\x01\x00")  # SOCKS 5, no login
                assert stream.recv(2) == b"\x05\x00"
                stream.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x13\x88")  # 127.0.0.1:5000
                got = b""
                with contextlib.suppress(ConnectionError):
                    got = stream.recv(10)
        finally:
            ssh.terminate()
        said = ssh.stderr.read().decode()
    assert got[1:2] != b"\x00"
    assert "administratively prohibited" in said
    seen("the tunnel's key used for -D", "administratively prohibited")


def test_the_key_runs_no_command(key, tmp_path, seen):
    for words in (["id"], ["-s", "sftp"], ["sh", "-c", "id"]):
        flags = [word for word in words if word == "-s"]
        command = [word for word in words if word != "-s"]
        argv = ["ssh", *flags, *key, *command]
        done = subprocess.run(argv, capture_output=True, timeout=20, stdin=subprocess.DEVNULL)
        assert (done.returncode != 0, done.stdout) == (True, b""), words
    seen("the tunnel's key used for a command or sftp", "nothing runs")


# What goes away, or is there already.


def test_a_killed_connection_comes_back(bench, running, seen):
    port = bench.shown(running)["tunnel"]["port"]
    token = (bench.folder(running) / "ray.token").read_text()
    for pid in connections():
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: not taken(port), 5, 0.01)
    until(lambda: answer(port, token)[0] == 200, 60, 0.05)
    again = bench.shown(running)["tunnel"]
    assert again["port"] == port
    seen(
        "the tunnel's connection killed", f"back at its port after {time.monotonic() - began:.1f} s"
    )


def test_a_vm_that_goes_away_and_comes_back_costs_the_window_only(bench, running, vm, seen):
    port = bench.shown(running)["tunnel"]["port"]
    with vm.stopped("sshd-vm"):
        for pid in connections():
            os.kill(pid, signal.SIGKILL)
        window(bench, running, barred=1)
        step = bench.training(running)["step"]
        bench.passes_until(running, lambda: bench.training(running)["step"] > step)
    until(answers(port), 90, 0.5)
    assert bench.states(running) == ["RUNNING"]
    seen("sshd of the VM stopped mid-run", "run continues, says why; window back later")


def test_ports_that_are_taken_mean_the_next_ones(bench, running, seen):
    first = window(bench, running)["port"]
    free = next(port for port in PORTS if not taken(port))
    with socket.create_server((ADDRESS, free)), bench.frozen(running):
        runs = [bench.ask(epochs=LONG) for _ in range(2)]
        try:
            ports = [window(bench, run)["port"] for run in runs]
            assert len({first, free, *ports}) == 4
            until(lambda: all(answers(port)() for port in ports), 30)
        finally:
            for run in runs:
                end(bench, run)
    until(lambda: not any(taken(port) for port in ports), 15)
    seen("a port of the VM taken, three jobs at a time", f"each its own: {first}, {ports}")


def test_a_vm_that_bars_tunnels_costs_the_window_only(bench, running, vm, seen):
    file = vm.folder / "etc" / "sshd_cloud.conf"
    usual = file.read_text()
    assert "\nAllowTcpForwarding yes\n" in usual
    file.write_text(usual.replace("AllowTcpForwarding yes", "AllowTcpForwarding no"))
    try:
        os.kill(vm.pid("sshd-vm"), signal.SIGHUP)
        vm.wait("sshd-vm")
        with bench.frozen(running):
            run = bench.ask(epochs=10)
            why = window(bench, run, barred=1)["barred"]
            status = bench.finish(run)
    finally:
        file.write_text(usual)
        os.kill(vm.pid("sshd-vm"), signal.SIGHUP)
        vm.wait("sshd-vm")
    assert "the VM forwards none of the ports" in why
    assert status.state is RunState.DONE
    assert bench.ended(run) == ["COMPLETED"]
    seen("AllowTcpForwarding no on the VM", f"DONE; said: {why[:60]}")


def test_a_vm_that_is_away_at_the_start_costs_the_window_only(bench, running, vm, seen):
    with bench.frozen(running), own_bench() as other:
        with vm.stopped("sshd-vm"):
            other.submitter.tunnel_keys.host.close()  # a connection that is there would go on
            run = other.ask()
            status = other.finish(run)
            answered = json.loads((other.folder(run) / STATE).read_text())
        assert status.state is RunState.DONE
        assert "the VM cannot be prepared" in answered["barred"]
    seen("the VM away when the job is staged", "DONE; said: the VM cannot be prepared")


# What is left afterwards.


def secret_words(bench, run):
    private = (bench.folder(run) / KEY).read_text().splitlines()
    return [private[2], (bench.folder(run) / "ray.token").read_text()]


def test_key_and_token_are_in_their_files_only(bench, running, vm):
    words = [word.encode() for word in secret_words(bench, running)]
    own = {bench.folder(running) / KEY, bench.folder(running) / "ray.token"}
    places = [
        Path(bench.profile.hpc.project_dir) / "kit" / "tries",
        vm.folder / "log",
        vm.folder / "home",
    ]
    found = set()
    for file in (each for place in places for each in place.rglob("*")):
        if file.is_file() and not file.is_symlink():
            content = file.read_bytes()
            found |= {file for word in words if word in content}
    assert found == own
    for store in (bench.requests.store, bench.submitter.data):
        for each in store.list():
            assert not any(word in store.get(each.key) for word in words), each.key
    shown = "\n".join(ps("args=")).encode()
    assert not any(word in shown for word in words)


def test_a_killed_job_leaves_no_key_port_or_process(vm, seen):
    """Last: the job that all of these looked at; and one whose node lets it say nothing more."""
    with own_bench() as bench:
        run = bench.ask(epochs=LONG)
        port = window(bench, run)["port"]
        line = f"-{bench.folder(run).name}"
        assert line in KEYS.read_text()
        job = bench.job(run)
        argv = ["scancel", "--signal=KILL", "--full", job]
        sandbox_services.run(bench.profile.sandbox_dir, argv, check=True)
        bench.finish(run)
        until(lambda: not taken(port), 15)
        bench.submitter.once()
        assert line not in KEYS.read_text()
        assert not (bench.folder(run) / KEY).exists()
        assert not (bench.folder(run) / "ray.token").exists()
        assert not [each for each in processes("ssh", "-R") if bench.folder(run).name in each]
    seen("job with a tunnel killed (SIGKILL to all)", "no key, port, process left")
