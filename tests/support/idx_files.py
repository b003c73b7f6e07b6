"""Write IDX files, right and wrong ones, for tests and benchmarks."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np

from kit.experiments.fashion_mnist import data as fashion_mnist


def images_bytes(images: np.ndarray) -> bytes:
    return struct.pack(">4I", 2051, *images.shape) + images.tobytes()


def labels_bytes(labels: np.ndarray) -> bytes:
    return struct.pack(">2I", 2049, len(labels)) + labels.tobytes()


def four_files(data: fashion_mnist.Dataset) -> dict[str, bytes]:
    """The four files of a data set, gzipped, always the same bytes."""
    plain = (
        images_bytes(data.train_images),
        labels_bytes(data.train_labels),
        images_bytes(data.test_images),
        labels_bytes(data.test_labels),
    )
    return {
        name: gzip.compress(content, 1, mtime=0)
        for name, content in zip(fashion_mnist.FILES, plain, strict=True)
    }


def write_folder(folder: Path, data: fashion_mnist.Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in four_files(data).items():
        (folder / name).write_bytes(content)
    return folder


def real_or_stand_in() -> fashion_mnist.Dataset:
    """The 900 real images where `KIT_TEST_DATA` leads to them, else generated ones.

    Whoever prints figures says which: `source` is `folder` or `synthetic`.
    """
    given = os.environ.get("KIT_TEST_DATA")
    if given:
        return fashion_mnist.load(Path(given) / "fashion-mnist-900", Path(given))
    return fashion_mnist.stand_in(720, 180)


def small_data_dir(folder: Path) -> Path:
    """A folder of 720 + 180 images, real ones where they are at hand."""
    return write_folder(folder, real_or_stand_in())


def full_size_data_dir(folder: Path) -> Path:
    """A folder of 60,000 + 10,000 generated images."""
    return write_folder(folder, fashion_mnist.stand_in())
