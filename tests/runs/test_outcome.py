"""A run of the cloud pipeline as the notebook sees it, on kfp.local with folders for services."""

import dataclasses
import json
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cloud_site import BUCKET, make_site, small_data
from fake_kfp import FakeKfp, run, serving, task
from idx_files import as_data

from kit import tracking
from kit.base import DataError, UsageError, read_login
from kit.base.settings import Port, Settings, load
from kit.experiments import Thresholds, load_experiment
from kit.experiments.fashion_mnist.parameters import MAX_SEED, Parameters
from kit.runs import outcome as outcome_module
from kit.runs import stages
from kit.runs.kfp_here import ComponentState, PipelineFailed, States
from kit.runs.objects import StageStore
from kit.runs.outcome import CLOUD, Outcome, arguments_of, run_pipeline, with_runner
from kit.runs.stages import EVALUATE, PREPROCESS_TRAIN
from kit.store import bucket_name, open_store

RUN = "cloud-0123456789ab-1"
HP = Parameters(epochs=2, learning_rate=0.01)
FASHION = load_experiment("fashion_mnist")
WHAT = "fashion_mnist", "", HP.model_dump()
ARGUMENTS = {"profile": "x", "experiment": "fashion_mnist"}
NO_GATES = Thresholds({"accuracy": 0.0, "precision": 0.0, "recall": 0.0})
PUBLISHED_TIME = {"name": str, "start-time": float, "end-time": float, "total-seconds": float}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return make_site(tmp_path, monkeypatch)


@pytest.fixture
def objects(site: Settings) -> StageStore:
    return StageStore(open_store(site, BUCKET), RUN)


def arguments(site: Settings, objects: StageStore, **changes: Any) -> dict[str, Any]:
    data = as_data(small_data())
    objects.put_data(data)
    given = {
        "experiment": FASHION,
        "hyperparameters": HP.model_dump(),
        "gates": NO_GATES,
        **changes,
    }
    return arguments_of(site, RUN, BUCKET, data.hash, **given)


def time_of(name: str, start: float, end: float) -> dict[str, Any]:
    return {"name": name, "start-time": start, "end-time": end, "total-seconds": end - start}


def an_outcome(start: float, end: float) -> Outcome:
    """Stages at 100..150 and 151..160."""
    trained = {
        "time": time_of("preprocess-train", 100.0, 150.0),
        "training": time_of("cloud-model-training", 105.0, 145.0),
        "spans": {"download": 5.0, "training": 40.0, "upload": 1.0},
    }
    evaluated = {
        "time": time_of("evaluate", 151.0, 160.0),
        "metrics": {"accuracy": 0.5},
        "mlflow": {"state": "logged"},
        "spans": {"download": 2.0, "mlflow": 3.0},
    }
    stages = {"preprocess-train": trained, "evaluate": evaluated}
    return Outcome(CLOUD, stages, [(1, 2.3)], start, end)


# -- figures -----------------------------------------------------------------------------------


def test_the_pipeline_s_seconds_are_those_between_its_start_and_its_end() -> None:
    outcome = an_outcome(98.0, 162.0)
    assert outcome.kept == []
    assert outcome.times() == {
        "1": time_of("preprocess-train", 100.0, 150.0),
        "2": time_of("evaluate", 151.0, 160.0),
        "3": time_of("pipeline", 98.0, 162.0),
    }


def test_a_stage_that_was_finished_before_counts_with_its_own_time_and_not_the_gap() -> None:
    outcome = an_outcome(150.5, 162.0)
    assert outcome.kept == ["preprocess-train"]
    whole = outcome.times()["3"]
    assert whole == {**time_of("pipeline", 100.0, 162.0), "total-seconds": 50.0 + 11.5}


def test_the_timeline_accounts_for_every_second() -> None:
    outcome = an_outcome(98.0, 162.0)
    assert outcome.seconds() == {
        "download": 7.0,
        "training": 40.0,
        "upload": 1.0,
        "mlflow": 3.0,
        "starting components": 13.0,
    }
    assert sum(outcome.seconds().values()) == outcome.pipeline_s


