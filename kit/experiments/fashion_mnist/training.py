"""The article's experiment: a small convolutional network on Fashion-MNIST.

Reads from top to bottom: tensors, model, training step, loop, checkpoint, evaluation, model
file. It is the experiment of DOI 10.1145/3672608.3707866 with one difference: the seed is set
*before* the model is built (there it was set after, so that its runs differ).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from kit.base import DataError, UsageError
from kit.experiments.contract import Report, ignore_progress
from kit.experiments.fashion_mnist.fast_step import FastStep
from kit.experiments.fashion_mnist.images import LABELS, Dataset
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.fashion_mnist.published_files import CLASSIFIER
from kit.experiments.fashion_mnist.tensor_files import read_tensors, write_tensors

LOSS_POINT_STEPS = 2000  # steps in one point of the loss curve; fewer when an epoch is short
EVALUATION_BATCH = 1000  # images; the result does not depend on it, the article used 4
ONEDNN_FROM_BATCH = 32  # below, setting up oneDNN's kernels costs more than they save

# --- data tensors -----------------------------------------------------------------------------


def as_tensor(images: NDArray[np.uint8], device: str = "cpu") -> Tensor:
    """Turn images (N, 28, 28) of 0..255 into a tensor (N, 1, 28, 28) of -1..1.

    The same as ToTensor and Normalize(0.5, 0.5), once instead of at every step.
    """
    x = torch.from_numpy(images.astype(np.float32)).to(device)
    return x.div_(255).sub_(0.5).div_(0.5).unsqueeze_(1)


def as_labels(labels: NDArray[np.uint8], device: str = "cpu") -> Tensor:
    """Turn labels (N,) into a tensor of the type that cross entropy takes."""
    return torch.from_numpy(labels.astype(np.int64)).to(device)


# --- model ------------------------------------------------------------------------------------


class Model(nn.Module):
    """Two convolutions and three linear layers: images (N, 1, 28, 28) to scores (N, 10).

    ReLU comes after the pooling: max(relu(x)) is relu(max(x)), on a quarter of the values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the ten scores (logits) of each image."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # 6 x 12 x 12
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # 16 x 4 x 4
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


# --- training step ----------------------------------------------------------------------------


class Step(Protocol):
    """One step of SGD on a batch; returns the loss before the step.

    `velocity` has the names and shapes of the model's parameters.
    """

    velocity: dict[str, Tensor]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take the step on images (N, 1, 28, 28) and labels (N,)."""


class PlainStep:
    """The step as it is usually written: forward, backward, optimizer.

    `prepared` computes the scores, where that is not the model itself.
    """

    def __init__(
        self, model: Model, parameters: Parameters, prepared: nn.Module | None = None
    ) -> None:
        self.prepared = prepared or model
        rate, momentum = parameters.learning_rate, parameters.momentum
        self.optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
        self.velocity = {}
        for name, weight in model.named_parameters():
            self.velocity[name] = torch.zeros_like(weight)
            self.optimizer.state[weight]["momentum_buffer"] = self.velocity[name]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step on images (N, 1, 28, 28) and labels (N,)."""
        with torch.enable_grad():
            loss = F.cross_entropy(self.prepared(images), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return loss.detach()


@contextmanager
def torch_settings(parameters: Parameters) -> Iterator[None]:
    """Set threads and oneDNN for the block. Raises UsageError if the device does not exist."""
    if parameters.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device = 'cuda' is not possible",
            "PyTorch finds no CUDA device on this machine",
            "set device to cpu, or use a machine with a GPU and a PyTorch built for it",
        )
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(parameters.threads)
    torch.backends.mkldnn.enabled = parameters.batch_size >= ONEDNN_FROM_BATCH  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = onednn


# --- loop -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """The processes that train together (`Context.prepare`, `Context.batches`)."""

    count: int = 1
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    batches: Callable[[Tensor, int], Sequence[Tensor]] = torch.split


ALONE = Ranks()


