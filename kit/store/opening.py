"""The object store of a profile: which kind, the names of its buckets, a bar for long transfers."""

import contextlib
import getpass
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import UsageError, read_login
from kit.store.errors import RetryPolicy
from kit.store.folder import FolderStore
from kit.store.keystone import Keystone, keystone_for, static_keys
from kit.store.objects import ObjectStore, Progress
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore

if TYPE_CHECKING:
    from kit.base.settings import Settings

PROGRESS_BAR_FROM_BYTES = 32 << 20


def open_store(
    settings: "Settings",
    bucket: str,
    kind: str = "",
    retry: RetryPolicy | None = None,
    keystone: Keystone | None = None,
) -> ObjectStore:
    """Return a bucket of the profile's store; no request is made yet.

    `kind` (s3, swift, directory) replaces the profile's. Raises UsageError if the profile has no
    store, or one of an unknown kind, or its login is missing.
    """
    store = settings.store_section()
    kind = kind or store.kind
    if kind == "directory":
        return FolderStore(bucket, Path(store.url))
    if kind not in ("s3", "swift"):
        raise UsageError(
            f"[store] kind = {kind!r} in profile {settings.profile} is unknown",
            next_step="write s3, swift or directory",
        )
    if kind == "s3" and keystone is None and store.credentials_file:
        keys = static_keys(store)
        return S3Store(bucket, keys, store.url, store.region, store.ca_file, retry)
    keystone = keystone or keystone_for(settings)
    if kind == "swift":
        return SwiftStore(bucket, keystone, store.region, store.ca_file, retry)
    return S3Store(bucket, keystone, store.url, store.region, store.ca_file, retry)


def bucket_name(settings: "Settings", role: str, user: str = "") -> str:
    """Return the bucket of a role: `<prefix>-<role>-<collector>-<user>`.

    Names are global across projects, hence the user, with all but a-z and 0-9 as `-`. The bucket
    of the forwarder, which serves several people, has no user.
    """
    store = settings.store_section()
    parts = [store.bucket_prefix, role, store.collector_id]
    if role != "forwarder":
        parts.append(user or user_of(settings))
    return "-".join(parts)


def user_of(settings: "Settings") -> str:
    """Return the user of the profile's store, as in names of buckets."""
    has_login = settings.store is not None and settings.store.auth_url
    user = read_login(settings).username if has_login else getpass.getuser()
    return re.sub("[^a-z0-9]+", "-", user.lower())


@contextlib.contextmanager
def progress_bar(title: str, size: int) -> Iterator[Progress | None]:
    """Yield what shows a transfer's progress on stderr or in a notebook; None for a short one."""
    if size < PROGRESS_BAR_FROM_BYTES:
        yield None
        return
    import tqdm.auto

    with tqdm.auto.tqdm(total=size, desc=title, unit="B", unit_scale=True, mininterval=0.5) as bar:
        yield bar.update
