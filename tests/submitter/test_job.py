"""The batch job of an attempt: its script, code archive, main program and driver."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from own_experiments import GOOD, write

from kit.base import DataError, UsageError
from kit.base.settings import Cloud, Hpc
from kit.experiments import load_experiment
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.slurm import build_script
from kit.submitter import env as hpc_env
from kit.submitter import job as ray_job
from kit.submitter import tunnel_key as tunnel

GOLDEN = Path(__file__).parents[1] / "golden" / "ray-job.sh"
FASHION = load_experiment("fashion_mnist")
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
    attempt_id="0123456789ab",
    data_hash="d" * 64,
    data=f"{PROJECT}/kit/inputs/{'d' * 64}.zip",
    code=f"{PROJECT}/kit/inputs/{'c' * 64}.zip",
    code_hash="c" * 64,
    configured=True,
    hyperparameters=Parameters(epochs=3).model_dump(),
    module="kit.experiments.fashion_mnist",
    model="FMNIST-CNN",
    earlier=(f"{PROJECT}/kit/tries/ba9876543210",),
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
    return build_script(ray_job.job_spec(hpc, task), f"{PROJECT}/kit/tries/{task.attempt_id}")


def test_the_script_is_the_golden_one():
    assert text_of() == GOLDEN.read_text()


def test_golden_script_is_valid_bash(tmp_path):
    done = subprocess.run(["bash", "-n", str(GOLDEN)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_existing_environment_is_used_and_a_private_one_removed():
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


@pytest.mark.parametrize("attempt_id", ["", "../x", "0123456789AB", "0123456789ab; reboot"])
def test_invalid_attempt_id_is_refused(attempt_id):
    with pytest.raises(UsageError):
        text_of(dataclasses.replace(TASK, attempt_id=attempt_id))


def test_the_task_is_data_with_the_version_of_ray_and_nothing_secret():
    task = json.loads(ray_job.task_text(TASK))
    assert task["ray"] == "2.60.0"
    assert task["hyperparameters"]["epochs"] == 3
    known = {
        "run",
        "number",
        "attempt_id",
        "data_hash",
        "data",
        "hyperparameters",
        "model",
        "module",
        "earlier",
        "ray",
    }
    assert set(task) == known | {"workers", "tunnel", "sweep", "continued"}


def test_the_archive_has_the_same_bytes_again_and_runs_without_the_rest(tmp_path):
    content = ray_job.code_archive(FASHION)
    assert content == ray_job.code_archive(FASHION)
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


@pytest.mark.parametrize("package", [False, True])
def test_an_experiment_of_ones_own_is_in_the_archive_and_is_found_there(tmp_path, package):
    text = GOOD
    if package:
        folder = tmp_path / "own" / "mean_model"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("from mean_model.parts import *\n")
        (folder / "parts.py").write_text(text)
        experiment = load_experiment(str(folder))
    else:
        experiment = load_experiment(str(write(tmp_path / "own", text)))
    path = tmp_path / "code.zip"
    path.write_bytes(ray_job.code_archive(experiment))
    code = "from kit.experiments import imported_experiment as load; print(load('mean_model').name)"
    environ = {**os.environ, "PYTHONPATH": str(path)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout == "mean_model\n", done.stderr
    for source in experiment.sources.values():
        source.write_text(source.read_text() + "\n# changed after it was checked\n")
    with pytest.raises(DataError, match="when they were loaded"):
        ray_job.code_archive(experiment)


def test_job_of_a_profile_with_a_container_is_valid_bash_and_answers_its_calls():
    hpc = dataclasses.replace(HPC, container="torch.sif", container_options=("--nv",))
    text = text_of(hpc=hpc)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = text.splitlines()
    places = [
        lines.index(line)
        for line in (
            f"image={PROJECT}/torch.sif",
            "image_options=(--nv)",
            "become() {",
            f"environment {PROJECT} {'e' * 12} {'1' * 12} {HPC.python} 0123456789ab yes || exit 95",
            "open_outside() {",
            '[ -z "${image:-}" ] || open_outside',
        )
    ]
    assert places == sorted(places)
    login = text_of(dataclasses.replace(TASK, environment="/x/v"), hpc)
    assert login.index("become() {") < login.index("venv=/x/v private=\n")
    assert "open_outside() {" not in text_of()
