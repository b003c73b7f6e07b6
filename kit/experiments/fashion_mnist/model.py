"""The network, the tensors it reads, and the machine it runs on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from kit.base import DataError, UsageError
from kit.experiments.fashion_mnist import checkpoint
from kit.experiments.fashion_mnist.data import LABELS
from kit.experiments.fashion_mnist.parameters import Parameters


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
        """Give the ten scores (logits) of each image."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # 6 x 12 x 12
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # 16 x 4 x 4
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


def as_tensor(images: NDArray[np.uint8], device: str = "cpu") -> Tensor:
    """Turn images (N, 28, 28) of 0..255 into a tensor (N, 1, 28, 28) of -1..1.

    The same as ToTensor and Normalize(0.5, 0.5), once instead of at every step.
    """
    x = torch.from_numpy(images.astype(np.float32)).to(device)
    return x.div_(255).sub_(0.5).div_(0.5).unsqueeze_(1)


def as_labels(labels: NDArray[np.uint8], device: str = "cpu") -> Tensor:
    """Turn labels (N,) into a tensor of the type that cross entropy takes."""
    return torch.from_numpy(labels.astype(np.int64)).to(device)


def save_model(model: Model, path: Path) -> None:
    """Write the weights as safetensors, whole or not at all. Raises DataError."""
    checkpoint.save(path, model.state_dict())


def load_model(path: Path) -> Model:
    """Read a model from `path`. Raises DataError when it is no such file or has other layers."""
    tensors, _ = checkpoint.load(path)
    model = Model()
    try:
        model.load_state_dict(tensors)
    except RuntimeError as err:
        next_step = "give a file that save_model wrote"
        raise DataError(f"reading {path}", str(err)[:500], next_step) from err
    return model


@contextmanager
def machine(hp: Parameters) -> Iterator[None]:
    """Set the threads and leave oneDNN out (its set-up costs more than these tiny kernels)."""
    if hp.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device = 'cuda' is not possible",
            "PyTorch finds no CUDA device on this machine",
            "give device cpu, or use a machine with a GPU and a PyTorch built for it",
        )
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(hp.threads)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = onednn
