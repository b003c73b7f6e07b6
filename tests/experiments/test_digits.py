"""The digits: trained in a second, the same bits after a kill."""

import numpy as np
import pytest

from kit.experiments import running
from kit.experiments.contract import Context
from kit.experiments.loader import load_experiment

DIGITS = load_experiment("digits")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return running.make_data(DIGITS, tmp_path_factory.mktemp("cache"), None)


def trained(data, folder, show=lambda *_: None, **parameters):
    values = DIGITS.parameters(**parameters)
    ctx = Context(data.folder, folder, values, show=show)
    running.train(DIGITS, ctx)
    return ctx


def test_nine_of_ten_digits_are_recognised(data, tmp_path):
    ctx = trained(data, tmp_path)
    metrics = running.evaluate(DIGITS, ctx)
    assert 0.85 <= metrics["accuracy"] <= 1
    assert DIGITS.gates.judge(metrics)["passed"]
    assert set(running.out_files(ctx.out)) == {"model.npy", "predictions.npy"}
    assert set(DIGITS.figures(ctx)) == {"images", "weights"}


def test_a_killed_training_resumes_with_the_same_bits(data, tmp_path):
    def kill(step, steps, loss):
        if step > steps / 2:
            raise KeyboardInterrupt

    whole = trained(data, tmp_path / "whole", epochs=6)
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "cut", kill, epochs=6)
    cut = trained(data, tmp_path / "cut", epochs=6)
    assert cut.resumed_step > 0
    assert cut.losses == whole.losses
    assert np.array_equal(np.load(cut.out / "model.npy"), np.load(whole.out / "model.npy"))
