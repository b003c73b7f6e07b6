"""The job's end of the reverse tunnel, with a stand-in for ssh."""

import json
import os
import socket
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from waiting import until

from kit.onsite import tunnel

SSH = """#!/bin/bash
# Plays ssh: prints the file of the port that -R requests, then stays or ends.
while [ $# -gt 0 ]; do case $1 in -R) way=$2 ;; esac; shift; done
port=${way#*:}; port=${port%%:*}
echo "$port" >>"$PLAY/calls"
ends=; [ -e "$PLAY/ends-$port" ] && ends=1  # before the text: a test changes the text first
cat "$PLAY/prints-$port" >&2
[ -z "$ends" ] || exit 255
exec sleep 60
"""
UP = "debug1: remote forward success for: listen 10.1.2.3:8280, connect 127.0.0.1:1\n"
TAKEN = "Error: remote port forwarding failed for listen port 8280\n"
SETTINGS = {
    "host": "vm.example",
    "port": 22,
    "user": "kit-tunnel",
    "alias": "vm",
    "address": "10.1.2.3",
    "ports": [8280, 8281],
}


@pytest.fixture
def play(tmp_path, monkeypatch):
    """A folder that holds how ssh behaves, and the job's folder beside it."""
    folder = tmp_path / "play"
    folder.mkdir()
    (folder / "ssh").write_text(SSH)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PLAY", str(folder))
    monkeypatch.setattr(tunnel, "PAUSE_S", 0.05)
    monkeypatch.setattr(tunnel, "MAX_PAUSE_S", 0.1)
    (folder / "calls").touch()
    for port in (8280, 8281):
        (folder / f"prints-{port}").write_text(UP)
    return folder


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "tunnel.key").write_text("a key")
    with socket.create_server(("127.0.0.1", 0)) as dashboard:
        ports = [1, dashboard.getsockname()[1], 3]
        yield SimpleNamespace(folder=tmp_path, ports=ports, address="127.0.0.1")


def state(cluster):
    file = cluster.folder / "tunnel.json"
    return json.loads(file.read_text()) if file.exists() else None


def calls(play):
    return (play / "calls").read_text().split()


def test_tunnel_reports_its_address_and_is_gone_after_the_job(play, cluster):
    with tunnel.opened(SETTINGS, cluster):
        until(lambda: state(cluster))
        assert state(cluster) == {"address": "10.1.2.3", "port": 8280}
        (pid,) = [int(line) for line in pids_of("sleep 60")]
    assert not alive(pid)
    assert not (cluster.folder / "tunnel.key").exists()


def pids_of(words):
    done = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", words], capture_output=True, text=True
    )
    return done.stdout.split()


def alive(pid):
    return os.path.exists(f"/proc/{pid}") and "State:\tZ" not in open(f"/proc/{pid}/status").read()


def test_no_address_is_reported_before_the_dashboard_listens(play, cluster):
    with socket.create_server(("127.0.0.1", 0)) as other:
        cluster.ports[1] = other.getsockname()[1]
    with tunnel.opened(SETTINGS, cluster):
        time.sleep(0.5)
        assert (calls(play), state(cluster)) == ([], None)
        with socket.create_server(("127.0.0.1", cluster.ports[1])):
            until(lambda: state(cluster))


def test_taken_port_means_the_next_one(play, cluster):
    (play / "prints-8280").write_text(TAKEN)
    (play / "ends-8280").touch()
    with tunnel.opened(SETTINGS, cluster):
        until(lambda: state(cluster))
        assert state(cluster) == {"address": "10.1.2.3", "port": 8281}


def test_lost_connection_is_reopened_at_its_own_port_first(play, cluster):
    (play / "prints-8280").write_text(TAKEN)
    (play / "ends-8280").touch()
    with tunnel.opened(SETTINGS, cluster):
        until(lambda: (state(cluster) or {}).get("port") == 8281)
        (play / "prints-8280").write_text(UP)
        subprocess.run(["kill", *pids_of("sleep 60")], check=True)
        until(lambda: calls(play).count("8281") == 2)
        until(lambda: (state(cluster) or {}).get("port") == 8281)
    assert calls(play) == ["8280", "8281", "8281"]


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        (TAKEN, "the VM forwards none of the ports 8280 to 8281"),
        ("debug1: Reading\nkit-tunnel@vm: Permission denied (publickey).\n", "Permission denied"),
        ("Host key verification failed.\n", "Host key verification failed."),
        ("connect_to 127.0.1.1 port 8265: failed.\n", "ssh ended without a message"),
        ("", "ssh ended without a message"),
    ],
)
def test_reports_and_retries_when_the_vm_refuses_forwarding(play, cluster, text, reported):
    for port in (8280, 8281):
        (play / f"prints-{port}").write_text(text)
        (play / f"ends-{port}").touch()
    with tunnel.opened(SETTINGS, cluster):
        until(lambda: len(calls(play)) > 4)
        assert reported in state(cluster)["barred"]
        assert "debug1" not in state(cluster)["barred"]
        for port in (8280, 8281):
            (play / f"prints-{port}").write_text(UP)
            (play / f"ends-{port}").unlink()
        until(lambda: "port" in state(cluster))


def test_node_without_ssh_or_space_costs_the_tunnel_only(play, cluster, monkeypatch):
    monkeypatch.setenv("PATH", str(cluster.folder))
    with tunnel.opened(SETTINGS, cluster):
        until(lambda: state(cluster))
        assert "ssh" in state(cluster)["barred"]
        (cluster.folder / "tunnel.json").unlink()
        (cluster.folder / "tunnel.json").mkdir()
        before = threading.active_count()
    assert threading.active_count() < before


def test_without_a_tunnel_nothing_is_started(play, cluster):
    with tunnel.opened(None, cluster):
        assert calls(play) == []
    assert state(cluster) is None


def test_error_of_the_work_goes_through(play, cluster):
    with pytest.raises(ZeroDivisionError), tunnel.opened(SETTINGS, cluster):
        raise ZeroDivisionError
