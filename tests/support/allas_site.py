"""The sandbox's Allas, whose services tests stop, freeze, fill and kill; repaired afterwards."""

import contextlib
import os
import re
import signal
import time
import uuid

from buckets import remove_bucket
from kit_sandbox import services as sandbox_services
from kit_sandbox.supervisor import control

from kit.base import read_login
from kit.base.settings import load
from kit.store import Keystone, RetryPolicy, open_store

SHORT = RetryPolicy(timeout_s=2, attempts=3)  # for what will not work
LONG = RetryPolicy(timeout_s=3, attempts=12)  # for what will work again


class AllasSite:
    """Opens buckets; `stop`, `start`, `kill`, `frozen`, `full`, `short_tokens` do harm."""

    def __init__(self):
        self.loaded = load("sandbox")
        self.folder = self.loaded.sandbox_dir
        self._stores = []

    def store(self, kind, retry=None):
        """Open a fresh bucket."""
        store = open_store(self.loaded, f"test-{uuid.uuid4().hex[:12]}", kind, LONG)
        store.ensure_bucket()
        store.put("ready", b"")  # after a killed gateway the first calls may take seconds
        store.delete("ready")
        self._stores.append(store)
        return store if retry in (None, LONG) else self.same(store, kind, retry)

    def same(self, store, kind, retry=None):
        """Open the bucket of a store once more, with a login and connections of its own."""
        return open_store(self.loaded, store.bucket, kind, retry, self.keystone())

    def keystone(self):
        """Return a login of its own, not the one that all stores of the process share."""
        store = self.loaded.store
        return Keystone(read_login(self.loaded), store.auth_url, store.ca_file)

    def close(self):
        for store in self._stores:
            again = self.same(store, "swift", LONG)
            remove_bucket(again)

    def pid(self, name):
        return control(self.folder).getProcessInfo(name)["pid"]

    def kill(self, name):
        """Kill a service; the supervisor starts it again."""
        os.kill(self.pid(name), signal.SIGKILL)

    def wait(self, name):
        deadline = time.monotonic() + 60
        while not sandbox_services.check_health(self.folder, name)[name].healthy:
            assert time.monotonic() < deadline, f"{name} is not healthy again"
            time.sleep(0.2)

    def stop(self, name):
        control(self.folder).stopProcess(name)

    @contextlib.contextmanager
    def stopped(self, name):
        self.stop(name)
        try:
            yield
        finally:
            self.start(name)

    def start(self, name):
        if control(self.folder).getProcessInfo(name)["statename"] != "RUNNING":
            control(self.folder).startProcess(name)
        self.wait(name)
        self.wait("rgw")

    @contextlib.contextmanager
    def frozen(self, name):
        """Leave a service alive and silent, as a disk that no longer answers does."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGCONT)
            self.wait("rgw")

    def ceph(self, *words):
        conf = str(self.folder / "etc" / "ceph.conf")
        argv = ["ceph", "-c", conf, "--connect-timeout", "10", *words]
        return sandbox_services.run(self.folder, argv, check=True, timeout=30).stdout

    @contextlib.contextmanager
    def full(self):
        """Let Ceph count its disk as full: it then holds writes back, and fails nothing."""
        ratios = ("nearfull", "backfillfull", "full")
        for name in ratios:
            self.ceph("osd", f"set-{name}-ratio", "0.000001")
        try:
            self.until_full(True)
            yield
        finally:
            for name, ratio in zip(ratios, ("0.85", "0.90", "0.95"), strict=True):
                self.ceph("osd", f"set-{name}-ratio", ratio)
            self.until_full(False)
            self.wait("rgw")

    def until_full(self, full):
        """Wait until every pool is held back (nearly full is not enough), or none is."""
        deadline = time.monotonic() + 60
        while ("POOL_FULL" in self.ceph("health", "detail")) is not full:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    @contextlib.contextmanager
    def short_tokens(self, seconds):
        """Let Keystone give tokens that live only so long."""
        path = self.folder / "etc" / "keystone.conf"
        before = path.read_text()
        path.write_text(re.sub(r"(?m)^expiration = .*$", f"expiration = {seconds}", before))
        try:
            with self.stopped("keystone"):
                pass
            yield
        finally:
            path.write_text(before)
            with self.stopped("keystone"):
                pass
