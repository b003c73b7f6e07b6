"""Where the official files come from: the package, the cache, the mirrors, apt."""

import gzip
import hashlib
import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import idx_files
import pytest
from idx_files import striped_images

from kit.base import DataError
from kit.experiments.fashion_mnist import download
from kit.experiments.fashion_mnist import images as fashion_mnist

SMALL = striped_images(30, 20)


NAME = "train-images-idx3-ubyte.gz"


NOBODY = "http://127.0.0.1:9"  # the discard port: refused at once


class Mirror(http.server.ThreadingHTTPServer):
    """A server of `files`, with the faults that `faults` names, in order."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults, self.requests = files, [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        mirror, name = self.server, self.path.lstrip("/")
        mirror.requests.append(name)
        fault = mirror.faults.pop(0) if mirror.faults else ""
        if isinstance(fault, int):
            return self.send_error(fault)
        content = mirror.files[name]
        if fault == "wrong bytes":
            content = content[::-1]
        if fault == "a page":
            content = b"<html>log in to the network</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def official(monkeypatch):
    """The small data set is the official one, and waiting takes no time."""
    files = idx_files.four_files(SMALL)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(download, "CHECKSUMS", sums)
    monkeypatch.setattr(fashion_mnist, "OFFICIAL_HASH", SMALL.hash)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return files


@pytest.fixture
def mirror(official):
    server = Mirror(official)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_apt(tmp_path_factory, monkeypatch):
    """A machine whose apt-get has no package, until a test writes another one."""
    programs = tmp_path_factory.mktemp("programs")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return program(programs / "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def load(cache, *mirrors, package_dir=Path("/nowhere")):
    return fashion_mnist.load_images(
        None, cache, package_dir=package_dir, mirrors=mirrors or [NOBODY]
    )


def test_official_files_are_official_however_they_are_packed(tmp_path, official):
    folder = idx_files.write_folder(tmp_path / "data", SMALL)
    assert fashion_mnist.load_images(folder, tmp_path).source == "official"
    for name in fashion_mnist.FILES:
        content = gzip.decompress((folder / name).read_bytes())
        (folder / name).write_bytes(gzip.compress(content, 9, mtime=1))
    assert fashion_mnist.load_images(folder, tmp_path).source == "official"
    other = idx_files.write_folder(tmp_path / "other", striped_images(31, 20))
    assert fashion_mnist.load_images(other, tmp_path).source == "folder"


def test_downloads_once_and_then_reads_the_cache(tmp_path, mirror, capsys):
    data = load(tmp_path, mirror.url + "/")
    assert (data.source, data.hash) == ("official", SMALL.hash)
    assert data.title == "official 30 + 20"
    assert f"{NAME}:" in capsys.readouterr().err
    assert len(mirror.requests) == 4
    assert load(tmp_path).hash == data.hash
    names = sorted(path.name for path in (tmp_path / "fashion-mnist").iterdir())
    assert names == sorted(fashion_mnist.FILES)


def test_the_installed_package_is_used_before_the_mirrors(tmp_path, mirror):
    package = idx_files.write_folder(tmp_path / "package", SMALL)
    assert load(tmp_path / "cache", mirror.url, package_dir=package).source == "official"
    assert mirror.requests == []
    assert not (tmp_path / "cache").exists()


def test_a_package_folder_with_other_images_is_not_used(tmp_path, mirror):
    package = idx_files.write_folder(tmp_path / "package", striped_images(31, 20))
    assert load(tmp_path, mirror.url, package_dir=package).hash == SMALL.hash


@pytest.mark.parametrize("faults", [["cut"], ["cut", "cut"], [503, 503], ["", "wrong bytes", 500]])
def test_a_mirror_with_passing_faults_is_asked_again(tmp_path, mirror, faults):
    mirror.faults = faults
    assert load(tmp_path, mirror.url).hash == SMALL.hash


@pytest.mark.parametrize("fault", [404, 403, 503, "wrong bytes", "a page"])
def test_the_next_mirror_serves_what_the_first_does_not(tmp_path, mirror, fault):
    mirror.faults = [fault] * (1 + download.RETRIES)
    assert load(tmp_path, NOBODY, mirror.url, mirror.url).hash == SMALL.hash


@pytest.mark.parametrize(
    ("fault", "got"),
    [
        (403, "HTTP 403"),
        (404, "HTTP 404"),
        (500, "HTTP 500"),
        ("wrong bytes", "wrong checksum"),
        ("a page", "wrong checksum"),
        ("cut", "cut off"),
    ],
)
def test_any_answer_but_the_files_is_an_error_with_the_ways_out(tmp_path, mirror, fault, got):
    mirror.faults = [fault] * (1 + download.RETRIES)
    with pytest.raises(DataError, match=got) as caught:
        load(tmp_path, mirror.url)
    assert "Unable to locate package" in caught.value.got
    for way in ("KIT_DATA_DIR", "apt-get install", "mirrors", "Debian package"):
        assert way in caught.value.next_step
    assert not (tmp_path / "fashion-mnist" / NAME).exists()


def test_no_network_is_an_error_with_the_ways_out(tmp_path, official):
    with pytest.raises(DataError, match="no connection") as caught:
        load(tmp_path, NOBODY, NOBODY)
    assert "KIT_DATA_DIR" in caught.value.next_step


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, mirror):
    load(tmp_path, mirror.url)
    (tmp_path / "fashion-mnist" / NAME).write_bytes(b"rot")
    assert load(tmp_path, mirror.url).hash == SMALL.hash


def test_two_at_once_do_each_other_no_harm(tmp_path, mirror):
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load, tmp_path, mirror.url) for _ in "ab"]
    assert {done.result().hash for done in loads} == {SMALL.hash}


def test_a_cache_that_cannot_be_written_is_named(tmp_path, mirror):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="KIT_CACHE_DIR"):
        load(tmp_path / "file", mirror.url)


WITH_OWN_LISTS = """
case "$*" in
    "download dataset-fashion-mnist") echo "E: {problem}" >&2; exit 100 ;;
    update*Dir::State::lists=*/lists*) touch lists/read ;;
    "download dataset-fashion-mnist "*Dir::State::lists=*) [ -e lists/read ] && {{made}} ;;
