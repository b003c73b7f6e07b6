"""An object store by S3 (boto3): large objects in parts, several at a time."""

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from kit.base import NoSuchBucket
from kit.store.errors import (
    RetryPolicy,
    answer_error,
    bucket_taken,
    connection_error,
)
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

PART_BYTES = 16 << 20
PARALLEL_PARTS = 4
# boto3 reads settings meant for AWS: a profile or a file of another program must not matter here
NO_AWS_SETTINGS = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
    "ca_bundle": (None, None, None, None),
}


class S3Store:
    """One bucket by S3; see `ObjectStore`. `ca_file` "": the system's CAs. Shared by threads."""

    def __init__(
        self,
        bucket: str,
        keystone: Keystone,
        url: str,
        region: str,
        ca_file: str = "",
        retry: RetryPolicy | None = None,
    ) -> None:
        self.bucket, self.keystone, self.url, self.region = bucket, keystone, url, region
        self.ca_file, self.retry = ca_file, retry or RetryPolicy()
        self._opening = threading.Lock()
        self._connected: Any = None
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
            try:
                self._send(key, content, stream, size, found, progress)
            except NoSuchBucket:
                if not make_bucket:
                    raise
                self.ensure_bucket()
                self._send(key, content, stream, size, found, progress)
        return ObjectInfo(key, size, found, datetime.now(UTC))

    def _send(
        self,
        key: str,
        content: Content,
        stream: IO[bytes],
        size: int,
        sha256: str,
        progress: Progress | None,
    ) -> None:
        extra = {"Metadata": {"sha256": sha256}}
        with self._kit_errors(f"put {key}"):
            stream.seek(0)
            if size <= PART_BYTES:
                self._client.put_object(Bucket=self.bucket, Key=key, Body=stream.read(), **extra)
                if progress:
                    progress(size)
                return
            # a name needs no memory, an open file that of the parts on their way
            source = str(content) if isinstance(content, Path) else stream
            with self._transfer() as manager:
                manager.upload(source, self.bucket, key, extra, _subscribers(progress)).result()

    def get(self, key: str, *, sha256: str = "") -> bytes:
        """See `ObjectStore.get`."""
        from botocore.exceptions import IncompleteReadError, ResponseStreamingError

        check_key(key)
        with self._kit_errors(f"get {key}"):
            for attempt in range(self.retry.attempts):
                answer = self._client.get_object(Bucket=self.bucket, Key=key)
                try:  # botocore repeats a request, not the reading of its answer
                    content = bytes(answer["Body"].read())
                    break
                except (IncompleteReadError, ResponseStreamingError):
                    if attempt == self.retry.attempts - 1:
                        raise
        check_hash(key, content, sha256 or answer["Metadata"].get("sha256", ""))
        return content

    def get_file(
        self, key: str, path: Path, *, sha256: str = "", progress: Progress | None = None
    ) -> ObjectInfo:
        """See `ObjectStore.get_file`."""
        info = self.stat(key)
        with download_target(key, path) as new:
            with self._kit_errors(f"get {key}"), self._transfer() as manager:
                manager.download(self.bucket, key, str(new), {}, _subscribers(progress)).result()
            with new.open("rb") as stream:
                check_hash(key, digest(stream)[0], sha256 or info.sha256)
        return info

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._kit_errors(f"list {self.bucket}"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for row in page.get("Contents", ()):
                    modified = row["LastModified"].astimezone(UTC)
                    yield ObjectInfo(row["Key"], row["Size"], "", modified)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        check_key(key, removing=True)
        with self._kit_errors(f"remove {key}"):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def stat(self, key: str) -> ObjectInfo:
        """See `ObjectStore.stat`."""
        check_key(key)
        with self._kit_errors(f"look at {key}"):
            head = self._client.head_object(Bucket=self.bucket, Key=key)
        recorded, modified = head["Metadata"].get("sha256", ""), head["LastModified"]
        return ObjectInfo(key, head["ContentLength"], recorded, modified.astimezone(UTC))

    def ensure_bucket(self) -> None:
        """See `ObjectStore.ensure_bucket`."""
        check_bucket(self.bucket)
        with self._kit_errors(f"make bucket {self.bucket}", check_owner=False):
            self._client.create_bucket(Bucket=self.bucket)
        self._ours = True

    @property
    def _client(self) -> Any:
        """The boto3 client, made at the first use."""
        with self._opening:
            if self._connected is None:
                self._connected = self._connect()
        return self._connected

    def _connect(self) -> Any:
        import boto3.session
        import botocore.session
        from botocore.config import Config

        key = self.keystone.ec2_key()
        config = Config(
            # boto3's default, checksums after the body, fails on Ceph RGW over https with
            # MissingContentLength (seen with boto3 1.44 and RGW 16.2)
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=min(10.0, self.retry.timeout_s),
            read_timeout=self.retry.timeout_s,
            max_pool_connections=32,
            retries={"mode": "standard", "total_max_attempts": self.retry.attempts},
            s3={"addressing_style": "path"},
        )
        return boto3.session.Session(
            aws_access_key_id=key.access,
            aws_secret_access_key=key.secret.reveal(),
            botocore_session=botocore.session.Session(NO_AWS_SETTINGS),
        ).client(
            "s3",
            endpoint_url=self.url,
            region_name=self.region,
            verify=self.ca_file or True,
            config=config,
        )

    @contextlib.contextmanager
    def _transfer(self) -> Iterator[Any]:
        """Yield s3transfer's manager: parts of PART_BYTES, PARALLEL_PARTS of them at a time."""
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        config = TransferConfig(
            multipart_threshold=PART_BYTES + 1,
            multipart_chunksize=PART_BYTES,
            max_concurrency=PARALLEL_PARTS,
            io_chunksize=BLOCK_BYTES,
            max_io_queue=2 * PARALLEL_PARTS,  # blocks that wait for the disk: memory stays flat
        )
        with create_transfer_manager(self._client, config) as manager:
            yield manager

    def _check_owner(self, tried: str) -> None:
        """Raise BucketTaken if the bucket is another project's; ask until it is known to be ours.

        Names are global and can be guessed: a stranger may have made the bucket and opened it.
        """
        if self._ours:
            return
        with self._kit_errors(tried, check_owner=False):
            rows = self._client.list_buckets()["Buckets"]
            if self.bucket not in [row["Name"] for row in rows]:
                self._client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)  # NoSuchBucket
                raise bucket_taken(tried, self.bucket, "it is not among this project's buckets")
        self._ours = True

    @contextlib.contextmanager
    def _kit_errors(self, tried: str, check_owner: bool = True) -> Iterator[None]:
        """Check the bucket's owner first, and turn boto3's exceptions into the kit's."""
        from botocore import exceptions
        from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

        lost = (
            exceptions.HTTPClientError,
            exceptions.ConnectionError,
            exceptions.IncompleteReadError,
            exceptions.ResponseStreamingError,
            RetriesExceededError,
        )
        if check_owner:
            self._check_owner(tried)
        try:
            yield
        except exceptions.ClientError as err:
            meta, error = err.response["ResponseMetadata"], err.response["Error"]
            status = meta["HTTPStatusCode"]
            if status == 403:  # the EC2 key may have been deleted: the next call asks for it again
                self._connected = None
            text = f"{error['Code']} {error.get('Message') or ''}"
            self._ours &= "NoSuchBucket" not in text  # the next one of that name may be another's
            date = meta.get("HTTPHeaders", {}).get("date", "")
            raise answer_error(tried, self.bucket, status, text, date) from err
        except lost as err:
            raise connection_error(tried, err) from err


def _subscribers(progress: Progress | None) -> "list[Any]":
    """Return s3transfer's way of reporting moved bytes."""
    from boto3.s3.transfer import ProgressCallbackInvoker

    return [ProgressCallbackInvoker(progress)] if progress else []
