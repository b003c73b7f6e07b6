"""What MLflow gets of a cloud-hpc run: the article's own figures read from its own texts."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from kit.tracking.delivery import Tracking
from kit.tracking.runlog import RunLog
from kit.tracking.stage_log import run_log, sacct_metrics, seff_metrics, units_log

MAHTI = Path(__file__).parents[1] / "outputs" / "slurm-mahti-2024"


def texts(name):
    lines = (MAHTI / name).read_text().splitlines()
    return json.loads("\n".join(line for line in lines if line[:1] != "#"))


def test_each_row_of_the_articles_sacct_gives_its_figures():
    found = sacct_metrics(texts("sacct-1.json"))
    assert found["1-elapsed-seconds"] == 417
    assert found["1-cpu-time-seconds"] == 213504  # 2-11:18:24
    assert found["1-total-start-end-seconds"] == 417
    assert found["1-total-submit-start-seconds"] > 0  # the original had the sign wrong
    assert {name.split("-")[0] for name in found} == set(texts("sacct-1.json"))


def test_the_articles_seff_gives_its_figures():
    found = seff_metrics(texts("seff-1.json"))
    assert found["billing-units"] == 23.17
    assert found["job-wall-clock-time-seconds"] == 417
    assert found["cpu-efficiency-percentage"] == 0.15
    assert found["memory-efficiency-percentage"] == 11.04


@pytest.mark.parametrize("value", ["", "Unknown", "None"])
def test_what_is_not_known_is_left_out_and_not_zero(value):
    row = dict.fromkeys(next(iter(texts("sacct-1.json").values())), value)
    assert sacct_metrics({"1": row, "2": dict.fromkeys(row)}) == {}
    assert seff_metrics(dict.fromkeys(texts("seff-1.json"), value)) == {}
    assert seff_metrics({}) == {}


def a_run(tmp_path, passed=True, workers=2):
    time = {"name": "cloud-hpc-train", "start-time": 10.0, "end-time": 50.0, "total-seconds": 40.0}
    job = {"id": "7", "life": 0, "state": "COMPLETED"}
    slurm = {"sacct": texts("sacct-1.json"), "seff": texts("seff-1.json"), "job": job, "try": 3}
    trained = {
        "slurm": slurm,
        "training": {**time, "name": "remote-model-training"},
        "time": time,
        "workers": workers,
        "hyperparameters": {"epochs": 5, "seed": 42},
        "configured": False,
        "data": {"source": "folder"},
    }
    kinds = ("accuracy", "precision", "recall")
    performance = {kind: 0.5 for kind in kinds} | {f"class-{kind}": [0.5] * 10 for kind in kinds}
    gates = {"passed": passed, "thresholds": {"accuracy": 0.8}}
    evaluated = {"gates": gates, "performance": performance, "tags": {"kit.profile": "x"}}
    return run_log("cloud-hpc-0123456789ab-1", trained, evaluated, [(2000, 1.5)], tmp_path)


def test_a_run_is_logged_with_what_it_asked_for_and_what_it_used(tmp_path):
    log = a_run(tmp_path)
    assert (log.experiment, log.run_id) == ("cloud-hpc-fmnist-pipeline", "cloud-hpc-0123456789ab-1")
    assert (log.params["workers"], log.params["hp-epochs"]) == ("2", "5")
    assert log.params["status"] == "COMPLETED"
    assert (log.tags["kit.try"], log.tags["kit.configured"]) == ("3", "False")
    names = {name for name, *_ in log.metrics}
    assert {"loss", "accuracy", "billing-units", "1-elapsed-seconds"} <= names


@pytest.mark.parametrize("passed", [True, False])
def test_a_model_is_registered_when_it_passed_and_kept_when_not(tmp_path, passed):
    log = a_run(tmp_path, passed)
    model = str(tmp_path / "model.safetensors")
    assert log.model == (("CLOUD-HPC-FMNIST-CNN", model) if passed else None)
    assert ((model, "model") in log.artifacts) is not passed


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_the_bill_comes_to_the_same_mlflow_run_before_or_after_the_rest(tmp_path, late):
    run_id = "cloud-0123456789ab-1"
    times = {"start-time": 10.0, "end-time": 50.0}
    units = {"Cloud BU": Decimal("0.25"), "Storage BU": Decimal("0.0005"), "GPU-h": Decimal(2)}
    bill = units_log(run_id, {"training": times, "time": times}, units)
    rest = RunLog(bill.experiment, run_id, run_id, 10_000, 60_000, params={"hp-epochs": "5"})
    place = Tracking(f"sqlite:///{tmp_path / 'm.db'}", tmp_path / "spool", tmp_path / "files")
    states = [place.log(each).state for each in ((bill, rest) if late else (rest, bill, bill))]
    assert set(states) == {"logged"}
    found = place.read("cloud-fmnist-pipeline", run_id)
    assert found["metrics"] == {
        "cloud-billing-units": 0.25, "storage-billing-units": 0.0005, "gpu-h": 2.0,
    }  # fmt: skip
    assert (found["params"], found["status"]) == ({"hp-epochs": "5"}, "FINISHED")
