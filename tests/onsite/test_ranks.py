"""Several workers as ranks of torch.distributed: real processes, joined by gloo."""

import json
import time

import pytest
import ray
import torch
from idx_files import striped_images
from rank_attempts import Attempts
from ray.exceptions import RayTaskError, WorkerCrashedError

from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite import driver
from kit.onsite.names import PROGRESS
from kit.onsite.ranks import MEETING

MODEL = "out/model.safetensors"
IMAGES = striped_images(400, 100)


@pytest.mark.slow
def test_two_ranks_step_as_one_worker_with_the_same_batch_size(tmp_path):
    folder = Attempts(tmp_path, IMAGES, epochs=2).run("one")
    ours = training.load_model(folder / MODEL)
    alone = training.train(IMAGES, Parameters(epochs=2, fast_step=False)).model
    for mine, theirs in zip(ours.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    times = json.loads((folder / "times.json").read_text())
    assert (times["workers"], times["resumed_step"]) == (2, 0)
    assert json.loads((folder / PROGRESS).read_text())["step"] == 2 * 400 / 4
    left = {path.name for path in folder.iterdir()}
    assert not left & {"data", "rank-1", MEETING}


@pytest.mark.slow
def test_a_lost_rank_fails_the_attempt_and_the_next_one_has_the_bits_of_an_unbroken_one(tmp_path):
    attempts = Attempts(tmp_path, IMAGES, epochs=12)
    broken, ranks = attempts.start("broken")
    checkpoint = broken / "checkpoint/checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks[1].kill()
    assert ranks[0].wait(60) == 1
    assert not (broken / "out" / "model.safetensors").exists()
    resumed = attempts.run("resumed", previous=broken)
    assert json.loads((resumed / "times.json").read_text())["resumed_step"] >= 100
    assert (resumed / MODEL).read_bytes() == (attempts.run("unbroken") / MODEL).read_bytes()


LOST = WorkerCrashedError()
PEER = RayTaskError("work", "Connection closed by peer", RuntimeError("Connection closed by peer"))


@pytest.mark.parametrize(
    ("ends", "raised"),
    [
        ([None, None], None),
        ([PEER, LOST], LOST),  # the loss of the one is noticed after the error of the other
        ([LOST, PEER], LOST),
        ([None, PEER], PEER),
    ],
)
def test_error_of_the_run_is_the_loss_that_caused_the_others(monkeypatch, ends, raised):
    def get(call):
        if ends[call]:
            raise ends[call]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(
        ray, "wait", lambda calls, num_returns=1, timeout=None: (calls[:num_returns], calls[1:])
    )
    if raised is None:
        driver.wait_for_ranks([0, 1])
        return
    with pytest.raises(type(raised)) as caught:
        driver.wait_for_ranks([0, 1])
    assert caught.value is raised
