"""Handwritten digits: a linear classifier on the 1797 images that scikit-learn brings.

A small experiment that needs neither a download nor PyTorch: softmax regression by gradient
descent in NumPy. It is a pattern for an experiment of your own.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kit.base import write_bytes
from kit.experiments.contract import Context, DataInfo
from kit.experiments.parameters import Parameters as Base

NAME = "digits"
PRIMARY, BUDGET = "accuracy", "epochs"
GATES = {"accuracy": 0.85}
TEST_ITEMS = 360  # the last ones, as they are written by other people than the first
CLASSES = 10

Array = NDArray[np.float64]


class Parameters(Base):
    """Parameters of the training."""

    epochs: int = Field(default=30, ge=1, le=10_000, description="passes over the images")
    batch_size: int = Field(default=32, ge=1, le=1437, description="images per step")
    learning_rate: float = Field(default=0.1, gt=0, le=10, description="learning rate")
    alpha: float = Field(default=0.001, ge=0, le=100, description="strength of the L2 penalty")
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="seed of the order of images")


def data(folder: Path, source: Path | None) -> DataInfo:
    """Write images and labels as two arrays. There is one data set, whatever `source` is."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.save(folder / "images.npy", (digits.data / 16).astype(np.float64))
    np.save(folder / "labels.npy", digits.target.astype(np.int64))
    train_items = len(digits.target) - TEST_ITEMS
    return DataInfo(
        title=f"digits {train_items:,} + {TEST_ITEMS}",
        test_items=TEST_ITEMS,
        train_items=train_items,
        source="scikit-learn",
    )


def train(ctx: Context) -> None:
    """Train; each epoch is saved, and a killed training resumes after the last one."""
    images, labels = _images(ctx, slice(None, -TEST_ITEMS))
    hp, saved = ctx.parameters, ctx.checkpoint / "weights.json"
    weights, done = np.zeros((images.shape[1], CLASSES)), 0
    if saved.exists():
        state = json.loads(saved.read_text(encoding="utf-8"))
        weights, done = np.array(state["weights"]), state["epochs"]
    batches = math.ceil(len(images) / hp.batch_size)
    for epoch in range(done, hp.epochs):
        order = np.random.default_rng([hp.seed, epoch]).permutation(len(images))
        losses = []
        for batch in np.array_split(order, batches):
            wrong = _probabilities(images[batch], weights)
            losses.append(-np.log(wrong[np.arange(len(batch)), labels[batch]] + 1e-12).mean())
            wrong[np.arange(len(batch)), labels[batch]] -= 1
            gradient = images[batch].T @ wrong / len(batch) + hp.alpha * weights
            weights -= hp.learning_rate * gradient
        state = {"weights": weights.tolist(), "epochs": epoch + 1}
        write_bytes(saved, json.dumps(state).encode())
        ctx.report((epoch + 1) * batches, hp.epochs * batches, float(np.mean(losses)))
    np.save(ctx.out / "model.npy", weights)


def evaluate(ctx: Context) -> dict[str, float]:
    """Measure the share of test images that are recognised, and the mean cross entropy."""
    images, labels = _images(ctx, slice(-TEST_ITEMS, None))
    probabilities = _probabilities(images, np.load(ctx.out / "model.npy"))
    predictions = probabilities.argmax(1)
    np.save(ctx.out / "predictions.npy", predictions.astype(np.uint8))
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float((predictions == labels).mean()),
        "cross_entropy": float(-np.log(likelihood + 1e-12).mean()),
    }


def figures(ctx: Context) -> dict[str, Any]:
    """Draw the first images, and after the training the weights of each digit."""
    from matplotlib.figure import Figure

    rows = {"images": np.load(ctx.data / "images.npy")[:CLASSES]}
    if (ctx.out / "model.npy").exists():
        rows["weights"] = np.load(ctx.out / "model.npy").T
    drawn = {}
    for title, pictures in rows.items():
        figure = Figure(figsize=(9, 1.6), layout="constrained")
        for axes, picture in zip(figure.subplots(1, CLASSES), pictures, strict=True):
            axes.imshow(picture.reshape(8, 8), cmap="gray_r")
            axes.axis("off")
        drawn[title] = figure
    return drawn


def _images(ctx: Context, part: slice) -> tuple[Array, NDArray[np.int64]]:
    return np.load(ctx.data / "images.npy")[part], np.load(ctx.data / "labels.npy")[part]


def _probabilities(images: Array, weights: Array) -> Array:
    """Return the softmax of the scores: (N, 64) images to (N, 10)."""
    scores = images @ weights
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(scores / scores.sum(1, keepdims=True))
