"""The driver: the training on the site has the bits of the training here."""

import json
from pathlib import Path

import numpy as np
import pytest
from idx_files import as_data, striped_images

from kit.base import DataError
from kit.experiments import load_experiment, running
from kit.experiments.fashion_mnist import published_files, training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite import driver, names
from kit.submitter import job as ray_job

MODEL = "out/model.safetensors"


@pytest.fixture
def staged(tmp_path):
    images = striped_images(400, 100)
    data, path = as_data(images), tmp_path / "data.zip"
    path.write_bytes(ray_job.data_archive(data.folder))
    hp = Parameters(epochs=2).model_dump()
    task = {"data": str(path), "data_hash": data.hash, "hyperparameters": hp, "earlier": []}
    task |= {"workers": 1, "module": "kit.experiments.fashion_mnist"}
    folder = tmp_path / "try"
    folder.mkdir()
    return images, task, folder


def saved(model, path):
    training.save_model(model, path)
    return path.read_bytes()


def test_driver_trains_to_the_same_bits_as_here(staged, tmp_path):
    images, task, folder = staged
    driver.work(task, folder)
    here = training.train(images, Parameters(epochs=2))
    assert (folder / MODEL).read_bytes() == saved(here.model, tmp_path / "here.safetensors")
    measured = training.evaluate(here.model, images, Parameters(epochs=2))
    left = json.loads((folder / "metrics.json").read_text())
    assert left["metrics"] == published_files.metrics_of(measured.performance)
    predictions = np.load(folder / "out/predictions.npy", allow_pickle=False)
    assert (predictions == measured.predictions).all()
    assert {name for name in names.RESULTS if not (folder / name).exists()} == set()
    assert not (folder / "data").exists()
    progress = json.loads((folder / "progress.json").read_text())
    assert progress["step"] == progress["steps"] == 200


@pytest.fixture(params=["fashion_mnist", "digits"])
def trained(request, staged, tmp_path):
    """A task of either experiment, the folder of its first attempt, its model, its last step."""
    _, task, folder = staged
    model, last = MODEL, 200
    if request.param == "digits":
        task, model, last = {**task, **digits_task(tmp_path)}, "out/model.npy", 3 * 45
    driver.work(task, folder)
    return task, folder, model, last


def digits_task(folder):
    digits = load_experiment("digits")
    data = running.make_data(digits, folder / "cache", None)
    path = folder / "digits.zip"
    path.write_bytes(ray_job.data_archive(data.folder))
    about = {"data": str(path), "data_hash": data.hash, "hyperparameters": {"epochs": 3}}
    return {**about, "module": "kit.experiments.digits"}


def test_later_attempt_continues_from_the_last_epoch(trained, tmp_path):
    task, folder, model, last = trained
    again = tmp_path / "again"
    again.mkdir()
    driver.work({**task, "earlier": [str(folder)]}, again)
    times = json.loads((again / "times.json").read_text())
    assert times["resumed_step"] == last
    one, other = ((path / model).read_bytes() for path in (folder, again))
    assert one == other
    losses = [(path / "losses.json").read_text() for path in (folder, again)]
    assert losses[0] == losses[1]


def test_later_attempt_takes_the_newest_checkpoint_there_is(trained, tmp_path):
    task, folder, _, last = trained
    killed, again = tmp_path / "killed", tmp_path / "again"  # one ended before it copied anything
    killed.mkdir()
    again.mkdir()
    driver.work({**task, "earlier": [str(killed), str(folder)]}, again)
    assert json.loads((again / "times.json").read_text())["resumed_step"] == last


def test_digits_train_on_the_site_to_the_metrics_of_here(tmp_path):
    digits, folder = load_experiment("digits"), tmp_path / "try"
    data = running.make_data(digits, tmp_path / "cache", None)
    folder.mkdir()
    driver.work({**digits_task(tmp_path), "earlier": [], "workers": 1}, folder)
    ctx = running.Context(data.folder, tmp_path / "here", digits.parameters(epochs=3))
    running.train(digits, ctx)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics == running.evaluate(digits, ctx)


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_data_other_than_staged_is_refused(staged, tmp_path, content):
    _, task, _ = staged
    path = Path(task["data"])
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match="data.zip"):
        driver.unpack_data(path, tmp_path / "data", task["data_hash"])


def test_another_data_set_is_refused(staged, tmp_path):
    _, task, _ = staged
    with pytest.raises(DataError, match="is expected"):
        driver.unpack_data(Path(task["data"]), tmp_path / "data", "0" * 64)


def test_training_waits_until_ray_runs_on_every_node_of_the_job(monkeypatch):
    answers = iter([[True], [True, False], [True, True]])
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": alive} for alive in next(answers)])
    monkeypatch.setattr(driver.time, "sleep", lambda seconds: None)
    driver.wait_for_nodes({"nodes": 2})
    assert next(answers, None) is None


def test_training_outside_of_ray_waits_for_no_node(monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: pytest.fail("asked"))
    driver.wait_for_nodes({"nodes": 2})
