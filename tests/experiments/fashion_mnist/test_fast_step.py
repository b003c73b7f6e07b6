"""The step written out by hand against autograd and the optimizer of torch."""

import pytest
import torch
import torch.nn.functional as F
from tiny_training import TINY, interrupt_in_epoch, train
from usual_model import AsUsual, bits

from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.fast_step import FastStep
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.fashion_mnist.training import (
    Model,
    as_labels,
    as_tensor,
)


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fast_steps_are_those_of_autograd_and_torch_sgd(batch, momentum):
    torch.manual_seed(3)
    ours, usual = Model(), AsUsual()
    usual.load_state_dict(ours.state_dict())
    hp = Parameters(learning_rate=0.05, momentum=momentum)
    fast = FastStep(ours, hp)
    optimizer = torch.optim.SGD(usual.parameters(), lr=0.05, momentum=momentum)
    x, y = as_tensor(TINY.train_images), as_labels(TINY.train_labels)
    for start in range(0, 6 * batch, batch):
        xb, yb = x[start : start + batch], y[start : start + batch]
        with torch.no_grad():
            mine = fast(xb, yb)
        optimizer.zero_grad()
        loss = F.cross_entropy(usual(xb), yb)
        loss.backward()
        optimizer.step()
        assert mine.item() == pytest.approx(loss.item(), rel=1e-5)
    for (name, got), expected in zip(ours.named_parameters(), usual.parameters(), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6), name


def test_fast_step_and_plain_step_train_to_the_same_model():
    fast, plain = (train(TINY, Parameters(epochs=3, fast_step=fast)) for fast in (True, False))
    assert [step for step, _ in fast.losses] == [step for step, _ in plain.losses]
    for (_, mine), (_, usual) in zip(fast.losses, plain.losses, strict=True):
        assert mine == pytest.approx(usual, rel=1e-4)
    for mine, usual in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(mine, usual, rtol=1e-3, atol=1e-5)


def test_plain_step_alone_is_used_when_the_fast_one_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(FastStep, "__call__", None)  # a fast step would fail
    hp = Parameters(epochs=3, fast_step=False)
    with pytest.raises(KeyboardInterrupt):
        training.train(TINY, hp, tmp_path, interrupt_in_epoch(3, 3))
    resumed, unbroken = train(TINY, hp, tmp_path), train(TINY, hp)
    assert resumed.epochs_resumed == 2
    assert bits(resumed.model) == bits(unbroken.model)
    several = training.train(TINY, Parameters(epochs=3), ranks=training.Ranks(2))
    assert bits(several.model) == bits(unbroken.model)  # the gradients of autograd are averaged