@dataclass(frozen=True)
class TrainedModel:
    """A trained model; `losses` are points (step, mean cross entropy since the last point).

    `start` and `end` are seconds since 1970. `seconds` is the time spent in the loop; for a run
    that was killed it counts the finished epochs of all starts, without the gap between.
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
    """All that changes while training; the checkpoint holds it."""

    model: Model
    step: Step
    shuffle: torch.Generator
    epoch: int
    losses: list[tuple[int, float]]
    start: float
    end: float
    seconds: float


def train(
    data: Dataset,
    parameters: Parameters,
    checkpoint_dir: Path | None = None,
    report: Report = ignore_progress,
    ranks: Ranks = ALONE,
) -> TrainedModel:
    """Train for `parameters.epochs`; with `checkpoint_dir`, save every epoch and resume there.

    A training that was killed and started again gives the same bits as an unbroken one. `report`
    is called a few times an epoch. With several ranks each takes its share of every batch, and the
    mean of their gradients makes the step: it is that of one worker, up to rounding and to images
    that fill up shares. Losses are those of this rank's images. Raises UsageError if the device
    does not exist or the loss is not finite, DataError for a checkpoint that is damaged or of
    another training.
    """
    path = checkpoint_dir / "checkpoint.safetensors" if checkpoint_dir else None
    identity = parameters.model_dump(exclude={"epochs"})
    identity |= {"data": data.hash, "workers": ranks.count}
    with torch_settings(parameters), torch.no_grad():
        state = _begin(parameters, ranks)
        if path and path.exists():
            _restore(path, state, identity, parameters.epochs)
        resumed = state.epoch
        images = as_tensor(data.train_images, parameters.device)
        labels = as_labels(data.train_labels, parameters.device)
        while state.epoch < parameters.epochs:
            clock = time.perf_counter()
            order = torch.randperm(len(images), generator=state.shuffle)
            batches = ranks.batches(order, parameters.batch_size)
            _train_epoch(state, images, labels, batches, parameters, report)
            state.seconds += time.perf_counter() - clock
            state.epoch, state.end = state.epoch + 1, time.time()
            if path:
                _save_checkpoint(path, state, identity)
    return TrainedModel(state.model, state.losses, state.start, state.end, state.seconds, resumed)


def _begin(parameters: Parameters, ranks: Ranks) -> _State:
    """Seed first, then build: the same seed gives the same weights and the same order."""
    torch.manual_seed(parameters.seed)
    model = Model().to(parameters.device)
    step: Step
    if parameters.fast_step and ranks.count == 1:
        step = FastStep(model, parameters)
    else:
        step = PlainStep(model, parameters, ranks.prepare(model))
    shuffle = torch.Generator().manual_seed(parameters.seed)
    return _State(model, step, shuffle, 0, [], time.time(), 0.0, 0.0)


def _train_epoch(
    state: _State,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    parameters: Parameters,
    report: Report,
) -> None:
    """Take one step for each batch, given as the numbers of its images; the last may be smaller."""
    steps_per_epoch, size = len(batches), len(batches[0])
    point_steps = min(LOSS_POINT_STEPS, max(1, steps_per_epoch // 5))
    step = state.epoch * steps_per_epoch
    order = torch.cat(list(batches)).to(parameters.device)
    for point in torch.split(order, point_steps * size):
        xs, ys = torch.split(images[point], size), torch.split(labels[point], size)
        losses = [state.step(x, y) for x, y in zip(xs, ys, strict=True)]
        step += len(losses)
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            got = f"the loss is {mean} by step {step}"
            raise UsageError("the training diverged", got, "lower learning_rate")
        state.losses.append((step, mean))
        report(step, parameters.epochs * steps_per_epoch, mean)


# --- checkpoint -------------------------------------------------------------------------------

_TIMES = ("start", "end", "seconds")


def _save_checkpoint(path: Path, state: _State, identity: dict[str, Any]) -> None:
    """Save weights, momentum and the shuffle's state, and beside them the position of the run."""
    tensors = {f"weight.{name}": p.detach() for name, p in state.model.named_parameters()}
    tensors |= {f"momentum.{name}": v for name, v in state.step.velocity.items()}
    tensors["shuffle"] = state.shuffle.get_state()
    record = {field: getattr(state, field) for field in ("epoch", "losses", *_TIMES)}
    write_tensors(path, tensors, record | {"of": identity})


