"""The experiment: a small convolutional network on Fashion-MNIST, the same on all targets.

Reads from top to bottom: settings, model, tensors, loop, evaluation. It is the experiment of
DOI 10.1145/3672608.3707866 with one difference: the seed is set *before* the model is built
(there it was set after, so that its runs differ).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from numpy.typing import NDArray
from torch import Tensor

from kit.base import DataError, UsageError
from kit.experiments.fashion_mnist import checkpoint
from kit.experiments.fashion_mnist.data import LABELS, Dataset
from kit.experiments.fashion_mnist.fast_step import SGD, share
from kit.experiments.fashion_mnist.model import Model, as_labels, as_tensor, machine
from kit.experiments.fashion_mnist.model import (
    load_model as load_model,  # for those who train and then save
)
from kit.experiments.fashion_mnist.model import save_model as save_model
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.progress import Bar, Progress

NAME = "Convolutional-neural-network-classifier"
LOSS_EVERY = 2000  # steps in one point of the loss curve; fewer when an epoch is short
EVALUATION_BATCH = 1000  # images; the result does not depend on it, the article used 4


# --- the loop ---------------------------------------------------------------------------------

# Begins another worker's share of an epoch, given what `sgd.share` takes; the call waits for it.
Elsewhere = Callable[[Tensor, Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class Trained:
    """A trained model; `losses` are points (step, mean cross entropy since the last point).

    `start` and `end` are epoch seconds. `seconds` is the time spent in the loop; for a run
    that was killed it counts the finished epochs of all tries, without the gap between.
    `epochs_resumed` of the epochs came from a checkpoint.
    """

    model: Model
    losses: list[tuple[int, float]]
    start: float
    end: float
    seconds: float
    epochs_resumed: int = 0


@dataclass
class _State:
    """What changes while training: the checkpoint holds all of it."""

    model: Model
    sgd: SGD
    shuffle: torch.Generator
    epoch: int
    losses: list[tuple[int, float]]
    start: float
    end: float
    seconds: float


def train(
    data: Dataset,
    hp: Parameters,
    checkpoint_dir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    workers: int = 1,
    elsewhere: Elsewhere | None = None,
) -> Trained:
    """Train for `hp.epochs`; with `checkpoint_dir`, save every epoch and go on from there.

    An unbroken training and one that was killed and started again give the same bits.
    `progress` is called a few times an epoch; without it a bar is shown. With several `workers`
    each takes its share of every epoch's images, all from the same weights and velocities, and
    the mean of theirs goes into the next epoch (local SGD, arXiv:1805.09767); `elsewhere` has
    the others' shares done at the same time, without it they are done here one by one, with the
    same bits. Losses are the first one's, steps are counted for all. Raises UsageError when there
    is no such device or the loss is no number any more, DataError for a checkpoint that is
    damaged or of another training.
    """
    elsewhere = elsewhere or (lambda vectors, part: partial(share, data, hp, vectors, part))
    path = checkpoint_dir / "checkpoint.safetensors" if checkpoint_dir else None
    show = progress or Bar()
    with machine(hp), torch.no_grad():
        state = _begin(hp)
        if path and path.exists():
            _restore(path, state, _identity(data, hp, workers))
        resumed = state.epoch
        x = as_tensor(data.train_images, hp.device)
        targets = F.one_hot(as_labels(data.train_labels, hp.device), len(LABELS)).float()
        while state.epoch < hp.epochs:
            clock = time.perf_counter()
            order = torch.randperm(len(x), generator=state.shuffle)
            mine, *parts = torch.tensor_split(order, workers)
            before = state.sgd.vectors
            others = [elsewhere(before, part) for part in parts]
            _train_epoch(state, x, targets, mine, hp, workers, resumed, show)
            if others:
                state.sgd.vectors = _mean([state.sgd.vectors, *(wait() for wait in others)])
            state.seconds += time.perf_counter() - clock
            state.epoch, state.end = state.epoch + 1, time.time()
            if path:
                _keep(path, state, _identity(data, hp, workers))
    return Trained(state.model, state.losses, state.start, state.end, state.seconds, resumed)


def _begin(hp: Parameters) -> _State:
    """Seed first, then build: the same seed gives the same weights and the same order."""
    torch.manual_seed(hp.seed)
    model = Model().to(hp.device)
    shuffle = torch.Generator().manual_seed(hp.seed)
    return _State(model, SGD(model, hp), shuffle, 0, [], time.time(), 0.0, 0.0)


def _train_epoch(
    state: _State,
    x: Tensor,
    targets: Tensor,
    order: Tensor,
    hp: Parameters,
    workers: int,
    resumed: int,
    show: Callable[[Progress], None],
) -> None:
    """One pass over the images `order`: one SGD step a batch, the last may be smaller."""
    own_steps = -(-len(order) // hp.batch_size)
    stride, per_epoch = min(LOSS_EVERY, max(1, own_steps // 5)), own_steps * workers
    step = state.epoch * per_epoch
    for piece in torch.split(order.to(hp.device), stride * hp.batch_size):
        images = torch.split(x[piece], hp.batch_size)
        labels = torch.split(targets[piece], hp.batch_size)
        losses = [state.sgd.step(*batch) for batch in zip(images, labels, strict=True)]
        step += len(losses) * workers
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            next_step = "lower learning_rate"
            raise UsageError("the training diverged", f"loss {mean} by step {step}", next_step)
        state.losses.append((step, mean))
        steps, skipped = hp.epochs * per_epoch, resumed * per_epoch
        show(Progress(state.epoch + 1, hp.epochs, step, steps, mean, skipped))


def _mean(vectors: list[Tensor]) -> Tensor:
    """Average what the workers came to. Raises UsageError when one of them diverged."""
    mean = torch.stack(vectors).mean(0)
    if not mean.isfinite().all():
        raise UsageError("the training diverged", "in one of the workers", "lower learning_rate")
    return mean


def _keep(path: Path, state: _State, identity: dict[str, Any]) -> None:
    """Save weights, momentum and the shuffle's state, and beside them where the run is."""
    tensors = {f"weight.{name}": p.detach() for name, p in state.model.named_parameters()}
    tensors |= {f"momentum.{name}": v for name, v in state.sgd.velocity.items()}
    tensors["shuffle"] = state.shuffle.get_state()
    record = {field: getattr(state, field) for field in ("epoch", "losses", *_TIMES)}
    checkpoint.save(path, tensors, record | {"of": identity})


