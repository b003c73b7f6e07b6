"""The object store of a profile: which one, what its buckets are called, many objects at a time."""

import contextlib
import getpass
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from kit.base import NoSuchObject, UsageError, read_login
from kit.base.settings import Settings
from kit.store.errors import Patience
from kit.store.folder import DirectoryStore
from kit.store.keystone import Keystone, keystone_for
from kit.store.objects import Data, ObjectInfo, ObjectStore, Report
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore

__all__ = ["NoSuchObject", "ObjectInfo", "ObjectStore", "bucket_name", "open_store"]
S = TypeVar("S")
T = TypeVar("T")
LONG = 32 << 20  # bytes from which on a transfer shows a bar
ADD_STORE = "add [store] with kind and url to the profile, or use another profile"
AT_ONCE = 16  # small objects on their way at the same time


def open_store(
    settings: Settings,
    bucket: str,
    kind: str = "",
    patience: Patience | None = None,
    keystone: Keystone | None = None,
) -> ObjectStore:
    """Give a bucket of the profile's store; nothing is asked of it yet.

    `kind` (s3, swift, directory) replaces the profile's. Raises UsageError when the profile has no
    store, or one of an unknown kind, or there is no login for it.
    """
    store = settings.store
    if store is None:
        raise UsageError(f"profile {settings.profile} has no object store", next_step=ADD_STORE)
    kind = kind or store.kind
    if kind == "directory":
        return DirectoryStore(bucket, Path(store.url))
    if kind not in ("s3", "swift"):
        raise UsageError(
            f"[store] kind = {kind!r} in profile {settings.profile} is unknown",
            next_step="write s3, swift or directory",
        )
    keystone = keystone or keystone_for(settings)
    if kind == "swift":
        return SwiftStore(bucket, keystone, store.region, store.ca_file, patience)
    return S3Store(bucket, keystone, store.url, store.region, store.ca_file, patience)


def bucket_name(settings: Settings, role: str, user: str = "") -> str:
    """Name the bucket for a role: `<prefix>-<role>-<ice id>-<user>`; the forwarder's has no user.

    Names are global across projects, hence the user, with all but a-z and 0-9 as `-`.
    """
    store = settings.store
    if store is None:
        raise UsageError(f"profile {settings.profile} has no object store", next_step=ADD_STORE)
    parts = [store.bucket_prefix, role, store.collector_id]
    if role != "forwarder":
        parts.append(user or user_of(settings))
    return "-".join(parts)


def user_of(settings: Settings) -> str:
    """Name the user of the profile's store, as names of buckets have it."""
    known = settings.store is not None and settings.store.auth_url
    user = read_login(settings).username if known else getpass.getuser()
    return re.sub("[^a-z0-9]+", "-", user.lower())


@contextlib.contextmanager
def bar(title: str, size: int) -> Iterator[Report | None]:
    """Give what shows a transfer's progress on stderr or in a notebook; None for a short one."""
    if size < LONG:
        yield None
        return
    import tqdm.auto

    with tqdm.auto.tqdm(
        total=size, desc=title, unit="B", unit_scale=True, mininterval=0.5
    ) as shown:
        yield shown.update


def put_many(
    store: ObjectStore, objects: Iterable[tuple[str, Data]], at_once: int = AT_ONCE
) -> list[ObjectInfo]:
    """Put many small objects, `at_once` at a time, in order; the first failure is raised."""
    store = light(store)
    return _spread(lambda pair: store.put(*pair), list(objects), at_once)


def get_many(
    store: ObjectStore, keys: Iterable[str], at_once: int = AT_ONCE
) -> list[tuple[str, bytes]]:
    """Get many small objects, `at_once` at a time: (key, bytes) in order, each checked."""
    store = light(store)
    return _spread(lambda key: (key, store.get(key)), list(keys), at_once)


def _spread(call: Callable[[S], T], items: list[S], at_once: int) -> list[T]:
    """Call for each item in threads; results in order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(call, items))


def light(store: ObjectStore) -> ObjectStore:
    """Give the same bucket by the protocol that costs least for each small object.

    boto3 takes 1.3 ms of processor time for each, the Swift face a quarter of it; both show the
    same objects and hashes. A store that has no Swift face is given back as it is.
    """
    if not isinstance(store, S3Store):
        return store
    if store.light is None:
        swift = SwiftStore(
            store.bucket, store.keystone, store.region, store.ca_file, store.patience
        )
        try:
            store.keystone.storage_url(store.region)
            store.light = swift
        except UsageError:
            store.light = store
    return store.light
