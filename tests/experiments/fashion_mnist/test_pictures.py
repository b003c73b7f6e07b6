"""The pictures that can be drawn are those whose files exist."""

import pytest
from idx_files import real_or_striped_images

from kit.experiments import running
from kit.experiments.contract import Context
from kit.experiments.fashion_mnist import images
from kit.experiments.loader import load_experiment

FASHION = load_experiment("fashion_mnist")


@pytest.fixture
def ctx(tmp_path):
    (tmp_path / "data").mkdir()
    images.write_folder(tmp_path / "data", real_or_striped_images())
    values = FASHION.parameters(epochs=1, batch_size=64)
    return Context(tmp_path / "data", tmp_path, values)


def test_confusion_is_drawn_after_the_evaluation(ctx):
    assert set(FASHION.figures(ctx)) == {"images"}
    running.train(FASHION, ctx)
    metrics = running.evaluate(FASHION, ctx)
    assert len(metrics) == 33
    assert set(running.out_files(ctx.out)) == {
        "model.safetensors",
        "predictions.npy",
        "confusion.json",
    }
    drawn = FASHION.figures(ctx)
    assert len(drawn["images"].axes) == 10
    assert sum(int(text.get_text()) for text in drawn["confusion"].axes[0].texts) == 180
