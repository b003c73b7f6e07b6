"""An experiment beside the article's is carried through every layer with its own metrics."""

import json

import pytest
from cloud_site import BUCKET, make_site
from mlflow_store import empty_store
from own_experiments import GOOD, write

import kit
from kit import tracking
from kit.base import DataError
from kit.billing import bill_of_run
from kit.experiments import load_experiment, running
from kit.report import crate
from kit.report import page as report_page
from kit.report.experiments import own_tables
from kit.runs import stages
from kit.runs.objects import StageStore
from kit.runs.stages import EVALUATE
from kit.store import open_store
from kit.tracking import delivery

RUN = "cloud-0123456789ab-1"
DIGITS = load_experiment("digits")
METRICS = {"accuracy", "cross_entropy"}


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    site = make_site(tmp_path, monkeypatch)
    empty_store(site.profile_dir / "mlflow.db")
    return site


def evaluated(site, tmp_path, gates):
    """Train and evaluate the digits in the stages of the cloud pipeline; return the store."""
    data = running.make_data(DIGITS, tmp_path / "datasets", None)
    objects = StageStore(open_store(site, BUCKET), RUN)
    objects.put_data(data)
    what = "digits", DIGITS.code, DIGITS.parameters(epochs=2).model_dump()
    trained = stages.preprocess_train("folders", RUN, BUCKET, data.hash, *what)
    stages.evaluate("folders", RUN, BUCKET, trained, gates, experiment="digits")
    return objects


@pytest.mark.parametrize(
    ("gates", "missed"),
    [
        ({"cross_entropy": 0.01}, []),
        ({"cross_entropy": 50.0}, ["cross_entropy"]),
        ({"cross_entropy": "<= 50"}, []),
        ({"cross_entropy": "<= 0.01"}, ["cross_entropy"]),
        ({"accuracy": 0.1, "recall": 0.5}, ["recall was not measured"]),
    ],
)
def test_mlflow_has_its_metrics_and_gates_of_any_metric_decide(site, tmp_path, gates, missed):
    record = evaluated(site, tmp_path, gates).finished(EVALUATE)
    assert len(record["gates"]["missed"]) == len(missed)
    assert all(map(str.startswith, record["gates"]["missed"], missed))
    logged = tracking.read_logged_run(site, "cloud-digits-pipeline", RUN)
    assert set(logged["metrics"]) == METRICS | {"training-seconds", "loss"}
    assert logged["tags"]["kit.experiment"] == "digits"
    with delivery.connection(site, "embedded") as (client, _, _):
        versions = client.search_model_versions("name = 'CLOUD-DIGITS'")
    assert len(versions) == (not missed)


def test_model_is_not_measured_by_other_code_than_that_of_its_training(site, tmp_path, monkeypatch):
    path = write(tmp_path / "own")
    monkeypatch.setenv("KIT_EXPERIMENTS", str(path))
    own = load_experiment("mean_model")
    data = running.make_data(own, tmp_path / "datasets", None)
    objects = StageStore(open_store(site, BUCKET), RUN)
    objects.put_data(data)
    what = "mean_model", own.code, own.parameters().model_dump()
    trained = stages.preprocess_train("folders", RUN, BUCKET, data.hash, *what)
    path.write_text(GOOD + "\n# edited while the run is open\n")
    where = "folders", RUN, BUCKET, trained, {}
    with pytest.raises(DataError, match=f"not {own.code[:12]} as the run has"):
        stages.evaluate(*where, experiment="mean_model")
    assert objects.record(EVALUATE) is None
    path.write_text(GOOD)
    assert stages.evaluate(*where, experiment="mean_model")[1] == {"error": 0.0}


def test_report_bill_and_crate_of_its_run_have_its_own_files_and_metrics(site, tmp_path):
    run = kit.start("folders", "local", {"epochs": 2}, experiment="digits")
    run.train()
    run.evaluate()
    record = run.finish()
    assert set(record["metrics"]) == METRICS

    column = own_tables(site)["digits"]["local"]
    assert set(column) >= METRICS
    low, high = map(float, column["accuracy, 95 % interval (Wilson)"].split(" to "))
    assert low < record["metrics"]["accuracy"] < high
    assert "Experiment digits" in report_page.text(site, "table")[0]
    assert "Experiment digits" in report_page.page(site)

    assert bill_of_run(site, record).lines == ()
    exported = json.loads(crate.export(site, record, tmp_path / "crate").read_text())
    names = {part["@id"] for part in exported["@graph"]}
    assert {"run/out/model.npy", "run/source/experiment/digits.py"} <= names
    assert json.loads((tmp_path / "crate/run/record.json").read_text())["metrics"].keys() == METRICS
