"""Reading, downloading and standing in for Fashion-MNIST."""

import gzip
import hashlib
import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import idx_files
import numpy as np
import pytest

from kit.base import DataError, Unreachable
from kit.experiments.fashion_mnist import data as fashion_mnist
from kit.experiments.fashion_mnist import download

SMALL = fashion_mnist.stand_in(30, 20)
IMAGES = idx_files.images_bytes(SMALL.train_images)
LABELS = idx_files.labels_bytes(SMALL.train_labels)
NAME = "train-images-idx3-ubyte.gz"
EXPECTED_SMALL_HASH = "ec68600b6e2abb328dcef0b6306eef792daa38ab0608fe48bef41d94a01531af"
NOBODY = "http://127.0.0.1:9"  # the discard port: refused at once


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
    packed = fashion_mnist.load(folder, tmp_path)
    for name in fashion_mnist.FILES:
        content = gzip.decompress((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name.removesuffix(".gz")).write_bytes(content)
    plain = fashion_mnist.load(folder, tmp_path)
    assert packed.hash == plain.hash == SMALL.hash
    assert (packed.source, packed.warning) == ("folder", "")
    assert plain.files["train-labels-idx1-ubyte"] == hashlib.sha256(LABELS).hexdigest()


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
def test_a_damaged_folder_is_an_error_never_the_stand_in(tmp_path, damage, says):
    damage(idx_files.write_folder(tmp_path, SMALL))
    with pytest.raises(DataError) as caught:
        fashion_mnist.load(tmp_path, tmp_path / "cache", mirrors=[NOBODY])
    assert says in caught.value.got
    assert str(tmp_path) in caught.value.tried
    assert caught.value.next_step


# --- the stand-in -----------------------------------------------------------------------------


def test_no_network_and_no_cache_lead_to_a_full_size_stand_in_that_says_so(tmp_path):
    clock = time.perf_counter()
    data = fashion_mnist.load(None, tmp_path, mirrors=[NOBODY, NOBODY])
    assert time.perf_counter() - clock < 15
    assert data.train_images.shape == (60_000, 28, 28)
    assert data.test_labels.shape == (10_000,)
    assert data.source == "synthetic"
    assert "SYNTHETIC" in data.warning
    assert set(np.bincount(data.train_labels)) == {6000}
    assert len(data.files) == 4


def test_the_stand_in_is_the_same_everywhere():
    # Computed once on x86-64 with numpy 2.4; only integers and a frozen generator are used.
    assert SMALL.hash == EXPECTED_SMALL_HASH
    assert fashion_mnist.stand_in(30, 20).hash == SMALL.hash


# --- the download -----------------------------------------------------------------------------


class Mirror(http.server.ThreadingHTTPServer):
    """A server of `files` with Range, and with the faults that `faults` names, in order."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults, self.asked, self.slow = files, [], [], 0.0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        mirror = self.server
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        mirror.asked.append((name, wanted))
        fault = mirror.faults.pop(0) if mirror.faults else ""
        time.sleep(mirror.slow)
        if isinstance(fault, int):
            return self.send_error(fault)
        content, start = mirror.files[name], 0
        if wanted and fault != "no ranges":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if fault == "wrong bytes":
            content = content[::-1]
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault == "called an encoding":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(monkeypatch):
    files = idx_files.four_files(SMALL)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", sums)
    monkeypatch.setattr(download, "BACK_OFF_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Mirror(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_downloads_once_with_progress_and_then_reads_the_cache(tmp_path, mirror, capsys):
    data = fashion_mnist.load(None, tmp_path, mirrors=[mirror.url + "/"])
    assert (data.source, data.hash) == ("official", SMALL.hash)
    assert f"{NAME}:" in capsys.readouterr().err
    assert len(mirror.asked) == 4
    again = fashion_mnist.load(None, tmp_path, mirrors=[NOBODY])
    assert again.hash == data.hash
    assert not list((tmp_path / "fashion-mnist").glob("*.part"))


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        (["cut"], 5),
        (["cut", "cut", "cut"], 7),
        (["cut", "no ranges"], 5),
        ([503, 503], 6),
        (["called an encoding"], 4),
        (["", "cut", 503], 6),
    ],
)
def test_gets_over_faults_of_a_mirror(tmp_path, mirror, faults, requests):
    mirror.faults = faults
    assert fashion_mnist.load(None, tmp_path, mirrors=[mirror.url]).hash == SMALL.hash
    assert len(mirror.asked) == requests


def test_after_a_cut_only_the_rest_is_asked_for(tmp_path, mirror):
    mirror.faults = ["cut"]
    fashion_mnist.load(None, tmp_path, mirrors=[mirror.url])
    half = len(mirror.files[NAME]) // 2
    assert mirror.asked[:2] == [(NAME, None), (NAME, f"bytes={half}-")]


def test_a_download_that_stopped_goes_on_in_the_next_run(tmp_path, mirror):
    mirror.faults = ["cut"] * download.TRIES_PER_MIRROR
    with pytest.raises(DataError, match="goes on where it stopped"):
        fashion_mnist.load(None, tmp_path, mirrors=[mirror.url])
    mirror.asked.clear()
    assert fashion_mnist.load(None, tmp_path, mirrors=[mirror.url]).hash == SMALL.hash
    assert mirror.asked[0][1].startswith("bytes=")


@pytest.mark.parametrize("fault", [404, 403, 503, "wrong bytes"])
def test_the_next_mirror_serves_what_the_first_does_not(tmp_path, mirror, fault):
    mirror.faults = [fault] * (download.TRIES_PER_MIRROR if fault == 503 else 1)
    mirrors = [NOBODY, mirror.url, mirror.url]
    assert fashion_mnist.load(None, tmp_path, mirrors=mirrors).hash == SMALL.hash


def test_wrong_bytes_everywhere_are_kept_aside_and_never_used(tmp_path, mirror):
    mirror.faults = ["wrong bytes"] * 2
    with pytest.raises(DataError, match="wrong checksum"):
        fashion_mnist.load(None, tmp_path, mirrors=[mirror.url, mirror.url])
    folder = tmp_path / "fashion-mnist"
    assert (folder / f"{NAME}.bad-checksum").read_bytes() == mirror.files[NAME][::-1]
    assert not (folder / NAME).exists()
    with pytest.raises(DataError, match="bad-checksum"):  # not "no network, so the stand-in"
        fashion_mnist.load(None, tmp_path, mirrors=[NOBODY])


def test_a_stale_beginning_of_another_copy_is_thrown_away(tmp_path, mirror):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(b"of another copy")
    assert fashion_mnist.load(None, tmp_path, mirrors=[mirror.url]).hash == SMALL.hash


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, mirror):
    fashion_mnist.load(None, tmp_path, mirrors=[mirror.url])
    (tmp_path / "fashion-mnist" / NAME).write_bytes(b"rot")
    assert fashion_mnist.load(None, tmp_path, mirrors=[mirror.url]).hash == SMALL.hash
    assert (tmp_path / "fashion-mnist" / f"{NAME}.bad-checksum").read_bytes() == b"rot"


def test_mirrors_without_the_file_are_an_error_and_not_the_stand_in(tmp_path, mirror):
    mirror.faults = [404]
    with pytest.raises(DataError, match="HTTP 404"):
        fashion_mnist.load(None, tmp_path, mirrors=[mirror.url])


def test_two_at_once_do_each_other_no_harm(tmp_path, mirror):
    mirror.slow = 0.05
    with ThreadPoolExecutor(2) as pool:
        loads = [
            pool.submit(fashion_mnist.load, None, tmp_path, mirrors=[mirror.url]) for _ in "ab"
        ]
    assert {done.result().hash for done in loads} == {SMALL.hash}
    assert len(mirror.asked) == 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="KIT_CACHE_DIR"):
        fashion_mnist.load(None, tmp_path / "file", mirrors=[NOBODY])


def test_nobody_answering_is_told_apart_from_wrong_answers(tmp_path):
    with pytest.raises(Unreachable, match="no connection"):
        download.bring({"a": "0" * 32}, tmp_path, [NOBODY])


def test_the_names_and_checksums_are_those_of_the_publisher():
    assert len(fashion_mnist.LABELS) == 10
    assert fashion_mnist.FILES["t10k-images-idx3-ubyte.gz"] == "bef4ecab320f06d8554ea6380940ec79"
    assert [m.split(":")[0] for m in fashion_mnist.MIRRORS] == ["http", "https"]
