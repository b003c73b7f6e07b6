"""A folder as an object store: for one's own Slurm without any cloud, and for unit tests.

`<root>/<bucket>/<key>` is a symbolic link to `<root>/<bucket>/.objects/<sha256>.<random>`, so
that an object and its hash appear in one step, and a reader keeps what it has opened. Two writers
of one key at the same time may leave a file there that no link names.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kit.base import KitError, NoSuchBucket, NoSuchObject, UsageError, whole_file
from kit.store.errors import unavailable
from kit.store.objects import (
    BLOCK,
    Data,
    ObjectInfo,
    Report,
    at,
    check_bucket,
    check_key,
    compare,
    digest,
    measured,
    range_header,
)

OBJECTS = ".objects"


class DirectoryStore:
    """One bucket in a folder; see `ObjectStore`. A key cannot be the folder of another one."""

    def __init__(self, bucket: str, root: Path) -> None:
        self.bucket, self.folder = bucket, root / bucket

    def put(
        self, key: str, data: Data, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.put`."""
        with measured(key, data, sha256) as (stream, size, found), self._answers(f"put {key}"):
            path = self._path(key)
            content = self.folder / OBJECTS / f"{found}.{secrets.token_hex(4)}"
            try:
                with content.open("xb") as target:
                    _copy(stream, target, progress)
                self._link(path, content)
            finally:
                if self._linked(path) != content:
                    content.unlink(missing_ok=True)
            return ObjectInfo(key, size, found, at(path.stat().st_mtime))

    def get(self, key: str, start: int = 0, end: int | None = None, *, sha256: str = "") -> bytes:
        """See `ObjectStore.get`."""
        wanted = range_header(key, start, end)
        with self._answers(f"get {key}"), self._opened(key) as (stream, info):
            if wanted and start >= info.size:
                raise UsageError(f"get {key}: byte {start} is past its end", f"{info.size} bytes")
            stream.seek(start)
            content = stream.read(-1 if end is None else end - start)
        if wanted == "":
            compare(key, content, sha256 or info.sha256)
        return content

    def get_file(
        self, key: str, path: Path, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.get_file`."""
        opened = self._opened(key)
        with self._answers(f"get {key}"), opened as (stream, info), whole_file(path) as new:
            with new.open("wb") as target:
                _copy(stream, target, progress)
            with new.open("rb") as copy:
                compare(key, digest(copy)[0], sha256 or info.sha256)
        return info

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._answers(f"list {self.bucket}"):
            keys = sorted(self._keys(), key=os.fsencode)
        for key in keys:
            if key.startswith(prefix):
                with contextlib.suppress(NoSuchObject):  # removed meanwhile
                    info = self.stat(key)
                    yield ObjectInfo(key, info.size, "", info.modified)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with self._answers(f"remove {key}"), contextlib.suppress(FileNotFoundError):
            path = self._path(key)
            content = self._linked(path)
            path.unlink()
            if content:
                content.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.folder or not _removed(folder):
                    break

    def stat(self, key: str) -> ObjectInfo:
        """See `ObjectStore.stat`."""
        with self._answers(f"look at {key}"), self._opened(key) as (_, info):
            return info

    def ensure_bucket(self) -> None:
        """See `ObjectStore.ensure_bucket`."""
        check_bucket(self.bucket)
        with self._answers(f"make bucket {self.bucket}"):
            (self.folder / OBJECTS).mkdir(parents=True, exist_ok=True)

    def delete_bucket(self) -> None:
        """See `ObjectStore.delete_bucket`."""
        with contextlib.suppress(NoSuchBucket), self._answers(f"remove bucket {self.bucket}"):
            if any(True for _ in self._keys()):
                step = "remove its objects first"
                raise KitError(f"bucket {self.bucket} is not removed", "it is not empty", step)
            shutil.rmtree(self.folder)

    def _path(self, key: str) -> Path:
        """Give the file of a key. Raises NoSuchBucket."""
        if check_key(key).split("/")[0] == OBJECTS:
            raise UsageError(f"{key} cannot be a key in a folder", f"{OBJECTS} is taken", "rename")
        if not (self.folder / OBJECTS).is_dir():
            step = "make it, or check [store] url"
            raise NoSuchBucket(f"there is no bucket {self.bucket}", f"no {self.folder}", step)
        return self.folder / key

    def _keys(self) -> Iterator[str]:
        def _stop(err: OSError) -> None:
            raise err

        self._path("any")
        for folder, names, files in os.walk(self.folder, onerror=_stop):
            if folder == str(self.folder):
                names.remove(OBJECTS)
            inside = os.path.relpath(folder, self.folder)
            yield from (os.path.normpath(os.path.join(inside, name)) for name in files)

    def _linked(self, path: Path) -> Path | None:
        """Give the file in OBJECTS that a key's link names; None when it is no such link."""
        try:
            name = Path(os.readlink(path)).name
        except OSError:
            return None
        return self.folder / OBJECTS / name if re.match(r"[0-9a-f]{64}\.", name) else None

    def _link(self, path: Path, content: Path) -> None:
        """Make the key's link name this content, in one step; remove what it named before."""
        before = self._linked(path)
        new = content.with_name(f"{content.name}.link")
        new.symlink_to(os.path.relpath(content, path.parent))
        try:
            for left in range(9, -1, -1):  # a `delete` may remove the folder in between
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    new.replace(path)
                    break
                except FileNotFoundError:
                    if not left:
                        raise
        finally:
            new.unlink(missing_ok=True)
        if before:
            before.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[IO[bytes], ObjectInfo]]:
        """Open an object together with the hash that belongs to it."""
        path = self._path(key)
        for _ in range(20):  # the link may be made anew between the two steps
            content = self._linked(path)
            try:
                stream = (content or path).open("rb")
            except FileNotFoundError:
                if content is None or content == self._linked(path):
                    raise
                continue
            with stream:
                status = os.fstat(stream.fileno())
                recorded = content.name[:64] if content else ""
                yield stream, ObjectInfo(key, status.st_size, recorded, at(status.st_mtime))
            return
        raise unavailable(f"get {key}", "it is replaced all the time")

    @contextlib.contextmanager
    def _answers(self, tried: str) -> Iterator[None]:
        """Turn what the file system says into what a person can act on."""
        try:
            yield
        except FileNotFoundError as err:
            raise NoSuchObject(f"{tried}: it is not there", str(err), "kit store ls") from err
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as err:
            step = "give keys of which none is the folder of another"
            raise UsageError(f"{tried}: not possible in a folder", str(err), step) from err
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
                raise unavailable(tried, str(err)) from err
            step = "check [store] url in the profile and the folder's permissions"
            raise KitError(f"{tried}: the folder does not allow it", str(err), step) from err


def _removed(folder: Path) -> bool:
    """Remove a folder if it is empty."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _copy(source: IO[bytes], target: IO[bytes], progress: Report | None) -> None:
    while block := source.read(BLOCK):
        target.write(block)
        if progress:
            progress(len(block))
