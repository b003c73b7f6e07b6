"""The Swift face of an object store, by python-swiftclient's functions: plain objects only."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from kit.base import NoSuchBucket, NoSuchObject, ObjectTooLarge, whole_file
from kit.store.errors import AGAIN, UNTRUSTED, Patience, persist, refused, unreached
from kit.store.keystone import Keystone
from kit.store.links import Links
from kit.store.objects import (
    BLOCK,
    Data,
    ObjectInfo,
    Report,
    check_bucket,
    check_key,
    compare,
    digest,
    measured,
    range_header,
)

T = TypeVar("T")
LARGEST = 5 << 30  # bytes in one plain object, Allas's and Ceph's default limit
PAGE = 10_000  # rows of one listing, the most that Swift gives
HASH = "x-object-meta-sha256"  # RGW shows it to S3 as the metadata `sha256`, and the other way


class SwiftStore:
    """One bucket (Swift says container); see `ObjectStore`. `ca_file` "": the system's CAs.

    Safe to share between threads. A token is renewed before it ends, and after a 401.
    """

    def __init__(
        self,
        bucket: str,
        keystone: Keystone,
        region: str,
        ca_file: str = "",
        patience: Patience | None = None,
    ) -> None:
        self.bucket, self.keystone, self.region = bucket, keystone, region
        self.ca_file, self.patience = ca_file, patience or Patience()
        self._opening = threading.Lock()
        self._links: Links | None = None
        self._url = ""

    def put(
        self, key: str, data: Data, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.put`."""
        with measured(key, data, sha256) as (stream, size, found):
            if size > LARGEST:
                raise ObjectTooLarge(
                    f"put {key}: {size} bytes are too many for one object by Swift",
                    f"at most {LARGEST} bytes",
                    'set kind = "s3" in [store] of the profile: S3 takes it in parts',
                )
            start = stream.tell()

            def _request(client: Any, **where: Any) -> None:
                stream.seek(start)
                # an open file with its length: a generator with a length hangs for a minute
                body = _Counted(stream, progress)
                with _taken_back(body):
                    client.put_object(
                        name=key,
                        contents=body if size else b"",
                        content_length=size,
                        headers={HASH: found},
                        **where,
                    )

            self._call(f"put {key}", _request)
        return ObjectInfo(key, size, found, datetime.now(UTC))

    def get(self, key: str, start: int = 0, end: int | None = None, *, sha256: str = "") -> bytes:
        """See `ObjectStore.get`."""
        wanted = range_header(check_key(key), start, end)
        if wanted is None:
            return b""
        extra = {"Range": wanted} if wanted else {}
        headers, content = self._call(
            f"get {key}",
            lambda client, **where: client.get_object(name=key, headers=extra, **where),
        )
        if not wanted:
            compare(key, content, sha256 or headers.get(HASH, ""))
        return bytes(content)

    def get_file(
        self, key: str, path: Path, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.get_file`."""
        check_key(key)
        with whole_file(path) as new:

            def _request(client: Any, **where: Any) -> Any:
                with new.open("wb") as target, _taken_back(_Counted(target, progress)) as counted:
                    headers, body = client.get_object(name=key, resp_chunk_size=BLOCK, **where)
                    for block in body:
                        counted.write(block)
                return headers

            headers = self._call(f"get {key}", _request)
            with new.open("rb") as stream:
                compare(key, digest(stream)[0], sha256 or headers.get(HASH, ""))
        return _info(key, headers)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        last = ""
        while True:
            _, rows = self._call(
                f"list {self.bucket}",
                lambda client, marker=last, **where: client.get_container(
                    marker=marker, limit=PAGE, prefix=prefix, **where
                ),
            )
            if not rows:
                return
            for row in rows:
                when = datetime.fromisoformat(row["last_modified"])
                when = when if when.tzinfo else when.replace(tzinfo=UTC)
                yield ObjectInfo(row["name"], row["bytes"], "", when)
            last = rows[-1]["name"]

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        check_key(key)
        with contextlib.suppress(NoSuchObject):
            self._call(
                f"remove {key}",
                lambda client, **where: client.delete_object(name=key, **where),
            )

    def stat(self, key: str) -> ObjectInfo:
        """See `ObjectStore.stat`."""
        check_key(key)
        headers = self._call(
            f"look at {key}", lambda client, **where: client.head_object(name=key, **where)
        )
        return _info(key, headers)

    def ensure_bucket(self) -> None:
        """See `ObjectStore.ensure_bucket`."""
        check_bucket(self.bucket)
        self._call(
            f"make bucket {self.bucket}", lambda client, **where: client.put_container(**where)
        )

    def delete_bucket(self) -> None:
        """See `ObjectStore.delete_bucket`."""
        with contextlib.suppress(NoSuchBucket, NoSuchObject):
            self._call(
                f"remove bucket {self.bucket}",
                lambda client, **where: client.delete_container(**where),
            )

    def _call(self, tried: str, request: Callable[..., T]) -> T:
        """Make a request, again while that may help, and explain its failure."""
        import urllib3
        from swiftclient import client
        from swiftclient.exceptions import ClientException

        def _once() -> T:
            token, link = self.keystone.token().reveal(), self._connected().one()
            with contextlib.ExitStack() as stack:
                stack.callback(link[1].close)  # after a failure in the middle of a body
                given = request(
                    client, url=self._url, token=token, container=self.bucket, http_conn=link
                )
                stack.pop_all()
            return given

        def _again(err: Any) -> str | None:
            if not isinstance(err, ClientException):
                return None if UNTRUSTED in str(err) else ""
            if err.http_status == 401 and not renewed:
                renewed.append(True)
                self.keystone.renew()
                return ""
            asked = (err.http_response_headers or {}).get("retry-after", "")
            return str(asked) if err.http_status in AGAIN else None

        renewed: list[bool] = []
        broken = urllib3.exceptions.HTTPError
        try:
            return persist(self.patience, _once, (ClientException, broken), _again)
        except ClientException as err:
            text = f"{err.http_reason} {err.http_response_content or b''!r}"
            raise refused(tried, self.bucket, err.http_status or 0, text) from err
        except broken as err:
            raise unreached(tried, err) from err

    def _connected(self) -> Links:
        """Give the connections to the store; its address is Keystone's to know."""
        with self._opening:
            if self._links is None:
                self._url = self.keystone.storage_url(self.region)
                self._links = Links(self._url, self.ca_file, self.patience)
            return self._links


class _Counted:
    """A file that reports the bytes that go through it."""

    def __init__(self, stream: IO[bytes], progress: Report | None) -> None:
        self._stream, self._progress, self.moved = stream, progress, 0

    def read(self, size: int = -1) -> bytes:
        """Read as from the file."""
        block = self._stream.read(size)
        self._count(len(block))
        return block

    def write(self, block: bytes) -> None:
        """Write as to the file."""
        self._stream.write(block)
        self._count(len(block))

    def _count(self, size: int) -> None:
        self.moved += size
        if self._progress and size:
            self._progress(size)

    def take_back(self) -> None:
        """Report that what was moved has to be moved again."""
        self._count(-self.moved)


@contextlib.contextmanager
def _taken_back(counted: _Counted) -> Iterator[_Counted]:
    """Take the report back when the block fails."""
    with contextlib.ExitStack() as stack:
        stack.callback(counted.take_back)
        yield counted
        stack.pop_all()


def _info(key: str, headers: Any) -> ObjectInfo:
    when = parsedate_to_datetime(headers["last-modified"])
    return ObjectInfo(key, int(headers["content-length"]), headers.get(HASH, ""), when)
