"""Faults of the sandbox, seeded one by one: each is repaired or reported."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from dotenv import dotenv_values
from kit_sandbox import processes, roots
from kit_sandbox.supervisor import control
from sandbox_command import kit_sandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


def status(**options):
    rows = json.loads(kit_sandbox("status", "--json", **options).stdout)["services"]
    return {row["name"]: row for row in rows}


def wait_until(question, within=30):
    deadline = time.monotonic() + within
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not true after {within} s"
        time.sleep(0.2)
    return answer


@pytest.fixture(scope="module")
def folder(sandbox):
    return Path(sandbox["files"]["slurm_conf"]).parent.parent


@pytest.fixture
def ssh(sandbox):
    def run(script, **options):
        argv = ["ssh", "-F", sandbox["files"]["ssh_config"], "hpc", script]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture(scope="module")
def stopped(folder):
    """The folder of the sandbox while it is down; up again after the tests that need that."""
    done = kit_sandbox("down")
    assert done.returncode == 0, done.stderr
    yield folder
    done = kit_sandbox("up")
    assert done.returncode == 0, done.stderr[-3000:]


def of_this_sandbox(folder):
    """The processes that name the folder in their arguments, or run in its root."""
    below = processes.of_sandbox(folder, roots.STAMP)
    argv = ["pgrep", "-af", str(folder) + "/"]
    lines = subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if "pgrep" not in line] + below


def test_up_again_changes_nothing(folder):
    before = {name: row["pid"] for name, row in status().items()}
    assert kit_sandbox("up").returncode == 0
    assert {name: row["pid"] for name, row in status().items()} == before


def test_a_killed_service_is_started_again_and_its_data_is_kept(folder):
    import redis

    client = redis.from_url(dotenv_values(folder / "etc" / "redis.env")["REDIS_URL"])
    client.set("kit-test", "kept")
    before = status()["redis"]
    os.kill(before["pid"], signal.SIGKILL)
    after = wait_until(lambda: (now := status()["redis"])["up"] and now, within=15)
    assert after["pid"] != before["pid"]
    assert after["since"] >= before["since"]
    assert client.getdel("kit-test") == b"kept"


def test_a_stopped_service_is_down_in_status_with_exit_code_three(folder):
    supervisor = control(folder)
    supervisor.stopProcess("prometheus")
    try:
        done = kit_sandbox("status")
        assert done.returncode == 3
        line = next(line for line in done.stdout.splitlines() if line.startswith("prometheus"))
        assert line.split()[1] == "NO"
        assert "not running" in line
    finally:
        assert kit_sandbox("up").returncode == 0
    assert status()["prometheus"]["up"]


def running(ssh, script):
    """Submit a job; give the words that ask sacct for its state, once that is RUNNING."""
    job = ssh("sbatch --parsable -p small -t 2", input=script)
    state = f"sacct -nX -j {job} -o State"
    try:
        wait_until(lambda: ssh(state) == "RUNNING", within=60)
    except AssertionError as error:
        error.add_note(f"job {job}: {ssh(state)}\n{ssh('squeue -l; sinfo -N')}")
        raise
    return job, state


def test_a_job_outlives_the_controller_that_was_away(folder, ssh):
    _, state = running(ssh, "#!/bin/bash\nwhile [ ! -e over ]; do sleep 0.2; done\nrm over\n")
    supervisor = control(folder)
    supervisor.stopProcess("slurmctld")
    try:
        ssh("touch over; while [ -e over ]; do sleep 0.2; done")
        time.sleep(2)
        assert ssh(state) == "RUNNING", "the last known state, though the job has ended"
    finally:
        supervisor.startProcess("slurmctld", False)
    wait_until(lambda: ssh(state) == "COMPLETED", within=60)
    wait_until(lambda: status()["slurmd-c1"]["up"])


def test_after_a_killed_supervisor_there_are_no_double_daemons_and_jobs_go_on(folder, ssh):
    job, state = running(ssh, "#!/bin/bash\nsleep 110\n")  # longer than a start on a busy machine
    before = {name: processes.live_process(row["pid"]) for name, row in status().items()}
    (supervisor,) = [s for s in processes.supervisors() if s.folder == folder]
    os.kill(supervisor.process.pid, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(supervisor.process), within=5)
    done = kit_sandbox("status")
    assert done.returncode == 3, "nobody watches over the services"
    done = kit_sandbox("up")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "that a killed supervisor left behind" in done.stderr
    for name, row in status().items():
        assert not processes.is_alive(before[name]), f"two of {name}"
        assert processes.live_process(row["pid"])
    assert ssh(state) == "RUNNING"
    ssh(f"scancel {job}")


def test_down_ends_jobs_and_leaves_no_process(folder, ssh, stopped_after_a_job):
    assert of_this_sandbox(folder) == []
    assert not processes.is_alive(stopped_after_a_job)
    done = kit_sandbox("status")
    assert done.returncode == 3
    assert done.stdout.count(" NO ") >= 16


@pytest.fixture
def stopped_after_a_job(ssh, request):
    """A job's process that ignores TERM, after the sandbox was taken down over it."""
    script = "#!/bin/bash\ntrap '' TERM\necho $$ >pid\nwhile :; do sleep 1; done\n"
    job = ssh("rm -f pid; sbatch --parsable -p small -t 2", input=script)
    process = processes.live_process(int(wait_until(lambda: ssh("cat pid 2>/dev/null || :"))))
    kit_sandbox("down", "--site", "second")  # where other tests have started it: not timed here
    begin = time.monotonic()
    request.getfixturevalue("stopped")
    assert time.monotonic() - begin < 60, f"job {job} held it up to its time limit"
    return process


