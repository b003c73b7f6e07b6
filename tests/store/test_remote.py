"""The owner of a bucket is checked before the bucket is used, and whenever it appears."""

import pytest
from planned_store import BODY, GOOD, code, no_objects

from kit.base import BucketTaken, NoSuchBucket


def test_a_bucket_that_is_not_this_projects_is_neither_read_nor_written(store, server, tmp_path):
    server.buckets, server.plan = ["other"], [(200, {}, no_objects(store))]
    for call in (
        lambda: store.get("a"),
        lambda: store.put("a", BODY),
        lambda: store.put("a", BODY, make_bucket=True),
        lambda: list(store.list()),
        lambda: store.stat("a"),
        lambda: store.delete("a"),
        lambda: store.get_file("a", tmp_path / "x"),
    ):
        with pytest.raises(BucketTaken, match="another project has a bucket abc"):
            call()
    assert {command for command, _, _ in server.seen} == {"GET"}  # whether it exists at all


def test_a_bucket_that_appears_later_is_checked_again(store, server):
    server.plan = [(200, GOOD, BODY)]
    assert store.get("a") == BODY
    server.plan = [(404, {}, code("NoSuchBucket"))]
    with pytest.raises(NoSuchBucket):
        store.get("a")
    server.buckets, server.plan = [], [(200, {}, no_objects(store))]
    with pytest.raises(BucketTaken):
        store.get("a")
