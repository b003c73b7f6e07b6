"""Reading Fashion-MNIST from its files."""

import dataclasses
import gzip
import hashlib

import idx_files
import numpy as np
import pytest
from idx_files import striped_images

from kit.base import DataError
from kit.experiments.fashion_mnist import images as fashion_mnist

SMALL = striped_images(30, 20)
IMAGES = idx_files.images_bytes(SMALL.train_images)
LABELS = idx_files.labels_bytes(SMALL.train_labels)
NAME = "train-images-idx3-ubyte.gz"
EXPECTED_SMALL_HASH = "ec68600b6e2abb328dcef0b6306eef792daa38ab0608fe48bef41d94a01531af"


# --- the reader -------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_reads_images_and_labels(tmp_path, pack):
    (tmp_path / "images").write_bytes(pack(IMAGES))
    (tmp_path / "labels").write_bytes(pack(LABELS))
    assert np.array_equal(fashion_mnist.read_idx(tmp_path / "images"), SMALL.train_images)
    assert np.array_equal(fashion_mnist.read_idx(tmp_path / "labels"), SMALL.train_labels)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "starts with nothing"),
        (b"<html>sorry</html>", "not as an IDX file"),
        (b"\0\0\x0d\x03" + IMAGES[4:], "not as an IDX file"),  # floats
        (IMAGES[:10], "ends inside the header"),
        (IMAGES[:-1], f"{30 * 784 - 1} bytes of data where the header says {30 * 784}"),
        (IMAGES + b"\0", "more than"),
        (b"\0\0\x08\x03\0\0\0\x1f" + IMAGES[8:], "header says 24304"),
        (b"\0\0\x08\x03\0\0\0\0" + IMAGES[8:16], "N > 0"),
        (IMAGES[:8] + b"\0\0\0\x1d" + IMAGES[12:], "28 x 28"),
        (LABELS[:-1] + b"\x0a", "label 10"),
        (gzip.compress(IMAGES)[:-20], "end-of-stream"),
        (gzip.compress(IMAGES)[:-6] + b"\1\2\3\4\5\6", "CRC"),
        (b"\x1f\x8b" + b"\0" * 30, "compression method"),
        (gzip.compress(IMAGES[:-1]), "bytes of data where"),
    ],
)
def test_refuses_a_damaged_file_and_names_it(tmp_path, content, says):
    path = tmp_path / NAME
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        fashion_mnist.read_idx(path)
    assert says in caught.value.got
    assert str(path) in str(caught.value)
    assert "KIT_DATA_DIR" in caught.value.next_step


def test_refuses_a_directory_and_a_missing_file(tmp_path):
    for path, says in ((tmp_path, "directory"), (tmp_path / "no", "No such file")):
        with pytest.raises(DataError, match=says):
            fashion_mnist.read_idx(path)


# --- a folder of files ------------------------------------------------------------------------


def test_reads_a_folder_packed_or_not_with_the_same_hash(tmp_path):
    folder = idx_files.write_folder(tmp_path, SMALL)
    packed = fashion_mnist.load_images(folder, tmp_path)
    for name in fashion_mnist.FILES:
        content = gzip.decompress((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name.removesuffix(".gz")).write_bytes(content)
    plain = fashion_mnist.load_images(folder, tmp_path)
    assert packed.hash == plain.hash == SMALL.hash
    assert packed.source == "folder"
    assert plain.files["train-labels-idx1-ubyte"] == hashlib.sha256(LABELS).hexdigest()


def test_folder_is_read_again_only_when_a_file_in_it_has_changed(tmp_path):
    folder = idx_files.write_folder(tmp_path, SMALL)
    first = fashion_mnist.read_folder(folder)
    assert fashion_mnist.read_folder(folder) is first
    other = dataclasses.replace(SMALL, test_labels=SMALL.test_labels[::-1].copy())
    labels = gzip.compress(idx_files.labels_bytes(other.test_labels))
    new = folder / "new"
    new.write_bytes(labels)
    new.replace(folder / "t10k-labels-idx1-ubyte.gz")
    assert fashion_mnist.read_folder(folder).hash == other.hash


def test_the_hash_follows_every_array(tmp_path):
    changed = SMALL.test_labels.copy()
    changed[0] ^= 1
    arrays = SMALL.train_images, SMALL.train_labels, SMALL.test_images
    assert fashion_mnist.Dataset(*arrays, changed, "folder", {}).hash != SMALL.hash


def _short_labels(folder):
    content = gzip.compress(idx_files.labels_bytes(SMALL.train_labels[:-1]))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(content)


def _exchanged(folder):
    (folder / NAME).write_bytes(gzip.compress(LABELS))


def _missing(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()


def _a_directory(folder):
    (folder / NAME).unlink()
    (folder / NAME).mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_short_labels, "30 images and 29 labels"),
        (_exchanged, "exchanged"),
        (_missing, "no such file"),
        (_a_directory, "directory"),
    ],
)
def test_a_damaged_folder_is_an_error(tmp_path, damage, says):
    damage(idx_files.write_folder(tmp_path, SMALL))
    with pytest.raises(DataError) as caught:
        fashion_mnist.load_images(tmp_path, tmp_path / "cache")
    assert says in caught.value.got
    assert str(tmp_path) in caught.value.tried
    assert caught.value.next_step


def test_a_wrong_data_folder_is_described(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "csv").mkdir()
    for number in range(7):
        (tmp_path / "csv" / f"fashion-{number}.csv").write_text("")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / NAME).symlink_to("/nowhere/train")
    (tmp_path / "empty").mkdir()
    for name, got in (
        ("missing", "the folder does not exist"),
        ("file", "it is a file and not a folder"),
        (
            "csv",
            "it holds fashion-0.csv, fashion-1.csv, fashion-2.csv, fashion-3.csv, "
            "fashion-4.csv and 2 more",
        ),
        ("links", f"symbolic links to files that do not exist: {NAME}"),
        ("empty", "it holds nothing"),
    ):
        with pytest.raises(DataError) as caught:
            fashion_mnist.load_images(tmp_path / name, tmp_path)
        assert got in caught.value.got
        assert "dataset-fashion-mnist" in caught.value.next_step


def test_classes_without_images_are_named(tmp_path):
    assert SMALL.warning == ""
    only_bags = SMALL.train_labels == 8
    data = dataclasses.replace(
        SMALL,
        train_images=SMALL.train_images[only_bags],
        train_labels=SMALL.train_labels[only_bags],
    )
    assert data.warning.startswith("no training image of 9 classes: top, trouser, pullover")
    assert data.info().warning == data.warning
    assert data.info().test_items == 20


def test_striped_images_are_the_same_everywhere():
    # Computed once on x86-64 with numpy 2.4; only integers and a frozen generator are used.
    assert SMALL.hash == EXPECTED_SMALL_HASH
    assert striped_images(30, 20).hash == SMALL.hash
