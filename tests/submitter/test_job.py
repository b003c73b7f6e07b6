"""The batch job of a try: its script whole, its code archive, its main program and its driver."""

import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import striped_images
from ray.util.state.exception import RayStateApiException, ServerUnavailable

from kit.base import DataError, KitError, UsageError
from kit.base.settings import Cloud, Hpc
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite import EXIT_MEANINGS, names, ray_cluster
from kit.onsite import driver as ray_driver
from kit.onsite import main as ray_main
from kit.onsite.ray_cluster import NODE_LOST, TOLD_TO_END, Cluster, RayFailed
from kit.slurm import build_script
from kit.submitter import env as hpc_env
from kit.submitter import job as ray_job
from kit.submitter import tunnel_key as tunnel

GOLDEN = Path(__file__).parents[1] / "golden" / "ray-job.sh"
PROJECT = "/projappl/project_2001234"
HPC = Hpc(
    ssh_host="hpc",
    project_dir=PROJECT,
    account="project_2001234",
    partition="medium",
    time="00:20:00",
    nodes=2,
    cpus=4,
    mem="20G",
    gres="nvme:10",
    modules=("pytorch/2.13",),
    module_init="/usr/share/lmod/lmod/init/bash",
    module_path="/appl/modules",
    python="/usr/bin/python3",
)
TASK = ray_job.Task(
    run="cloud-hpc-0123456789ab-1",
    number=2,
    token="0123456789ab",
    data_hash="d" * 64,
    data=f"{PROJECT}/kit/inputs/{'d' * 64}.safetensors",
    code=f"{PROJECT}/kit/inputs/{'c' * 64}.zip",
    configured=True,
    hyperparameters=Parameters(epochs=3),
    previous=f"{PROJECT}/kit/tries/ba9876543210",
    tunnel=tunnel.tunnel_settings(
        Cloud(tunnel_address="10.1.2.3"), {"host": "vm.example", "port": 22, "user": "kit-tunnel"}
    ),
)


@pytest.fixture(autouse=True)
def fixed_packages(monkeypatch):
    """The golden script does not follow each new version of a package."""
    monkeypatch.setattr(hpc_env, "environment_key", lambda hpc, text: "e" * 12)
    monkeypatch.setattr(hpc_env, "pins_key", lambda text: "1" * 12)
    monkeypatch.setattr(hpc_env, "locked", lambda *_: dict.fromkeys(_names(), "0") | RAY)


RAY = {"ray": "2.60.0"}


def _names():
    return [line for line in hpc_env.REQUIREMENTS.read_text().splitlines() if line[:1] != "#"]


def text_of(task=TASK, hpc=HPC):
    return build_script(ray_job.job_spec(hpc, task), f"{PROJECT}/kit/tries/{task.token}")


def test_the_script_is_the_golden_one():
    assert text_of() == GOLDEN.read_text()


