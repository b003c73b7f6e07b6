"""cloud.ipynb against the sandbox's real services: the files, MLflow, gates, secrets."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from idx_files import small_data_dir

from kit import notebooks, records, settings, store, tracking
from kit.fashion_mnist import LABELS

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
ROOT = settings.ROOT
KINDS = ("accuracy", "precision", "recall")


class Arguments(threading.Thread):
    """Look at the arguments of every process of the machine until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud")
    return {
        **os.environ,
        "KIT_DATA_DIR": str(small_data_dir(folder / "data")),
        "KIT_RESULTS_DIR": str(folder / "results"),
    }


def kit(environ, *arguments: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "kit", *arguments]
    return subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done(sandbox, environ):
    """One run of the notebook with gates that it passes: base folder, record, output, arguments."""
    watch = Arguments()
    watch.start()
    gates = [word for kind in KINDS for word in ("-p", f"min_{kind}", "0.01")]
    ended = kit(environ, "run", "cloud", "-p", "epochs", "5", *gates)
    watch.enough.set()
    watch.join()
    assert ended.returncode == 0, ended.stderr[-4000:]
    base = Path(environ["KIT_RESULTS_DIR"]) / "sandbox"
    (line,) = records.read_history(base / "history.jsonl")[0]
    return base, line, ended.stdout + ended.stderr, watch.seen


def loaded(environ) -> settings.Settings:
    return settings.load("sandbox", environ)


def shape(value: object) -> object:
    """The keys and types of a JSON value, all the way down."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


TIME = {"name": "str", "start-time": "float", "end-time": "float", "total-seconds": "float"}
PERFORMANCE = {"name": "str", **dict.fromkeys(KINDS, "float")}
PERFORMANCE |= {f"class-{kind}": ["float"] * 10 for kind in KINDS}


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("cloud/artifacts/cloud-metrics.json", {"performance": PERFORMANCE, "time": TIME}),
        ("cloud/times/pipeline_data.json", {"1": TIME, "2": TIME, "3": TIME}),
    ],
)
def test_a_published_file_has_the_published_keys_and_types(done, file, wanted):
    ours = records.read_json(done[0] / file)
    assert shape(ours) == wanted
    folder = os.environ.get("KIT_TEST_DATA")
    if folder:  # the published files themselves are at hand
        published = json.loads((Path(folder) / "article" / file).read_text())
        assert shape(ours) == shape(published)
        assert [*ours] == [*published]


def test_the_times_have_the_published_names_in_order_and_fit_into_each_other(done):
    times = records.read_json(done[0] / "cloud/times/pipeline_data.json")
    assert [t["name"] for t in times.values()] == ["preprocess-train", "evaluate", "pipeline"]
    first, second, whole = times.values()
    assert whole["start-time"] <= first["start-time"] <= first["end-time"] <= second["start-time"]
    assert second["end-time"] <= whole["end-time"]
    metrics = records.read_json(done[0] / "cloud/artifacts/cloud-metrics.json")
    assert metrics["time"]["total-seconds"] <= first["total-seconds"]


def test_the_run_has_its_bill_by_kind_and_the_articles_rows(done):
    bill = records.read_json(done[0] / "runs" / done[1]["run"] / "bill.json")
    assert done[1]["bill"] == bill["totals"]
    assert list(bill["totals"]) == ["Cloud BU", "Storage BU"]
    assert [line["what"] for line in bill["started_hours"]] == ["vm", "floating-ip"]
    assert done[1]["figures"]["cloud_bu"] == float(bill["totals"]["Cloud BU"])


def test_mlflow_has_every_name_that_the_article_logged(done, environ):
    found = tracking.tracking_for(loaded(environ), "cloud").read(
        "cloud-fmnist-pipeline", done[1]["run"]
    )
    wanted = {*KINDS, *(f"{label}-{kind}" for label in LABELS for kind in KINDS)}
    assert wanted <= set(found["metrics"])
    assert found["params"]["hp-epochs"] == "5"
    assert "predicted_qualities/predictions.npy" in found["artifacts"]
    assert found["tags"]["kit.target"] == "cloud"
    assert found["tags"]["kit.profile"] == "sandbox"
    assert found["tags"]["mlflow.source.git.commit"]
    assert found["metrics"]["accuracy"] == pytest.approx(done[1]["performance"]["accuracy"])


def registered(environ) -> list[str]:
    """The runs behind the versions of the registered model."""
    from kit import mlflow_client

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
    (line,) = records.read_history(tmp_path / "sandbox" / "history.jsonl")[0]
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
    local = records.read_history(done[0] / "history.jsonl")[0][-1]
    assert local["performance"] == done[1]["performance"]


def secrets(environ) -> list[bytes]:
    """Every secret of the sandbox that the kit can come across."""
    etc = loaded(environ).sandbox_dir / "etc"
    files = [*etc.glob("*.env"), etc / ".env", *(etc / "secrets").glob("*")]
    values = []
    for path in files:
        for line in path.read_text().splitlines():
            name, _, value = line.rpartition("=")
            if not name or "PASS" in name or "SECRET" in name or "TOKEN" in name:
                values.append(value.strip("\"'"))
    long = [value.encode() for value in values if len(value) >= 12]
    assert len(long) >= 3
    return long


def test_no_secret_is_in_results_output_arguments_or_the_store(done, environ):
    base, line, output, arguments = done
    bucket = store.open_store(loaded(environ), store.bucket_name(loaded(environ), "pipeline"))
    stored = [o.key for o in bucket.list(f"runs/{line['run']}")]
    assert stored
    places = {str(path): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    places |= {f"object {key}": bucket.get(key) for key in stored}
    places |= {"output": output.encode(), "arguments": b"\n".join(arguments)}
    found = [name for name, content in places.items() for s in secrets(environ) if s in content]
    assert found == []


@pytest.mark.parametrize("folder", ["", "notebooks"])
def test_the_notebook_runs_by_papermill_from_the_root_and_from_its_own_folder(
    done, environ, tmp_path, folder
):
    out = tmp_path / "out.ipynb"
    argv = [sys.executable, "-m", "papermill", str(notebooks.NOTEBOOKS / "cloud.ipynb"), str(out)]
    ended = subprocess.run(
        [*argv, "-p", "epochs", "1"],
        cwd=ROOT / folder,
        env={**environ, "KIT_RESULTS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    text = out.read_text()
    assert "image/png" in text
    assert "Warning" not in text
