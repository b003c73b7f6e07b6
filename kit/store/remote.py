"""The common part of the stores by S3 and Swift: the login, the retries, the bucket's owner."""

import abc

from kit.store.errors import RetryPolicy, bucket_taken
from kit.store.objects import ObjectStore


class RemoteStore(ObjectStore):
    """One bucket in the project of a login. `ca_file` "": the system's CAs. Shared by threads."""

    def __init__(
        self,
        bucket: str,
        region: str,
        ca_file: str = "",
        retry: RetryPolicy | None = None,
    ) -> None:
        self.bucket, self.region = bucket, region
        self.ca_file, self.retry = ca_file, retry or RetryPolicy()
        self._ours = False

    def ensure_bucket(self) -> None:
        """See `ObjectStore.ensure_bucket`."""
        super().ensure_bucket()
        self._ours = True

    @abc.abstractmethod
    def _bucket_names(self, tried: str) -> set[str]:
        """Return the buckets of the project."""

    @abc.abstractmethod
    def _read_bucket(self, tried: str) -> None:
        """Raise NoSuchBucket if nobody has the bucket."""

    def _check_owner(self, tried: str) -> None:
        """Raise BucketTaken if the bucket is another project's; ask until it is known to be ours.

        Names are global and can be guessed: a stranger may have made the bucket and opened it.
        """
        if self._ours:
            return
        if self.bucket not in self._bucket_names(tried):
            self._read_bucket(tried)
            raise bucket_taken(tried, self.bucket, "it is not among this project's buckets")
        self._ours = True
