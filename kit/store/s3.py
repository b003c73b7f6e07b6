"""An object store by S3 (boto3): large objects in parts, several at a time."""

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

from kit.store.errors import RetryPolicy, answer_error, connection_error
from kit.store.keystone import Keystone
from kit.store.objects import BLOCK_BYTES, Body, ObjectInfo, Progress
from kit.store.remote import RemoteStore
from kit.store.static_keys import StaticKeys

PART_BYTES = 16 << 20
PARALLEL_PARTS = 4
# boto3 reads settings meant for AWS: a profile or a file of another program must not matter here
NO_AWS_SETTINGS = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
    "ca_bundle": (None, None, None, None),
}


class S3Store(RemoteStore):
    """One bucket by S3; see `RemoteStore`."""

    def __init__(
        self,
        bucket: str,
        keys: Keystone | StaticKeys,
        url: str,
        region: str,
        ca_file: str = "",
        retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__(bucket, region, ca_file, retry)
        self.keys = keys
        self.url = url
        self._opening = threading.Lock()
        self._connected: Any = None

    def _put(self, key: str, body: Body, progress: Progress | None) -> None:
        extra = {"Metadata": {"sha256": body.sha256}}
        with self._kit_errors(f"put {key}"):
            if body.size <= PART_BYTES:
                content = body.stream.read()
                self._client.put_object(Bucket=self.bucket, Key=key, Body=content, **extra)
                if progress:
                    progress(body.size)
                return
            # a name needs no memory, an open file that of the parts on their way
            source = str(body.path) if body.path else body.stream
            with self._transfer() as manager:
                manager.upload(source, self.bucket, key, extra, _subscribers(progress)).result()

    def _get(self, key: str) -> tuple[bytes, str]:
        from botocore.exceptions import IncompleteReadError, ResponseStreamingError

        with self._kit_errors(f"get {key}"):
            for attempts_left in range(self.retry.attempts - 1, -1, -1):
                answer = self._client.get_object(Bucket=self.bucket, Key=key)
                try:  # botocore repeats a request, not the reading of its answer
                    content = bytes(answer["Body"].read())
                    break
                except (IncompleteReadError, ResponseStreamingError):
                    if not attempts_left:
                        raise
        return content, answer["Metadata"].get("sha256", "")

    def _download(self, key: str, new: Path, progress: Progress | None) -> ObjectInfo:
        info = self._stat(key)
        with self._kit_errors(f"get {key}"), self._transfer() as manager:
            manager.download(self.bucket, key, str(new), {}, _subscribers(progress)).result()
        return info

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._kit_errors(f"list {self.bucket}"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for row in page.get("Contents", ()):
                    modified = row["LastModified"].astimezone(UTC)
                    yield ObjectInfo(row["Key"], row["Size"], "", modified)

    def _delete(self, key: str) -> None:
        with self._kit_errors(f"remove {key}"):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def _stat(self, key: str) -> ObjectInfo:
        with self._kit_errors(f"look at {key}"):
            head = self._client.head_object(Bucket=self.bucket, Key=key)
        recorded, modified = head["Metadata"].get("sha256", ""), head["LastModified"]
        return ObjectInfo(key, head["ContentLength"], recorded, modified.astimezone(UTC))

    def _make_bucket(self) -> None:
        with self._kit_errors(f"make bucket {self.bucket}", check_owner=False):
            self._client.create_bucket(Bucket=self.bucket)

    def _bucket_names(self, tried: str) -> set[str]:
        with self._kit_errors(tried, check_owner=False):
            return {row["Name"] for row in self._client.list_buckets()["Buckets"]}

    def _read_bucket(self, tried: str) -> None:
        with self._kit_errors(tried, check_owner=False):
            self._client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)

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

        key = self.keys.ec2_key()
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
            if status == 403:  # the key may have been deleted or replaced: the next call reads it
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
