"""What a run logs to MLflow; the article's own figures, read from its own texts."""

import dataclasses
import json
from pathlib import Path

import pytest

from kit.experiments import load_experiment
from kit.tracking.log import (
    RunLog,
    metric_points,
    mlflow_params,
    run_log,
    sacct_metrics,
    seff_metrics,
)

MAHTI = Path(__file__).parents[1] / "outputs" / "slurm-mahti-2024"


def a_run(folder: Path, run_id: str = "local-0123456789ab-1") -> RunLog:
    """A run with every field set, its files in `folder`."""
    predictions, model = folder / "predictions.npy", folder / "model.safetensors"
    predictions.write_bytes(b"predictions")
    model.write_bytes(b"weights")
    return RunLog(
        experiment="local-fmnist",
        run_name="local training",
        run_id=run_id,
        start_ms=1_700_000_000_000,
        end_ms=1_700_000_001_500,
        status="FAILED",
        params={"hp-epochs": "5"},
        metrics=(("loss", 2.3, 2000, 1_700_000_000_500), ("loss", 0.4, 4000, 1_700_000_000_900)),
        tags={"kit.target": "local"},
        artifacts=((str(predictions), "predicted_qualities"),),
        model=("CLOUD-FMNIST-CNN", str(model)),
    )


def test_a_run_comes_back_equal_from_json(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert RunLog(**json.loads(json.dumps(dataclasses.asdict(run)))) == run


def test_a_run_without_files_or_model_comes_back_equal_from_json() -> None:
    run = RunLog("local-fmnist", "n", "local-0-1", 1, 2)
    assert RunLog(**json.loads(json.dumps(dataclasses.asdict(run)))) == run


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": [["loss", "high", 1, 2]]},
        {"metrics": [["loss", 1.0]]},
        {"artifacts": [["only-a-path"]]},
        {"metrics": None},
        {"unknown": 1},
    ],
    ids=["text for a value", "short point", "short artifact", "no points", "unknown key"],
)
def test_a_table_that_is_not_a_run_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    table = dataclasses.asdict(a_run(tmp_path))
    with pytest.raises((KeyError, TypeError, ValueError)):
        RunLog(**{**table, **change})


def test_metrics_become_points_of_one_time() -> None:
    points = metric_points({"accuracy": 0.5, "top-accuracy": 1}, 17)
    assert points == (("accuracy", 0.5, 0, 17), ("top-accuracy", 1.0, 0, 17))


def test_parameters_get_their_prefix_and_become_text() -> None:
    assert mlflow_params({"learning-rate": 0.001, "epochs": 5}) == {
        "hp-learning-rate": "0.001",
        "hp-epochs": "5",
    }


def texts(name):
    lines = (MAHTI / name).read_text().splitlines()
    return json.loads("\n".join(line for line in lines if line[:1] != "#"))


def test_each_row_of_the_articles_sacct_gives_its_figures():
    metrics = sacct_metrics(texts("sacct-1.json"))
    assert metrics["1-elapsed-seconds"] == 417
    assert metrics["1-cpu-time-seconds"] == 213504  # 2-11:18:24
    assert metrics["1-total-start-end-seconds"] == 417
    assert metrics["1-total-submit-start-seconds"] > 0  # the original had the sign wrong
    assert {name.split("-")[0] for name in metrics} == set(texts("sacct-1.json"))


def test_the_articles_seff_gives_its_figures():
    metrics = seff_metrics(texts("seff-1.json"))
    assert metrics["billing-units"] == 23.17
    assert metrics["job-wall-clock-time-seconds"] == 417
    assert metrics["cpu-efficiency-percentage"] == 0.15
    assert metrics["memory-efficiency-percentage"] == 11.04


@pytest.mark.parametrize("value", ["", "Unknown", "None"])
def test_unknown_figures_are_left_out_and_not_zero(value):
    row = dict.fromkeys(next(iter(texts("sacct-1.json").values())), value)
    assert sacct_metrics({"1": row, "2": dict.fromkeys(row)}) == {}
    assert seff_metrics(dict.fromkeys(texts("seff-1.json"), value)) == {}
    assert seff_metrics({}) == {}


def pipeline_run(tmp_path, passed=True, workers=2):
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
        "experiment": load_experiment("fashion_mnist").facts(),
        "objects": {"out/model.safetensors": {}, "out/predictions.npy": {}},
    }
    gates = {"passed": passed, "thresholds": {"accuracy": 0.8}}
    evaluated = {"gates": gates, "metrics": {"accuracy": 0.5}, "tags": {}, "objects": {}}
    return run_log("cloud-hpc-0123456789ab-1", trained, evaluated, [(2000, 1.5)], tmp_path)


def test_a_run_is_logged_with_what_it_asked_for_and_what_it_used(tmp_path):
    log = pipeline_run(tmp_path)
    assert (log.experiment, log.run_id) == ("cloud-hpc-fmnist-pipeline", "cloud-hpc-0123456789ab-1")
    assert (log.params["workers"], log.params["hp-epochs"]) == ("2", "5")
    assert log.params["status"] == "COMPLETED"
    assert (log.tags["kit.try"], log.tags["kit.configured"]) == ("3", "False")
    names = {name for name, *_ in log.metrics}
    assert {"loss", "accuracy", "billing-units", "1-elapsed-seconds"} <= names


@pytest.mark.parametrize("passed", [True, False])
def test_a_model_is_registered_when_it_passed_and_kept_when_not(tmp_path, passed):
    log = pipeline_run(tmp_path, passed)
    model = str(tmp_path / "model.safetensors")
    assert log.model == (("CLOUD-HPC-FMNIST-CNN", model) if passed else None)
    assert ((model, "model") in log.artifacts) is not passed


def test_two_parts_of_a_log_become_one(tmp_path):
    first = a_run(tmp_path)
    later = RunLog(
        "local-fmnist", "n", first.run_id, 1, 9, metrics=(*first.metrics, ("bu", 1.0, 0, 9))
    )
    merged = first.merged(later)
    assert merged.metrics == (*first.metrics, ("bu", 1.0, 0, 9))
    assert (merged.params, merged.model, merged.status) == (first.params, first.model, "FINISHED")
    assert merged.artifacts == first.artifacts
