"""The script that runs the sandbox's tests and the slow ones beside them."""

import os
import signal
import subprocess
import time

import pytest

from kit.base import ROOT

SCRIPT = ROOT / "tests" / "sandbox_and_slow.sh"
NAMES = ("sandboxandnotcore", "slowandnotsandboxandnotcore")  # the selections without spaces


@pytest.fixture
def python(tmp_path):
    """A stand-in for Python: it prints its mark and ends with the exit code that a file holds."""
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\n"
        'name=$(echo "$4" | tr -d " ")\n'
        f'echo $$ >"{tmp_path}/$name.pid"\n'
        'echo "ran $4 with $5"\n'
        f'eval "$(cat "{tmp_path}/$name" 2>/dev/null)"\n'
    )
    program.chmod(0o755)
    return program


def argv(python):
    return ["bash", str(SCRIPT), str(python), "--durations=3"]


def environ(tmp_path):
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture(autouse=True)
def temporary(tmp_path):
    (tmp_path / "tmp").mkdir()
    yield
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("sandbox", "slow", "code"),
    [("exit 0", "exit 0", 0), ("exit 1", "exit 0", 1), ("exit 0", "exit 1", 1)],
)
def test_it_passes_only_if_both_runs_pass_and_shows_both(tmp_path, python, sandbox, slow, code):
    (tmp_path / "sandboxandnotcore").write_text(sandbox)
    (tmp_path / "slowandnotsandboxandnotcore").write_text(f"sleep 0.3; echo the last line; {slow}")
    done = subprocess.run(
        argv(python), capture_output=True, text=True, env=environ(tmp_path), timeout=60
    )
    assert done.returncode == code
    assert done.stdout.splitlines() == [
        "ran sandbox and not core with --durations=3",
        "ran slow and not sandbox and not core with --durations=3",
        "the last line",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_both_runs(tmp_path, python, number, code):
    for name in NAMES:
        (tmp_path / name).write_text("exec sleep 60")
    script = subprocess.Popen(
        argv(python),
        env=environ(tmp_path),
        start_new_session=True,
        # A job in the background of a shell ignores SIGINT, and so would the script.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = [tmp_path / f"{name}.pid" for name in NAMES]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.read_text() for path in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(script.pid, number)  # as a terminal does
    assert script.wait(60) == code
    while any(os.path.exists(f"/proc/{path.read_text().strip()}") for path in pids):
        assert time.monotonic() < deadline, "a run was left over"
        time.sleep(0.02)
