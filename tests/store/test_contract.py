"""One contract for every object store: folder, memory, and the sandbox's Ceph by S3 and Swift."""

import hashlib
import os
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from buckets import as_swift, empty, remove_bucket
from memory_store import MemoryStore

from kit.base import (
    BucketTaken,
    DataError,
    NoSuchBucket,
    NoSuchObject,
    ObjectDamaged,
    ObjectTooLarge,
    UsageError,
)
from kit.base.settings import load
from kit.store import FolderStore, Keystone, keystone_for, open_store
from kit.store import swift as swift_module
from kit.store.s3 import S3Store

REAL = [pytest.param(kind, marks=pytest.mark.sandbox) for kind in ("s3", "swift")]
KINDS = ["directory", "memory", *REAL]
LARGE = 40_000_001  # bytes: three parts by S3, the last one short
SIZES = [0, 1, 5_000, LARGE]


@pytest.fixture(scope="module")
def opened(request, tmp_path_factory):
    """Return a function that opens a bucket by a kind of store, without making it."""
    stores = []

    def open_bucket(kind, bucket=""):
        bucket = bucket or f"test-{uuid.uuid4().hex[:12]}"
        if kind == "memory":
            return MemoryStore(bucket, missing=True)
        if kind == "directory":
            stores.append(FolderStore(bucket, tmp_path_factory.getbasetemp() / "stores"))
        else:
            request.getfixturevalue("sandbox")
            stores.append(open_store(load("sandbox"), bucket, kind))
        return stores[-1]

    yield open_bucket
    for store in stores:
        remove_bucket(store)


@pytest.fixture(scope="module")
def made(opened):
    """Return a function that opens a fresh bucket (or another store's) and makes it."""

    def make_bucket(kind, bucket=""):
        store = opened(kind, bucket)
        store.ensure_bucket()
        return store

    return make_bucket


@pytest.fixture(scope="module", params=KINDS)
def shared(request, made):
    """One bucket of each kind for all tests that leave it as they found it."""
    return made(request.param)


@pytest.fixture
def store(shared):
    yield shared
    empty(shared)


