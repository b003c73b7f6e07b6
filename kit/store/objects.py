"""What an object store is for the kit: the protocol, the rules of names, whole files.

Nothing here rests on the store for mutual exclusion: Swift's PUT on Ceph RGW (16.2) ignores
`If-None-Match`, so there is no create-if-absent.
"""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

from kit.base import DataError, ObjectDamaged, UsageError

Data = bytes | Path | IO[bytes]
Report = Callable[[int], object]  # called with the number of bytes just moved
BLOCK = 1 << 20  # bytes moved at a time


@dataclass(frozen=True)
class ObjectInfo:
    """One object: `size` in bytes; `sha256` is "" in listings and where nobody recorded it."""

    key: str
    size: int
    sha256: str
    modified: datetime


class ObjectStore(Protocol):
    """One bucket of an object store.

    All methods raise StoreUnavailable when the store does not answer in time, CredentialRefused
    when it does not accept us, NoSuchBucket, and UsageError for a key that is not allowed.
    """

    def put(
        self, key: str, data: Data, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """Store bytes, a file or an open (seekable) file whole; replaces what was there.

        Raises ObjectDamaged when `sha256` is given and not that of the data, DataError when a
        file changes meanwhile, ObjectTooLarge.
        """
        ...

    def get(self, key: str, start: int = 0, end: int | None = None, *, sha256: str = "") -> bytes:
        """Give an object's bytes, or those from `start` up to `end` (not included, as a slice).

        The whole object is checked against `sha256`, else against the hash stored with it; a
        part cannot be. Raises NoSuchObject, ObjectDamaged, UsageError for a part past the end.
        """
        ...

    def get_file(
        self, key: str, path: Path, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """Write an object to a file, checked as in `get`; whole or not at all."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Give all objects whose key starts with `prefix`, in order of key, however many."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Give size, hash and time of an object. Raises NoSuchObject."""
        ...

    def ensure_bucket(self) -> None:
        """Make the bucket unless it is ours already. Raises BucketTaken."""
        ...

    def delete_bucket(self) -> None:
        """Remove the bucket, which must be empty; one that is not there is no error."""
        ...


def check_key(key: str) -> str:
    """Give the key back, or raise UsageError saying what is wrong with it.

    Blanks and Unicode are fine. Segments `.` and `..` are not: HTTP clients resolve them, and
    `a/../b` becomes another object (seen with python-swiftclient 4.11).
    """
    problem = ""
    if not key:
        problem = "it is empty"
    elif any(segment in ("", ".", "..") for segment in key.split("/")):
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
    """Give the bucket's name back, or raise UsageError: the rules that both protocols share."""
    good = re.fullmatch(r"[a-z0-9]([a-z0-9.-]{1,61})[a-z0-9]", name)
    if not good or ".." in name or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name):
        raise UsageError(
            f"{name!r:.200} cannot be the name of a bucket",
            "3 to 63 of a-z, 0-9, `-` and single `.`, first and last a letter or digit, no address",
            "change [store] bucket_prefix or collector_id in the profile",
        )
    return name


@contextlib.contextmanager
def opened(data: Data) -> Iterator[IO[bytes]]:
    """Open data for reading; an open file is read from where it stands and stays open."""
    if isinstance(data, bytes):
        yield io.BytesIO(data)
    elif isinstance(data, Path):
        try:
            stream = data.open("rb")
        except OSError as err:
            raise DataError(f"cannot read {data}", str(err), "give a file you can read") from err
        with stream:
            yield stream
    else:
        if not data.seekable():
            raise UsageError(
                "cannot put a stream", "it cannot be read twice", "save it as a file first"
            )
        yield data


@contextlib.contextmanager
def measured(key: str, data: Data, sha256: str) -> Iterator[tuple[IO[bytes], int, str]]:
    """Give an open file with its size and hash, which stand in the request before the bytes.

    Raises ObjectDamaged when the hash is not `sha256` (if given), DataError when the file is
    another one after the block than before.
    """
    check_key(key)
    with opened(data) as stream:
        start, before = stream.tell(), _mark(stream)
        found, size = digest(stream)
        compare(key, found, sha256)
        stream.seek(start)
        yield stream, size, found
        if _mark(stream) != before:
            raise DataError(
                f"{getattr(stream, 'name', key)} changed while it was put into the store",
                next_step="put it again when nobody writes it",
            )


def digest(stream: IO[bytes]) -> tuple[str, int]:
    """Give the hex SHA-256 of the rest of an open file, and how many bytes that was."""
    sha, size = hashlib.sha256(), 0
    while block := stream.read(BLOCK):
        sha.update(block)
        size += len(block)
    return sha.hexdigest(), size


def _mark(stream: IO[bytes]) -> tuple[int, int] | None:
    try:
        status = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return status.st_size, status.st_mtime_ns


def compare(key: str, found: str | bytes, wanted: str) -> None:
    """Raise ObjectDamaged when a SHA-256 is wanted and that of the content is another one."""
    if not wanted:
        return
    sha256 = hashlib.sha256(found).hexdigest() if isinstance(found, bytes) else found
    if sha256 != wanted:
        raise ObjectDamaged(
            f"{key}: its bytes are not the ones that were put there",
            f"SHA-256 {sha256}, not {wanted}",
            "remove it and put it again; do not use what was read",
        )


def range_header(key: str, start: int, end: int | None) -> str | None:
    """Give the HTTP Range for bytes `start` up to `end`; "" for all, None for none at all."""
    if start < 0 or (end is not None and end < start):
        raise UsageError(
            f"bytes {start} to {end} of {key} make no sense", next_step="give 0 <= start <= end"
        )
    if end == start:
        return None
    return "" if start == 0 and end is None else f"bytes={start}-{'' if end is None else end - 1}"


def at(seconds: float) -> datetime:
    """Give a time in UTC from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)
