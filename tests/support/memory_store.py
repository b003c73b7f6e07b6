"""An object store in memory, for unit tests; it passes the stores' contract tests."""

import hashlib
from datetime import UTC, datetime

from kit.base import BucketTaken, NoSuchBucket, NoSuchObject
from kit.store import ObjectInfo, ObjectStore


class MemoryStore(ObjectStore):
    """Objects by key; `calls` counts requests, `away` makes each raise it, `missing`: no bucket."""

    def __init__(self, bucket="memory", missing=False):
        self.bucket, self.missing = bucket, missing
        self.objects, self.calls, self.away = {}, [], None
        self.recorded, self.modified = {}, {}
        self.taken = False  # whether the bucket belongs to another project

    def _asked(self, what):
        self.calls.append(what)
        if self.away:
            raise self.away
        if self.missing and what != "ensure_bucket":
            raise NoSuchBucket(f"{what}: there is no bucket {self.bucket}")

    def _put(self, key, body, progress):
        self._asked("put")
        self.objects[key] = body.stream.read()
        if progress:
            progress(body.size)
        self.recorded[key], self.modified[key] = body.sha256, datetime.now(UTC)

    def _get(self, key):
        self._asked("get")
        return self._content(key), self.recorded.get(key, "")

    def _download(self, key, new, progress):
        self._asked("get")
        new.write_bytes(self._content(key))
        if progress:
            progress(len(self.objects[key]))
        return self._info(key)

    def _stat(self, key):
        self._asked("stat")
        self._content(key)
        return self._info(key)

    def list(self, prefix=""):
        self._asked("list")
        keys = sorted((key for key in self.objects if key.startswith(prefix)), key=str.encode)
        for key in keys:
            info = self._info(key)
            yield ObjectInfo(key, info.size, "", info.modified)

    def _delete(self, key):
        self._asked("delete")
        for table in (self.objects, self.recorded, self.modified):
            table.pop(key, None)

    def _make_bucket(self):
        if self.taken:
            raise BucketTaken(f"use the bucket {self.bucket}", "another project has it")
        self._asked("ensure_bucket")
        self.missing = False

    def _content(self, key):
        if key not in self.objects:
            raise NoSuchObject(f"get {key}: it is not there")
        return self.objects[key]

    def _info(self, key):
        """Tests also fill `objects` themselves: such an object has the hash of its content."""
        content = self.objects[key]
        recorded = self.recorded.get(key, hashlib.sha256(content).hexdigest())
        return ObjectInfo(key, len(content), recorded, self.modified.get(key, datetime.now(UTC)))
