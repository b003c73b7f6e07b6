"""Fashion-MNIST: files on disk, else the cache, else a download, else a labelled stand-in.

The four files are in the IDX format (a magic number, the dimensions as big-endian 32-bit
integers, then one byte a value; http://yann.lecun.com/exdb/mnist/). The stand-in is used only
when there is neither network nor any data; it says so in `Dataset.warning`.
"""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.base import DataError, Unreachable
from kit.experiments.fashion_mnist import download

_TEN = "top trouser pullover dress coat sandal shirt sneaker bag ankle-boot"
LABELS = tuple(_TEN.split())
# File name -> MD5 of the official file.
FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# The first is plain http, so nothing that came from it is used before its checksum is right.
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)
SIDE = 28
STAND_IN_WARNING = (
    "SYNTHETIC DATA, NOT Fashion-MNIST: there was no network and nothing in the cache, so the "
    "images are generated stripes. No figure of this run says anything about Fashion-MNIST. "
    "Connect to the network, or set KIT_DATA_DIR to a folder with the four IDX files."
)

Array = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, 28, 28) and labels (N,), uint8, for training and test.

    `source` is official, folder or synthetic; `files` maps each file to the SHA-256 of its
    bytes (of the array, when synthetic); `warning` is empty unless the data is synthetic.
    """

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    source: str
    files: dict[str, str]
    warning: str = ""

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the four arrays and their shapes: the same however they are packed."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load(data_dir: Path | None, cache_dir: Path, *, mirrors: Sequence[str] = MIRRORS) -> Dataset:
    """Give the data set from `data_dir`, else from the cache, a mirror, or the stand-in.

    Raises DataError for files that are missing, damaged or do not belong together, and when
    a download ended badly; only "no network and nothing cached" leads to the stand-in.
    """
    if data_dir is not None:
        return _read_folder(Path(data_dir), "folder")
    folder = Path(cache_dir) / "fashion-mnist"
    try:
        download.bring(FILES, folder, mirrors)
    except Unreachable as err:
        kept = sorted(p.name for p in folder.glob("*ubyte*"))
        if kept:
            raise DataError(
                f"completing the download in {folder}",
                f"only {', '.join(kept)}; {err.got}",
                "run again with a network: it goes on where it stopped",
            ) from err
        return stand_in()
    return _read_folder(folder, "official")


def read_idx(path: Path) -> Array:
    """Read one IDX file, gzipped or not: images (N, 28, 28) or labels (N,), uint8.

    Raises DataError when the file is missing, cut, of another format or size, or holds a
    label above 9.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            shape = _shape(path, file.read(4), file)
            size = math.prod(shape)
            body = file.read(size + 1)  # one more than allowed: also reaches gzip's own check
    except (OSError, EOFError, zlib.error) as err:
        raise _damaged(path, str(err) or type(err).__name__) from err
    if len(body) != size:
        found = f"{len(body)}" if len(body) < size else f"more than {size}"
        raise _damaged(path, f"{found} bytes of data where the header says {size}")
    array = np.frombuffer(body, np.uint8).reshape(shape)
    if array.ndim == 1 and array.max() >= len(LABELS):
        raise _damaged(path, f"label {array.max()}; only 0 to {len(LABELS) - 1} exist")
    return array


def _shape(path: Path, magic: bytes, file: Any) -> tuple[int, ...]:
    """Read the dimensions behind the magic number: 2051 is images, 2049 is labels."""
    dims = {b"\0\0\x08\x03": 3, b"\0\0\x08\x01": 1}.get(magic)
    if dims is None:
        raise _damaged(path, f"it starts with {magic.hex(' ') or 'nothing'}, not as an IDX file")
    header = file.read(4 * dims)
    if len(header) < 4 * dims:
        raise _damaged(path, "it ends inside the header")
    shape = struct.unpack(f">{dims}I", header)
    if shape[0] == 0 or (dims == 3 and shape[1:] != (SIDE, SIDE)):
        wanted = f"N x {SIDE} x {SIDE}" if dims == 3 else "N"
        raise _damaged(path, f"its shape is {shape}; {wanted} with N > 0 is expected")
    return shape


def _damaged(path: Path, got: str) -> DataError:
    return DataError(
        f"reading {path}", got, "put a good copy there, or point KIT_DATA_DIR somewhere else"
    )


def _read_folder(folder: Path, source: str) -> Dataset:
    """Read the four files of a folder, each with or without `.gz`."""
    arrays, files = [], {}
    for name in FILES:
        path = folder / name
        if not path.exists():
            path = folder / name.removesuffix(".gz")
        if not path.exists():
            raise DataError(
                f"looking for {name} (or without .gz) in {folder}",
                "no such file",
                "put the four IDX files there, or unset KIT_DATA_DIR to download them",
            )
        array = read_idx(path)
        if array.ndim != (3 if "images" in name else 1):
            raise _damaged(path, "images and labels are exchanged")
        arrays.append(array)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for part, images, labels in (("train", *arrays[:2]), ("t10k", *arrays[2:])):
        if len(images) != len(labels):
            got = f"{len(images)} images and {len(labels)} labels"
            next_step = "put files there that belong together"
            raise DataError(f"reading the {part} files in {folder}", got, next_step)
    a, b, c, d = arrays
    return Dataset(a, b, c, d, source=source, files=files)


def stand_in(train: int = 60_000, test: int = 10_000) -> Dataset:
    """Make striped images, one direction a label: the same bytes on every machine.

    Integers only (no rounding that differs) and the legacy generator, whose stream is frozen.
    """
    random = np.random.RandomState(20240812)
    arrays = (*_stripes(random, train), *_stripes(random, test))
    files = {
        f"stand-in {name.removesuffix('-ubyte.gz')}": hashlib.sha256(array.data).hexdigest()
        for name, array in zip(FILES, arrays, strict=True)
    }
    return Dataset(*arrays, source="synthetic", files=files, warning=STAND_IN_WARNING)


def _stripes(random: np.random.RandomState, count: int) -> tuple[Array, Array]:
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
