"""Faults of the object store, on the real one: no half object, and work continues."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from allas_site import LONG, SHORT, AllasSite

from kit.base import ROOT, CredentialRefused, NoSuchObject, Secret, StoreUnavailable, Unreachable
from kit.store import Ec2Key

pytestmark = pytest.mark.sandbox
KINDS = ["s3", "swift"]
LARGE = random.Random(1).randbytes(24_000_000)  # two parts of an upload by S3


@pytest.fixture(scope="module")
def allas(sandbox):
    site = AllasSite()
    yield site
    site.close()


def keys(store):
    return [row.key for row in store.list()]


def once(action):
    """A progress report that does something at the first bytes."""
    done = []

    def report(_):
        if not done:
            done.append(True)
            action()

    return report


@pytest.mark.parametrize("kind", KINDS)
def test_a_gateway_killed_during_an_upload_costs_only_time(allas, kind, seen):
    store = allas.store(kind, LONG)
    begin = time.monotonic()
    store.put("big", LARGE, progress=once(lambda: allas.kill("rgw")))
    assert store.get("big") == LARGE
    seen(
        f"RGW killed during a 24 MB upload by {kind}",
        f"sent again, whole after {time.monotonic() - begin:.1f} s",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_that_a_dead_gateway_ended_leaves_nothing_to_see(allas, kind, seen):
    store = allas.store(kind, SHORT)
    with pytest.raises(StoreUnavailable) as caught:
        store.put("big", LARGE, progress=once(lambda: allas.stop("rgw")))
    allas.start("rgw")
    later = allas.same(store, kind, LONG)
    assert keys(later) == []
    with pytest.raises(NoSuchObject):
        later.get("big")
    later.put("big", LARGE)
    assert later.stat("big").sha256 == hashlib.sha256(LARGE).hexdigest()
    seen(f"RGW stopped during an upload by {kind}", f"{type(caught.value).__name__}; no object")


@pytest.mark.parametrize("kind", KINDS)
def test_a_gateway_killed_during_a_download_costs_only_time(allas, kind, tmp_path, seen):
    store = allas.store(kind, LONG)
    store.put("big", LARGE)
    store.get_file("big", tmp_path / "x", progress=once(lambda: allas.kill("rgw")))
    assert (tmp_path / "x").read_bytes() == LARGE
    seen(f"RGW killed during a download by {kind}", "read again, whole")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_disk_makes_calls_end_in_time_and_go_on_when_it_is_back(allas, kind, seen):
    store = allas.store(kind, SHORT)
    store.put("old", b"old")
    patient = allas.same(store, kind, LONG)
    patient.stat("old")  # connected and logged in before the harm
    with allas.frozen("ceph-osd"), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(patient.put, "new", LARGE)
        for call in (lambda: store.put("a", b"x"), lambda: store.get("old")):
            begin = time.monotonic()
            with pytest.raises(StoreUnavailable, match="hangs|Timeout|timed out"):
                call()
            assert time.monotonic() - begin < 15
        os.kill(allas.pid("ceph-osd"), signal.SIGCONT)
        waiting.result(timeout=90)
    assert patient.get("new") == LARGE
    assert patient.get("old") == b"old"
    seen(f"OSD frozen, calls by {kind}", "time-out with the next step; resumes when it is back")


def test_a_disk_that_restarts_is_only_a_delay(allas, seen):
    store = allas.store("s3", LONG)
    allas.kill("ceph-osd")
    begin = time.monotonic()
    store.put("a", LARGE)
    assert store.get("a") == LARGE
    seen(
        "OSD killed, supervisor starts it again", f"put and get in {time.monotonic() - begin:.1f} s"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_store_ends_in_time_and_takes_the_same_again_later(allas, kind, seen):
    store = allas.store(kind, SHORT)
    store.put("old", b"old")
    with allas.full():
        with pytest.raises(StoreUnavailable) as caught:
            store.put("new", LARGE)
        assert store.get("old") == b"old"
        assert keys(store) in (["old"], ["new", "old"])
    later = allas.same(store, kind, LONG)
    for key in keys(later):  # what became visible afterwards is whole
        later.get(key)
    later.put("new", LARGE)
    assert later.get("new") == LARGE
    assert "full" in caught.value.next_step
    seen(f"store full, put by {kind}", "time-out that names it; reads go on; put again works")


def test_a_keystone_away_at_the_start_is_said_and_later_does_not_matter(allas, seen):
    used = {kind: allas.store(kind, SHORT) for kind in KINDS}
    for store in used.values():
        store.put("a", b"x")
    with allas.stopped("keystone"):
        for kind, store in used.items():
            store.put("a", b"y")
            fresh = allas.same(store, kind, SHORT)
            with pytest.raises(Unreachable, match="Keystone at .* gives no usable answer"):
                fresh.get("a")
    for kind, store in used.items():
        assert allas.same(store, kind).get("a") == b"y"
    seen("Keystone away", "a running client continues; a new one says Unreachable")


def test_a_revoked_token_is_renewed(allas, seen):
    store = allas.store("swift", SHORT)
    keystone = store.keystone
    keystone.session.invalidate()
    token = keystone.token()  # RGW has not seen it, so it must ask Keystone
    keystone.session.delete(
        f"{keystone.auth_url}/auth/tokens", headers={"X-Subject-Token": token.reveal()}
    )
    store.put("a", b"x")
    assert keystone.token() != token
    seen("token revoked", "renewed after the 401, the bytes sent again")


def test_a_token_that_expires_during_an_upload_is_renewed(allas, seen, monkeypatch):
    with allas.short_tokens(3):
        store = allas.store("swift", SHORT)
        old = store.keystone.token()
        monkeypatch.setattr(store.keystone, "token", lambda: old)  # as if it were good for hours
        store.put("a", b"x")
        time.sleep(3.5)
        store.put("b", LARGE)  # the old token is refused, the bytes go again
        store.put("slow", LARGE, progress=once(lambda: time.sleep(4)))  # ends while it sends
        assert keys(store) == ["a", "b", "slow"]
        assert store.keystone.session.get_token() != old.reveal()
    seen("token ends between and during uploads", "renewed; both objects whole")


def test_an_ec2_key_that_was_deleted_is_refused_with_the_next_step(allas, seen):
    store = allas.store("s3", SHORT)
    keystone = allas.keystone()
    user, project = keystone.session.get_user_id(), keystone.session.get_project_id()
    url = f"{keystone.auth_url}/users/{user}/credentials/OS-EC2"
    row = keystone.session.post(url, json={"tenant_id": project}).json()["credential"]
    keystone.session.delete(f"{url}/{row['access']}")
    other = allas.same(store, "s3", SHORT)
    other.keys.ec2_key = lambda: Ec2Key(row["access"], Secret(row["secret"]))
    with pytest.raises(CredentialRefused) as caught:
        other.put("a", b"x")
    assert "EC2 key" in caught.value.next_step
    assert row["secret"] not in str(caught.value)
    del other.keys.ec2_key  # from here on the real one
    other.put("a", b"x")
    seen("EC2 key deleted", f"{caught.value.got}; the next call uses or makes another")


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_killed_during_an_upload_leaves_nothing_to_see(allas, kind, tmp_path, seen):
    store = allas.store(kind, SHORT)
    (tmp_path / "big").write_bytes(LARGE)
    code = f"""
