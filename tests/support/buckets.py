"""Buckets for tests: emptied and removed afterwards, which the kit itself never does."""

import shutil
from concurrent.futures import ThreadPoolExecutor

from kit.base import NoSuchBucket
from kit.store.folder import FolderStore
from kit.store.swift import SwiftStore


def empty(store):
    """Remove all objects; return whether the bucket was there."""
    try:
        keys = [row.key for row in store.list()]
    except NoSuchBucket:
        return False
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.delete, keys))
    return True


def as_swift(store):
    """Return the same bucket by Swift, with the store's own login."""
    keystone = store.keystone if isinstance(store, SwiftStore) else store.keys
    return SwiftStore(store.bucket, keystone, store.region, store.ca_file)


def remove_bucket(store):
    """Remove a bucket with all that is in it."""
    if not empty(store):
        return
    if isinstance(store, FolderStore):
        shutil.rmtree(store.folder)
        return
    swift = as_swift(store)
    with swift._request("remove") as connection:
        connection.delete_container(store.bucket)