def test_a_taken_port_is_named_with_its_holder_and_the_place_to_change_it(stopped):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 5000))
        listener.listen()
        done = kit_sandbox("up")
    assert done.returncode == 1
    assert "port 5000 on 127.0.0.1, which mlflow needs, is taken" in done.stderr
    assert f"by pid {os.getpid()} (" in done.stderr
    assert "change mlflow's port in env/sites/sandbox.toml" in done.stderr
    assert of_this_sandbox(stopped) == []


def test_a_sandbox_elsewhere_starts_cold_is_seen_by_others_and_wiped(stopped):
    with tempfile.TemporaryDirectory(prefix="kit-", dir="/tmp") as parent:
        other = Path(parent) / "s"
        environ = os.environ | {"KIT_SANDBOX_DIR": str(other), "AWS_SECRET_ACCESS_KEY": "planted"}
        try:
            done = kit_sandbox("up", env=environ)
            assert done.returncode == 0, done.stderr[-2000:]
            rows = status(env=environ)
            assert all(row["up"] for row in rows.values())
            for name, row in rows.items():
                assert b"planted" not in Path(f"/proc/{row['pid']}/environ").read_bytes(), name
            refused = kit_sandbox("up")
            assert refused.returncode == 1
            assert f"folder {other}" in refused.stderr
            assert f"user {processes.user_name(os.getuid())}" in refused.stderr
        finally:  # else no other sandbox starts on this machine
            done = kit_sandbox("down", "--wipe", env=environ)
        assert done.returncode == 0, done.stderr
        assert not other.exists()
        assert of_this_sandbox(other) == []


def test_after_a_power_cut_stale_files_and_wrong_modes_are_put_right(stopped):
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        (stopped / "run" / "pids" / "redis").write_text(f"{bystander.pid} 1\n")
        (stopped / "run" / "pids" / "mlflow").write_text("")
        (stopped / "run" / "supervisord.pid").write_text(f"{bystander.pid}\n")
        for name in ("supervisor.sock", "munge.sock", "db.sock"):
            (stopped / "run" / name).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(stopped / "run" / name))
        (stopped / "etc" / "munge.key").chmod(0o666)
        (stopped / "etc" / "ssh" / "id").chmod(0o666)
        (stopped / "etc" / "ssh").chmod(0o777)
        done = kit_sandbox("up")
        assert done.returncode == 0, done.stderr[-2000:]
        assert all(row["up"] for row in status().values())
        assert bystander.poll() is None, "a stranger with a stale pid was ended"
    finally:
        bystander.kill()
        bystander.wait()
