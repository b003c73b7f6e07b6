"""What is peculiar to a folder as the object store."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.base import UsageError
from kit.store import FolderStore


@pytest.fixture
def store(tmp_path):
    store = FolderStore("bucket", tmp_path)
    store.ensure_bucket()
    return store


@pytest.mark.parametrize("other", ["a", "a/b/c"])
def test_a_key_cannot_be_the_folder_of_another(store, other):
    store.put("a/b", b"x")
    with pytest.raises(UsageError, match="not possible in a folder"):
        store.put(other, b"x")
    assert len(list((store.folder / ".objects").iterdir())) == 1
    store.delete("a/b")
    store.put(other, b"x")
    with pytest.raises(UsageError, match="cannot be a key in a folder"):
        store.put(".objects/x", b"")


def test_readers_never_see_half_an_object(store):
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
