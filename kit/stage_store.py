"""What the stages of a run keep in the object store: files by hash, one record a stage.

    data/<hash>.safetensors   the data set (uint8 arrays), the hash that of `Dataset.hash`
    data/<hash>.json          where it is, with its own SHA-256, and where it came from
    runs/<run>/<file>         what a stage made
    runs/<run>/<stage>.json   the record of a finished stage, written last
    runs/<run>/<stage>.failed.json   the traceback of its last failure

A reader takes nothing whose SHA-256 is not the one that the record (or the caller) names.
"""

import contextlib
import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from kit.errors import DataError, KitError
from kit.fashion_mnist import Dataset
from kit.records import SCHEMA, Json, dumps, sha256_of
from kit.store import NoSuchObject, ObjectStore

PREPROCESS_TRAIN, EVALUATE = "preprocess-train", "evaluate"
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class StageStore:
    """The objects of one run in one bucket. The constructor only stores."""

    store: ObjectStore
    run_id: str

    def put_data(self, data: Dataset) -> bool:
        """Upload a data set; False when the same one is there already."""
        from safetensors.numpy import save

        name, about = f"data/{data.hash}.safetensors", f"data/{data.hash}.json"
        known = self._read(about)
        if known and self._is_there(known["object"]):
            return False
        content = self._put(name, save({name: getattr(data, name) for name in _ARRAYS}))
        facts = {"source": data.source, "files": data.files, "warning": data.warning}
        self._put(about, dumps({"schema": SCHEMA, "object": content, **facts}).encode())
        return True

    def get_data(self, data_hash: str) -> Dataset:
        """Download a data set; raises DataError when it is not there or not that one."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        known = self._read(f"data/{data_hash}.json")
        if known is None:
            raise DataError(f"the data set {data_hash} is not in the bucket", "", "upload it first")
        try:
            arrays = load(self.get(known["object"]))
            facts = {key: known[key] for key in ("source", "files", "warning")}
            data = Dataset(*(arrays[name] for name in _ARRAYS), **facts)
        except (SafetensorError, KeyError) as err:
            raise _changed(f"data/{data_hash}.safetensors", f"no data set: {err}") from err
        if data.hash != data_hash:
            raise _changed(f"data/{data_hash}.safetensors", f"the data set {data.hash}")
        return data

    def keep(self, name: str, content: bytes) -> Json:
        """Put a file of this run; give the reference (key, sha256, bytes) to get it by."""
        return self._put(f"runs/{self.run_id}/{name}", content)

    def get(self, reference: Json) -> bytes:
        """Get what a reference names; raises DataError when it is gone or other bytes."""
        content = self.store.get(reference["key"])
        if sha256_of(content) != reference["sha256"]:
            raise _changed(reference["key"], f"SHA-256 {sha256_of(content)}")
        return content

    def record(self, stage: str) -> tuple[Json, str] | None:
        """Give the record of a finished stage and its hash; None when it must be done (again).

        It must be done again when the record is damaged or one of its objects is gone.
        """
        record = self._read(f"runs/{self.run_id}/{stage}.json")
        if record is None or not all(map(self._is_there, record["objects"].values())):
            return None
        return record, sha256_of(dumps(record).encode())

    def finished(self, stage: str) -> Json:
        """Give the record of a finished stage; raises DataError when it is not there."""
        found = self.record(stage)
        if found is None:
            raise DataError(
                f"{stage} of {self.run_id} has no record in the bucket",
                "it is missing or damaged, or one of its objects is",
                "run again: what is missing is made anew",
            )
        return found[0]

    def commit(self, stage: str, record: Json) -> str:
        """Write the record of a finished stage, last of all; give its hash."""
        text = dumps({"schema": SCHEMA, "stage": stage, "run": self.run_id, **record})
        return str(self.keep(f"{stage}.json", text.encode())["sha256"])

    @contextlib.contextmanager
    def reporting(self, stage: str) -> Iterator[None]:
        """Leave the traceback in the store when the block fails (a pod's log is soon gone)."""
        with contextlib.ExitStack() as stack:
            stack.push(lambda kind, error, _: self._report(stage, error))
            yield

    def failure(self, stage: str) -> str:
        """Give the traceback of a stage's last failure, or nothing."""
        found = self._read(f"runs/{self.run_id}/{stage}.failed.json") or {}
        return str(found.get("traceback", ""))

    def _report(self, stage: str, error: BaseException | None) -> None:
        if error is None:
            return
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(KitError):  # the store may be what failed
            self.keep(f"{stage}.failed.json", dumps({"schema": SCHEMA, "traceback": text}).encode())

    def _put(self, key: str, content: bytes) -> Json:
        self.store.put(key, content)
        return {"key": key, "sha256": sha256_of(content), "bytes": len(content)}

    def _read(self, key: str) -> Json | None:
        """Read a JSON object; None when it is not there, or damaged."""
        try:
            found = json.loads(self.store.get(key))
        except (NoSuchObject, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None

    def _is_there(self, reference: Json) -> bool:
        try:
            return self.store.stat(reference["key"]).sha256 == reference["sha256"]
        except NoSuchObject:
            return False


def _changed(key: str, got: str) -> DataError:
    return DataError(
        f"{key} in the bucket is not what was put there", got, "remove it, then run again"
    )