# -- arguments ---------------------------------------------------------------------------------


def test_the_arguments_are_data_and_fit_the_pipeline(site: Settings, objects: StageStore) -> None:
    given = arguments(
        site,
        objects,
        gates=Thresholds({"accuracy": 0.1, "precision": 0.2, "recall": 0.3}),
        strict=True,
    )
    assert len(given.pop("commit")) in (0, 40)
    assert given == {
        "profile": "folders",
        "run_id": RUN,
        "bucket": BUCKET,
        "data_hash": as_data(small_data()).hash,
        "experiment": "fashion_mnist",
        "code": FASHION.code,
        "hyperparameters": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.01,
            "momentum": 0.9,
            "seed": 42,
            "threads": 1,
            "device": "cpu",
            "fast_step": True,
        },
        "gates": {"accuracy": 0.1, "precision": 0.2, "recall": 0.3},
        "strict": True,
        "mlflow_url": "",
    }


def test_inside_a_cluster_mlflow_has_the_address_of_its_service(site: Settings) -> None:
    ports = {"mlflow": Port(5000, svc="mlflow", namespace="mlflow")}
    inside = dataclasses.replace(
        site, ports=ports, cloud=dataclasses.replace(site.cloud, runner="cluster")
    )
    outside = dataclasses.replace(site, ports=ports)
    urls = [
        arguments_of(chosen, RUN, BUCKET, "d", FASHION, HP.model_dump(), NO_GATES)["mlflow_url"]
        for chosen in (inside, outside)
    ]
    assert urls == ["http://mlflow.mlflow:5000", ""]


def test_the_largest_seed_goes_in_whole_and_kfp_does_not_round_it(site: Settings) -> None:
    most = MAX_SEED
    hp = Parameters(epochs=2, learning_rate=0.01, seed=most)
    given = arguments_of(site, RUN, BUCKET, "d", FASHION, hp.model_dump(), NO_GATES)[
        "hyperparameters"
    ]["seed"]
    assert given == most
    assert float(most) < float(most + 1), "KFP passes numbers as floats: neighbours would be one"


# -- running -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_ends_with_metrics_times_and_a_registered_model(
    site: Settings, objects: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / ".env"
    secret.write_text("CSC_PASSWORD=planted-secret\n")
    secret.chmod(0o600)
    monkeypatch.setenv("KIT_ENV_FILE", str(secret))
    seen: list[States] = []
    outcome = run_pipeline(site, objects, arguments(site, objects), tmp_path / "run", seen.append)
    assert [state.state for state in outcome.states] == ["done", "done"]
    assert [state.state for state in seen[0]] == ["pending", "pending"]
    assert any(shown[0].message.startswith("step 200/200") for shown in seen)
    assert outcome.mlflow["state"] == "logged"
    assert outcome.kept == []
    times = outcome.times()
    assert [times[n]["name"] for n in "123"] == [*CLOUD.components, "pipeline"]
    for record in (*times.values(), outcome.trained["training"]):
        assert {name: type(value) for name, value in record.items()} == PUBLISHED_TIME
    read = tracking.read_logged_run(site, "cloud-fmnist-pipeline", RUN)
    assert read["metrics"]["accuracy"] == pytest.approx(outcome.metrics["accuracy"])
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != secret]
    assert [path for path in written if b"planted-secret" in path.read_bytes()] == []


