"""A folder as an object store: for a site without any cloud, and for unit tests.

`<root>/<bucket>/<key>` is a symlink to `<root>/<bucket>/.objects/<sha256>.<random>`, so that an
object and its hash appear in one step, and a reader keeps what it has opened. Two writers of one
key at the same time may leave a file there to which no symlink points.
"""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from kit.base import KitError, NoSuchBucket, NoSuchObject, UsageError
from kit.store.errors import unavailable
from kit.store.objects import BLOCK_BYTES, Body, ObjectInfo, ObjectStore, Progress

OBJECTS = ".objects"


class FolderStore(ObjectStore):
    """One bucket in a folder. A key cannot be the folder of another one."""

    def __init__(self, bucket: str, root: Path) -> None:
        self.bucket, self.folder = bucket, root / bucket

    def _put(self, key: str, body: Body, progress: Progress | None) -> None:
        with _kit_errors(f"put {key}"):
            path = self._path(key)
            stored = self.folder / OBJECTS / f"{body.sha256}.{secrets.token_hex(4)}"
            try:
                with stored.open("xb") as target:
                    _copy(body.stream, target, progress)
                self._point(path, stored)
            finally:
                if self._stored(path) != stored:
                    stored.unlink(missing_ok=True)

    def _get(self, key: str) -> tuple[bytes, str]:
        with _kit_errors(f"get {key}"), self._opened(key) as (stream, info):
            return stream.read(), info.sha256

    def _download(self, key: str, new: Path, progress: Progress | None) -> ObjectInfo:
        with _kit_errors(f"get {key}"), self._opened(key) as (stream, info):
            with new.open("wb") as target:
                _copy(stream, target, progress)
            return info

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with _kit_errors(f"list {self.bucket}"):
            keys = sorted(self._keys(), key=os.fsencode)
        for key in keys:
            if key.startswith(prefix):
                with contextlib.suppress(NoSuchObject):  # removed meanwhile
                    info = self.stat(key)
                    yield ObjectInfo(key, info.size, "", info.modified)

    def _delete(self, key: str) -> None:
        if "" in key.split("/"):
            return  # a folder never has an object of that name
        with _kit_errors(f"remove {key}"), contextlib.suppress(FileNotFoundError):
            path = self._path(key)
            stored = self._stored(path)
            path.unlink()
            if stored:
                stored.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.folder or not _remove_empty(folder):
                    break

    def _stat(self, key: str) -> ObjectInfo:
        with _kit_errors(f"look at {key}"), self._opened(key) as (_, info):
            return info

    def _make_bucket(self) -> None:
        with _kit_errors(f"make bucket {self.bucket}"):
            (self.folder / OBJECTS).mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        """Return the file of a key. Raises NoSuchBucket."""
        if key.split("/")[0] == OBJECTS:
            raise UsageError(f"{key} cannot be a key in a folder", f"{OBJECTS} is taken", "rename")
        if not (self.folder / OBJECTS).is_dir():
            next_step = "make it, or check [store] url"
            raise NoSuchBucket(
                f"the bucket {self.bucket} does not exist", f"no {self.folder}", next_step
            )
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

    def _stored(self, path: Path) -> Path | None:
        """Return the file in OBJECTS to which a key's symlink points; None if it has none."""
        try:
            name = Path(os.readlink(path)).name
        except OSError:
            return None
        return self.folder / OBJECTS / name if re.match(r"[0-9a-f]{64}\.", name) else None

    def _point(self, path: Path, stored: Path) -> None:
        """Make the key's symlink point to `stored`, in one step; remove the content before it."""
        before = self._stored(path)
        new = stored.with_name(f"{stored.name}.link")
        new.symlink_to(os.path.relpath(stored, path.parent))
        try:
            for attempts_left in range(9, -1, -1):  # a `delete` may remove the folder in between
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    new.replace(path)
                    break
                except FileNotFoundError:
                    if not attempts_left:
                        raise
        finally:
            new.unlink(missing_ok=True)
        if before:
            before.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[IO[bytes], ObjectInfo]]:
        """Open an object together with the hash that belongs to it."""
        path = self._path(key)
        for _ in range(20):  # the symlink may be replaced between the two steps
            stored = self._stored(path)
            try:
                stream = (stored or path).open("rb")
            except FileNotFoundError:
                if stored is None or stored == self._stored(path):
                    raise
                continue
            with stream:
                status = os.fstat(stream.fileno())
                recorded = stored.name[:64] if stored else ""
                yield stream, ObjectInfo(key, status.st_size, recorded, _time(status))
            return
        raise unavailable(f"get {key}", "it is replaced all the time")


@contextlib.contextmanager
def _kit_errors(tried: str) -> Iterator[None]:
    """Turn errors of the file system into the kit's."""
    try:
        yield
    except FileNotFoundError as err:
        raise NoSuchObject(f"{tried}: it is not there", str(err), "kit store ls") from err
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as err:
        next_step = "choose keys of which none is the folder of another"
        raise UsageError(f"{tried}: not possible in a folder", str(err), next_step) from err
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
            raise unavailable(tried, str(err)) from err
        next_step = "check [store] url in the profile and the folder's permissions"
        raise KitError(f"{tried}: the folder does not allow it", str(err), next_step) from err


def _time(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)


def _remove_empty(folder: Path) -> bool:
    """Remove a folder if it is empty; report whether it was."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _copy(source: IO[bytes], target: IO[bytes], progress: Progress | None) -> None:
    while block := source.read(BLOCK_BYTES):
        target.write(block)
        if progress:
            progress(len(block))
