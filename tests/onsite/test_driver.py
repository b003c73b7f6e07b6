"""The driver: the training on the site has the bits of the training here."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import striped_images

from kit.base import DataError
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite import driver, names
from kit.submitter import job as ray_job


@pytest.fixture
def staged(tmp_path):
    data = striped_images(400, 100)
    path = tmp_path / "data.safetensors"
    path.write_bytes(ray_job.data_file(data))
    hp = Parameters(epochs=2).model_dump()
    task = {"data": str(path), "data_hash": data.hash, "hyperparameters": hp, "previous": ""}
    task["workers"] = 1
    folder = tmp_path / "try"
    folder.mkdir()
    return data, task, folder


def test_driver_trains_to_the_same_bits_as_here(staged, tmp_path):
    data, task, folder = staged
    driver.work(task, folder)
    here = training.train(data, Parameters(epochs=2))
    training.save_model(here.model, tmp_path / "here.safetensors")
    theirs = (folder / "model.safetensors").read_bytes()
    assert theirs == (tmp_path / "here.safetensors").read_bytes()
    measured = training.evaluate(here.model, data, Parameters(epochs=2))
    left = json.loads((folder / "metrics.json").read_text())
    assert left["performance"] == measured.performance
    predictions = np.load(folder / "predictions.npy", allow_pickle=False)
    assert (predictions == measured.predictions).all()
    assert {name for name in names.RESULTS if not (folder / name).exists()} == set()
    assert json.loads((folder / "progress.json").read_text())["epoch"] == 2


def test_shares_of_other_workers_have_the_same_bits_as_here(staged, tmp_path, monkeypatch):
    data, task, folder = staged

    def others(task):
        def begin(*arrays):
            given = [array.numpy() for array in arrays]
            return lambda: torch.tensor(driver.share(task, *given))

        return begin

    monkeypatch.setattr(driver, "_others", others)
    driver.work({**task, "workers": 3}, folder)
    here = training.train(data, Parameters(epochs=2), workers=3)
    training.save_model(here.model, tmp_path / "here.safetensors")
    theirs = (folder / "model.safetensors").read_bytes()
    assert theirs == (tmp_path / "here.safetensors").read_bytes()
    assert json.loads((folder / "times.json").read_text())["workers"] == 3


def test_later_attempt_continues_from_the_last_epoch(staged, tmp_path):
    _, task, folder = staged
    driver.work(task, folder)
    again = tmp_path / "again"
    again.mkdir()
    driver.work({**task, "previous": str(folder)}, again)
    times = json.loads((again / "times.json").read_text())
    assert times["epochs_resumed"] == 2
    one, other = ((path / "model.safetensors").read_bytes() for path in (folder, again))
    assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest()


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_data_other_than_staged_is_refused(staged, content):
    data, task, _ = staged
    path = Path(task["data"])
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match="data.safetensors"):
        driver.load_data(path, data.hash)


def test_another_data_set_is_refused(staged):
    _, task, _ = staged
    with pytest.raises(DataError, match="is expected"):
        driver.load_data(Path(task["data"]), "0" * 64)
