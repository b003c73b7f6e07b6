"""One contract for every object store: a folder, and the sandbox's Ceph by S3 and by Swift."""

import dataclasses
import hashlib
import io
import os
import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from kit.base import (
    BucketTaken,
    DataError,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    ObjectDamaged,
    ObjectTooLarge,
    UsageError,
)
from kit.base.settings import Store, load
from kit.store import swift as store_swift
from kit.store.errors import Patience, persist
from kit.store.folder import DirectoryStore
from kit.store.keystone import keystone_for
from kit.store.objects import check_bucket, check_key
from kit.store.opening import bar, bucket_name, get_many, light, open_store, put_many
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore

REAL = [pytest.param(kind, marks=pytest.mark.sandbox) for kind in ("s3", "swift")]
KINDS = ["directory", *REAL]
LARGE = 40_000_001  # bytes: three parts by S3, the last one short
SIZES = [0, 1, 5_000, LARGE]


def empty(store):
    for row in list(store.list()):
        store.delete(row.key)


@pytest.fixture(scope="module")
def opened(request, tmp_path_factory):
    """A function: open a fresh bucket (or that of another store) by a kind of store."""
    made = []

    def one(kind, bucket=""):
        bucket = bucket or f"test-{uuid.uuid4().hex[:12]}"
        if kind == "directory":
            made.append(DirectoryStore(bucket, tmp_path_factory.getbasetemp() / "stores"))
        else:
            request.getfixturevalue("sandbox")
            made.append(open_store(load("sandbox"), bucket, kind))
        made[-1].ensure_bucket()
        return made[-1]

    yield one
    for store in made:
        try:
            empty(store)
        except NoSuchBucket:
            continue
        store.delete_bucket()


@pytest.fixture(scope="module", params=KINDS)
def shared(request, opened):
    """One bucket of each kind for all tests that leave it as they found it."""
    return opened(request.param)


@pytest.fixture
def store(shared):
    yield shared
    empty(shared)


def some(size, seed=0):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("form", ["bytes", "path", "open file", "in memory", "from the middle"])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_is_got_back(store, size, form, tmp_path):
    content, path = some(size), tmp_path / "data"
    path.write_bytes(b"skip" * (form == "from the middle") + content)
    with path.open("rb") as stream:
        stream.seek(4 if form == "from the middle" else 0)
        forms = {"bytes": content, "path": path, "in memory": io.BytesIO(content)}
        moved = []
        info = store.put("a/file", forms.get(form, stream), progress=moved.append)
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


BAD_KEYS = ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\nb", "a\x00", "\x7f", "\ud800",
            "ä" * 513]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_bad_key_is_refused_before_anything_is_done(store, key, tmp_path):
    for call in (
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.get(key, 1, 2),
        lambda: store.get_file(key, tmp_path / "x"),
        lambda: store.stat(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(UsageError, match="cannot be the key of an object"):
            call()
    assert list(store.list()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 99), (10, 20), (99, 100), (50, None), (7, 7), (90, 1000)]
)
def test_a_part_is_what_a_slice_gives(store, start, end):
    content = some(100)
    store.put("a", content)
    assert store.get("a", start, end) == content[start:end]


@pytest.mark.parametrize(("start", "end"), [(100, None), (200, 300), (-1, None), (5, 4)])
def test_a_part_outside_the_object_is_refused(store, start, end):
    store.put("a", some(100))
    with pytest.raises(UsageError):
        store.get("a", start, end)


def test_an_object_that_is_not_there_has_its_own_error(store, tmp_path):
    for call in (
        lambda: store.get("a/nope"),
        lambda: store.stat("a/nope"),
        lambda: store.get("a/nope", 2, 5),
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
    monkeypatch.setattr(store_swift, "PAGE", 100)
    keys = [f"{'äöz'[n % 3]}/{n:04}" for n in range(1003)]
    put_many(store, ((key, b"") for key in keys))
    assert [row.key for row in store.list()] == sorted(keys, key=str.encode)
    assert len(list(store.list("z/"))) == 334


def test_many_small_objects_come_back_in_order(store):
    objects = [(f"n/{n}", some(100, n)) for n in range(60)]
    assert [info.key for info in put_many(store, objects)] == [key for key, _ in objects]
    assert get_many(store, [key for key, _ in objects]) == objects
    with pytest.raises(NoSuchObject, match="nope"):
        get_many(store, ["n/1", "nope"])
    with pytest.raises(UsageError):
        put_many(store, [("a", b""), ("a//b", b"")])


def test_threads_share_a_store(store):
    content = some(20_000_000)

    def one(number):
        store.put(f"t/{number}", content)
        return store.get(f"t/{number}") == content

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(4)))


