"""Errors for the answers of an object store, in both protocols, and when to ask again."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from kit.base import (
    BucketTaken,
    ClockSkewed,
    CredentialRefused,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    ObjectTooLarge,
    StoreUnavailable,
    UsageError,
    ca_bundle_step,
)

UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"  # OpenSSL's word for a certificate that is not trusted
RETRYABLE = (408, 429, 498, 499, 500, 502, 503, 504)  # HTTP status: the request may succeed later


@dataclass(frozen=True)
class RetryPolicy:
    """`timeout_s` bounds the wait for one answer; `attempts` counts the first request.

    The libraries wait between attempts, twice as long each time: eight take about a minute.
    """

    timeout_s: float = 30.0
    attempts: int = 8


def unavailable(tried: str, got: str) -> StoreUnavailable:
    """Return the error for a store that gave no usable answer in any attempt."""
    return StoreUnavailable(
        tried,
        got[:500],
        "the store is down, or full, or has lost a disk (then it hangs); nothing half-written "
        "is visible: repeat the command when the store is back (sandbox: kit sandbox status)",
    )


def connection_error(tried: str, err: Exception) -> KitError:
    """Return the error for a connection that was not made, broke or fell silent."""
    if UNTRUSTED in str(err):
        next_step = "check [store] url, and ca_file when the store has a CA of its own"
        return KitError(f"{tried}: the store's TLS certificate is not trusted", str(err), next_step)
    error = unavailable(tried, f"{type(err).__name__}: {err}")
    error.next_step = ca_bundle_step(err, error.next_step)
    return error


def answer_error(tried: str, bucket: str, status: int, text: str, date: str = "") -> KitError:
    """Return the error for an answer: its HTTP status, its code or text, its `Date` header.

    RGW also puts S3's error codes into the answers of its Swift API.
    """
    got = f"HTTP {status} {text}".strip()[:500]
    if "NoSuchBucket" in text:
        return NoSuchBucket(
            f"{tried}: the bucket {bucket} does not exist", got, "make it, or run again"
        )
    if status == 404:
        return NoSuchObject(f"{tried}: it is not there", got, "list the bucket: kit store ls")
    if "BucketAlreadyExists" in text:
        return bucket_taken(tried, bucket, got)
    if "RequestTimeTooSkewed" in text:
        return ClockSkewed(
            f"{tried}: this machine's clock is off{_skew(date)}",
            got,
            "set the clock (timedatectl set-ntp true), then repeat the command",
        )
    if status in (401, 403):
        next_step = "kit credentials; was the EC2 key deleted, or may it not use this bucket?"
        return CredentialRefused(f"{tried}: not allowed", got, next_step)
    if status == 409:
        return KitError(f"{tried}: it is not empty, or being changed", got, "empty it first")
    if status == 413 or "EntityTooLarge" in text:
        return ObjectTooLarge(f"{tried}: too large for one object", got, 'set kind = "s3"')
    if status in RETRYABLE:
        return unavailable(tried, got)
    if status in (400, 416):
        return UsageError(f"{tried}: the store does not accept this request", got)
    return KitError(f"{tried}: the store gave an unexpected answer", got)


def bucket_taken(tried: str, bucket: str, got: str) -> BucketTaken:
    """Return the error for a bucket that belongs to another project."""
    return BucketTaken(
        f"{tried}: another project has a bucket {bucket}",
        got,
        "names are global: change [store] bucket_prefix or collector_id in the profile",
    )


def _skew(date: str) -> str:
    """Return by how much the clock here differs from the `Date` header of an answer."""
    try:
        seconds = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):
        return ""
    minutes = f"{abs(seconds) / 60:,.0f} min"
    return f" by {minutes} ({'ahead' if seconds > 0 else 'behind'})"
