"""The rules of names that hold in every store."""

import pytest

from kit.base import UsageError
from kit.store import FolderStore
from kit.store.objects import check_bucket, check_key

BAD_BUCKETS = [
    "",
    "ab",
    "a" * 64,
    "A-b",
    "a_b",
    "-ab",
    "ab-",
    "a..b",
    "a/b",
    "äbc",
    "10.0.0.1",
    "a b",
]


@pytest.mark.parametrize("name", BAD_BUCKETS)
def test_an_illegal_bucket_name_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="cannot be the name of a bucket"):
        FolderStore(name, tmp_path).ensure_bucket()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["abc", "a-b.c", "0" * 63, "10.0.0.1a"])
def test_legal_names_are_accepted(name):
    assert check_bucket(name) == name
    assert check_key(name) == name


@pytest.mark.parametrize("key", ["folder/", "a//b", "/a"])
def test_a_key_with_an_empty_segment_may_only_be_removed(key):
    assert check_key(key, removing=True) == key
    with pytest.raises(UsageError, match="empty segment"):
        check_key(key)