def test_a_wrong_expectation_of_the_hash_is_an_error(store, tmp_path):
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

    with pytest.raises(DataError, match="changed while it was put"):
        store.put("log", path, progress=write)


def test_data_that_cannot_be_read_is_named(store, tmp_path):
    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe, pytest.raises(UsageError, match="cannot put a stream"):
        store.put("a", pipe)
    for path in (tmp_path / "nope", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            store.put("a", path)
    store.put("a", b"x")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        store.get_file("a", tmp_path / "file" / "below")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_is_made_once_and_removed_only_when_empty(opened, kind):
    store = opened(kind)
    store.ensure_bucket()
    store.put("a", b"x")
    with pytest.raises(KitError, match="empty"):
        store.delete_bucket()
    store.delete("a")
    store.delete_bucket()
    store.delete_bucket()
    for call in (lambda: store.put("a", b""), lambda: store.get("a"), lambda: list(store.list())):
        with pytest.raises(NoSuchBucket, match=store.bucket):
            call()


BAD_BUCKETS = ["", "ab", "a" * 64, "A-b", "a_b", "-ab", "ab-", "a..b", "a/b", "äbc", "10.0.0.1",
               "a b"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_BUCKETS)
def test_a_bucket_name_that_is_not_legal_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="cannot be the name of a bucket"):
        DirectoryStore(name, tmp_path).ensure_bucket()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["abc", "a-b.c", "0" * 63, "10.0.0.1a"])
def test_legal_names_are_taken(name):
    assert check_bucket(name) == name
    assert check_key(name) == name


def foreign(store, key, content, sha256):
    """Put an object's bytes without the kit, with this hash beside them."""
    if isinstance(store, DirectoryStore):
        path = store.folder / key
        target = path.parent / os.readlink(path) if sha256 else path
        if not sha256:
            path.unlink()
        target.write_bytes(content)
    elif isinstance(store, S3Store):
        metadata = {"sha256": sha256} if sha256 else {}
        store._s3.put_object(Bucket=store.bucket, Key=key, Body=content, Metadata=metadata)
    else:
        headers = {"x-object-meta-sha256": sha256} if sha256 else {}
        store._call(
            "put",
            lambda client, **where: client.put_object(
                name=key, contents=content, headers=headers, **where
            ),
        )


def test_bytes_changed_behind_the_kits_back_are_not_taken(store, tmp_path):
    recorded = store.put("a", b"mine").sha256
    foreign(store, "a", b"evil", recorded)
    with pytest.raises(ObjectDamaged, match="not the ones that were put"):
        store.get("a")
    with pytest.raises(ObjectDamaged):
        store.get_file("a", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_nobody_hashed_can_be_read(store, tmp_path):
    store.put("a", b"mine")
    foreign(store, "a", b"theirs", "")
    assert (store.get("a"), store.stat("a").sha256) == (b"theirs", "")
    assert store.get_file("a", tmp_path / "x").size == 6
    with pytest.raises(ObjectDamaged):
        store.get("a", sha256=hashlib.sha256(b"mine").hexdigest())


@pytest.mark.sandbox
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("writer", "reader"), [("s3", "swift"), ("swift", "s3")])
def test_an_object_of_one_protocol_is_read_and_checked_by_the_other(
    opened, writer, reader, size, tmp_path
):
    first = opened(writer)
    second = opened(reader, first.bucket)
    key, content = "a b/ö", some(size)
    put = first.put(key, content)
    seen = second.stat(key)
    assert (seen.size, seen.sha256) == (put.size, put.sha256)
    assert second.get(key) == content
    second.get_file(key, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == content
    assert [row.key for row in second.list()] == [key]
    foreign(first, key, b"evil", put.sha256)
    with pytest.raises(ObjectDamaged):
        second.get(key)
    second.delete(key)
    with pytest.raises(NoSuchObject):
        first.stat(key)


@pytest.mark.sandbox
@pytest.mark.parametrize("kind", ["s3", "swift"])
def test_a_bucket_of_another_project_is_taken(opened, kind):
    mine = opened(kind)
    loaded = load("sandbox")
    login = keystone_for(loaded)
    login.login = dataclasses.replace(login.login, project="project_2005678")
    other = open_store(loaded, mine.bucket, kind, keystone=login)
    with pytest.raises(BucketTaken, match="another project has a bucket") as caught:
        other.ensure_bucket()
    assert "bucket_prefix" in caught.value.next_step


@pytest.mark.sandbox
def test_more_bytes_than_swift_takes_in_one_object_are_refused_at_once(opened, tmp_path):
    store = opened("swift")
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_swift, "LARGEST", 99)
        with pytest.raises(ObjectTooLarge, match="too many for one object") as caught:
            store.put("a", tmp_path / "sparse")
    assert 'kind = "s3"' in caught.value.next_step


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_listing_of_more_than_ten_thousand_objects_is_complete(opened):
    swift = opened("swift")
    keys = [f"{n:05}" for n in range(10_050)]
    put_many(swift, ((key, b"") for key in keys))
    for store in (swift, opened("s3", swift.bucket)):
        assert [row.key for row in store.list()] == keys
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(swift.delete, keys))


