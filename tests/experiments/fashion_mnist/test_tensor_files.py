"""Checkpoints and models as files: whole, plain, checked."""

import json
import os

import pytest
import torch
from idx_files import striped_images
from usual_model import bits

from kit.base import DataError
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.fashion_mnist.tensor_files import write_tensors
from kit.experiments.fashion_mnist.training import (
    load_model,
    save_model,
)

TINY = striped_images(50, 30)  # 13 steps an epoch, the last one with 2 images


def train(data, hp, folder=None):
    return training.train(data, hp, folder)


def test_a_checkpoint_is_plain_numbers_and_json(tmp_path):
    train(TINY, Parameters(epochs=1), tmp_path)
    raw = (tmp_path / "checkpoint.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    state = json.loads(header["__metadata__"]["state"])
    assert state["epoch"] == 1
    of = Parameters().model_dump(exclude={"epochs"}) | {"data": TINY.hash, "workers": 1}
    assert state["of"] == of
    assert header["momentum.conv1.weight"]["shape"] == [6, 1, 5, 5]
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"]


def test_a_saved_model_comes_back_with_the_same_bits(tmp_path):
    model = train(TINY, Parameters(epochs=1)).model
    save_model(model, tmp_path / "deep" / "model.safetensors")
    assert bits(load_model(tmp_path / "deep" / "model.safetensors")) == bits(model)


def test_files_that_are_not_a_model_are_refused(tmp_path):
    write_tensors(tmp_path / "other", {"conv1.weight": torch.zeros(1)})
    (tmp_path / "pickle").write_bytes(b"\x80\x04N.")
    for name in ("other", "pickle", "missing"):
        with pytest.raises(DataError, match=name) as caught:
            load_model(tmp_path / name)
        assert caught.value.next_step
