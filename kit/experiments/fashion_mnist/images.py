"""Fashion-MNIST: the four files, where they are looked for, and whether they are the official ones.

The files are in the IDX format (a magic number, the dimensions as big-endian 32-bit integers,
then one byte a value; http://yann.lecun.com/exdb/mnist/), gzipped or not. They are official when
their decompressed contents are, however they were packed and wherever they came from.
"""

import dataclasses
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.base import DataError, KitError, write_bytes
from kit.experiments.contract import DataInfo
from kit.experiments.fashion_mnist import download

LABELS = (
    "top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
OFFICIAL_HASH = "eee656c63c1c7a3b7c885d28c97fd74dc039264ce75eae7cb8d991df379ef736"
SIDE = 28
WAYS = (
    "set KIT_DATA_DIR to a folder with the four IDX files, or `apt-get install "
    "dataset-fashion-mnist`, or run again with a network: the files are then downloaded from "
    "the mirrors or as the Debian package"
)

Array = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, 28, 28) and labels (N,), uint8, for training and test.

    `files` maps the name of each file to the SHA-256 of its bytes. `source` is official or
    folder, and unknown for a data set that did not come from files.
    """

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    source: str
    files: dict[str, str]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the four arrays and their shapes: the same however they are packed."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def title(self) -> str:
        """Origin and number of the images in a few words, as tables show it."""
        origin = {"official": "official", "folder": "own files"}.get(self.source, self.source)
        return f"{origin} {len(self.train_labels):,} + {len(self.test_labels):,}"

    @property
    def warning(self) -> str:
        """Classes without an image; empty when each class has images for training and test.

        The macro metrics leave out a class that does not occur, so they would mean less.
        """
        sentences = []
        for part, labels in (("training", self.train_labels), ("test", self.test_labels)):
            absent = [name for number, name in enumerate(LABELS) if number not in labels]
            if absent:
                sentences.append(f"no {part} image of {len(absent)} classes: {', '.join(absent)}")
        return "; ".join(sentences)

    def info(self) -> DataInfo:
        """Return what tables and records show of the data."""
        return DataInfo(
            title=self.title,
            source=self.source,
            train_items=len(self.train_labels),
            test_items=len(self.test_labels),
            balanced=len(set(np.bincount(self.test_labels, minlength=len(LABELS)))) == 1,
            files=dict(self.files),
            warning=self.warning,
        )


def load_images(
    data_dir: Path | None,
    cache_dir: Path,
    *,
    package_dir: Path = download.PACKAGE_DIR,
    mirrors: Sequence[str] = download.MIRRORS,
) -> Dataset:
    """Return the data set from `data_dir`; without it from the first source that has it.

    The sources are the cache, the installed Debian package, the mirrors, the Debian package
    fetched by apt-get. Raises DataError for files that are missing, damaged or do not belong
    together, and when no source has the official files.
    """
    if data_dir is not None:
        return read_folder(Path(data_dir))
    cache = Path(cache_dir) / "fashion-mnist"
    for folder in (cache, package_dir):
        if data := _official(folder):
            return data
    problems = []
    for fetch in (partial(download.from_mirrors, mirrors), download.from_debian_package):
        try:
            fetch(cache)
        except KitError as err:
            problems.append(f"{err.tried}: {err.got}")
        except OSError as err:
            next_step = "free some space, or set KIT_CACHE_DIR to a folder that can be written"
            raise DataError(f"write the data set into {cache}", str(err), next_step) from err
        else:
            if data := _official(cache):
                return data
            problems.append(f"read {cache}: the files are not the official ones")
    raise DataError("get the Fashion-MNIST images", "; ".join(problems), WAYS)


def _official(folder: Path) -> Dataset | None:
    """Return the folder's data set when it is there and official."""
    try:
        data = read_folder(folder)
    except DataError:
        return None
    return data if data.source == "official" else None


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
        length = f"{len(body)}" if len(body) < size else f"more than {size}"
        raise _damaged(path, f"{length} bytes of data where the header says {size}")
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
        expected = f"N x {SIDE} x {SIDE}" if dims == 3 else "N"
        raise _damaged(path, f"its shape is {shape}; {expected} with N > 0 is expected")
    return shape


def _damaged(path: Path, got: str) -> DataError:
    next_step = "put a good copy there, or set KIT_DATA_DIR to another folder"
    return DataError(f"read {path}", got, next_step)


def read_folder(folder: Path) -> Dataset:
    """Read the four files of a folder, each with or without `.gz`. Raises DataError.

    The last data set stays in memory: the steps of a run read the same files.
    """
    states = []
    for name in FILES:
        path = folder / name
        if not path.exists():
            path = folder / name.removesuffix(".gz")
        if not path.exists():
            raise DataError(f"find {name} (or without .gz) in {folder}", _contents(folder), WAYS)
        status = path.stat()
        states.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
    return _read_files(folder, tuple(states))


@lru_cache(maxsize=1)
def _read_files(folder: Path, states: tuple[tuple[Path, int, int, int], ...]) -> Dataset:
    """Read the four files again only if one of them is another file, or was written to."""
    arrays, files = [], {}
    for name, (path, *_) in zip(FILES, states, strict=True):
        array = read_idx(path)
        if array.ndim != (3 if "images" in name else 1):
            raise _damaged(path, "images and labels are exchanged")
        arrays.append(array)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for part, images, labels in (("train", *arrays[:2]), ("t10k", *arrays[2:])):
        if len(images) != len(labels):
            got = f"{len(images)} images and {len(labels)} labels"
            next_step = "put files there that belong together"
            raise DataError(f"read the {part} files in {folder}", got, next_step)
    train_images, train_labels, test_images, test_labels = arrays
    data = Dataset(train_images, train_labels, test_images, test_labels, "folder", files)
    return dataclasses.replace(data, source="official") if data.hash == OFFICIAL_HASH else data


def write_folder(folder: Path, data: Dataset) -> None:
    """Write the four files of a data set, not gzipped, in the form that `read_folder` reads."""
    arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    for name, array in zip(FILES, arrays, strict=True):
        magic = 2051 if array.ndim == 3 else 2049
        header = struct.pack(f">{array.ndim + 1}I", magic, *array.shape)
        write_bytes(folder / name.removesuffix(".gz"), header + array.tobytes())


def _contents(folder: Path) -> str:
    """Describe what is found in place of the four files."""
    if folder.is_file():
        return "it is a file and not a folder"
    if not folder.is_dir():
        return "the folder does not exist"
    names = sorted(path.name for path in folder.iterdir())
    links = [name for name in names if (folder / name).is_symlink()]
    if broken := [name for name in links if not (folder / name).exists()]:
        return f"symbolic links to files that do not exist: {', '.join(broken[:5])}"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"no such file; it holds {', '.join(names[:5]) + more if names else 'nothing'}"
