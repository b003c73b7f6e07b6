"""IDX files for tests: the 900 real images where they are at hand, else generated ones."""

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np

from kit.fashion_mnist import stand_in

NAMES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")}
NAMES["test"] = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an unsigned-byte IDX file, gzipped when its name says so."""
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + np.ascontiguousarray(array, dtype=np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_data_dir(folder: Path, train: int, test: int) -> Path:
    """Write the four files of a generated set of that many images."""
    folder.mkdir(parents=True, exist_ok=True)
    data = stand_in(train, test)
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        write_idx(folder / NAMES[part][0], images)
        write_idx(folder / NAMES[part][1], labels)
    return folder


def real_data_dir() -> Path | None:
    """Give the folder of the 900 real images, where KIT_TEST_DATA names them."""
    given = os.environ.get("KIT_TEST_DATA")
    return Path(given) / "fashion-mnist-900" if given else None


def small_data_dir(folder: Path) -> Path:
    """Make a folder of 720 + 180 images, real ones where they are at hand."""
    real = real_data_dir()
    if real is None:
        return write_data_dir(folder, 720, 180)
    folder.mkdir(parents=True)
    for names in NAMES.values():
        for name in names:
            shutil.copyfile(real / name, folder / name)
    return folder


def full_size_data_dir(folder: Path) -> Path:
    """Make a folder of 60,000 + 10,000 generated images."""
    return write_data_dir(folder, 60_000, 10_000)
