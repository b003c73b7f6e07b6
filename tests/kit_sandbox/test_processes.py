"""What /proc says about processes and ports, tried on processes of this test."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit_sandbox import processes as sandbox_processes
from kit_sandbox.processes import Process

STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
)


@pytest.fixture
def spawn():
    """A function that starts a program; all of them are gone afterwards."""
    started = []

    def start(*argv):
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def test_the_holder_of_a_port_is_named_by_pid_and_program():
    with socket.socket() as listener:
        listener.bind(("127.0.0.77", 0))
        listener.listen()
        port = listener.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()
        assert sandbox_processes.holder("127.0.0.77", port) == f"pid {os.getpid()} ({name})"
        assert sandbox_processes.holder("127.0.0.78", port) == ""
    assert sandbox_processes.holder("127.0.0.77", port) == ""


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
)
def test_a_listener_on_every_address_holds_the_port_of_each(family, address):
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        assert f"pid {os.getpid()}" in sandbox_processes.holder(
            "127.0.0.77", listener.getsockname()[1]
        )


def test_grandchildren_are_found_and_ended(spawn):
    shell = spawn("sh", "-c", "sleep 60 & sleep 60 & echo; wait")
    shell.stdout.readline()
    assert shell.pid in {one.pid for one in sandbox_processes.children(os.getpid())}
    assert shell.pid in {one.pid for one in sandbox_processes.descendants(os.getpid())}
    assert len(sandbox_processes.children(shell.pid)) == 2
    family = [sandbox_processes.process(shell.pid), *sandbox_processes.descendants(shell.pid)]
    assert len(family) == 3
    sandbox_processes.end(family)
    assert not any(one.alive for one in family)


def test_a_process_that_ignores_term_is_killed_after_its_grace(spawn):
    child = spawn(sys.executable, "-c", STUBBORN)
    child.stdout.readline()
    begin = time.monotonic()
    sandbox_processes.end([sandbox_processes.process(child.pid)], grace_s=0.3)
    assert 0.3 <= time.monotonic() - begin < 2
    assert child.wait() == -9


def test_another_process_with_the_same_pid_is_never_signalled(spawn):
    child = spawn("sleep", "60")
    now = sandbox_processes.process(child.pid)
    sandbox_processes.end([Process(child.pid, now.start - 1)])
    assert now.alive


def test_a_zombie_does_not_count_as_alive(spawn):
    child = spawn("true")
    wanted = time.monotonic() + 5
    while sandbox_processes.process(child.pid) and time.monotonic() < wanted:
        time.sleep(0.01)
    assert os.path.exists(f"/proc/{child.pid}"), "nobody has waited for it yet"
    assert sandbox_processes.process(child.pid) is None


def test_memory_and_start_of_this_process_are_plausible():
    mine = sandbox_processes.process(os.getpid())
    assert 5e6 < sandbox_processes.resident([mine]) < 5e9
    assert 0 < time.time() - sandbox_processes.started_at(mine) < 7 * 86400
    assert mine in sandbox_processes.owned_by([os.getuid()])


def test_a_program_that_only_names_the_supervisor_is_none(spawn):
    spawn(sys.executable, "-c", "import time; time.sleep(60)", "x", "kit_sandbox.supervisor", "/s")
    spawn(sys.executable, "-c", "import time; time.sleep(60)", "kit_sandbox.supervisor", "-c", "/s")
    assert all(one.folder.as_posix() != "/" for one in sandbox_processes.supervisors())
