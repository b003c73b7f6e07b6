"""An object store by Swift (python-swiftclient): plain objects only."""

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from kit.base import NoSuchBucket, NoSuchObject, ObjectTooLarge
from kit.store.errors import RetryPolicy, answer_error, bucket_taken, connection_error
from kit.store.keystone import Keystone
from kit.store.objects import (
    BLOCK_BYTES,
    Content,
    ObjectInfo,
    Progress,
    check_bucket,
    check_hash,
    check_key,
    digest,
    download_target,
    measured,
)

T = TypeVar("T")
MAX_BYTES = 5 << 30  # in one plain object: the default limit of Allas and Ceph
PAGE_ROWS = 10_000  # the most rows in one listing
HASH_HEADER = "x-object-meta-sha256"  # RGW shows it to S3 as the metadata `sha256`, and vice versa


class SwiftStore:
    """One bucket (Swift's word is container); see `ObjectStore`. `ca_file` "": the system's CAs.

    Threads may share it: each has a connection of its own.
    """

    def __init__(
        self,
        bucket: str,
        keystone: Keystone,
        region: str,
        ca_file: str = "",
        retry: RetryPolicy | None = None,
    ) -> None:
        self.bucket, self.keystone, self.region = bucket, keystone, region
        self.ca_file, self.retry = ca_file, retry or RetryPolicy()
        self._local = threading.local()
        self._ours = False

    def put(
        self,
        key: str,
        content: Content,
        *,
        sha256: str = "",
        make_bucket: bool = False,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """See `ObjectStore.put`."""
        with measured(key, content, sha256) as (stream, size, found):
            if size > MAX_BYTES:
                raise ObjectTooLarge(
                    f"put {key}: {size} bytes are too many for one object by Swift",
                    f"at most {MAX_BYTES} bytes",
                    'set kind = "s3" in [store] of the profile: S3 takes it in parts',
                )
            try:
                self._send(key, stream, size, found, progress)
            except NoSuchBucket:
                if not make_bucket:
                    raise
                self.ensure_bucket()
                self._send(key, stream, size, found, progress)
        return ObjectInfo(key, size, found, datetime.now(UTC))

    def _send(
        self, key: str, stream: IO[bytes], size: int, sha256: str, progress: Progress | None
    ) -> None:
        stream.seek(0)
        body = _Counted(stream, progress) if size else b""
        headers = {HASH_HEADER: sha256}
        self._call(
            f"put {key}",
            lambda swift: swift.put_object(
                self.bucket, key, body, content_length=size, headers=headers
            ),
        )

    def get(self, key: str, *, sha256: str = "") -> bytes:
        """See `ObjectStore.get`."""
        check_key(key)

        def _receive(swift: Any) -> tuple[Any, bytes]:
            headers, body = self._body(swift, key)
            return headers, b"".join(body)

        headers, content = self._call(f"get {key}", _receive)
        check_hash(key, content, sha256 or headers.get(HASH_HEADER, ""))
        return content

    def _body(self, swift: Any, key: str) -> Any:
        """Ask for an object in blocks: only then swiftclient asks for the rest of a cut answer."""
        return swift.get_object(self.bucket, key, resp_chunk_size=BLOCK_BYTES)

    def get_file(
        self, key: str, path: Path, *, sha256: str = "", progress: Progress | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.get_file`."""
        check_key(key)
        with download_target(key, path) as new:

            def _receive(swift: Any) -> Any:
                headers, body = self._body(swift, key)
                with new.open("wb") as target:
                    counted = _Counted(target, progress)
                    for block in body:
                        counted.write(block)
                return headers

            headers = self._call(f"get {key}", _receive)
            with new.open("rb") as stream:
                check_hash(key, digest(stream)[0], sha256 or headers.get(HASH_HEADER, ""))
        return _info(key, headers)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        last = ""
        while True:
            page = {"marker": last, "limit": PAGE_ROWS, "prefix": prefix}
            rows = self._call(f"list {self.bucket}", functools.partial(self._page, **page))
            if not rows:
                return
            for row in rows:
                modified = datetime.fromisoformat(row["last_modified"])
                modified = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
                yield ObjectInfo(row["name"], row["bytes"], "", modified)
            last = rows[-1]["name"]

    def _page(self, swift: Any, **page: Any) -> Any:
        return swift.get_container(self.bucket, **page)[1]

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        check_key(key, removing=True)
        with contextlib.suppress(NoSuchObject):
            self._call(f"remove {key}", lambda swift: swift.delete_object(self.bucket, key))

    def stat(self, key: str) -> ObjectInfo:
        """See `ObjectStore.stat`."""
        check_key(key)
        headers = self._call(f"look at {key}", lambda swift: swift.head_object(self.bucket, key))
        return _info(key, headers)

    def ensure_bucket(self) -> None:
        """See `ObjectStore.ensure_bucket`."""
        check_bucket(self.bucket)
        self._call(
            f"make bucket {self.bucket}",
            lambda swift: swift.put_container(self.bucket),
            check_owner=False,
        )
        self._ours = True

    def _connection(self) -> Any:
        """Return this thread's connection, with a token that is good for two minutes more."""
        from swiftclient import Connection

        url, token = self.keystone.storage_url(self.region), self.keystone.token().reveal()
        if not hasattr(self._local, "swift"):
            self._local.swift = Connection(
                session=self.keystone.session,
                os_options={"region_name": self.region},
                cacert=self.ca_file or None,
                timeout=self.retry.timeout_s,
                retries=self.retry.attempts - 1,
                starting_backoff=0.5,
                max_backoff=16,
            )
        self._local.swift.url, self._local.swift.token = url, token
        return self._local.swift

    def _check_owner(self, tried: str) -> None:
        """Raise BucketTaken if the bucket is another project's; ask until it is known to be ours.

        Names are global and can be guessed: a stranger may have made the bucket and opened it.
        """
        if self._ours:
            return
        rows = self._call(tried, lambda swift: swift.get_account(full_listing=True)[1], False)
        if self.bucket not in [row["name"] for row in rows]:
            self._call(tried, lambda swift: swift.get_container(self.bucket, limit=1), False)
            raise bucket_taken(tried, self.bucket, "it is not among this project's buckets")
        self._ours = True

    def _call(self, tried: str, request: Callable[[Any], T], check_owner: bool = True) -> T:
        """Make a request on a bucket of ours; raise swiftclient's exceptions as the kit's."""
        import requests
        import urllib3
        from keystoneauth1.exceptions import ClientException as KeystoneException
        from swiftclient.exceptions import ClientException

        lost = (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            json.JSONDecodeError,
        )
        if check_owner:
            self._check_owner(tried)
        try:
            return request(self._connection())
        except ClientException as err:
            text = f"{err.http_reason} {err.http_response_content or b''!r}"
            self._ours &= "NoSuchBucket" not in text  # the next of that name may be another's
            date = (err.http_response_headers or {}).get("date", "")
            raise answer_error(tried, self.bucket, err.http_status or 0, text, date) from err
        except KeystoneException as err:  # a new token was asked for
            with self.keystone.kit_errors():
                raise err
        except lost as err:
            raise connection_error(tried, err) from err


class _Counted:
    """A file that reports the bytes that go through it; those sent again are taken back."""

    def __init__(self, stream: IO[bytes], progress: Progress | None) -> None:
        self._stream, self._progress = stream, progress
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        """Read as from the file."""
        block = self._stream.read(size)
        self._count(len(block))
        return block

    def write(self, block: bytes) -> None:
        """Write as to the file."""
        self._stream.write(block)
        self._count(len(block))

    def seek(self, offset: int) -> None:
        """Go back, as swiftclient does before it sends a body again."""
        self._count(offset - self._stream.tell())
        self._stream.seek(offset)

    def _count(self, moved: int) -> None:
        if self._progress and moved:
            self._progress(moved)


def _info(key: str, headers: Any) -> ObjectInfo:
    modified = parsedate_to_datetime(headers["last-modified"])
    return ObjectInfo(key, int(headers["content-length"]), headers.get(HASH_HEADER, ""), modified)
