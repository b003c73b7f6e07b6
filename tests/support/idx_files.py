"""Write IDX files, right and wrong ones, for tests and benchmarks."""

import atexit
import gzip
import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np

from kit.base.settings import cache_dir
from kit.experiments.contract import files_below, hash_of
from kit.experiments.fashion_mnist import images as fashion_mnist
from kit.experiments.fashion_mnist.images import LABELS, SIDE, Dataset
from kit.experiments.running import Data


def images_bytes(images: np.ndarray) -> bytes:
    return struct.pack(">4I", 2051, *images.shape) + images.tobytes()


def labels_bytes(labels: np.ndarray) -> bytes:
    return struct.pack(">2I", 2049, len(labels)) + labels.tobytes()


def four_files(data: Dataset) -> dict[str, bytes]:
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


def as_data(data: Dataset) -> Data:
    """The data set as the kit carries it: files of a folder, which lasts as long as the tests."""
    folder = Path(tempfile.mkdtemp(prefix="kit-test-data-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fashion_mnist.write_folder(folder, data)
    return Data(folder, hash_of(files_below(folder)), data.info())


def write_folder(folder: Path, data: Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in four_files(data).items():
        (folder / name).write_bytes(content)
    return folder


def striped_images(train: int, test: int) -> Dataset:
    """Images of stripes, one direction a label: the same bytes on every machine.

    Integers only (no rounding that differs) and the legacy generator, whose stream is frozen.
    """
    random = np.random.RandomState(20240812)
    return Dataset(*_stripes(random, train), *_stripes(random, test), "stripes", {})


def _stripes(random: np.random.RandomState, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images of stripes with random phase, brightness and noise."""
    slopes = ((9, 0), (9, 3), (8, 5), (5, 8), (3, 9), (0, 9), (-3, 9), (-5, 8), (-8, 5), (-9, 3))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.int16)
    waves = np.stack([a * x + b * y for a, b in slopes]).astype(np.int16)
    labels = random.permutation(np.arange(count) % len(LABELS)).astype(np.uint8)
    images = np.empty((count, SIDE, SIDE), np.uint8)
    for start in range(0, count, 5000):  # in pieces, to keep the memory small
        part = labels[start : start + 5000]
        phase = random.randint(0, 64, (len(part), 1, 1)).astype(np.int16)
        bright = random.randint(1, 4, (len(part), 1, 1)).astype(np.int16)
        wave = np.abs((waves[part] + phase) % 64 - 32) * bright
        noise = random.bytes(wave.size)
        wave += np.frombuffer(noise, np.uint8).reshape(wave.shape) // 2
        images[start : start + 5000] = wave
    return images, labels


def real_or_striped_images() -> Dataset:
    """The 900 real images where `KIT_TEST_DATA` leads to them, else striped ones.

    Tests that print figures say which: `source` is `folder` or `stripes`.
    """
    folder = os.environ.get("KIT_TEST_DATA")
    if folder:
        return fashion_mnist.read_folder(Path(folder) / "fashion-mnist-900")
    return striped_images(720, 180)


def small_data_dir(folder: Path) -> Path:
    """A folder of 720 + 180 images, real ones where they are at hand."""
    return write_folder(folder, real_or_striped_images())


def official_images() -> Dataset:
    """The official 60,000 + 10,000 images: downloaded at the first use, then from the cache."""
    return fashion_mnist.load_images(None, cache_dir())


def full_size_data_dir(folder: Path) -> Path:
    """A folder of the official 60,000 + 10,000 images."""
    return write_folder(folder, official_images())