def _restore(path: Path, state: _State, identity: dict[str, Any], epochs: int) -> None:
    """Put a checkpoint into a fresh state; a checkpoint of another training is refused.

    One of the same training with fewer epochs is the beginning of this one.
    """
    tensors, record = read_tensors(path)
    theirs = record.get("of", {})
    others = [name for name in identity if theirs.get(name) != identity[name]]
    done = record.get("epoch", 0)
    if not isinstance(done, int) or done > epochs:
        others.append("epochs")
    if others:
        raise DataError(
            f"resume from {path}",
            f"it belongs to a training with other values of: {', '.join(others)}",
            "use those values or another folder, or remove the file to start again",
        )
    try:
        for name, parameter in state.model.named_parameters():
            parameter.data.copy_(tensors[f"weight.{name}"])
            state.step.velocity[name].copy_(tensors[f"momentum.{name}"])
        state.shuffle.set_state(tensors["shuffle"])
        state.epoch = int(record["epoch"])
        state.losses = [(int(step), float(loss)) for step, loss in record["losses"]]
        state.start, state.end, state.seconds = (float(record[name]) for name in _TIMES)
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise DataError(f"resume from {path}", repr(err), "remove it to start again") from err


# --- evaluation and model file ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics and predictions on the test images.

    `performance` has the published keys; `predictions` (N,) uint8 are labels; `probabilities`
    (N, 10) float32 the softmax of the scores ("predicted qualities"); `confusion` (10, 10)
    counts images by true label (row) and predicted label (column).
    """

    performance: dict[str, Any]
    predictions: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    confusion: NDArray[np.int64]
    seconds: float


def evaluate(model: Model, data: Dataset, parameters: Parameters) -> Evaluation:
    """Measure the model on the test images; `_performance` has the metrics' definitions."""
    clock = time.perf_counter()
    with torch_settings(parameters), torch.inference_mode():
        model = model.to(parameters.device)
        parts = np.array_split(data.test_images, -(-len(data.test_images) // EVALUATION_BATCH))
        scores = torch.cat([model(as_tensor(part, parameters.device)) for part in parts]).cpu()
        probabilities, predicted = scores.softmax(1), scores.argmax(1)
        actual = as_labels(data.test_labels)
        pairs = torch.bincount(actual * len(LABELS) + predicted, minlength=len(LABELS) ** 2)
        confusion = pairs.reshape(len(LABELS), len(LABELS))
        performance = _performance(confusion)
    return Evaluation(
        performance,
        predicted.numpy().astype(np.uint8),
        probabilities.numpy(),
        confusion.numpy(),
        time.perf_counter() - clock,
    )


def _performance(confusion: Tensor) -> dict[str, Any]:
    """Return the published metrics of counts (10, 10) by true and predicted label.

    The definitions are those of torchmetrics, in the same float32 steps and so with the same bits,
    which a test compares; its import would take a second. The accuracy of a class is its recall;
    the macro metrics are means over the classes that occur or were predicted.
    """
    hits, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall, precision = _share(hits, actual), _share(hits, predicted)
    by_class = {"accuracy": recall, "precision": precision, "recall": recall}
    counted = (actual + predicted - hits > 0).float()
    performance: dict[str, Any] = {"name": CLASSIFIER}
    for name, score in by_class.items():
        performance[name] = _share(counted * score, counted.sum(-1, True)).sum(-1).tolist()
    return performance | {f"class-{name}": score.tolist() for name, score in by_class.items()}


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return the quotients in float32; 0 where the divisor is 0."""
    part, whole = part.float(), whole.float()
    return torch.where(whole != 0, part / whole, torch.zeros(()))


def save_model(model: Model, path: Path) -> None:
    """Write the weights as safetensors, whole or not at all. Raises DataError."""
    write_tensors(path, model.state_dict())


def load_model(path: Path) -> Model:
    """Read a model from `path`. Raises DataError when it is not such a file or has other layers."""
    tensors, _ = read_tensors(path)
    model = Model()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as err:
        next_step = "use a file that save_model wrote"
        raise DataError(f"read {path}", str(err)[:500], next_step) from err
    return model
