"""A run as a Workflow Run RO-Crate: what is in it, that it is valid, and no secret ever."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tools_venv import tools

from kit.base import (
    ROOT,
    DataError,
    SecretFound,
    UsageError,
    find_secrets,
    known_secrets,
    sha256_of,
    write_json,
)
from kit.base.settings import load
from kit.report import crate
from kit.runs import history as runs
from kit.runs import notebooks

START = '{"cells": [], "as": "at the start"}'


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    (tmp_path / "env").write_text("CSC_PASSWORD='correct-horse-battery'\nCSC_USERNAME=anna\n")
    monkeypatch.setenv("KIT_ENV_FILE", str(tmp_path / "env"))
    return load("sandbox")


@pytest.fixture
def run(loaded):
    """A finished run of the local target with a few files."""
    parameters = {"epochs": 5, "strict": False, "device": "cpu", "gates": [0.8, 0.8, 0.8]}
    run = runs.start_run(loaded, "local", parameters, "d")
    run.save("local_metrics.json", {"performance": {}})
    run.save("sacct.txt", "JobID|State\n1|COMPLETED\n")
    run.save("local.ipynb", '{"cells": []}')
    (run.folder / "source").mkdir(exist_ok=True)
    run.save("source/local.ipynb", START)
    run.save("source/requirements.lock", "torch==1\n")
    (run.folder / "out").mkdir()
    (run.folder / "out/model.safetensors").write_bytes(b"weights")
    (run.folder / "checkpoint").mkdir()
    (run.folder / "checkpoint" / "1.pt").write_bytes(b"x")
    data = {"hash": "d" * 64, "title": "own files 7 + 1", "files": {"train images": "a" * 64}}
    return run.finish({}, {"figures": {"accuracy": 0.5}, "data": data})


def graph(path: Path) -> dict[str, dict]:
    return {e["@id"]: e for e in json.loads(path.read_text())["@graph"]}


def test_the_crate_names_notebook_parameters_versions_data_results_and_lock(loaded, run, tmp_path):
    found = graph(crate.export(loaded, run, tmp_path / "out"))
    action = found[f"#{run['run']}"]
    assert action["instrument"] == {"@id": "workflow/local.ipynb"}
    assert found["./"]["mainEntity"] == {"@id": "workflow/local.ipynb"}
    results = {each["@id"] for each in action["result"]}
    assert {"run/local_metrics.json", "run/sacct.txt", "run/record.json"} <= results
    assert {"run/out/model.safetensors", "run/source/experiment/training.py"} <= results
    inputs = {found[each["@id"]]["name"]: found[each["@id"]] for each in action["object"]}
    assert (inputs["epochs"]["value"], inputs["strict"]["value"]) == ("5", "false")
    assert inputs["own files 7 + 1"]["value"] == "d" * 64
    assert inputs["hash of train images"]["value"] == "a" * 64
    environment = {found[e["@id"]]["name"]: found[e["@id"]] for e in action["environment"]}
    assert environment["torch"]["value"] == run["versions"]["torch"]
    assert environment["git commit"]["value"] == run["git"]["commit"]
    assert "requirements.lock" in found


def test_notebook_and_lock_are_those_of_the_runs_start(loaded, run, tmp_path):
    """An export months later must not put today's notebook under the commit of the run."""
    crate.export(loaded, run, tmp_path / "out")
    assert (tmp_path / "out" / "workflow" / "local.ipynb").read_text() == START
    assert (tmp_path / "out" / "requirements.lock").read_text() == "torch==1\n"


def test_a_run_without_those_copies_is_exported_with_its_executed_notebook(loaded, run, tmp_path):
    shutil.rmtree(loaded.profile_dir / "runs" / run["run"] / "source")
    found = graph(crate.export(loaded, run, tmp_path / "out"))
    assert (tmp_path / "out" / "workflow" / "local.ipynb").read_text() == '{"cells": []}'
    assert "requirements.lock" not in found


def test_every_file_is_there_with_its_hash_and_checkpoints_stay_out(loaded, run, tmp_path):
    found = graph(crate.export(loaded, run, tmp_path / "out"))
    files = [e for e in found.values() if "File" in e["@type"] and "sha256" in e]
    assert len(files) >= 6
    for entity in files:
        content = (tmp_path / "out" / entity["@id"]).read_bytes()
        assert sha256_of(content) == entity["sha256"]
    assert not list((tmp_path / "out").rglob("*.pt"))
    assert not list((tmp_path / "out").rglob(".lock"))


@pytest.mark.slow
def test_the_crate_is_valid_and_a_spoilt_one_is_not(loaded, run, tmp_path):
    python = tools("roc-validator==0.13.0")
    metadata = crate.export(loaded, run, tmp_path / "out")
    argv = [str(python), str(ROOT / "tests/in_tools/validate_crate.py"), str(metadata.parent)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    content = json.loads(metadata.read_text())
    for entity in content["@graph"]:
        entity.pop("instrument", None)
    metadata.write_text(json.dumps(content))
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert "MUST have an instrument" in done.stdout


def test_an_existing_folder_is_not_overwritten(loaded, run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        crate.export(loaded, run, tmp_path / "out")


def test_a_run_whose_folder_lost_its_record_is_named(loaded, run, tmp_path):
    (loaded.profile_dir / "runs" / run["run"] / "record.json").unlink()
    with pytest.raises(DataError, match=r"no record\.json"):
        crate.export(loaded, run, tmp_path / "out")


SECRETS = [
    "correct-horse-battery",
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "AKIA" + "A" * 16,
    "Authorization: Bearer " + "a1" * 20,
    "gAAAAAB" + "b" * 80,
    "https://anna:s3cretpass@" + "example.org",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_run_with_a_secret_is_not_exported_and_nothing_is_left(loaded, run, tmp_path, secret):
    log = loaded.profile_dir / "runs" / run["run"] / "job.log"
    log.write_text(f"before\n{secret}\nafter")
    with pytest.raises(SecretFound) as caught:
        crate.export(loaded, run, tmp_path / "out")
    assert "job.log" in str(caught.value)
    assert secret not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["http://127.0.0.1:5000/#/x", "user anna", "Bearer token", ""])
def test_harmless_text_is_not_taken_for_a_secret(loaded, text):
    assert find_secrets(text.encode(), known_secrets(loaded)) == []


def test_an_executed_notebook_that_shows_a_secret_is_not_kept(loaded, tmp_path, monkeypatch):
    def shows(_notebook, executed, *_):
        write_json(executed, {"cells": [{"outputs": [{"text": SECRETS[0]}]}]})

    monkeypatch.setattr(notebooks, "_execute", shows)
    with pytest.raises(SecretFound, match="keep local.ipynb"):
        notebooks.run_notebook(loaded, "local", {})
    assert not list(loaded.results_dir.rglob("*.ipynb"))
