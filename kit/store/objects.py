"""The contract of an object store: its seven methods, the rules of names, checked transfers.

Mutual exclusion never rests on the store: Swift's PUT on Ceph RGW (16.2) ignores `If-None-Match`,
so an object cannot be created only when it is missing.
"""

import abc
import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from kit.base import DataError, NoSuchBucket, ObjectDamaged, UsageError, sha256_of, whole_file

Content = bytes | Path
Progress = Callable[[int], object]  # called with the number of bytes just moved
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class ObjectInfo:
    """One object: `size` in bytes; `sha256` is "" in listings and where nobody recorded it."""

    key: str
    size: int
    sha256: str
    modified: datetime


@dataclass(frozen=True)
class Body:
    """Content to send, opened: size and SHA-256 precede it in a request."""

    stream: IO[bytes]
    size: int
    sha256: str
    path: Path | None


class ObjectStore(abc.ABC):
    """One bucket of an object store.

    All methods raise StoreUnavailable if the store does not answer in time, CredentialRefused
    if it does not accept the login, NoSuchBucket, BucketTaken if the bucket belongs to another
    project (nothing is read or written then), and UsageError for a key that is not allowed.
    A kind of store implements `list` and what begins with an underscore.
    """

    bucket: str

    def put(
        self,
        key: str,
        content: Content,
        *,
        sha256: str = "",
        make_bucket: bool = False,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """Store bytes or a file whole, in place of what was there.

        `make_bucket` makes the bucket if it is missing. Raises ObjectDamaged if `sha256` is
        given and differs from the content's, DataError if a file changes while it is sent,
        ObjectTooLarge.
        """
        with _measured(check_key(key), content, sha256) as body:
            try:
                self._put(key, body, progress)
            except NoSuchBucket:
                if not make_bucket:
                    raise
                self.ensure_bucket()
                body.stream.seek(0)
                self._put(key, body, progress)
        return ObjectInfo(key, body.size, body.sha256, datetime.now(UTC))

    def get(self, key: str, *, sha256: str = "") -> bytes:
        """Return an object's bytes, checked against `sha256` or else the hash stored with it.

        Raises NoSuchObject and ObjectDamaged.
        """
        content, recorded = self._get(check_key(key))
        check_hash(key, sha256_of(content), sha256 or recorded)
        return content

    def get_file(
        self, key: str, path: Path, *, sha256: str = "", progress: Progress | None = None
    ) -> ObjectInfo:
        """Write an object to a file, checked as in `get`; whole or not at all.

        Raises UsageError if `path` is a folder, a symlink or a device.
        """
        with _download_target(check_key(key), path) as new:
            info = self._download(key, new, progress)
            check_hash(key, sha256_of(new), sha256 or info.sha256)
        return info

    @abc.abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects whose key starts with `prefix`, in order of key, however many."""

    def delete(self, key: str) -> None:
        """Remove an object; a missing object is not an error."""
        self._delete(check_key(key, removing=True))

    def stat(self, key: str) -> ObjectInfo:
        """Return size, hash and time of an object. Raises NoSuchObject."""
        return self._stat(check_key(key))

    def ensure_bucket(self) -> None:
        """Make the bucket if it is missing. Raises BucketTaken if it is another project's."""
        check_bucket(self.bucket)
        self._make_bucket()

    @abc.abstractmethod
    def _put(self, key: str, body: Body, progress: Progress | None) -> None:
        """Store content under a checked key."""

    @abc.abstractmethod
    def _get(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and the hash stored with it."""

    @abc.abstractmethod
    def _download(self, key: str, new: Path, progress: Progress | None) -> ObjectInfo:
        """Write an object to a new file."""

    @abc.abstractmethod
    def _delete(self, key: str) -> None: ...

    @abc.abstractmethod
    def _stat(self, key: str) -> ObjectInfo: ...

    @abc.abstractmethod
    def _make_bucket(self) -> None: ...


def check_key(key: str, removing: bool = False) -> str:
    """Return the key, or raise UsageError saying what is wrong with it.

    Blanks and Unicode are fine. Segments `.` and `..` are not: HTTP clients resolve them, and
    `a/../b` becomes another object (seen with python-swiftclient 4.11). An empty segment is not
    written or read, but may be removed: other programs leave objects such as `folder/`.
    """
    segments = key.split("/")
    problem = ""
    if not key:
        problem = "it is empty"
    elif "." in segments or ".." in segments or ("" in segments and not removing):
        problem = "it has an empty segment, `.` or `..` (or starts or ends with `/`)"
    elif any(ord(char) < 32 or 127 <= ord(char) < 160 for char in key):
        problem = "it has a control character"
    elif any(0xD800 <= ord(char) < 0xE000 for char in key):
        problem = "it is not valid Unicode"
    elif len(key.encode()) > 1024:
        problem = f"it has {len(key.encode())} bytes, at most 1024 are allowed"
    if problem:
        raise UsageError(f"{key!r:.200} cannot be the key of an object", problem, "rename it")
    return key


def check_bucket(name: str) -> str:
    """Return the bucket's name, or raise UsageError; the rules are those of both protocols."""
    legal = re.fullmatch(r"[a-z0-9]([a-z0-9.-]{1,61})[a-z0-9]", name)
    if not legal or ".." in name or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name):
        raise UsageError(
            f"{name!r:.200} cannot be the name of a bucket",
            "3 to 63 of a-z, 0-9, `-` and single `.`, first and last a letter or digit, no address",
            "change [store] bucket_prefix or collector_id in the profile",
        )
    return name


@contextlib.contextmanager
def _measured(key: str, content: Content, sha256: str) -> Iterator[Body]:
    """Open content for reading.

    Raises ObjectDamaged if the hash is not `sha256` (where given), DataError if a file changed
    between the beginning and the end of the block.
    """
    path = content if isinstance(content, Path) else None
    with _opened(content) as stream:
        before = _state(stream)
        found = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        size = stream.seek(0, os.SEEK_END)
        check_hash(key, found, sha256)
        stream.seek(0)
        yield Body(stream, size, found, path)
        if _state(stream) != before:
            raise DataError(
                f"{path or key} changed while it was put into the store",
                next_step="put it again when nothing writes it",
            )


def _opened(content: Content) -> IO[bytes]:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    try:
        return content.open("rb")
    except OSError as err:
        raise DataError(f"cannot read {content}", str(err), "name a file you can read") from err


def _state(stream: IO[bytes]) -> tuple[int, int] | None:
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # bytes in memory
        return None
    return status.st_size, status.st_mtime_ns


def check_hash(key: str, found: str, expected: str) -> None:
    """Raise ObjectDamaged if a SHA-256 is expected and the content has another one."""
    if expected and found != expected.strip().lower():
        raise ObjectDamaged(
            f"{key}: its bytes are not the ones that were put there",
            f"SHA-256 {found}, not {expected}",
            "remove it and put it again; do not use what was read",
        )


@contextlib.contextmanager
def _download_target(key: str, path: Path) -> Iterator[Path]:
    """Yield a name to write to, which becomes `path` when the block ends without an error.

    Raises UsageError if `path` exists and is not a regular file: it would be replaced.
    """
    tried, next_step = f"download {key} to {path}", "name a regular file"
    if path.is_symlink():
        raise UsageError(tried, f"{path} is a symlink", next_step)
    if path.is_dir():
        next_step = f"name a file, such as {path / Path(key).name}"
        raise UsageError(tried, f"{path} is a folder", next_step)
    if path.exists() and not path.is_file():
        raise UsageError(tried, f"{path} is not a regular file", next_step)
    with whole_file(path) as new:
        yield new