def test_the_golden_script_is_good_bash(tmp_path):
    done = subprocess.run(["bash", "-n", str(GOLDEN)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_environment_made_before_is_taken_and_a_private_one_removed():
    shared = text_of(dataclasses.replace(TASK, environment="/x/venvs/a b"))
    assert "venv='/x/venvs/a b' private=\n" in shared
    assert "pip" not in shared
    private = text_of(dataclasses.replace(TASK, environment="/x/v", private=True))
    assert "venv=/x/v private=/x/v\n" in private


@pytest.mark.parametrize(
    ("configured", "word"), [(True, " yes || exit 95"), (False, " no || exit 95")]
)
def test_configured_decides_whether_an_environment_is_looked_for(configured, word):
    assert word in text_of(dataclasses.replace(TASK, configured=configured))


@pytest.mark.parametrize("token", ["", "../x", "0123456789AB", "0123456789ab; reboot"])
def test_what_is_no_token_makes_no_script(token):
    with pytest.raises(UsageError):
        text_of(dataclasses.replace(TASK, token=token))


def test_the_task_is_data_with_the_version_of_ray_and_nothing_secret():
    task = json.loads(ray_job.task_text(TASK))
    assert task["ray"] == "2.60.0"
    assert task["hyperparameters"]["epochs"] == 3
    known = {"run", "number", "token", "data_hash", "data", "hyperparameters", "previous", "ray"}
    assert set(task) == known | {"workers", "tunnel"}


def test_the_archive_has_the_same_bytes_again_and_runs_without_the_rest(tmp_path):
    content = ray_job.code_archive()
    assert content == ray_job.code_archive()
    names = zipfile.ZipFile(BytesIO(content)).namelist()
    assert {
        "kit/onsite/main.py",
        "kit/onsite/driver.py",
        "kit/experiments/fashion_mnist/training.py",
    } <= set(names)
    assert not [name for name in names if "__main__" in name or "/." in name]
    path = tmp_path / "code.zip"
    path.write_bytes(content)
    code = "import kit.onsite.main, kit.onsite.driver; print(kit.onsite.main.__file__)"
    environ = {**os.environ, "PYTHONPATH": str(path)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert str(path) in done.stdout, done.stderr


@pytest.mark.parametrize("error", [ServerUnavailable, RayStateApiException, OSError, RuntimeError])
def test_a_dashboard_that_cannot_answer_yet_is_asked_again(tmp_path, monkeypatch, error):
    answers = iter([error("not yet"), [], ["c1"], ["c1", "c2"]])

    def list_nodes(address, filters):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.util.state.list_nodes", list_nodes)
    monkeypatch.setattr(ray_cluster.time, "sleep", lambda seconds: None)
    cluster = Cluster(["c1", "c2"], Path("ray"), tmp_path, "1")
    cluster.until("2 nodes of Ray", cluster._complete)
    assert next(answers, None) is None


def test_no_node_starts_ray_at_a_fixed_port():
    # an address that nobody else uses: no outgoing connection can take the port meanwhile
    ports = ray_cluster.free_ports("127.0.0.88", 5)
    assert len(set(ports)) == 5
    with socket.create_server(("127.0.0.88", ports[0])):
        assert ray_cluster.listens("127.0.0.88", ports[0])
    assert not ray_cluster.listens("127.0.0.88", ports[0])


def ray_step(tmp_path, *argv):
    """One node's step with a stand-in for `ray start`; the session is a step's own."""
    tmp = tmp_path / "tmp"
    tmp.mkdir(exist_ok=True)
    environ = {**os.environ, "SLURM_JOB_ID": f"{os.getpid()}", "SLURM_STEP_ID": "0"}
    step = ["bash", "-c", ray_cluster.STEP, "ray", str(tmp), "bash", "-c", *argv, "x"]
    options = {"env": environ, "start_new_session": True}
    return tmp, subprocess.Popen(step, stdin=subprocess.PIPE, **options)


def gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def pid_in(path):
    while not path.exists() or not path.read_text().strip():
        time.sleep(0.02)
    return int(path.read_text())


STUBBORN = 'trap "" TERM; setsid sleep 300 & echo $! >{0}; while :; do sleep 0.1; done'


def test_a_step_ends_with_its_stdin_and_leaves_nothing_behind(tmp_path):
    tmp, step = ray_step(tmp_path, STUBBORN.format(tmp_path / "pid"))
    child = pid_in(tmp_path / "pid")
    step.stdin.close()
    assert step.wait(15) == 0
    assert gone(child)
    assert not tmp.exists()


def test_a_step_that_is_told_to_end_does_so_at_once(tmp_path):
    tmp, step = ray_step(tmp_path, STUBBORN.format(tmp_path / "pid"))
    child, begun = pid_in(tmp_path / "pid"), time.monotonic()
    step.send_signal(signal.SIGTERM)
    assert step.wait(15) == 1
    assert time.monotonic() - begun < 2
    assert gone(child)
    assert not tmp.exists()


def test_a_step_whose_ray_ends_by_itself_fails_and_leaves_the_folder(tmp_path):
    tmp, step = ray_step(tmp_path, "exit 7")
    assert step.wait(15) == 7
    assert tmp.exists()
    step.stdin.close()


def cluster(tmp_path, *codes):
    made = Cluster(["c1", "c2"], Path("/x/ray"), tmp_path, "7")
    for node, code in zip(made.nodes, codes, strict=False):
        made.steps[node] = subprocess.Popen(["bash", "-c", code], stdin=subprocess.PIPE)
    return made


def test_a_lost_node_is_named_with_the_end_of_its_log(tmp_path):
    (tmp_path / "ray-c2.log").write_text("raylet died: out of memory\n")
    lost = cluster(tmp_path, "cat", "exit 1")
    lost.steps["c2"].wait()
    with pytest.raises(RayFailed, match="Ray on node c2 has ended") as error:
        lost.check()
    assert error.value.code == NODE_LOST
    assert "out of memory" in error.value.got
    lost.stop()


def test_being_told_to_end_ends_any_waiting(tmp_path):
    waiting = cluster(tmp_path, "cat", "cat")
    waiting.told_to_end = True
    with pytest.raises(RayFailed) as error:
        waiting.until("something", lambda: False)
    assert error.value.code == TOLD_TO_END
    waiting.stop()
    assert [step.returncode for step in waiting.steps.values()] == [0, 0]


def main_in(folder, monkeypatch, error):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KIT_TASK", "{}")

    def run(*_):
        raise error

    monkeypatch.setattr(ray_main, "run", run)
    return ray_main.main(), json.loads((folder / "failure.json").read_text())


def test_the_drivers_own_account_of_its_failure_is_kept(tmp_path, monkeypatch):
    (tmp_path / "failure.json").write_text('{"cause": "the training failed"}')
    error = RayFailed(3, ray_main.DRIVER_FAILED, "the log")
    code, failure = main_in(tmp_path, monkeypatch, error)
    assert (code, failure["cause"]) == (3, "the training failed")


def test_a_lost_node_is_told_rather_than_what_it_did_to_the_driver(tmp_path, monkeypatch):
    (tmp_path / "failure.json").write_text('{"cause": "the training failed"}')
    code, failure = main_in(tmp_path, monkeypatch, RayFailed(NODE_LOST, "Ray on c2 has ended"))
    assert (code, failure["cause"]) == (92, "Ray on c2 has ended")


def test_what_nobody_foresaw_leaves_its_traceback(tmp_path, monkeypatch):
    code, failure = main_in(tmp_path, monkeypatch, OSError("disk full"))
    assert code == 90
    assert "disk full" in failure["traceback"]


@pytest.mark.parametrize("error", [RayFailed(1, ray_main.DRIVER_FAILED, "no space"), OSError("x")])
def test_a_cause_that_cannot_be_written_down_has_its_own_exit_code(tmp_path, monkeypatch, error):
    def full(*_):
        raise KitError("cannot write failure.json", "No space left on device")

    monkeypatch.setattr(ray_main, "write_json", full)
    with pytest.raises(FileNotFoundError):
        main_in(tmp_path, monkeypatch, error)
    assert ray_main.main() == ray_main.NOT_WRITABLE
    assert "full" in EXIT_MEANINGS[names.NOT_WRITABLE]


def test_another_version_of_ray_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(RayFailed, match=r"needs 2\.9\.0") as error:
        ray_main.run({"ray": "2.9.0"}, tmp_path, time.time())
    assert error.value.code == ray_main.WRONG_VERSION


@pytest.fixture
def staged(tmp_path):
    data = striped_images(400, 100)
    path = tmp_path / "data.safetensors"
    path.write_bytes(ray_job.data_file(data))
    hp = Parameters(epochs=2).model_dump()
    task = {"data": str(path), "data_hash": data.hash, "hyperparameters": hp, "previous": ""}
    task["workers"] = 1
    folder = tmp_path / "try"
    folder.mkdir()
    return data, task, folder


def test_the_driver_trains_to_the_same_bits_as_here(staged, tmp_path):
    data, task, folder = staged
    ray_driver.work(task, folder)
    here = training.train(data, Parameters(epochs=2))
    training.save_model(here.model, tmp_path / "here.safetensors")
    theirs = (folder / "model.safetensors").read_bytes()
    assert theirs == (tmp_path / "here.safetensors").read_bytes()
    measured = training.evaluate(here.model, data, Parameters(epochs=2))
    left = json.loads((folder / "metrics.json").read_text())
    assert left["performance"] == measured.performance
    predictions = np.load(folder / "predictions.npy", allow_pickle=False)
    assert (predictions == measured.predictions).all()
    assert {name for name in names.RESULTS if not (folder / name).exists()} == set()
    assert json.loads((folder / "progress.json").read_text())["epoch"] == 2


def test_the_shares_of_other_workers_come_to_the_same_bits_as_here(staged, tmp_path, monkeypatch):
    data, task, folder = staged

    def others(task):
        def begin(*arrays):
            given = [array.numpy() for array in arrays]
            return lambda: torch.tensor(ray_driver.share(task, *given))

        return begin

    monkeypatch.setattr(ray_driver, "_others", others)
    ray_driver.work({**task, "workers": 3}, folder)
    here = training.train(data, Parameters(epochs=2), workers=3)
    training.save_model(here.model, tmp_path / "here.safetensors")
    theirs = (folder / "model.safetensors").read_bytes()
    assert theirs == (tmp_path / "here.safetensors").read_bytes()
    assert json.loads((folder / "times.json").read_text())["workers"] == 3


def test_a_later_try_goes_on_from_the_last_epoch_of_an_earlier_one(staged, tmp_path):
    _, task, folder = staged
    ray_driver.work(task, folder)
    again = tmp_path / "again"
    again.mkdir()
    ray_driver.work({**task, "previous": str(folder)}, again)
    times = json.loads((again / "times.json").read_text())
    assert times["epochs_resumed"] == 2
    one, other = ((path / "model.safetensors").read_bytes() for path in (folder, again))
    assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest()


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_data_that_is_not_what_was_staged_is_refused(staged, content):
    data, task, _ = staged
    path = Path(task["data"])
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match="data.safetensors"):
        ray_driver.load_data(path, data.hash)


def test_another_data_set_is_refused(staged):
    _, task, _ = staged
    with pytest.raises(DataError, match="is expected"):
        ray_driver.load_data(Path(task["data"]), "0" * 64)
