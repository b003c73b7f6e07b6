"""cloud.ipynb against the sandbox's real services: the files, MLflow, gates, secrets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from idx_files import small_data_dir
from notebook_runs import (
    KINDS,
    NO_GATES,
    PERFORMANCE,
    TIME,
    Arguments,
    kit,
    planted,
    published,
    shape,
)

from kit import store, tracking
from kit.base import read_history, read_json
from kit.base.settings import SITES, Settings, load
from kit.experiments.fashion_mnist.images import LABELS
from kit.runs import notebooks

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud")
    return {
        **os.environ,
        "KIT_DATA_DIR": str(small_data_dir(folder / "data")),
        "KIT_RESULTS_DIR": str(folder / "results"),
    }


@pytest.fixture(scope="module")
def done(sandbox, environ):
    """One run of the notebook with gates that it passes: base folder, record, output, arguments."""
    with Arguments() as watch:
        ended = kit(environ, "run", "cloud", "-p", "epochs", "5", *NO_GATES)
    assert ended.returncode == 0, ended.stderr[-4000:]
    base = Path(environ["KIT_RESULTS_DIR"]) / "sandbox"
    (line,) = read_history(base / "history.jsonl")[0]
    return base, line, ended.stdout + ended.stderr, watch.seen


def loaded(environ) -> Settings:
    return load("sandbox", environ)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("cloud/artifacts/cloud-metrics.json", {"performance": PERFORMANCE, "time": TIME}),
        ("cloud/times/pipeline_data.json", {"1": TIME, "2": TIME, "3": TIME}),
    ],
)
def test_a_published_file_has_the_published_keys_and_types(done, file, wanted):
    ours = read_json(done[0] / file)
    assert shape(ours) == wanted
    if theirs := published(file):
        assert shape(ours) == shape(theirs)
        assert [*ours] == [*theirs]


def test_the_times_have_the_published_names_in_order_and_fit_into_each_other(done):
    times = read_json(done[0] / "cloud/times/pipeline_data.json")
    assert [t["name"] for t in times.values()] == ["preprocess-train", "evaluate", "pipeline"]
    first, second, whole = times.values()
    assert whole["start-time"] <= first["start-time"] <= first["end-time"] <= second["start-time"]
    assert second["end-time"] <= whole["end-time"]
    metrics = read_json(done[0] / "cloud/artifacts/cloud-metrics.json")
    assert metrics["time"]["total-seconds"] <= first["total-seconds"]


def test_the_run_has_its_bill_by_kind_and_the_articles_rows(done):
    bill = read_json(done[0] / "runs" / done[1]["run"] / "bill.json")
    assert done[1]["bill"] == bill["totals"]
    assert list(bill["totals"]) == ["Cloud BU", "Storage BU"]
    assert [line["what"] for line in bill["started_hours"]] == ["vm", "floating-ip"]
    assert done[1]["figures"]["cloud_bu"] == float(bill["totals"]["Cloud BU"])


def test_mlflow_has_every_name_that_the_article_logged(done, environ):
    found = tracking.read_logged_run(loaded(environ), "cloud-fmnist-pipeline", done[1]["run"])
    wanted = {*KINDS, *(f"{label}-{kind}" for label in LABELS for kind in KINDS)}
    assert wanted <= set(found["metrics"])
    assert found["params"]["hp-epochs"] == "5"
    assert "predicted_qualities/predictions.npy" in found["artifacts"]
    assert found["tags"]["kit.target"] == "cloud"
    assert found["tags"]["kit.profile"] == "sandbox"
    assert found["tags"]["mlflow.source.git.commit"]
    assert found["metrics"]["accuracy"] == pytest.approx(done[1]["metrics"]["accuracy"])
    units = found["metrics"]["cloud-billing-units"]
    assert round(units, 2) == done[1]["figures"]["cloud_bu"] > 0
    assert found["metrics"]["storage-billing-units"] > 0


def registered(environ) -> list[str]:
    """The runs behind the versions of the registered model."""
    from kit.tracking import client as mlflow_client

    cloud = loaded(environ).cloud
    with mlflow_client.connect(cloud.mlflow_url, Path(cloud.mlflow_env_file)) as client:
        versions = client.search_model_versions("name='CLOUD-FMNIST-CNN'")
        return [version.tags["kit.run_id"] for version in versions]


def test_a_model_that_passes_the_gates_is_registered(done, environ):
    assert done[1]["gates"]["passed"] is True
    assert done[1]["run"] in registered(environ)


def test_a_model_that_does_not_is_recorded_and_not_registered(done, environ, tmp_path):
    other = {**environ, "KIT_RESULTS_DIR": str(tmp_path)}
    ended = kit(other, "run", "cloud", "-p", "epochs", "1")
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = read_history(tmp_path / "sandbox" / "history.jsonl")[0]
    assert line["gates"]["passed"] is False
    assert "accuracy" in line["gates"]["missed"][0]
    assert line["run"] not in registered(environ)


def test_strict_makes_the_run_fail_with_the_gates_own_words(done, environ, tmp_path):
    other = {**environ, "KIT_RESULTS_DIR": str(tmp_path)}
    ended = kit(other, "run", "cloud", "-p", "epochs", "1", "-p", "strict", "True")
    assert ended.returncode == 1
    assert "did not pass the gates" in ended.stderr


def test_local_and_cloud_give_the_same_figures_to_the_last_digit(done, environ):
    ended = kit(environ, "run", "local", "-p", "epochs", "5")
    assert ended.returncode == 0, ended.stderr[-4000:]
    local = read_history(done[0] / "history.jsonl")[0][-1]
    assert local["metrics"] == done[1]["metrics"]


def test_no_secret_is_in_results_output_arguments_or_the_store(done, environ):
    base, line, output, arguments = done
    bucket = store.open_store(loaded(environ), store.bucket_name(loaded(environ), "pipeline"))
    stored = [o.key for o in bucket.list(f"runs/{line['run']}")]
    assert stored
    places = {str(path): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    places |= {f"object {key}": bucket.get(key) for key in stored}
    places |= {"output": output.encode(), "arguments": b"\n".join(arguments)}
    found = [
        name for name, content in places.items() for s in planted(loaded(environ)) if s in content
    ]
    assert found == []


def test_the_notebook_runs_by_papermill_from_its_own_folder(done, environ, tmp_path):
    """`kit run` runs it from the root."""
    out = tmp_path / "out.ipynb"
    argv = [sys.executable, "-m", "papermill", str(notebooks.NOTEBOOKS / "cloud.ipynb"), str(out)]
    ended = subprocess.run(
        [*argv, "-y", "parameters: {epochs: 1}"],
        cwd=notebooks.NOTEBOOKS,
        env={**environ, "KIT_RESULTS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    text = out.read_text()
    assert "image/png" in text
    assert "Warning" not in text


def test_a_cluster_of_the_profile_is_asked_when_the_runner_is_named(sandbox, environ, tmp_path):
    """Its address is a port where nothing listens; nothing trains here instead."""
    text = (SITES / "sandbox.toml").read_text()
    assert text.count("[cloud]\n") == 1
    text = text.replace("[cloud]\n", '[cloud]\nkfp_url = "http://127.0.0.1:1"\n')
    (tmp_path / "sandbox.toml").write_text(text)
    there = {**environ, "KIT_SITES_DIR": str(tmp_path)}
    asked = kit(there, "run", "cloud", "-p", "runner", "cluster", "-p", "seed", "77", *NO_GATES)
    assert asked.returncode == 3, asked.stderr[-2000:]
    assert "Kubeflow at http://127.0.0.1:1 does not answer" in asked.stderr
    wrong = kit(environ, "run", "cloud", "-p", "runner", "mars")
    assert "unknown runner 'mars'" in wrong.stderr
