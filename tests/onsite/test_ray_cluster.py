"""Ray on the nodes of a job: the step's shell program and the cluster that starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
from ray.util.state.exception import RayStateApiException, ServerUnavailable

from kit.onsite import names, ray_cluster
from kit.onsite.ray_cluster import Cluster, RayFailed

STEP = (files("kit.onsite") / "step.sh").read_text(encoding="utf-8")
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.mark.parametrize("error", [ServerUnavailable, RayStateApiException, OSError, RuntimeError])
def test_dashboard_that_cannot_answer_yet_is_asked_again(tmp_path, monkeypatch, error):
    answers = iter([error("not yet"), [], ["c1"], ["c1", "c2"]])

    def list_nodes(address, filters):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.util.state.list_nodes", list_nodes)
    monkeypatch.setattr(ray_cluster.time, "sleep", lambda seconds: None)
    cluster = Cluster(["c1", "c2"], Path("python"), tmp_path, "1")
    cluster.until("2 nodes of Ray", cluster._all_nodes_alive)
    assert next(answers, None) is None


def test_driver_is_submitted_again_until_the_head_takes_it(tmp_path, monkeypatch):
    answers = iter([ConnectionError("refused"), RuntimeError("No available agent"), True])

    def submit():
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray_cluster.time, "sleep", lambda seconds: None)
    Cluster(["c1"], Path("python"), tmp_path, "1").until(
        "answer to the driver's submission", submit
    )
    assert next(answers, None) is None


def test_what_does_not_come_is_an_error_with_the_last_answer(tmp_path, monkeypatch):
    def submit():
        raise RuntimeError("No available agent")

    monkeypatch.setattr(ray_cluster, "READY_S", 0.0)
    with pytest.raises(RayFailed, match="no answer to the driver's submission after 0 s") as error:
        Cluster(["c1"], Path("python"), tmp_path, "1").until(
            "answer to the driver's submission", submit
        )
    assert error.value.code == names.RAY_NOT_STARTED
    assert "No available agent" in error.value.got


def test_no_node_starts_ray_at_a_fixed_port():
    # an address that nobody else uses: no outgoing connection can take the port meanwhile
    ports = ray_cluster.free_ports("127.0.0.88", 5)
    assert len(set(ports)) == 5
    with socket.create_server(("127.0.0.88", ports[0])):
        assert ray_cluster.listens("127.0.0.88", ports[0])
    assert not ray_cluster.listens("127.0.0.88", ports[0])


def test_ray_chooses_every_port_that_is_not_chosen_for_it(tmp_path, monkeypatch):
    """Ray's usual fixed ports are those of everybody else's Ray on the same node."""
    started = []
    monkeypatch.setattr(
        ray_cluster.subprocess, "Popen", lambda argv, **_: started.append(list(map(str, argv)))
    )
    monkeypatch.setattr(ray_cluster, "node_address", lambda node: "127.0.0.88")
    Cluster(["c1"], Path("python"), tmp_path, "1")._step("c1", "--address=127.0.0.88:7")
    ports = dict(word.split("=") for word in started[0] if "-port=" in word)
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export", "min-worker")
    assert ports == dict.fromkeys([f"--{name}-port" for name in (*names, "max-worker")], "0")


def test_ray_of_a_job_in_a_container_is_started_in_it_on_every_node(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(ray_cluster.subprocess, "Popen", lambda argv, **_: started.append(argv))
    monkeypatch.setattr(ray_cluster, "node_address", lambda node: "127.0.0.88")
    monkeypatch.setenv("KIT_CONTAINER", "/proj/outside/become")
    Cluster(["c1"], Path("/venv/bin/python"), tmp_path, "1")._step("c1", "--head")
    place = started[0].index("/venv/bin/python")
    assert started[0][place - 2 : place + 2] == [
        *("bash", "/proj/outside/become", "/venv/bin/python", "-m")
    ]


BUSY = "Exception: The current node timed out during startup. This could happen because"


@pytest.mark.parametrize("words", ["bind: Address already in use", BUSY])
@pytest.mark.parametrize(("taken", "starts"), [(2, 3), (9, 3)])
def test_head_whose_port_was_taken_or_whose_node_was_busy_is_started_with_other_ports(
    tmp_path, monkeypatch, taken, starts, words
):
    """Ray binds the ports that were chosen for it seconds later, when somebody may have them."""
    made = Cluster(["c1"], Path("python"), tmp_path, "1")
    used = []

    def step(node, *options):
        port = int(next(word for word in options if word.startswith("--port=")).split("=")[1])
        used.append(port)
        (tmp_path / f"ray-{node}.log").write_text(f"{words}\n")
        code = "exit 1"
        if len(used) > taken:
            server = "import socket, sys; s = [socket.create_server((sys.argv[1], int(p))) for p in"
            code = f"exec {sys.executable} -c '{server} sys.argv[2:]]; sys.stdin.read()'"
            code += f" {made.address} {made.ports[0]} {made.ports[1]}"
        made.steps[node] = subprocess.Popen(["bash", "-c", code], stdin=subprocess.PIPE)

    monkeypatch.setattr(ray_cluster, "node_address", lambda node: "127.0.0.89")
    monkeypatch.setattr(made, "_step", step)
    monkeypatch.setattr(made, "_all_nodes_alive", lambda: True)
    if taken < starts:
        made.start(lambda: True)
    else:
        with pytest.raises(RayFailed, match="Ray on node c1 has ended"):
            made.start(lambda: True)
    assert len(set(used)) == starts
    made.stop()


def ray_step(tmp_path, command):
    """One node's step with a stand-in for `ray start`; the session is a step's own."""
    private = tmp_path / "private"
    environ = {**os.environ, "SLURM_JOB_ID": f"{os.getpid()}", "SLURM_STEP_ID": "0"}
    step = ["bash", "-c", STEP, "ray", str(private), "bash", "-c", command, "x"]
    options = {"env": environ, "start_new_session": True, "stderr": subprocess.PIPE}
    return private, subprocess.Popen(step, stdin=subprocess.PIPE, **options)


def gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return gone(pid)


def pid_in(path):
    while not path.exists() or not path.read_text().strip():
        time.sleep(0.02)
    return int(path.read_text())


STUBBORN = 'trap "" TERM; setsid sleep 300 & echo $! >{0}; while :; do sleep 0.1; done'


def test_step_ends_with_its_stdin_and_leaves_nothing_behind(tmp_path):
    private, step = ray_step(tmp_path, STUBBORN.format(tmp_path / "pid"))
    child = pid_in(tmp_path / "pid")
    step.stdin.close()
    assert step.wait(15) == 0
    assert gone(child)
    assert not private.exists()


def test_ray_that_ends_with_the_head_just_before_its_stdin_has_done_its_work(tmp_path):
    private, step = ray_step(tmp_path, f"echo $$ >{tmp_path / 'pid'}")
    assert wait_gone(pid_in(tmp_path / "pid"))
    time.sleep(0.3)
    step.stdin.close()
    assert step.wait(15) == 0
    assert not private.exists()


@pytest.mark.parametrize(("code", "step_code"), [(0, 1), (7, 7)])
def test_ray_that_ends_alone_is_a_failure(tmp_path, code, step_code):
    private, step = ray_step(tmp_path, f"exit {code}")
    assert step.wait(15) == step_code
    assert private.exists()  # nodes may share it


@pytest.mark.slow
def test_step_that_is_end_requested_ends_at_once(tmp_path):
    private, step = ray_step(tmp_path, STUBBORN.format(tmp_path / "pid"))
    child, begun = pid_in(tmp_path / "pid"), time.monotonic()
    step.send_signal(signal.SIGTERM)
    assert step.wait(15) == 1
    assert time.monotonic() - begun < 2
    assert gone(child)
    assert not private.exists()


def test_step_whose_ray_ends_fails_and_leaves_the_folder(tmp_path):
    private, step = ray_step(tmp_path, "exit 7")
    assert step.wait(15) == 7
    assert private.exists()
    step.stdin.close()


def cluster(tmp_path, *codes):
    made = Cluster(["c1", "c2"], Path("/x/python"), tmp_path, "7")
    for node, code in zip(made.nodes, codes, strict=False):
        made.steps[node] = subprocess.Popen(["bash", "-c", code], stdin=subprocess.PIPE)
    return made


def test_lost_node_is_named_with_the_end_of_its_log(tmp_path):
    (tmp_path / "ray-c2.log").write_text("raylet died\n")
    lost = cluster(tmp_path, "cat", "exit 1")
    lost.steps["c2"].wait()
    with pytest.raises(RayFailed, match="Ray on node c2 has ended") as error:
        lost.check()
    assert error.value.code == names.NODE_LOST
    assert "raylet died" in error.value.got
    lost.stop()


def test_being_end_requested_ends_any_waiting(tmp_path):
    waiting = cluster(tmp_path, "cat", "cat")
    waiting.end_requested = True
    with pytest.raises(RayFailed) as error:
        waiting.until("something", lambda: False)
    assert error.value.code == names.END_REQUESTED
    waiting.stop()
    assert [step.returncode for step in waiting.steps.values()] == [0, 0]


def test_shell_program_of_a_step_is_clean():
    subprocess.run(["bash", "-n"], input=STEP, text=True, check=True)
    subprocess.run([SHELLCHECK, "--shell=bash", "-"], input=STEP, text=True, check=True)


def plant_file(path):
    path.write_text("")


def plant_open_folder(path):
    path.mkdir()
    path.chmod(0o777)


def plant_symlink(path):
    target = path.with_name("elsewhere")
    target.mkdir(mode=0o700)
    path.symlink_to(target)


@pytest.mark.parametrize("plant", [plant_file, plant_open_folder, plant_symlink])
def test_folder_that_another_user_could_have_made_is_refused(tmp_path, plant):
    plant(tmp_path / "private")
    private, step = ray_step(tmp_path, "touch started")
    _, err = step.communicate(timeout=15)
    assert step.returncode == 1
    assert b"is not a private folder of this user" in err
    assert not (tmp_path / "elsewhere" / "tmp").exists()
    assert not private.is_dir() or list(private.iterdir()) == []


def test_files_of_ray_are_below_a_private_folder_that_nodes_may_share(tmp_path):
    (tmp_path / "private").mkdir(mode=0o700)
    private, step = ray_step(tmp_path, f'echo "$TMPDIR" >{tmp_path}/where; exit 7')
    assert step.wait(15) == 7
    assert (tmp_path / "where").read_text() == f"{private}/tmp\n"
    assert private.stat().st_mode & 0o777 == 0o700
    step.stdin.close()


def test_metrics_of_ray_are_switched_off(tmp_path):
    command = f"env >{tmp_path}/environment; exit 7"
    _, step = ray_step(tmp_path, command)
    assert step.wait(15) == 7
    lines = (tmp_path / "environment").read_text().splitlines()
    assert "RAY_enable_metrics_collection=0" in lines
    assert "DASHBOARD_METRIC_PORT=-1" in lines
    assert "AUTOSCALER_METRIC_PORT=-1" in lines
    step.stdin.close()


def test_folder_on_the_node_cannot_be_guessed_and_is_short(tmp_path):
    folders = {Cluster(["c1"], Path("python"), tmp_path, "12345678").private for _ in range(20)}
    assert len(folders) == 20
    socket_path = "/ray/session_2026-11-26_22-26-41_123456_4000000/sockets/plasma_store"
    assert max(len(folder + socket_path) for folder in folders) < 107


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks …",
        "slurmstepd: error: Step 12.0 exceeded memory limit (3200 > 3072), being killed",
        "srun: error: c2: task 0: Out Of Memory",
    ],
)
def test_step_killed_for_memory_is_not_a_lost_node(tmp_path, line):
    (tmp_path / "ray-c2.log").write_text(f"{line}\n")
    killed = cluster(tmp_path, "cat", "exit 1")
    killed.steps["c2"].wait()
    with pytest.raises(RayFailed, match="more memory than the job requested") as error:
        killed.check()
    assert error.value.code == names.KILLED
    assert "[hpc] mem" in error.value.next_step
    killed.stop()


def test_names_of_the_jobs_nodes_come_from_slurm(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames c[1-2],g1" ] && printf "c1\\nc2\\ng1\\n"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ray_cluster.node_names("c[1-2],g1") == ["c1", "c2", "g1"]
