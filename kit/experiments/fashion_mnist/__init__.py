"""The article's experiment: a small convolutional network on Fashion-MNIST.

Here are the names that the kit asks an experiment for. `training.py` is read from top to bottom;
`fast_step.py` is its step written out by hand, faster on the CPU; `images.py` reads the images and
`download.py` fetches them; `parameters.py` holds what can be changed; `published_files.py` has the
shapes of the published files. Only `training.py` and `fast_step.py` need PyTorch.
"""

from pathlib import Path
from typing import Any

from kit.base.settings import cache_dir
from kit.experiments.contract import Context, DataInfo
from kit.experiments.fashion_mnist.parameters import Parameters

NAME = "fashion_mnist"
LABEL, MODEL = "fmnist", "FMNIST-CNN"  # in the published names of pipelines and models
METRICS = ("accuracy", "precision", "recall")  # each is a share, from 0 to 1
PRIMARY, BUDGET = "accuracy", "epochs"
DISTRIBUTED = True
LOADING = """\
from pathlib import Path

from kit.experiments.fashion_mnist.training import load_model

path = {!r}
model = load_model(Path(path))"""
GATES = {"accuracy": 0.8, "precision": 0.8, "recall": 0.8}

__all__ = ["GATES", "METRICS", "NAME", "PRIMARY", "Parameters", "data", "evaluate", "train"]


def data(folder: Path, source: Path | None) -> DataInfo:
    """Write the four IDX files, unpacked: the same bytes wherever they came from."""
    from kit.experiments.fashion_mnist import images

    dataset = images.load_images(source, cache_dir())
    images.write_folder(folder, dataset)
    return dataset.info()


def train(ctx: Context) -> None:
    """Train and write the model; several workers are ranks of one training."""
    from kit.experiments.fashion_mnist import images, training

    trained = training.train(
        images.read_folder(ctx.data),
        ctx.parameters,
        ctx.checkpoint,
        ctx.report,
        training.Ranks(ctx.workers, ctx.prepare, ctx.batches),
    )
    training.save_model(trained.model, ctx.out / "model.safetensors")
    ctx.record_time(trained.start, trained.end, trained.seconds)


def evaluate(ctx: Context) -> dict[str, float]:
    """Measure the three metrics over all classes and of each; write predictions and confusion."""
    import json

    import numpy as np

    from kit.base import write_bytes
    from kit.experiments.fashion_mnist import images, training
    from kit.experiments.fashion_mnist.published_files import metrics_of

    model = training.load_model(ctx.out / "model.safetensors")
    result = training.evaluate(model, images.read_folder(ctx.data), ctx.parameters)
    np.save(ctx.out / "predictions.npy", result.predictions, allow_pickle=False)
    write_bytes(ctx.out / "confusion.json", json.dumps(result.confusion.tolist()).encode())
    return metrics_of(result.performance)


def figures(ctx: Context) -> dict[str, Any]:
    """Draw one image of each class, and after the evaluation which was taken for which."""
    from kit.experiments.fashion_mnist import pictures

    return pictures.figures(ctx)


def published(target: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the published files of a target, in the shapes of the article."""
    from kit.experiments.fashion_mnist import published_files

    return published_files.published_files(target, facts)