def _restore(path: Path, state: _State, mine: dict[str, Any]) -> None:
    """Put a checkpoint into a fresh state; one of another training is refused."""
    tensors, record = checkpoint.load(path)
    theirs = record.get("of", {})
    others = [name for name in mine if theirs.get(name) != mine[name]]
    if others:
        raise DataError(
            f"going on from {path}",
            f"it belongs to a training with other values of: {', '.join(others)}",
            "give those values, or another folder, or remove the file to begin anew",
        )
    try:
        for name, parameter in state.model.named_parameters():
            parameter.data.copy_(tensors[f"weight.{name}"])
            state.sgd.velocity[name].copy_(tensors[f"momentum.{name}"])
        state.shuffle.set_state(tensors["shuffle"])
        state.epoch = int(record["epoch"])
        state.losses = [(int(step), float(loss)) for step, loss in record["losses"]]
        state.start, state.end, state.seconds = (float(record[name]) for name in _TIMES)
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise DataError(f"going on from {path}", repr(err), "remove it to begin anew") from err


_TIMES = ("start", "end", "seconds")


def _identity(data: Dataset, hp: Parameters, workers: int) -> dict[str, Any]:
    return hp.model_dump() | {"data": data.hash, "workers": workers}


# --- evaluation -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the model does on the test images.

    `performance` has the published keys; `predictions` (N,) uint8 are labels; `probabilities`
    (N, 10) float32 the softmax of the scores ("predicted qualities"); `confusion` (10, 10)
    counts images by true label (row) and predicted label (column).
    """

    performance: dict[str, Any]
    predictions: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    confusion: NDArray[np.int64]
    seconds: float


def evaluate(model: Model, data: Dataset, hp: Parameters) -> Evaluation:
    """Measure the model on the test images, with torchmetrics' definitions, each once.

    Macro accuracy is the mean of the class recalls.
    """
    import torchmetrics.functional.classification as metrics  # late: it takes a second

    clock = time.perf_counter()
    with machine(hp), torch.inference_mode():
        model = model.to(hp.device)
        parts = np.array_split(data.test_images, -(-len(data.test_images) // EVALUATION_BATCH))
        scores = torch.cat([model(as_tensor(part, hp.device)) for part in parts]).cpu()
        probabilities, predicted = scores.softmax(1), scores.argmax(1)
        actual = as_labels(data.test_labels)
        performance: dict[str, Any] = {"name": NAME}
        for average, prefix in (("macro", ""), ("none", "class-")):
            for kind in ("accuracy", "precision", "recall"):
                measure = getattr(metrics, f"multiclass_{kind}")
                value = measure(predicted, actual, num_classes=len(LABELS), average=average)
                performance[prefix + kind] = value.tolist()
        confusion = metrics.multiclass_confusion_matrix(predicted, actual, len(LABELS))
    return Evaluation(
        performance,
        predicted.numpy().astype(np.uint8),
        probabilities.numpy(),
        confusion.numpy(),
        time.perf_counter() - clock,
    )