import time
from pathlib import Path
from kit.base import settings
from kit.store import open_store
def report(_):
    print("sending", flush=True); time.sleep(0.2)
store = open_store(settings.load("sandbox"), {store.bucket!r}, {kind!r})
store.put("big", Path({str(tmp_path / "big")!r}), progress=report)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout.readline() == b"sending\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert keys(store) == []
    store.put("big", LARGE)
    assert store.get("big") == LARGE
    seen(f"client killed during an upload by {kind}", "no object; the next upload is whole")


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_removed_between_two_steps_has_its_own_error(allas, kind):
    store = allas.store(kind, SHORT)
    store.put("a", b"x")
    allas.same(store, "swift").delete("a")
    with pytest.raises(NoSuchObject, match="get a: it is not there"):
        store.get("a")


@pytest.mark.parametrize("kind", KINDS)
def test_two_writers_of_one_key_leave_one_of_the_two_whole(allas, kind, seen):
    store = allas.store(kind, LONG)
    contents = [bytes([65 + n]) * 5_000_000 for n in range(2)]
    barrier = threading.Barrier(2)

    def write(content):
        barrier.wait()
        for _ in range(5):
            store.put("a", content)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, contents))
    assert store.get("a") in contents
    seen(f"two writers of one key by {kind}", "the last one wins, whole; no create-if-absent")
