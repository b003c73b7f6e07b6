"""The notebooks: their form, and that they run from the root and from their own folder."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from idx_files import small_data_dir
from own_experiments import GOOD, write

from kit.base import ROOT, DataError, KitError, UsageError, git_state, read_history, read_json
from kit.base.settings import load
from kit.experiments import fashion_mnist
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs import notebooks

NAMES = sorted(path.stem for path in notebooks.NOTEBOOKS.glob("*.ipynb"))
MOST_ROWS = {"local": 40, "cloud": 60, "cloud-hpc": 80}
LOCAL = notebooks.NOTEBOOKS / "local.ipynb"


def cells(name: str, kind: str = "code") -> list[dict]:
    notebook = json.loads((notebooks.NOTEBOOKS / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_cells_prose_and_no_stored_output(name):
    code = cells(name)
    sources = ["".join(cell["source"]) for cell in code]
    assert len(code) + len(cells(name, "markdown")) <= 30
    steps = [s for s, cell in zip(sources, code, strict=True) if not cell["metadata"].get("tags")]
    assert max(len(source.splitlines()) for source in steps) <= 15  # parameters are a list
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert not any(line.startswith(("def ", "class ")) for s in sources for line in s.splitlines())
    assert sum(len(source.splitlines()) for source in sources) <= MOST_ROWS.get(name, 40)
    assert cells(name, "markdown")
    nbformat.validate(nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_comment(name):
    tagged = [c for c in cells(name) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert all("  # " in line or line.strip() == "}" for line in tagged[0]["source"])


@pytest.mark.parametrize("name", ["local", "cloud", "cloud-hpc"])
def test_the_notebooks_defaults_are_the_experiments(name):
    defaults = notebooks._defaults(notebooks.NOTEBOOKS / f"{name}.ipynb")
    assert Parameters().model_dump().items() >= defaults["parameters"].items()
    assert defaults.get("gates", fashion_mnist.GATES) == fashion_mnist.GATES


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 1}, "no parameter 'epoch'"),
        ({"epochs": "many"}, "epochs = 'many' is not valid"),
        ({"epochs": 1.5}, "epochs = 1.5 is not valid"),
        ({"epochs": True}, "epochs = True is not valid"),
        ({"epochs": 0}, "epochs = 0 is not valid"),
        ({"min_accuracy": 0.5}, "no parameter 'min_accuracy'"),
        ({"fresh": 1}, "fresh of local is 1, an int"),
        ({"profile": 3}, "profile of local is 3, an int"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_before_a_kernel_starts(values, message):
    with pytest.raises(UsageError) as caught:
        notebooks.fill(LOCAL, values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "values", [{}, {"epochs": 1}, {"learning_rate": 1}, {"fresh": True, "device": "cuda"}]
)
def test_a_parameter_of_the_right_type_is_taken(values):
    filled = notebooks.fill(LOCAL, values)
    flat = {**filled, **filled.get("parameters", {})}
    assert flat.items() >= values.items()


def test_values_fill_the_dictionaries_of_the_parameters_cell():
    cloud = notebooks.NOTEBOOKS / "cloud.ipynb"
    filled = notebooks.fill(cloud, {"epochs": 1.0, "min_recall": 0.1, "strict": True})
    assert filled["parameters"] == Parameters(epochs=1).model_dump()
    assert filled["gates"] == {"accuracy": 0.8, "precision": 0.8, "recall": 0.1}
    assert filled["strict"] is True


def test_an_upper_bound_is_set_by_its_own_name(tmp_path):
    own = write(tmp_path, GOOD + 'GATES = {"accuracy": 0.8, "loss": "<= 0.3"}\n')
    cloud = notebooks.NOTEBOOKS / "cloud.ipynb"
    filled = notebooks.fill(cloud, {"experiment": str(own), "max_loss": 0.25})
    assert filled["gates"] == {"accuracy": 0.8, "loss": "<= 0.25"}
    with pytest.raises(UsageError, match="max_loss"):
        notebooks.fill(cloud, {"experiment": str(own), "min_loss": 0.25})
    with pytest.raises(UsageError, match="the gate of loss is '<= low'"):
        notebooks.fill(cloud, {"experiment": str(own), "max_loss": "low"})


@pytest.mark.parametrize("tags", [[], ["other"]])
def test_a_notebook_without_a_parameters_cell_is_refused(tmp_path, tags):
    cell = {"cell_type": "code", "source": ["a = 1"], "metadata": {"tags": tags}}
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(UsageError, match="0 cells tagged"):
        notebooks.fill(tmp_path / "n.ipynb", {"a": 2})


def test_values_of_the_command_line_are_python_literals_or_text():
    pairs = [("a", "1"), ("b", "0.5"), ("c", "True"), ("d", "false"), ("e", "cpu"), ("f", "'x'")]
    values = notebooks.parse_values(pairs)
    assert values == {"a": 1, "b": 0.5, "c": True, "d": False, "e": "cpu", "f": "x"}
    assert str(notebooks.parse_values([("lr", "nan")])["lr"]) == "nan"


def test_an_unknown_notebook_names_those_that_exist():
    with pytest.raises(UsageError, match="local"):
        notebooks.run_notebook(load("sandbox"), "nowhere", {})


@pytest.fixture
def environ(tmp_path):
    return {
        **os.environ,
        "KIT_DATA_DIR": str(small_data_dir(tmp_path / "data")),
        "KIT_RESULTS_DIR": str(tmp_path / "results"),
    }


def kit(environ, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "kit", *arguments]
    return subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "notebooks"])
@pytest.mark.parametrize("name", ["local", "Notebook_Size_Comparison"])
def test_a_notebook_runs_by_papermill_from_the_root_and_from_its_own_folder(
    name, folder, environ, tmp_path
):
    out = tmp_path / "out.ipynb"
    argv = [sys.executable, "-m", "papermill", str(notebooks.NOTEBOOKS / f"{name}.ipynb"), str(out)]
    extra = ["-p", "epochs", "1"] if name == "local" else []
    done = subprocess.run(
        [*argv, *extra], cwd=ROOT / folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    spilled = [o["text"] for o in outputs if o.get("name") == "stderr"]
    assert not any("Warning" in text or "WARNING" in text for text in spilled), spilled
    assert sum(len(text.splitlines()) for text in spilled) < 20


# Where the seconds of a local run go, up to its record; `other` would have no name.
STAGES = {"command", "kernel", "data", "loading", "training", "evaluation", "records", "mlflow"}
STAGES |= {"tables and pictures", "between cells", "other"}


@pytest.mark.slow
def test_kit_run_local_keeps_everything_with_the_run(environ, tmp_path):
    done = kit(environ, "run", "local", "-p", "epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    base = tmp_path / "results" / "sandbox"
    history, _ = read_history(base / "history.jsonl")
    (line,) = history
    folder = base / "runs" / line["run"]
    kept = {path.name for path in folder.iterdir()}
    assert {"local.ipynb", "local_metrics.json", "record.json", "out"} <= kept
    published = read_json(base / "local/artifacts/local_metrics.json")
    assert published["time"]["name"] == "local-model-training"
    assert line["data"]["files"]
    assert line["tracking"]["state"] == "logged"
    assert line["figures"]["accuracy"] == published["performance"]["accuracy"]
    assert "accuracy" in done.stdout
    seconds = line["seconds"]
    assert set(seconds) == STAGES
    assert seconds["other"] <= 0.05 * sum(seconds.values())
    spans = read_json(folder / "timeline.json")
    assert (spans[0]["name"], spans[-1]["name"]) == ("command", "notebook kept")


@pytest.mark.slow
def test_error_of_the_notebook_is_that_of_the_command(environ):
    done = kit(environ, "run", "local", "-p", "device", "cuda")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "cuda" in done.stderr
    assert not list(Path(environ["KIT_RESULTS_DIR"]).rglob("local_metrics.json"))


@pytest.mark.slow
def test_a_damaged_data_file_ends_the_run_with_its_name(environ):
    victim = Path(environ["KIT_DATA_DIR"]) / "train-images-idx3-ubyte.gz"
    victim.write_bytes(victim.read_bytes()[:100])
    done = kit(environ, "run", "local")
    assert done.returncode == 1
    assert "train-images-idx3-ubyte.gz" in done.stderr
    assert "local-failed.ipynb" in done.stderr


@pytest.mark.slow
def test_a_killed_run_resumes_under_its_id_and_ends_as_an_uninterrupted_one(environ, tmp_path):
    arguments = [sys.executable, "-m", "kit", "run", "local", "-p", "epochs", "20"]
    base = tmp_path / "results" / "sandbox"
    first = subprocess.Popen(arguments, env=environ, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(base.glob("runs/*/checkpoint/*")):
        assert first.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (folder,) = (base / "runs").iterdir()
    with FileLock(folder / ".lock", timeout=30):  # its kernel notices that its parent is gone
        assert not (folder / "record.json").exists()
    again = kit(environ, "run", "local", "-p", "epochs", "20")
    assert again.returncode == 0, again.stderr[-2000:]
    (line,) = read_history(base / "history.jsonl")[0]
    assert (line["run"], line["resumed"]) == (folder.name, True)
    unbroken = kit(environ, "run", "local", "-p", "epochs", "20", "--fresh")
    assert unbroken.returncode == 0, unbroken.stderr[-2000:]
    whole = read_history(base / "history.jsonl")[0][-1]
    assert whole["resumed"] is False
    assert whole["metrics"] == line["metrics"]
    other = base / "runs" / whole["run"] / "out/model.safetensors"
    assert other.read_bytes() == (folder / "out/model.safetensors").read_bytes()


def test_an_interrupted_cell_says_no_more_when_its_kernel_is_ended(caplog):
    """nbclient makes an error of the cancelled wait, which asyncio reports if nobody takes it."""

    async def cell():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("Kernel died") from None

    async def interrupted():
        task = asyncio.create_task(cell())
        await asyncio.sleep(0)
        await notebooks._end_tasks()
        return task.done()

    assert asyncio.run(interrupted())
    gc.collect()
    assert caplog.text == ""


def test_one_profile_serves_budget_run_and_results():
    with pytest.raises(UsageError, match="--profile dear"):
        notebooks.run_notebook(load("sandbox"), "local", {"profile": "dear"})


def test_a_full_disk_does_not_hide_what_the_notebook_itself_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    executed = tmp_path / "local.ipynb"
    executed.write_text("{}")

    def full(path, content):
        raise DataError(f"cannot write {path}", "No space left on device", "free some space")

    monkeypatch.setattr(notebooks, "write_bytes", full)
    failure = types.SimpleNamespace(ename="Unreachable", evalue="no contact")
    with pytest.raises(KitError, match="no contact") as error:
        notebooks._keep(load("sandbox"), executed, None, failure)
    assert "No space left on device" in str(error.value)
    assert error.value.exit_code == 3
    with pytest.raises(KitError, match="No space left"):
        notebooks._keep(load("sandbox"), executed, None, None)


@pytest.mark.slow
def test_four_runs_at_once_in_one_folder_all_end_well(environ, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    argv = [sys.executable, "-m", "kit", "run", "local", "-p"]
    options = [["epochs", "1"], *(["experiment=digits", "-p", f"alpha={n}"] for n in (1, 2, 3))]
    runs = [
        subprocess.Popen([*argv, *option], cwd=folder, env=environ, stderr=subprocess.PIPE)
        for option in options
    ]
    ended = [(run.communicate(timeout=280)[1].decode()[-2000:], run.returncode) for run in runs]
    assert [code for _, code in ended] == [0] * 4, ended
    assert list(folder.iterdir()) == []
    lines, notes = read_history(tmp_path / "results/sandbox/history.jsonl")
    assert (len({line["run"] for line in lines}), notes) == (4, [])
    assert {line["tracking"]["state"] for line in lines} == {"logged"}


FOREIGN = {
    "AWS_CONFIG_FILE": "[profile x\n",
    "BOTO_CONFIG": "[profile x\n",
    "OS_CLIENT_CONFIG_FILE": "clouds: [",
    "REQUESTS_CA_BUNDLE": None,  # no file has that name
    "GIT_DIR": None,
    "MLFLOW_TRACKING_SERVER_CERT_PATH": None,
}
OTHERS = {
    "MLFLOW_EXPERIMENT_NAME": "another",
    "MLFLOW_EXPERIMENT_ID": "77",
    "MLFLOW_RUN_ID": "0" * 32,
    "MLFLOW_REGISTRY_URI": "http://127.0.0.1:1",
    "MLFLOW_TRACKING_USERNAME": "another",
    "MLFLOW_TRACKING_AUTH": "another-plugin",
    "OS_CLOUD": "another",
    "OS_AUTH_URL": "http://127.0.0.1:1",
}


@pytest.mark.slow
def test_settings_of_other_programs_do_not_matter_to_a_local_run(environ, tmp_path):
    for name, text in FOREIGN.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    jupyter = tmp_path / "jupyter"
    jupyter.mkdir()
    for program in ("jupyter", "ipython_kernel", "ipython"):
        (jupyter / f"{program}_config.json").write_text("{")
    environ |= {name: str(tmp_path / name) for name in FOREIGN} | OTHERS
    environ |= {"JUPYTER_CONFIG_DIR": str(jupyter), "XDG_CONFIG_HOME": str(jupyter)}
    done = kit(environ, "run", "local", "-p", "experiment=digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = read_history(tmp_path / "results/sandbox/history.jsonl")[0]
    assert line["tracking"]["state"] == "logged"
    assert line["git"]["commit"] == git_state(ROOT)["commit"]


@pytest.mark.slow
def test_a_run_needs_no_writable_working_folder(environ):
    done = kit(environ, "run", "local", "-p", "epochs", "1", cwd=Path("/proc"))
    assert done.returncode == 0, done.stderr[-2000:]
