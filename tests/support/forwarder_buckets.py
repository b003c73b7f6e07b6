"""The buckets that a forwarder reads and its own, as folders, with runs written into them."""

import hashlib
import json

from gauge_samples import RUN, kept

from kit.base.settings import load
from kit.forwarder.collect import Buckets, Forwarder
from kit.forwarder.people import people
from kit.store import FolderStore

ANNA, BEA = "annas-t0ken-0123456789", "beas-t0ken-0123456789"
OWN = "integration-forwarder-s0-c0-u1"


class ForwarderBuckets:
    """The buckets of one user and the forwarder's own."""

    def __init__(self, folder):
        names = [f"integration-{role}-s0-c0-u1-anna" for role in ("submitter", "pipeline")]
        self.request_store, self.data = (FolderStore(name, folder) for name in names)
        self.own = FolderStore(OWN, folder)
        self.request_store.ensure_bucket()
        self.data.ensure_bucket()
        self.settings = load("sandbox", {"KIT_CACHE_DIR": str(folder)})
        self.request_bucket = names[0]

    def forwarder(self):
        """Return a new forwarder, as after a restart."""
        users = [Buckets("anna", self.request_bucket, self.request_store, self.data)]
        return Forwarder(self.settings, users, self.own, OWN)

    def write(self, store, run, name, content):
        text = content if isinstance(content, bytes) else json.dumps({"schema": 1, **content})
        data = text if isinstance(text, bytes) else text.encode()
        return store.put(f"runs/{run}/{name}", data)

    def done(self, run=RUN, **result):
        """Write every object of a finished run."""
        ours = kept(run)
        self.write(self.request_store, run, "request.json", {})
        self.write(self.request_store, run, "try-1/submitted.json", {})
        self.write(self.request_store, run, "progress.json", {})
        for name, stage in ours.stages.items():
            self.write(self.data, run, f"{name}.json", stage)
        self.write(self.request_store, run, "result.json", ours.result | result)


def known_people(buckets, folder):
    """Return two people who may ask, by the SHA-256 of their tokens ANNA and BEA."""
    names = {ANNA: "anna", BEA: "bea"}
    file = folder / "people"
    rows = [f"{name} {hashlib.sha256(token.encode()).hexdigest()}" for token, name in names.items()]
    file.write_text("\n".join(rows) + "\n")
    file.chmod(0o600)

    def buckets_of(user):
        names = [f"integration-{role}-s0-c0-u1-{user}" for role in ("submitter", "pipeline")]
        return Buckets(user, names[0], *(FolderStore(name, folder) for name in names))

    return people(file, buckets.settings, buckets_of)