@pytest.mark.parametrize("other", ["a", "a/b/c"])
def test_in_a_folder_a_key_cannot_be_the_folder_of_another(opened, other):
    store = opened("directory")
    store.put("a/b", b"x")
    with pytest.raises(UsageError, match="not possible in a folder"):
        store.put(other, b"x")
    assert len(list((store.folder / ".objects").iterdir())) == 1
    store.delete("a/b")
    store.put(other, b"x")
    with pytest.raises(UsageError, match="cannot be a key in a folder"):
        store.put(".objects/x", b"")


def test_in_a_folder_readers_and_writers_never_see_half_an_object(opened):
    store = opened("directory")
    contents = [bytes([n]) * 100_000 for n in range(4)]
    store.put("a", contents[0])
    stop = threading.Event()

    def write(content):
        while not stop.is_set():
            store.put("a", content)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, content) for content in contents[:2]]
        for _ in range(300):
            assert store.get("a") in contents
        stop.set()
        assert [writer.result() for writer in writers] == [None, None]
    assert len(list((store.folder / ".objects").iterdir())) <= 20


def test_the_profile_decides_which_store_is_opened(tmp_path):
    env = tmp_path / ".env"
    names = ("CSC_USERNAME", "CSC_PASSWORD", "CSC_USER_DOMAIN_NAME", "CSC_PROJECT_NAME")
    env.write_text("".join(f"{name}=Anna.B\n" for name in names))
    env.chmod(0o600)
    loaded = load("sandbox", {"KIT_ENV_FILE": str(env)})
    for kind, cls in (("s3", S3Store), ("swift", SwiftStore), ("directory", DirectoryStore)):
        chosen = Store(kind, str(tmp_path), auth_url="http://127.0.0.1:9/v3")
        store = open_store(dataclasses.replace(loaded, store=chosen), "abc")
        assert isinstance(store, cls)
    assert light(store) is store
    with pytest.raises(UsageError, match="kind = 'ftp'"):
        open_store(dataclasses.replace(loaded, store=Store("ftp", "x")), "abc")
    with pytest.raises(UsageError, match="has no object store"):
        open_store(dataclasses.replace(loaded, store=None), "abc")
    assert bucket_name(loaded, "pipeline") == "integration-pipeline-s0-c0-u1-anna-b"
    assert bucket_name(loaded, "forwarder") == "integration-forwarder-s0-c0-u1"


def test_only_long_transfers_show_a_bar(capsys):
    with bar("short", 1000) as report:
        assert report is None
    with bar("long", 100 << 20) as report:
        report(100 << 20)
    assert "long: 100%" in capsys.readouterr().err


def test_patience_obeys_retry_after_backs_off_and_ends():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    patience = Patience(patience_s=60, sleep=sleep, clock=lambda: now[0])
    answers = iter(["7", *[""] * 100])

    def fail():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        persist(patience, fail, (TimeoutError,), lambda err: next(answers))
    assert slept[0] == 7
    assert 0.7 < slept[1] < 1.3
    assert max(slept) <= 10
    assert 45 < now[0] < 60
    slept.clear()
    with pytest.raises(TimeoutError):
        persist(patience, fail, (TimeoutError,), lambda err: None)
    assert slept == []


def test_patience_does_not_wait_longer_than_it_has():
    patience = Patience(patience_s=60, clock=lambda: 0.0)
    assert patience.delay(1, 0.0, "3600") is None
    assert patience.delay(1, 0.0, "soon") < 1
    assert patience.delay(30, 0.0) <= 10
    assert patience.delay(1, -100.0) is None


def test_opening_a_store_reads_no_heavy_library():
    import subprocess
    import sys

    code = (
        "import sys, kit.store.opening; print([m for m in ('boto3', 'keystoneauth1', 'swiftclient',"
    )
    code += " 'tqdm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
