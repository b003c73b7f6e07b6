"""The two stages of the cloud pipeline, in this process, with folders for services."""

import contextlib
import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cloud_site import BUCKET, make_site, small_data
from idx_files import as_data
from mlflow_store import empty_store

from kit import tracking
from kit.base import DataError, KitError, NoSuchObject, ObjectDamaged, UsageError
from kit.base.settings import Settings
from kit.experiments import GatesNotPassed
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.images import LABELS, Dataset, read_folder
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.running import Data, Trained
from kit.runs import stages
from kit.runs.follow import time_of_starts, times_of_training
from kit.runs.objects import StageStore
from kit.runs.stages import EVALUATE, PREPROCESS_TRAIN
from kit.store import open_store
from kit.tracking import delivery

RUN = "cloud-0123456789ab-1"
HP = Parameters(epochs=2, learning_rate=0.01).model_dump()
KINDS = ("accuracy", "precision", "recall")
NO_GATES, HIGH_GATES = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 1.0)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    site = make_site(tmp_path, monkeypatch)
    empty_store(site.profile_dir / "mlflow.db")
    return site


@pytest.fixture
def objects(site: Settings) -> StageStore:
    return StageStore(open_store(site, BUCKET), RUN)


@pytest.fixture(scope="module")
def images() -> Dataset:
    return small_data()


@pytest.fixture(scope="module")
def data(images: Dataset) -> Data:
    return as_data(images)


@pytest.fixture
def uploaded(objects: StageStore, data: Data) -> StageStore:
    assert objects.put_data(data)
    return objects


def train(data: Data, **changes: Any) -> str:
    return trained_on(data.hash, **changes)


def trained_on(data_hash: str, code: str = "", **changes: Any) -> str:
    what = "fashion_mnist", code, {**HP, **changes}
    return stages.preprocess_train("folders", RUN, BUCKET, data_hash, *what)


def weights(objects: StageStore) -> dict[str, list[float]]:
    """The numbers in the trained model (the file's header may order its words differently)."""
    content = objects.get(objects.finished(PREPROCESS_TRAIN)["objects"]["out/model.safetensors"])
    return {name: array.ravel().tolist() for name, array in safetensors.numpy.load(content).items()}


def evaluate(trained: str, **changes: Any) -> tuple[str, dict[str, float]]:
    return stages.evaluate("folders", RUN, BUCKET, trained, **{"gates": NO_GATES, **changes})


# -- the data set ------------------------------------------------------------------------------


def test_a_data_set_comes_back_as_it_was_and_is_uploaded_once(
    objects: StageStore, data: Data, images: Dataset, tmp_path: Path
) -> None:
    assert objects.put_data(data) is True
    assert objects.put_data(data) is False
    about = objects.get_data(data.hash, tmp_path / "back")
    back = read_folder(tmp_path / "back")
    assert back.test_images.tobytes() == images.test_images.tobytes()
    assert (about["title"], about["warning"]) == (data.info.title, data.info.warning)


