"""What an object store's answers mean, in both protocols, and how long to go on asking."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kit.base import (
    BucketTaken,
    CredentialRefused,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    ObjectTooLarge,
    StoreUnavailable,
    UsageError,
)

T = TypeVar("T")
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # OpenSSL's word for a certificate nobody we trust signed
AGAIN = (408, 429, 498, 500, 502, 503, 504)  # after these the same request may succeed


@dataclass(frozen=True)
class Patience:
    """How long to wait for one answer, and how long to go on asking. For tests: sleep, clock."""

    timeout_s: float = 30.0
    patience_s: float = 90.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def delay(self, attempt: int, begun: float, retry_after: str = "") -> float | None:
        """Say how long to wait after failed attempt 1, 2, …; None when it is enough.

        The server's `Retry-After` in seconds (RFC 9110, 10.2.3) is the least; else 0.5 s, then
        twice as long each time up to 8 s, a quarter more or less at random.
        """
        asked = float(retry_after) if re.fullmatch(r"\d{1,6}", retry_after) else 0.0
        usual = min(8.0, 0.25 * 2.0**attempt) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        pause = max(asked, usual)
        return pause if self.clock() - begun + pause < self.patience_s else None


def persist(
    patience: Patience,
    request: Callable[[], T],
    failures: tuple[type[Exception], ...],
    again: Callable[[Any], str | None],
) -> T:
    """Call `request` until it gives something or patience ends; then its failure is raised.

    `again` says of a failure whether the same request may succeed later: the `Retry-After` of
    the answer ("" without one), or None.
    """
    begun, attempt = patience.clock(), 0
    while True:
        attempt += 1
        try:
            return request()
        except failures as err:
            asked = again(err)
            pause = None if asked is None else patience.delay(attempt, begun, asked)
            if pause is None:
                raise
        patience.sleep(pause)


def unavailable(tried: str, got: str) -> StoreUnavailable:
    """Make the error for a store that gave no usable answer for as long as we asked."""
    return StoreUnavailable(
        tried,
        got[:500],
        "the store is down, or full, or has lost a disk (then it hangs); nothing half-written "
        "is visible: do the same again when it is back (sandbox: kit sandbox status)",
    )


def unreached(tried: str, err: Exception) -> KitError:
    """Make the error for a connection that was not made, broke or fell silent."""
    if UNTRUSTED in str(err):
        step = "check [store] url, and ca_file when the store has a CA of its own"
        return KitError(f"{tried}: the store's TLS certificate is not trusted", str(err), step)
    return unavailable(tried, f"{type(err).__name__}: {err}")


def refused(tried: str, bucket: str, status: int, text: str) -> KitError:
    """Make the error for an answer: its HTTP status and its code or text.

    RGW puts S3's error codes into the answers of its Swift API, too.
    """
    got = f"HTTP {status} {text}".strip()[:500]
    if "NoSuchBucket" in text:
        return NoSuchBucket(f"{tried}: there is no bucket {bucket}", got, "make it, or run again")
    if status == 404:
        return NoSuchObject(f"{tried}: it is not there", got, "list the bucket: kit store ls")
    if "BucketAlreadyExists" in text:
        return BucketTaken(
            f"{tried}: another project has a bucket {bucket}",
            got,
            "names are global: change [store] bucket_prefix or collector_id in the profile",
        )
    if status in (401, 403):
        step = (
            "kit credentials; is the bucket another project's, or was the EC2 key deleted just now?"
        )
        return CredentialRefused(f"{tried}: not allowed", got, step)
    if status == 409:
        return KitError(f"{tried}: it is not empty, or being changed", got, "empty it first")
    if status == 413 or "EntityTooLarge" in text:
        return ObjectTooLarge(f"{tried}: too large for one object", got, 'set kind = "s3"')
    if status in AGAIN:
        return unavailable(tried, got)
    if status in (400, 416):
        return UsageError(f"{tried}: the store does not take this request", got)
    return KitError(f"{tried}: the store gave an unexpected answer", got)
