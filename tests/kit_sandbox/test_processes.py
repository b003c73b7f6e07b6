"""Processes are found and ended; tried on processes of this test."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from kit_sandbox import processes, roots

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


def test_grandchildren_are_found_and_ended(spawn):
    shell = spawn("sh", "-c", "sleep 60 & sleep 60 & echo; wait")
    shell.stdout.readline()
    top = processes.live_process(shell.pid)
    assert shell.pid in {row.pid for row in processes.descendants(psutil.Process())}
    family = [top, *processes.descendants(top)]
    assert len(family) == 3
    processes.end(family)
    assert not any(processes.is_alive(row) for row in family)


@pytest.mark.slow
def test_process_that_ignores_term_is_killed_after_its_grace(spawn):
    child = spawn(sys.executable, "-c", STUBBORN)
    child.stdout.readline()
    begin = time.monotonic()
    processes.end([processes.live_process(child.pid)], grace_s=0.3)
    assert 0.3 <= time.monotonic() - begin < 2
    assert child.wait() == -signal.SIGKILL


def test_later_process_with_the_same_pid_is_never_signalled(spawn, monkeypatch):
    earlier, later = spawn("sleep", "60"), spawn("sleep", "60")
    recorded = processes.live_process(earlier.pid)
    monkeypatch.setattr(recorded, "_pid", later.pid)
    monkeypatch.setattr(recorded._proc, "pid", later.pid)
    processes.end([recorded])
    assert processes.live_process(later.pid)


def test_the_pid_of_an_ended_process_may_be_a_thread_by_now():
    done, number = threading.Event(), queue.Queue()
    thread = threading.Thread(target=lambda: (number.put(threading.get_native_id()), done.wait()))
    thread.start()
    assert processes.live_process(number.get()) is None
    done.set()
    thread.join()


def test_zombie_does_not_count_as_alive(spawn):
    child = spawn("true")
    deadline = time.monotonic() + 5
    while processes.live_process(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.path.exists(f"/proc/{child.pid}"), "nobody has waited for it yet"
    assert processes.live_process(child.pid) is None


ENTERED = """
set -e
mount -t tmpfs tmpfs "$1"
[ -z "$3" ] || { mkdir "$1/etc"; touch "$1/etc/kit-root"; }
for name in bin usr lib lib64 proc; do mkdir -p "$1/$name"; mount --rbind "/$name" "$1/$name"; done
mkdir -p "$1$2/run"; mount --bind "$2/run" "$1$2/run"
exec chroot "$1" sh -c "echo in; exec sleep 60"
"""


def test_processes_of_one_sandbox_are_told_from_those_of_another_in_the_same_root(tmp_path, spawn):
    """As `enter.sh` makes them: one tree of a root, in which each mounts its own folder."""
    tree, folders = tmp_path / "root", [tmp_path / "one", tmp_path / "two"]
    tree.mkdir()
    own = ["--mount"] if os.getuid() == 0 else ["--mount", "--user", "--map-root-user"]
    entered = []
    for folder, stamp in zip([*folders, folders[0]], ["yes", "yes", ""], strict=True):
        (folder / "run").mkdir(parents=True, exist_ok=True)
        words = ["unshare", *own, "--propagation", "private", "bash", "-c", ENTERED, "-"]
        entered.append(spawn(*words, str(tree), str(folder), stamp))
        assert entered[-1].stdout.readline()
    found = [[each.pid for each in processes.of_sandbox(f, roots.STAMP)] for f in folders]
    assert found == [[entered[0].pid], [entered[1].pid]]
    assert processes.of_sandbox(tmp_path / "missing", roots.STAMP) == []


def test_memory_of_this_process_is_plausible():
    mine = processes.live_process(os.getpid())
    assert 5e6 < processes.resident_bytes([mine]) < 5e9


def test_memory_that_processes_share_counts_once(spawn):
    """A service with forked workers would otherwise count once for each of them."""
    fork = (
        "import os, time; held = b'x' * 80_000_000; child = os.fork();"
        " child and print(child, flush=True); time.sleep(60)"
    )
    parent = spawn(sys.executable, "-c", fork)
    pids = parent.pid, int(parent.stdout.readline())
    family = [processes.live_process(pid) for pid in pids]
    assert sum(row.memory_info().rss for row in family) > 160e6
    assert 80e6 < processes.resident_bytes(family) < 120e6
    processes.end(family)


def test_start_is_the_one_that_bash_reads_from_proc(spawn):
    """`svc` records it, so that a stale pid file never leads to a stranger's process."""
    read = 'read -r stat <"/proc/$$/stat"; set -- ${stat##*) }; shift 19; echo "$1"; sleep 60'
    child = spawn("bash", "-c", read)
    ticks = int(child.stdout.readline())
    assert processes.start_ticks(psutil.Process(child.pid)) == ticks


def test_program_that_only_names_the_supervisor_is_not_one(spawn):
    sleep = "import time; time.sleep(60)"
    spawn(sys.executable, "-c", sleep, "x", "kit_sandbox.supervisor", "/s/t/u")
    spawn(sys.executable, "-c", sleep, "kit_sandbox.supervisor", "-c", "/s/t/u")
    assert all(row.folder.as_posix() != "/s" for row in processes.supervisors())


def test_supervisor_is_found_by_how_it_was_started(spawn, tmp_path):
    """A stand-in package of that name sleeps in its place."""
    package = tmp_path / "kit_sandbox"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "supervisor.py").write_text("import time; print(flush=True); time.sleep(60)")
    config = tmp_path / "state" / "etc" / "supervisord.conf"
    child = subprocess.Popen(
        [sys.executable, *processes.MODULE, "--configuration", str(config)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        child.stdout.readline()
        rows = [row for row in processes.supervisors() if row.process.pid == child.pid]
        assert [row.folder for row in rows] == [tmp_path / "state"]
    finally:
        child.kill()
        child.wait()