def kill_a_run_when(condition: str, given: dict[str, Any], folder: Path) -> None:
    """Run the pipeline in a process that kills itself when `condition` on its states holds."""
    (folder / "given.json").write_text(json.dumps(given))
    code = (
        "import json, os, pathlib, signal\n"
        "from kit.base.settings import load\nfrom kit.runs.outcome import run_pipeline\n"
        "from kit.runs.objects import StageStore\n"
        "from kit.store import open_store\n"
        "def kill(states):\n"
        f"    if {condition}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "site = load('folders')\n"
        f"objects = StageStore(open_store(site, {BUCKET!r}), {RUN!r})\n"
        f"given = json.loads(pathlib.Path({str(folder / 'given.json')!r}).read_text())\n"
        f"folder = pathlib.Path({str(folder / 'run')!r})\n"
        "run_pipeline(site, objects, given, folder, kill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.slow
def test_a_run_whose_pipeline_is_killed_resumes_with_the_first_times(
    site: Settings, objects: StageStore, tmp_path: Path
) -> None:
    """Killed when the evaluation begins: the training is kept, and counted once."""
    given = arguments(site, objects)
    kill_a_run_when("states[0].state == 'done'", given, tmp_path)
    first = objects.finished(PREPROCESS_TRAIN)
    outcome = run_pipeline(site, objects, given, tmp_path / "run")
    assert outcome.kept[0] == PREPROCESS_TRAIN
    assert outcome.times()["1"] == first["time"]
    assert outcome.pipeline_s >= first["time"]["total-seconds"] + (outcome.end - outcome.start)


@pytest.mark.slow
def test_a_run_killed_while_it_trains_ends_with_the_result_of_an_unbroken_one(
    site: Settings, objects: StageStore, tmp_path: Path
) -> None:
    """The component may outlive the kill: then it is waited for, not started a second time."""
    given = arguments(
        site, objects, hyperparameters=Parameters(epochs=60, learning_rate=0.01).model_dump()
    )
    kill_a_run_when("states[0].message.startswith('step')", given, tmp_path)
    outcome = run_pipeline(site, objects, given, tmp_path / "run")
    unbroken = StageStore(objects.store, "cloud-0123456789ab-2")
    again = run_pipeline(site, unbroken, given | {"run_id": unbroken.run_id}, tmp_path / "run-2")
    assert outcome.losses == again.losses
    assert outcome.losses[-1][0] == 60 * 100
    assert outcome.metrics == again.metrics


@pytest.mark.slow
def test_a_component_that_raises_shows_its_own_traceback_and_log(
    site: Settings, objects: StageStore, tmp_path: Path
) -> None:
    given = arguments(site, objects) | {"data_hash": "not-uploaded"}
    with pytest.raises(PipelineFailed, match="preprocess-train failed") as caught:
        run_pipeline(site, objects, given, tmp_path / "run")
    error = caught.value
    assert error.got.startswith(
        "kit.base.errors.DataError: the data set not-uploaded is not in the"
    )
    assert "get_data" in error.traceback
    assert "site-packages/kfp" not in error.traceback
    assert [(state.state, state.tries) for state in error.states] == [("failed", 2), ("pending", 0)]
    assert "DataError" in objects.failure(PREPROCESS_TRAIN)


@pytest.mark.slow
def test_a_strict_run_whose_model_misses_the_gates_fails_with_the_figures_recorded(
    site: Settings, objects: StageStore, tmp_path: Path
) -> None:
    given = arguments(
        site,
        objects,
        gates=Thresholds({"accuracy": 1.0, "precision": 1.0, "recall": 1.0}),
        strict=True,
    )
    with pytest.raises(PipelineFailed, match="is below 1.0"):
        run_pipeline(site, objects, given, tmp_path / "run")
    assert objects.finished(EVALUATE)["gates"]["passed"] is False


def on_a_cluster(site: Settings, url: str, mlflow_url: str = "") -> Settings:
    cloud = dataclasses.replace(site.cloud, runner="cluster", kfp_url=url, mlflow_url=mlflow_url)
    return dataclasses.replace(site, cloud=cloud)


@pytest.mark.slow
def test_what_a_pod_could_not_log_is_logged_from_here(
    site: Settings, objects: StageStore, tmp_path: Path
) -> None:
    given = arguments(site, objects)
    trained = stages.preprocess_train("folders", RUN, BUCKET, given["data_hash"], *WHAT)
    gates = dict(NO_GATES)
    stages.evaluate("folders", RUN, BUCKET, trained, gates, mlflow_url="http://127.0.0.1:1")
    shutil.rmtree(site.profile_dir / "runs" / RUN)  # a pod's results folder goes away with it
    with serving(FakeKfp([run("SUCCEEDED")])) as url:
        outcome = run_pipeline(on_a_cluster(site, url), objects, given, tmp_path)
    assert outcome.mlflow["state"] == "logged"
    read = tracking.read_logged_run(site, "cloud-fmnist-pipeline", RUN)
    assert read["artifacts"] == ["model/model.safetensors", "predicted_qualities/predictions.npy"]
    assert read["tags"]["kit.gates"] == "passed"


def test_on_a_cluster_the_traceback_comes_from_the_store(
    site: Settings, objects: StageStore, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        stages.preprocess_train("folders", RUN, BUCKET, "absent", *WHAT)
    failed = task(PREPROCESS_TRAIN, "FAILED", "2026-01-01T00:00:00Z")
    with serving(FakeKfp([run("FAILED", failed)])) as url, pytest.raises(PipelineFailed) as caught:
        run_pipeline(on_a_cluster(site, url), objects, ARGUMENTS, tmp_path)
    assert "get_data" in caught.value.traceback
    assert caught.value.got.startswith("kit.base.errors.DataError: the data set absent")


def test_the_notebook_s_process_loads_neither_kfp_nor_torch() -> None:
    heavy = (
        "import sys, kit.runs.outcome; sys.exit(bool({'kfp', 'torch', 'mlflow'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0


@pytest.mark.sandbox
@pytest.mark.slow
def test_in_the_sandbox_a_run_goes_through_the_real_store_and_the_real_mlflow(
    tmp_path: Path,
) -> None:
    sandbox = load("sandbox")
    bucket = bucket_name(sandbox, "pipeline")
    store = open_store(sandbox, bucket)
    store.ensure_bucket()
    objects = StageStore(store, f"cloud-{secrets.token_hex(6)}-1")
    given = arguments(sandbox, objects) | {"run_id": objects.run_id, "bucket": bucket}
    outcome = run_pipeline(sandbox, objects, given, tmp_path / "run")
    assert outcome.mlflow["state"] == "logged"
    assert outcome.mlflow["link"].startswith(sandbox.cloud.mlflow_url)
    read = tracking.read_logged_run(sandbox, "cloud-fmnist-pipeline", objects.run_id)
    assert read["metrics"]["recall"] == pytest.approx(outcome.metrics["recall"])
    assert read["artifacts"] == ["model/model.safetensors", "predicted_qualities/predictions.npy"]
    assert read["tags"]["kit.profile"] == "sandbox"
    password = read_login(sandbox).password.reveal()
    texts = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert texts != []
    assert [text for text in texts if password in text] == []


def test_the_runner_of_the_profile_is_overridden_by_name(site: Settings) -> None:
    assert with_runner(site, "") is site
    there = on_a_cluster(site, "http://127.0.0.1:1")
    assert with_runner(there, "local").cloud.runner == "local"
    assert with_runner(with_runner(there, "local"), "cluster").cloud.runner == "cluster"
    with pytest.raises(UsageError, match="give local, cluster"):
        with_runner(there, "mars")
    with pytest.raises(UsageError, match="names no Kubeflow cluster"):
        with_runner(on_a_cluster(site, ""), "cluster")


def test_a_pipeline_that_was_resumed_on_a_cluster_counts_from_its_first_component(
    site: Settings, objects: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = an_outcome(180.0, 201.0)
    states = (
        ComponentState("preprocess-train", "done", 99.0, 200.0),
        ComponentState("evaluate", "done", 200.0, 201.0),
    )
    monkeypatch.setattr(outcome_module, "run_on_cluster", lambda *_: states)
    monkeypatch.setattr(
        outcome_module,
        "read_outcome",
        lambda objects, start, end, target: dataclasses.replace(whole, start=start, end=end),
    )
    monkeypatch.setattr(outcome_module, "_log_again", lambda *_: {"state": "logged"})
    clock = iter([180.0, 201.0])
    there = on_a_cluster(site, "http://127.0.0.1:1")
    outcome = run_pipeline(there, objects, ARGUMENTS, tmp_path, clock=lambda: next(clock))
    assert outcome.pipeline_s == 102.0