def test_files_are_fetched_at_the_same_time(
    uploaded: StageStore, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each download waits for the others: one after the other they would not end."""
    together, get_file = threading.Barrier(4, timeout=20), type(uploaded.store).get_file

    def get_together(*words: Any, **more: Any) -> Any:
        together.wait()
        return get_file(*words, **more)

    monkeypatch.setattr(type(uploaded.store), "get_file", get_together)
    assert uploaded.get_data(data.hash, tmp_path / "back")["hash"] == data.hash


def test_a_data_set_is_uploaded_again_when_its_object_is_gone(
    uploaded: StageStore, data: Data, tmp_path: Path
) -> None:
    uploaded.store.delete(f"data/{data.hash}/t10k-labels-idx1-ubyte")
    with pytest.raises(KitError):
        uploaded.get_data(data.hash, tmp_path / "back")
    assert uploaded.put_data(data) is True
    assert uploaded.get_data(data.hash, tmp_path / "back")["hash"] == data.hash


def test_a_data_set_that_is_not_there_is_named(objects: StageStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data set 0a1b is not in the bucket"):
        objects.get_data("0a1b", tmp_path)


def test_data_changed_behind_the_kit_s_back_is_not_used(
    uploaded: StageStore, data: Data, tmp_path: Path
) -> None:
    other = as_data(small_data(train=404))
    uploaded.put_data(other)
    name = "data/{}/train-images-idx3-ubyte".format
    uploaded.store.put(name(data.hash), uploaded.store.get(name(other.hash)))
    with pytest.raises(ObjectDamaged, match="not the ones that were put there"):
        uploaded.get_data(data.hash, tmp_path / "one")
    about = json.loads(uploaded.store.get(f"data/{other.hash}.json"))
    uploaded.store.put(f"data/{data.hash}.json", json.dumps(about).encode())
    with pytest.raises(DataError, match=f"the data set {other.hash}"):
        uploaded.get_data(data.hash, tmp_path / "two")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_file_outside_the_folder_of_the_data_is_refused(
    uploaded: StageStore, data: Data, tmp_path: Path, name: str
) -> None:
    about = json.loads(uploaded.store.get(f"data/{data.hash}.json"))
    about["objects"] = {name: uploaded.keep("garbage", b"x")}
    uploaded.store.put(f"data/{data.hash}.json", json.dumps(about).encode())
    with pytest.raises(DataError, match="leads out of its folder"):
        uploaded.get_data(data.hash, tmp_path / "back")
    assert list(tmp_path.rglob("outside")) == []


def test_a_record_of_no_data_set_is_refused(
    uploaded: StageStore, data: Data, tmp_path: Path
) -> None:
    uploaded.store.put(f"data/{data.hash}.json", b'{"schema": 1}')
    with pytest.raises(DataError, match="not a data set"):
        uploaded.get_data(data.hash, tmp_path / "back")


# -- preprocess-train --------------------------------------------------------------------------


def test_training_leaves_model_losses_and_a_record_with_times(
    uploaded: StageStore, data: Data, images: Dataset
) -> None:
    record_hash = train(data)
    record, found_hash = uploaded.record(PREPROCESS_TRAIN) or ({}, "")
    assert record_hash == found_hash
    reference = training.train(images, Parameters(**HP))
    assert weights(uploaded) == {
        name: tensor.flatten().tolist() for name, tensor in reference.model.state_dict().items()
    }
    assert json.loads(uploaded.get(record["objects"]["losses.json"])) == [
        list(point) for point in reference.losses
    ]
    assert record["training"]["name"] == "cloud-model-training"
    assert record["time"]["name"] == "preprocess-train"
    assert record["time"]["start-time"] <= record["training"]["start-time"]
    assert record["time"]["total-seconds"] >= record["training"]["total-seconds"]
    assert list(record["spans"]) == ["download", "loading", "training", "upload"]
    assert record["hyperparameters"] == HP


def test_a_finished_training_is_not_done_again(
    uploaded: StageStore, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(data)
    monkeypatch.setattr(training, "train", None)
    assert train(data) == first


@pytest.mark.parametrize("lost", ["out/model.safetensors", "losses.json", "preprocess-train.json"])
def test_what_is_missing_of_a_training_is_made_again(
    uploaded: StageStore, data: Data, lost: str
) -> None:
    train(data)
    before = weights(uploaded)
    uploaded.store.delete(f"runs/{RUN}/{lost}")
    assert uploaded.record(PREPROCESS_TRAIN) is None
    train(data)
    assert weights(uploaded) == before


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"schema": 99}', b"\xff"])
def test_a_damaged_record_counts_as_none(uploaded: StageStore, text: bytes) -> None:
    uploaded.store.put(f"runs/{RUN}/preprocess-train.json", text)
    assert uploaded.record(PREPROCESS_TRAIN) is None
    with pytest.raises(DataError, match="has no record"):
        uploaded.finished(PREPROCESS_TRAIN)


def test_a_training_killed_in_its_second_epoch_resumes_there_with_the_same_result(
    uploaded: StageStore, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(step: int, steps: int, loss: float) -> None:
        if 2 * step > steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(stages, "_log_progress", dies)
        train(data)
    assert uploaded.record(PREPROCESS_TRAIN) is None
    train(data)
    record = uploaded.finished(PREPROCESS_TRAIN)
    assert (record["resumed_step"], record["resumed"]) == (100, True)
    assert record["time"]["total-seconds"] >= record["training"]["total-seconds"]
    broken = weights(uploaded)
    uploaded.store.delete(f"runs/{RUN}/preprocess-train.json")
    train(data)
    assert uploaded.finished(PREPROCESS_TRAIN)["resumed_step"] == 0
    assert weights(uploaded) == broken


def test_the_work_folder_is_gone_when_the_stage_is_done(
    uploaded: StageStore, data: Data, site: Settings
) -> None:
    train(data)
    left = [path for path in site.cache_dir.rglob("*") if path.is_file()]
    assert [path.suffix for path in left] in ([".lock"], [])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"epochs": 0}, UsageError),
        ({"device": "abacus"}, UsageError),
        ({"momentum": 1.0}, UsageError),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_done(
    uploaded: StageStore, data: Data, changes: dict[str, Any], error: type[KitError]
) -> None:
    with pytest.raises(error):
        train(data, **changes)
    assert uploaded.record(PREPROCESS_TRAIN) is None


def test_another_version_of_the_experiment_is_not_trained(uploaded: StageStore, data: Data) -> None:
    with pytest.raises(DataError, match=r"not 000000000000 as the run has[\s\S]*same version"):
        trained_on(data.hash, code="0" * 64)
    assert uploaded.record(PREPROCESS_TRAIN) is None


def test_a_failure_leaves_its_traceback_in_the_store(objects: StageStore) -> None:
    assert objects.failure(PREPROCESS_TRAIN) == ""
    with pytest.raises(DataError, match="upload it first"):
        trained_on("no-such-hash")
    text = objects.failure(PREPROCESS_TRAIN)
    assert text.startswith("Traceback (most recent call last)")
    assert "kit.base.errors.DataError: the data set no-such-hash is not in the bucket" in text


def test_stored_traceback_has_no_secret(
    objects: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSC_PASSWORD", "a password of 31 characters 0815")
    opened = stages.open_stage("folders", RUN, BUCKET, PREPROCESS_TRAIN)
    with pytest.raises(ValueError, match="0815"), opened:
        raise ValueError(os.environ["CSC_PASSWORD"])
    assert "ValueError: (a secret)" in objects.failure(PREPROCESS_TRAIN)


def test_a_store_that_fails_does_not_hide_the_error_of_the_stage() -> None:
    class Broken:
        def put(self, *_: object) -> None:
            raise KitError("the store is away")

    with pytest.raises(ValueError, match="the real one"), StageStore(Broken(), RUN).reporting("x"):  # type: ignore[arg-type]
        raise ValueError("the real one")


# -- evaluate ----------------------------------------------------------------------------------


def in_mlflow(site: Settings) -> dict[str, Any]:
    return tracking.read_logged_run(site, "cloud-fmnist-pipeline", RUN)


def registered(site: Settings) -> list[tuple[str, str]]:
    with delivery.connection(site, "embedded") as (client, _, _):
        found = client.search_model_versions("name = 'CLOUD-FMNIST-CNN'")
        return [(version.name, version.run_id) for version in found]


def test_a_model_that_passes_is_recorded_logged_and_registered(
    uploaded: StageStore, data: Data, images: Dataset, site: Settings
) -> None:
    record_hash, figures = evaluate(train(data), commit="c0ffee")
    record, found_hash = uploaded.record(EVALUATE) or ({}, "")
    assert record_hash == found_hash
    assert record["gates"]["passed"] is True
    assert figures == record["metrics"]
    predictions = np.load(
        io.BytesIO(uploaded.get(record["objects"]["out/predictions.npy"])), allow_pickle=False
    )
    assert predictions.shape == images.test_labels.shape
    confusion = json.loads(uploaded.get(record["objects"]["out/confusion.json"]))
    assert np.mean(predictions == images.test_labels) == pytest.approx(
        np.trace(confusion) / len(predictions)
    )
    logged = in_mlflow(site)
    kinds = ("accuracy", "precision", "recall")
    names = {*kinds, *(f"{label}-{kind}" for label in LABELS for kind in kinds)}
    assert set(logged["metrics"]) == names | {"training-seconds", "loss"}
    assert logged["metrics"]["accuracy"] == pytest.approx(figures["accuracy"])
    assert {k: v for k, v in logged["params"].items() if k.startswith("hp-")} == {
        f"hp-{name}": str(value) for name, value in HP.items()
    }
    assert logged["artifacts"] == ["model/model.safetensors", "predicted_qualities/predictions.npy"]
    wanted = {
        "kit.run_id": RUN,
        "kit.target": "cloud",
        "kit.profile": "folders",
        "kit.data": "stripes",
        "kit.gates": "passed",
        "mlflow.source.git.commit": "c0ffee",
    }
    assert {key: logged["tags"].get(key) for key in wanted} == wanted
    assert record["mlflow"]["state"] == "logged"
    assert registered(site) == [("CLOUD-FMNIST-CNN", logged["mlflow_run_id"])]


def test_a_model_that_does_not_pass_is_recorded_and_logged_but_not_registered(
    uploaded: StageStore, data: Data, site: Settings
) -> None:
    evaluate(train(data), gates=HIGH_GATES)
    record = uploaded.finished(EVALUATE)
    assert record["gates"]["passed"] is False
    assert len(record["gates"]["missed"]) == 3
    logged = in_mlflow(site)
    assert logged["tags"]["kit.gates"] == "not passed"
    assert logged["status"] == "FINISHED"
    assert "model/model.safetensors" in logged["artifacts"]
    assert registered(site) == []


def test_a_strict_run_fails_after_everything_is_recorded(
    uploaded: StageStore, data: Data, site: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(data)
    with pytest.raises(GatesNotPassed, match="strict") as caught:
        evaluate(trained, gates=HIGH_GATES, strict=True)
    assert "is below 1.0" in caught.value.got
    assert uploaded.finished(EVALUATE)["mlflow"]["state"] == "logged"
    monkeypatch.setattr(training, "evaluate", None)
    with pytest.raises(GatesNotPassed):
        evaluate(trained, gates=HIGH_GATES, strict=True)


def test_a_finished_evaluation_is_not_done_again(
    uploaded: StageStore, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(data)
    first = evaluate(trained)
    monkeypatch.setattr(training, "evaluate", None)
    assert evaluate(trained) == first


def test_another_model_than_the_trained_one_is_not_evaluated(
    uploaded: StageStore, data: Data
) -> None:
    trained = train(data)
    with pytest.raises(DataError, match="not the one to be evaluated"):
        evaluate("0" * 64)
    uploaded.store.put(f"runs/{RUN}/out/model.safetensors", b"someone else's model")
    with pytest.raises(DataError, match="not the one to be evaluated"):
        evaluate(trained)
    uploaded.store.delete(f"runs/{RUN}/out/model.safetensors")
    with pytest.raises(DataError, match="run again"):
        evaluate(trained)
    with pytest.raises(NoSuchObject):
        uploaded.store.get(f"runs/{RUN}/evaluate.json")


def test_mlflow_away_costs_the_run_nothing_and_is_made_up_by_a_sync(
    uploaded: StageStore, data: Data, site: Settings
) -> None:
    evaluate(train(data), mlflow_url="http://127.0.0.1:1")
    record = uploaded.finished(EVALUATE)
    assert record["mlflow"]["state"] == "waiting"
    assert "does not answer" in record["mlflow"]["reason"]
    results, errors = tracking.sync(site)
    assert [result.state for result in results] == [
        "waiting"
    ]  # for the server that it was made for
    assert "does not answer" in str(errors[0])
    folder = site.profile_dir / "runs" / RUN
    run, destination = delivery.read_waiting(folder)
    assert destination == "http://127.0.0.1:1"
    (folder / "mlflow.json").unlink()  # as on the machine of the notebook, where nothing waits
    assert tracking.log_run(site, run).state == "logged"
    assert in_mlflow(site)["metrics"]["accuracy"] == record["metrics"]["accuracy"]


# -- started twice, killed, judged again -----------------------------------------------------------


def test_a_component_that_waited_for_another_one_ends_well(site: Settings) -> None:
    entered, leave = threading.Event(), threading.Event()
    ended: list[str] = []

    def component(name: str, wait: bool) -> None:
        with stages.open_stage("folders", RUN, BUCKET, EVALUATE) as stage:
            entered.set()
            assert stage.work.is_dir()
            if wait:
                assert leave.wait(30)
        ended.append(name)

    first = threading.Thread(target=component, args=("first", True))
    first.start()
    assert entered.wait(30)
    second = threading.Thread(target=component, args=("second", False))
    second.start()
    time.sleep(0.3)  # it waits for the lock meanwhile
    leave.set()
    first.join(30)
    second.join(30)
    assert ended == ["first", "second"]
    assert list((site.cache_dir / "stages").iterdir()) == []


def test_other_gates_judge_again_without_training_again(uploaded: StageStore, data: Data) -> None:
    trained = train(data)
    evaluate(trained, gates=HIGH_GATES)
    assert uploaded.finished(EVALUATE)["gates"]["passed"] is False
    evaluate(trained, gates=NO_GATES)
    assert uploaded.finished(EVALUATE)["gates"]["passed"] is True
    assert train(data) == trained


def test_the_first_start_of_a_stage_is_stored(objects: StageStore) -> None:
    assert objects.first_start("cloud-hpc-train", 100.0) == 100.0
    assert objects.first_start("cloud-hpc-train", 130.0) == 100.0
    assert objects.first_start("evaluate", 130.0) == 130.0


@pytest.mark.parametrize(
    ("started_again", "end", "seconds"),
    [
        (100.0, 125.0, 25.0),  # never killed
        (119.0, 125.0, 25.0),  # killed, started again at once: the job ran all the time
        (86_500.0, 86_506.0, 31.0),  # a day later: 25 s of queue and job, 6 s of this start
    ],
)
def test_a_stage_killed_while_its_job_ran_reports_the_seconds_of_both_starts(
    monkeypatch: pytest.MonkeyPatch, started_again, end, seconds
) -> None:
    monkeypatch.setattr(time, "time", lambda: end)
    record = time_of_starts("cloud-hpc-train", 100.0, started_again, 25.0)
    assert (record["start-time"], record["total-seconds"]) == (100.0, seconds)


@pytest.mark.parametrize(
    ("began", "seconds", "first", "total", "training", "resumed"),
    [
        (203.0, 17.0, 200.0, 25.0, 18.0, False),  # in this start
        (100.0, 48.0, 100.0, 25.0 + 30.0, 48.0, True),  # 30 s of it before this start
        (100.0, 17.0, 100.0, 25.0, 18.0, True),  # killed before its first checkpoint
    ],
)
def test_a_training_that_resumed_counts_the_seconds_of_earlier_starts(
    monkeypatch: pytest.MonkeyPatch, began, seconds, first, total, training, resumed
) -> None:
    monkeypatch.setattr(time, "time", lambda: 225.0)
    trained = Trained(began, 221.0, seconds, 0)
    got = times_of_training("train", 200.0, trained, {"download": 2.0, "training": 18.0})
    assert got["time"]["start-time"] == first
    assert got["time"]["total-seconds"] == total
    assert got["spans"] == {"download": 2.0, "training": training}
    assert got["resumed"] is resumed
