"""An object store by Swift (python-swiftclient): plain objects only."""

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any

from kit.base import NoSuchObject, ObjectTooLarge
from kit.store.errors import RetryPolicy, answer_error, connection_error
from kit.store.keystone import Keystone
from kit.store.objects import BLOCK_BYTES, Body, ObjectInfo, Progress
from kit.store.remote import RemoteStore

MAX_BYTES = 5 << 30  # in one plain object: the default limit of Allas and Ceph
PAGE_ROWS = 10_000  # the most rows in one listing
HASH_HEADER = "x-object-meta-sha256"  # RGW shows it to S3 as the metadata `sha256`, and vice versa


class SwiftStore(RemoteStore):
    """One bucket (Swift's word is container); see `RemoteStore`. A thread has its connection."""

    def __init__(
        self,
        bucket: str,
        keystone: Keystone,
        region: str,
        ca_file: str = "",
        retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__(bucket, region, ca_file, retry)
        self.keystone = keystone
        self._local = threading.local()

    def _put(self, key: str, body: Body, progress: Progress | None) -> None:
        if body.size > MAX_BYTES:
            raise ObjectTooLarge(
                f"put {key}: {body.size} bytes are too many for one object by Swift",
                f"at most {MAX_BYTES} bytes",
                'set kind = "s3" in [store] of the profile: S3 takes it in parts',
            )
        content = _Counted(body.stream, progress) if body.size else b""
        headers = {HASH_HEADER: body.sha256}
        with self._request(f"put {key}") as swift:
            swift.put_object(self.bucket, key, content, content_length=body.size, headers=headers)

    def _get(self, key: str) -> tuple[bytes, str]:
        with self._request(f"get {key}") as swift:
            headers, blocks = self._blocks(swift, key)
            return b"".join(blocks), headers.get(HASH_HEADER, "")

    def _blocks(self, swift: Any, key: str) -> Any:
        """Ask for an object in blocks: only then swiftclient asks for the rest of a cut answer."""
        return swift.get_object(self.bucket, key, resp_chunk_size=BLOCK_BYTES)

    def _download(self, key: str, new: Path, progress: Progress | None) -> ObjectInfo:
        with self._request(f"get {key}") as swift, new.open("wb") as target:
            headers, blocks = self._blocks(swift, key)
            counted = _Counted(target, progress)
            for block in blocks:
                counted.write(block)
        return _info(key, headers)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        page = {"marker": "", "limit": PAGE_ROWS, "prefix": prefix}
        while True:
            with self._request(f"list {self.bucket}") as swift:
                rows = swift.get_container(self.bucket, **page)[1]
            if not rows:
                return
            for row in rows:
                modified = datetime.fromisoformat(row["last_modified"])
                modified = modified if modified.tzinfo else modified.replace(tzinfo=UTC)
                yield ObjectInfo(row["name"], row["bytes"], "", modified)
            page["marker"] = rows[-1]["name"]

    def _delete(self, key: str) -> None:
        with contextlib.suppress(NoSuchObject), self._request(f"remove {key}") as swift:
            swift.delete_object(self.bucket, key)

    def _stat(self, key: str) -> ObjectInfo:
        with self._request(f"look at {key}") as swift:
            return _info(key, swift.head_object(self.bucket, key))

    def _make_bucket(self) -> None:
        with self._request(f"make bucket {self.bucket}", check_owner=False) as swift:
            swift.put_container(self.bucket)

    def _bucket_names(self, tried: str) -> set[str]:
        with self._request(tried, check_owner=False) as swift:
            return {row["name"] for row in swift.get_account(full_listing=True)[1]}

    def _read_bucket(self, tried: str) -> None:
        with self._request(tried, check_owner=False) as swift:
            swift.get_container(self.bucket, limit=1)

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

    @contextlib.contextmanager
    def _request(self, tried: str, check_owner: bool = True) -> Iterator[Any]:
        """Yield the connection to a bucket of ours; raise swiftclient's exceptions as the kit's."""
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
            yield self._connection()
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