def some(size, seed=0):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("form", ["bytes", "file"])
@pytest.mark.parametrize("size", SIZES)
def test_get_returns_what_was_put(store, size, form, tmp_path):
    content, path = some(size), tmp_path / "data"
    path.write_bytes(content)
    moved = []
    info = store.put("a/file", content if form == "bytes" else path, progress=moved.append)
    assert (info.size, info.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert sum(moved) == size
    assert store.get("a/file") == content
    moved.clear()
    got = store.get_file("a/file", tmp_path / "new" / "copy", progress=moved.append)
    assert (tmp_path / "new" / "copy").read_bytes() == content
    assert (got.size, got.sha256, sum(moved)) == (size, info.sha256, size)


KEYS = [
    "a",
    "a b/c d",
    "ä/ö €/日本",
    "a+b&c=d?e#f",
    "100%/x%2Fy",
    "..a/b..",
    "'\"\\`$(x)",
    "é" * 100,
]


@pytest.mark.parametrize("key", KEYS)
def test_keys_with_blanks_signs_and_unicode_name_one_object(store, key):
    store.put(key, key.encode())
    assert store.get(key) == key.encode()
    assert [row.key for row in store.list()] == [key]
    assert store.stat(key).key == key
    store.delete(key)
    assert list(store.list()) == []


BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    "./a",
    "a/.",
    "a\nb",
    "a\x00",
    "\x7f",
    "\ud800",
    "ä" * 513,
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_bad_key_is_refused_before_any_request(store, key, tmp_path):
    calls = [
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.get_file(key, tmp_path / "x"),
        lambda: store.stat(key),
    ]
    if key not in ("/a", "a/", "a//b"):  # these may be removed: other programs write them
        calls.append(lambda: store.delete(key))
    for call in calls:
        with pytest.raises(UsageError, match="cannot be the key of an object"):
            call()
    assert list(store.list()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_marker_of_another_program_can_be_removed(store):
    store.put("folder", b"an object beside it")
    if not isinstance(store, FolderStore | MemoryStore):
        write_directly(store, "folder/", b"", "")
        assert [row.key for row in store.list()] == ["folder", "folder/"]
    store.delete("folder/")
    assert [row.key for row in store.list()] == ["folder"]


def test_a_missing_object_has_its_own_error(store, tmp_path):
    for call in (
        lambda: store.get("a/nope"),
        lambda: store.stat("a/nope"),
        lambda: store.get_file("a/nope", tmp_path / "x"),
    ):
        with pytest.raises(NoSuchObject, match="a/nope"):
            call()
    assert list(tmp_path.iterdir()) == []
    store.delete("a/nope")


def test_an_object_is_replaced_and_listed_with_size_and_time(store):
    store.put("b/1", b"old")
    store.put("b/1", b"newer")
    store.put("b/2", b"")
    store.put("a", b"x")
    rows = list(store.list())
    assert [(row.key, row.size) for row in rows] == [("a", 1), ("b/1", 5), ("b/2", 0)]
    assert [row.key for row in store.list("b/")] == ["b/1", "b/2"]
    assert list(store.list("c")) == []
    assert store.get("b/1") == b"newer"
    for row in (*rows, store.stat("a")):
        assert abs(datetime.now(UTC) - row.modified) < timedelta(minutes=1)


def test_a_listing_is_sorted_and_complete_over_many_pages(store, monkeypatch):
    monkeypatch.setattr(swift_module, "PAGE_ROWS", 100)
    keys = [f"{'äöz'[n % 3]}/{n:04}" for n in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [row.key for row in store.list()] == sorted(keys, key=str.encode)
    assert len(list(store.list("z/"))) == 334


def test_threads_share_a_store(store):
    content = some(20_000_000)

    def put_and_get(number):
        store.put(f"t/{number}", content)
        return store.get(f"t/{number}") == content

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(put_and_get, range(4)))


def test_content_with_another_hash_than_expected_is_refused(store, tmp_path):
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ObjectDamaged):
        store.put("a", b"data", sha256=other)
    assert list(store.list()) == []
    store.put("a", b"data", sha256=hashlib.sha256(b"data").hexdigest())
    with pytest.raises(ObjectDamaged):
        store.get("a", sha256=other)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ObjectDamaged):
        store.get_file("a", tmp_path / "x", sha256=other)
    assert (tmp_path / "x").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_that_changes_while_it_is_put_is_an_error(store, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(some(LARGE))

    def write(_):
        if path.stat().st_size == LARGE:
            with path.open("ab") as stream:
                stream.write(b"more")

    with pytest.raises(DataError, match="log changed while it was put"):
        store.put("log", path, progress=write)


def test_an_unreadable_file_is_named(store, tmp_path):
    for path in (tmp_path / "nope", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            store.put("a", path)
    store.put("a", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        store.get_file("a", tmp_path / "file" / "below")


def test_get_file_replaces_regular_files_only(store, tmp_path):
    store.put("a", b"content")
    mine, folder, fifo = tmp_path / "mine", tmp_path / "folder", tmp_path / "fifo"
    mine.write_text("mine")
    link, broken = tmp_path / "link", tmp_path / "broken"
    link.symlink_to(mine)
    broken.symlink_to("nowhere")
    folder.mkdir()
    os.mkfifo(fifo)
    for path in (link, broken, folder, fifo):
        with pytest.raises(UsageError, match="download a to") as caught:
            store.get_file("a", path)
        assert "name a" in caught.value.next_step
    assert mine.read_text() == "mine"
    assert link.is_symlink()
    assert broken.is_symlink()
    assert fifo.is_fifo()
    store.get_file("a", mine)
    assert mine.read_bytes() == b"content"


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_bucket_is_made_on_demand_and_only_then(opened, kind):
    store = opened(kind)
    for call in (lambda: store.put("a", b""), lambda: store.get("a"), lambda: list(store.list())):
        with pytest.raises(NoSuchBucket, match=store.bucket):
            call()
    store.put("a", b"x", make_bucket=True)
    assert store.get("a") == b"x"
    store.ensure_bucket()
    store.put("b", b"y", make_bucket=True)
    assert [row.key for row in store.list()] == ["a", "b"]


def write_directly(store, key, content, sha256):
    """Put an object's bytes without the kit, with this hash beside them."""
    if isinstance(store, FolderStore):
        path = store.folder / key
        target = path.parent / os.readlink(path) if sha256 else path
        if not sha256:
            path.unlink()
        target.write_bytes(content)
    elif isinstance(store, MemoryStore):
        store.objects[key], store.recorded[key] = content, sha256
    elif isinstance(store, S3Store):
        metadata = {"sha256": sha256} if sha256 else {}
        store._client.put_object(Bucket=store.bucket, Key=key, Body=content, Metadata=metadata)
    else:
        headers = {"x-object-meta-sha256": sha256} if sha256 else {}
        with store._request("put") as swift:
            swift.put_object(store.bucket, key, content, headers=headers)


def test_bytes_changed_by_another_program_are_not_accepted(store, tmp_path):
    recorded = store.put("a", b"mine").sha256
    write_directly(store, "a", b"evil", recorded)
    with pytest.raises(ObjectDamaged, match="not the ones that were put"):
        store.get("a")
    with pytest.raises(ObjectDamaged):
        store.get_file("a", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_object_without_a_recorded_hash_can_be_read(store, tmp_path):
    store.put("a", b"mine")
    write_directly(store, "a", b"theirs", "")
    assert (store.get("a"), store.stat("a").sha256) == (b"theirs", "")
    assert store.get_file("a", tmp_path / "x").size == 6
    with pytest.raises(ObjectDamaged):
        store.get("a", sha256=hashlib.sha256(b"mine").hexdigest())


def test_a_hash_in_capitals_is_the_same_hash(store, tmp_path):
    recorded = store.put("a", b"mine").sha256
    if not isinstance(store, FolderStore):  # a folder has the hash in the name of a file
        write_directly(store, "a", b"mine", recorded.upper())
    assert store.get("a") == b"mine"
    assert store.get("a", sha256=recorded.upper()) == b"mine"
    store.get_file("a", tmp_path / "x", sha256=recorded.upper())


@pytest.mark.sandbox
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("writer", "reader"), [("s3", "swift"), ("swift", "s3")])
def test_an_object_of_one_protocol_is_read_and_checked_by_the_other(
    made, writer, reader, size, tmp_path
):
    first = made(writer)
    second = made(reader, first.bucket)
    key, content = "a b/ö", some(size)
    put = first.put(key, content)
    seen = second.stat(key)
    assert (seen.size, seen.sha256) == (put.size, put.sha256)
    assert second.get(key) == content
    second.get_file(key, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    assert [row.key for row in second.list()] == [key]
    write_directly(first, key, b"evil", put.sha256)
    with pytest.raises(ObjectDamaged):
        second.get(key)
    second.delete(key)
    with pytest.raises(NoSuchObject):
        first.stat(key)


@pytest.fixture
def other_project():
    """A login of the same person in another project."""
    mine = keystone_for(load("sandbox"))
    login = replace(mine.login, project="project_2005678")
    return Keystone(login, mine.auth_url, mine.ca_file)


@pytest.mark.sandbox
@pytest.mark.parametrize("kind", ["s3", "swift"])
def test_a_bucket_of_another_project_is_refused_even_if_it_is_open(made, kind, other_project):
    mine = made(kind)
    mine.put("a", b"x")
    public = {"X-Container-Read": ".r:*,.rlistings", "X-Container-Write": "*:*"}
    swift = as_swift(mine)
    with swift._request("open") as connection:
        connection.post_container(mine.bucket, public)
    other = open_store(load("sandbox"), mine.bucket, kind, keystone=other_project)
    for call in (
        other.ensure_bucket,
        lambda: other.get("a"),
        lambda: other.put("b", b"y", make_bucket=True),
        lambda: list(other.list()),
        lambda: other.delete("a"),
    ):
        with pytest.raises((BucketTaken,), match="another project has a bucket") as caught:
            call()
        assert "bucket_prefix" in caught.value.next_step
    assert [row.key for row in mine.list()] == ["a"]


@pytest.mark.sandbox
def test_more_bytes_than_swift_takes_in_one_object_are_refused(made, tmp_path, monkeypatch):
    store = made("swift")
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(100)
    monkeypatch.setattr(swift_module, "MAX_BYTES", 99)
    with pytest.raises(ObjectTooLarge, match="too many for one object") as caught:
        store.put("a", tmp_path / "sparse")
    assert 'kind = "s3"' in caught.value.next_step


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_listing_of_more_than_ten_thousand_objects_is_complete(made):
    swift = made("swift")
    keys = [f"{n:05}" for n in range(10_050)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: swift.put(key, b""), keys))
    for store in (swift, made("s3", swift.bucket)):
        assert [row.key for row in store.list()] == keys
