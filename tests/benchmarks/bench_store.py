"""What the object store's clients reach beside curl and plain python-swiftclient calls.

Needs the sandbox. Every figure is a ratio of two best rounds of several, taken in turn: other work
on the machine only makes a round slower.
Usage: make bench NAMES=store
"""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measured
from buckets import remove_bucket
from swiftclient import Connection

from kit.base.settings import load
from kit.store import open_store

SIZE, ROUNDS = 100_000_000, 5
COUNT, BASE = 1000, 250  # BASE one-by-one calls are enough for a rate
GIGABYTE = 1_000_000_000


def main() -> None:
    loaded = load(sys.argv[1] if len(sys.argv) > 1 else "sandbox")
    stores = {
        kind: open_store(loaded, f"bench-{uuid.uuid4().hex[:12]}", kind) for kind in ("s3", "swift")
    }
    for store in stores.values():
        store.ensure_bucket()
    with tempfile.TemporaryDirectory() as folder:
        large(stores, Path(folder))
        small(stores)
        memory(loaded.profile, stores, Path(folder))
    for store in stores.values():
        remove_bucket(store)


def seconds(action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def in_threads(call, *columns) -> list:
    """Call for each row of the columns, 16 at a time."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(call, *columns))


def say(what: str, ratio: float, aim: float, more: str = "") -> None:
    """Show a rate beside that of the plain client."""
    measured.show(what, ratio, "", aim, more_is_better=True, note=more)


def large(stores, folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    source.write_bytes(os.urandom(SIZE))
    swift = stores["swift"]
    url = f"{swift.keystone.storage_url(swift.region)}/{swift.bucket}/curl"
    config = folder / "curl.conf"
    config.touch(mode=0o600)
    config.write_text(f'header = "X-Auth-Token: {swift.keystone.token().reveal()}"\n')
    curl = ["curl", "-sSf", "-K", str(config), "--cacert", swift.ca_file, "-o"]

    def up_by_curl():
        subprocess.run([*curl, "/dev/null", "-T", str(source), url], check=True)

    def down_by_curl():
        subprocess.run([*curl, str(target), url], check=True)

    for kind, store in stores.items():
        base, ours = {"up": [], "down": []}, {"up": [], "down": []}
        for _ in range(ROUNDS):
            base["up"].append(seconds(up_by_curl))
            ours["up"].append(seconds(lambda s=store: s.put("big", source)))
            base["down"].append(seconds(down_by_curl))
            ours["down"].append(seconds(lambda s=store: s.get_file("big", target)))
        for way in base:
            ratio, speed = min(base[way]) / min(ours[way]), SIZE / 1e6 / min(ours[way])
            say(f"100 MB {way} by {kind}, rate beside curl's", ratio, 0.6, f"{speed:.0f} MB/s")


def small(stores) -> None:
    swift = stores["swift"]
    options = {"region_name": swift.region}
    plain = Connection(session=swift.keystone.session, os_options=options, cacert=swift.ca_file)
    body = os.urandom(1000)

    def one_by_one(call):
        return BASE / seconds(lambda: [call(f"plain/{n:04}") for n in range(BASE)])

    keys = [f"small/{n:04}" for n in range(COUNT)]
    bodies = [body] * COUNT
    for kind, store in stores.items():
        base, ours, lists = {"put": [], "got": []}, {"put": [], "got": []}, []
        for _ in range(ROUNDS):
            base["put"].append(one_by_one(lambda key: plain.put_object(swift.bucket, key, body)))
            ours["put"].append(COUNT / seconds(lambda s=store: in_threads(s.put, keys, bodies)))
            base["got"].append(one_by_one(lambda key: plain.get_object(swift.bucket, key)))
            ours["got"].append(COUNT / seconds(lambda s=store: in_threads(s.get, keys)))
            lists.append(seconds(lambda s=store: list(s.list("small/"))))
        for what in base:
            rates = f"{max(ours[what]):.0f}/s, plain calls {max(base[what]):.0f}/s"
            ratio = max(ours[what]) / max(base[what])
            say(f"{COUNT} small objects {what} by {kind}", ratio, 2.5, rates)
        say(
            f"{COUNT} objects listed by {kind}, 0.3 s", 0.3 / min(lists), 1.0, f"{min(lists):.3f} s"
        )


def memory(profile: str, stores, folder: Path) -> None:
    source = folder / "source"
    with source.open("wb") as stream:
        stream.truncate(GIGABYTE)
    for kind, store in stores.items():
        argv = [sys.executable, __file__, "--move", profile, kind, store.bucket, str(source)]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        resident = float(done.stdout)
        say(f"1 GB moved by {kind}, 200 MB resident", 200 / resident, 1.0, f"{resident:.0f} MB")


def move(profile: str, kind: str, bucket: str, source: str) -> None:
    """Put and get one large object and print the most memory this process had, in MB."""
    store = open_store(load(profile), bucket, kind)
    store.put("gigabyte", Path(source))
    store.get_file("gigabyte", Path(source + ".copy"))
    with contextlib.suppress(OSError):
        os.unlink(source + ".copy")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--move"]:
        move(*sys.argv[2:])
    else:
        main()