esac"""


@pytest.mark.parametrize(
    "script",
    [
        '[ "$*" = "download dataset-fashion-mnist" ] && {made}',
        WITH_OWN_LISTS.format(problem="Unable to locate package dataset-fashion-mnist"),
        WITH_OWN_LISTS.format(problem="Failed to fetch http://x/y.deb  404  Not Found"),
    ],
    ids=["listed", "no lists", "old lists"],
)
def test_without_mirrors_the_package_is_fetched_by_apt(tmp_path, official, no_apt, script):
    folder = tmp_path / "root" / download.PACKAGE_DIR.relative_to("/")
    idx_files.write_folder(folder, SMALL)
    (tmp_path / "root" / "DEBIAN").mkdir()
    control = "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\n"
    control += "Maintainer: nobody <nobody@example.org>\nDescription: test\n"
    (tmp_path / "root" / "DEBIAN" / "control").write_text(control)
    made = f"dpkg-deb -b {tmp_path / 'root'} dataset-fashion-mnist_1_all.deb"
    program(no_apt, script.format(made=made))
    data = load(tmp_path / "cache")
    assert data.source == "official"
    names = sorted(path.name for path in (tmp_path / "cache" / "fashion-mnist").iterdir())
    assert names == sorted(fashion_mnist.FILES)
    assert load(tmp_path / "cache").hash == data.hash


@pytest.mark.parametrize(
    ("script", "got"),
    [
        ("exit 0", "it left no package"),
        ("echo text >dataset-fashion-mnist_1_all.deb", "dpkg-deb"),
        ("echo 'E: not authenticated' >&2; exit 100", "not authenticated"),
    ],
)
def test_a_package_that_cannot_be_used_is_an_error(tmp_path, official, no_apt, script, got):
    program(no_apt, script)
    with pytest.raises(DataError, match=got):
        load(tmp_path)


def test_the_names_and_checksums_are_those_of_the_publisher():
    assert len(fashion_mnist.LABELS) == 10
    assert tuple(download.CHECKSUMS) == fashion_mnist.FILES
    assert download.CHECKSUMS["t10k-images-idx3-ubyte.gz"].endswith("f03db6a073")
    assert all(len(checksum) == 64 for checksum in download.CHECKSUMS.values()), "SHA-256"
    assert [m.split(":")[0] for m in download.MIRRORS] == ["https", "http"]
