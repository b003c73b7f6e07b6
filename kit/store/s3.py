"""The S3 face of an object store, by boto3: large objects in parts, several at a time."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from kit.base import NoSuchBucket, whole_file
from kit.store.errors import AGAIN, UNTRUSTED, Patience, persist, refused, unreached
from kit.store.keystone import Keystone
from kit.store.objects import (
    BLOCK,
    Data,
    ObjectInfo,
    ObjectStore,
    Report,
    check_bucket,
    check_key,
    compare,
    digest,
    measured,
    range_header,
)

T = TypeVar("T")
PART = 16 << 20  # bytes of one part of a large object
AT_ONCE = 4  # parts on their way at the same time


class S3Store:
    """One bucket by S3; see `ObjectStore`. `ca_file` "": the system's CAs."""

    def __init__(
        self,
        bucket: str,
        keystone: Keystone,
        url: str,
        region: str,
        ca_file: str = "",
        patience: Patience | None = None,
    ) -> None:
        self.bucket, self.keystone, self.url, self.region = bucket, keystone, url, region
        self.ca_file, self.patience = ca_file, patience or Patience()
        self._opening = threading.Lock()
        self._client: Any = None
        self.light: ObjectStore | None = None  # the same bucket by Swift; `store.light` makes it

    def put(
        self, key: str, data: Data, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.put`."""
        with measured(key, data, sha256) as (stream, size, found), self._answers(f"put {key}"):
            about = {"Metadata": {"sha256": found}}
            if size <= PART:
                self._s3.put_object(Bucket=self.bucket, Key=key, Body=stream.read(), **about)
                if progress:
                    progress(size)
            else:  # a name costs no memory, an open file that of the parts on their way
                source = str(data) if isinstance(data, Path) else stream
                with self._transfer() as manager:
                    manager.upload(source, self.bucket, key, about, _watch(progress)).result()
        return ObjectInfo(key, size, found, datetime.now(UTC))

    def get(self, key: str, start: int = 0, end: int | None = None, *, sha256: str = "") -> bytes:
        """See `ObjectStore.get`."""
        wanted = range_header(check_key(key), start, end)
        if wanted is None:
            return b""

        def _request() -> tuple[bytes, str]:
            extra = {"Range": wanted} if wanted else {}
            answer = self._s3.get_object(Bucket=self.bucket, Key=key, **extra)
            return answer["Body"].read(), answer["Metadata"].get("sha256", "")

        with self._answers(f"get {key}"):
            content, recorded = self._whole(_request)
        if not wanted:
            compare(key, content, sha256 or recorded)
        return content

    def get_file(
        self, key: str, path: Path, *, sha256: str = "", progress: Report | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.get_file`."""
        info = self.stat(key)
        with whole_file(path) as new:
            with self._answers(f"get {key}"), self._transfer() as manager:
                manager.download(self.bucket, key, str(new), {}, _watch(progress)).result()
            with new.open("rb") as stream:
                compare(key, digest(stream)[0], sha256 or info.sha256)
        return info

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._answers(f"list {self.bucket}"):
            pages = self._s3.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for row in page.get("Contents", ()):
                    yield ObjectInfo(
                        row["Key"], row["Size"], "", row["LastModified"].astimezone(UTC)
                    )

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        check_key(key)
        with self._answers(f"remove {key}"):
            self._s3.delete_object(Bucket=self.bucket, Key=key)

    def stat(self, key: str) -> ObjectInfo:
        """See `ObjectStore.stat`."""
        check_key(key)
        with self._answers(f"look at {key}"):
            head = self._s3.head_object(Bucket=self.bucket, Key=key)
        recorded = head["Metadata"].get("sha256", "")
        return ObjectInfo(
            key, head["ContentLength"], recorded, head["LastModified"].astimezone(UTC)
        )

    def ensure_bucket(self) -> None:
        """See `ObjectStore.ensure_bucket`."""
        check_bucket(self.bucket)
        with self._answers(f"make bucket {self.bucket}"):
            self._s3.create_bucket(Bucket=self.bucket)

    def delete_bucket(self) -> None:
        """See `ObjectStore.delete_bucket`."""
        with (
            contextlib.suppress(NoSuchBucket),
            self._answers(f"remove bucket {self.bucket}"),
        ):
            self._s3.delete_bucket(Bucket=self.bucket)

    @property
    def _s3(self) -> Any:
        """The boto3 client, made at the first use; threads share it."""
        with self._opening:
            if self._client is None:
                self._client = self._connect()
        return self._client

    def _connect(self) -> Any:
        import boto3.session
        from botocore.config import Config

        key = self.keystone.ec2_key()
        config = Config(
            # boto3's default, checksums after the body, fails on Ceph RGW over https with
            # MissingContentLength (seen with boto3 1.44 and RGW 16.2)
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=min(10.0, self.patience.timeout_s),
            read_timeout=self.patience.timeout_s,
            max_pool_connections=32,
            retries={"mode": "standard", "total_max_attempts": 1},  # `_again` decides
            s3={"addressing_style": "path"},
        )
        client = boto3.session.Session(
            aws_access_key_id=key.access, aws_secret_access_key=key.secret.reveal()
        ).client(
            "s3",
            endpoint_url=self.url,
            region_name=self.region,
            verify=self.ca_file or True,
            config=config,
        )
        client.meta.events.register_first("needs-retry.s3", self._again)
        return client

    def _again(
        self, attempts: int, response: Any, caught_exception: Any, request_dict: Any, **_: Any
    ) -> float | None:
        """Tell botocore whether to send a request (or a part) again: 0 for now, None for no."""
        context = request_dict["context"]
        begun = context.setdefault("kit_begun", self.patience.clock())
        status, asked = 0, ""
        if response is not None:
            status, asked = response[0].status_code, response[0].headers.get("Retry-After", "")
        lost = isinstance(caught_exception, _lost()) and UNTRUSTED not in str(caught_exception)
        if status not in AGAIN and not lost:
            return None
        pause = self.patience.delay(attempts, begun, asked)
        if pause is not None:
            self.patience.sleep(pause)
        return None if pause is None else 0.0

    def _whole(self, request: Callable[[], T]) -> T:
        """Repeat a request whose answer breaks off in the body, where botocore does not."""
        from botocore import exceptions

        broken = (exceptions.IncompleteReadError, exceptions.ResponseStreamingError)
        return persist(self.patience, request, broken, lambda err: "")

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[Any]:
        """Give s3transfer's manager: parts of PART bytes, AT_ONCE of them at a time."""
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        config = TransferConfig(
            multipart_threshold=PART + 1,
            multipart_chunksize=PART,
            max_concurrency=AT_ONCE,
            io_chunksize=BLOCK,
            max_io_queue=2 * AT_ONCE,  # blocks that wait for the disk: memory stays flat
        )
        with create_transfer_manager(self._s3, config) as manager:
            yield manager

    @contextlib.contextmanager
    def _answers(self, tried: str) -> Iterator[None]:
        """Turn what boto3 raises into what a person can act on."""
        from botocore import exceptions
        from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

        try:
            yield
        except exceptions.ClientError as err:
            status = err.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 403:  # the EC2 key may have been deleted: the next call asks for it anew
                self._client = None
            text = f"{err.response['Error']['Code']} {err.response['Error'].get('Message') or ''}"
            raise refused(tried, self.bucket, status, text) from err
        except (*_lost(), RetriesExceededError) as err:
            raise unreached(tried, err) from err


def _lost() -> tuple[type[Exception], ...]:
    """Name the exceptions of a connection that was not made, broke or fell silent."""
    from botocore import exceptions

    return (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        exceptions.ResponseStreamingError,
    )


def _watch(progress: Report | None) -> "list[Any]":
    """Give s3transfer's way of reporting bytes moved."""
    from boto3.s3.transfer import ProgressCallbackInvoker

    return [ProgressCallbackInvoker(progress)] if progress else []
