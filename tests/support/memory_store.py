"""An object store in memory, for unit tests: the part of the protocol that runs' objects need."""

import hashlib
from dataclasses import dataclass

from kit.base import NoSuchObject, ObjectDamaged


@dataclass(frozen=True)
class Found:
    key: str
    size: int
    sha256: str


class MemoryStore:
    """Objects by key; `calls` counts what was asked, `away` makes every call fail with it."""

    def __init__(self):
        self.objects, self.calls, self.away = {}, [], None

    def _asked(self, what):
        self.calls.append(what)
        if self.away:
            raise self.away

    def put(self, key, content):
        self._asked("put")
        self.objects[key] = content.read_bytes() if hasattr(content, "read_bytes") else content
        return self.stat(key)

    def get(self, key, *, sha256=""):
        self._asked("get")
        if key not in self.objects:
            raise NoSuchObject(f"get {key}")
        if sha256 and hashlib.sha256(self.objects[key]).hexdigest() != sha256:
            raise ObjectDamaged(f"get {key}")
        return self.objects[key]

    def stat(self, key):
        self._asked("stat")
        if key not in self.objects:
            raise NoSuchObject(f"stat {key}")
        content = self.objects[key]
        return Found(key, len(content), hashlib.sha256(content).hexdigest())

    def list(self, prefix=""):
        self._asked("list")
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        return [Found(key, len(self.objects[key]), "") for key in keys]

    def delete(self, key):
        self._asked("delete")
        self.objects.pop(key, None)
