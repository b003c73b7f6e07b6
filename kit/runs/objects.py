"""Objects of the stages of a run: files by hash, one record a stage.

    data/<hash>-{train,test}.safetensors   the data set (uint8 arrays), under `Dataset.hash`
    data/<hash>.json   which objects it is in, with their SHA-256, and where it came from
    runs/<run>/<file>         a file that a stage wrote
    runs/<run>/<stage>.json   the record of a finished stage, written last
    runs/<run>/<stage>.started.json  when a stage that outlives its process was started first
    runs/<run>/<stage>.failed.json   the traceback of its last failure

A reader takes nothing whose SHA-256 is not the one that the record (or the caller) names.
"""

import contextlib
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.base import (
    SCHEMA,
    DataError,
    Json,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    dumps,
    parse,
    sha256_of,
)
from kit.experiments.fashion_mnist.images import SIDE, Dataset
from kit.store import ObjectStore

_KINDS = ("images", "labels")


@dataclass(frozen=True)
class StageStore:
    """The objects of one run in one bucket. The constructor only stores."""

    store: ObjectStore
    run_id: str

    def put_data(self, data: Dataset) -> bool:
        """Upload a data set; return False if the bucket has it already.

        Its record is written again then: the time shows that the data set is in use.
        """
        from safetensors.numpy import save

        known = self._read(f"data/{data.hash}.json")
        if known and all(map(self._is_there, known["objects"].values())):
            self._put(f"data/{data.hash}.json", dumps(known).encode())
            return False
        about: Json = {"schema": SCHEMA, "hash": data.hash, "objects": {}}
        for part in ("train", "test"):
            arrays = {kind: getattr(data, f"{part}_{kind}") for kind in _KINDS}
            key = f"data/{data.hash}-{part}.safetensors"
            about["objects"][part] = self._put(key, save(arrays))
        about |= {"source": data.source, "files": data.files, "warning": data.warning}
        self._put(f"data/{data.hash}.json", dumps(about).encode())
        return True

    def get_data(self, data_hash: str) -> tuple[Dataset, Json]:
        """Download a data set; return it and its record, which names its two objects.

        Raises DataError if the bucket has no data set of that hash.
        """
        about = self._read(f"data/{data_hash}.json")
        if about is None:
            raise DataError(f"the data set {data_hash} is not in the bucket", "", "upload it first")
        data = self._dataset(about, ("train", "test"))
        if data.hash != data_hash:
            raise _changed(f"data/{data_hash}.json", f"the data set {data.hash}")
        return data, about

    def get_test_data(self, about: Json) -> Dataset:
        """Download the test images alone, of the data set that the training got as `about`."""
        return self._dataset(about, ("test",))

    def _dataset(self, about: Json, parts: tuple[str, ...]) -> Dataset:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        arrays: dict[str, Any] = {"train_images": np.empty((0, SIDE, SIDE), np.uint8)}
        arrays["train_labels"] = np.empty(0, np.uint8)
        try:
            for part in parts:
                stored = load(self.get(about["objects"][part]))
                arrays |= {f"{part}_{kind}": stored[kind] for kind in _KINDS}
            facts = {key: about[key] for key in ("source", "files")}
        except (SafetensorError, KeyError) as err:
            raise _changed(f"data/{about.get('hash')}", f"not a data set: {err}") from err
        return Dataset(**arrays, **facts)

    def keep(self, name: str, content: bytes) -> Json:
        """Put a file of this run; return the reference (key, sha256, bytes) to get it by."""
        return self._put(f"runs/{self.run_id}/{name}", content)

    def get(self, reference: Json) -> bytes:
        """Return the bytes of a reference. Raises DataError if they are gone or changed."""
        return self.store.get(reference["key"], sha256=reference["sha256"])

    def record(self, stage: str) -> tuple[Json, str] | None:
        """Return the record of a finished stage and its hash; None if the stage must be done.

        It must be done again if the record is damaged or one of its objects is gone.
        """
        record = self._read(f"runs/{self.run_id}/{stage}.json")
        if record is None or not all(map(self._is_there, record["objects"].values())):
            return None
        return record, sha256_of(dumps(record).encode())

    def finished(self, stage: str) -> Json:
        """Return the record of a finished stage. Raises DataError without one."""
        stored = self.record(stage)
        if stored is None:
            raise DataError(
                f"{stage} of {self.run_id} has no record in the bucket",
                "it is missing or damaged, or one of its objects is",
                "run again: what is missing is recreated",
            )
        return stored[0]

    def commit(self, stage: str, record: Json) -> str:
        """Write the record of a finished stage, last of all; return its hash."""
        text = dumps({"schema": SCHEMA, "stage": stage, "run": self.run_id, **record})
        return str(self.keep(f"{stage}.json", text.encode())["sha256"])

    def first_start(self, stage: str, now: float) -> float:
        """Return when a stage was started first: a killed one is started again meanwhile."""
        started = self._read(f"runs/{self.run_id}/{stage}.started.json")
        if started and isinstance(started.get("started"), float) and started["started"] <= now:
            return float(started["started"])
        content = dumps({"schema": SCHEMA, "started": float(now)})
        self.keep(f"{stage}.started.json", content.encode())
        return now

    @contextlib.contextmanager
    def reporting(self, stage: str) -> Iterator[None]:
        """Store the traceback if the block fails (a pod's log is soon gone)."""
        with contextlib.ExitStack() as stack:
            stack.push(lambda kind, error, _: self._report(stage, error))
            yield

    def failure(self, stage: str, since: float = 0.0) -> str:
        """Return the traceback of a stage's last failure after `since`, or an empty text."""
        failed = self._read(f"runs/{self.run_id}/{stage}.failed.json") or {}
        return str(failed.get("traceback", "")) if failed.get("time", since) >= since else ""

    def _report(self, stage: str, error: BaseException | None) -> None:
        if error is None:
            return
        text = "".join(traceback.format_exception(error))
        content = {"schema": SCHEMA, "time": time.time(), "traceback": text}
        with contextlib.suppress(KitError):  # the store may be what failed
            self.keep(f"{stage}.failed.json", dumps(content).encode())

    def _put(self, key: str, content: bytes) -> Json:
        info = self.store.put(key, content)
        return {"key": key, "sha256": info.sha256, "bytes": info.size}

    def _read(self, key: str) -> Json | None:
        """Read a JSON object; None if there is none or it is damaged."""
        try:
            return parse(self.store.get(key), key)
        except NoSuchBucket:
            raise
        except DataError:
            return None

    def _is_there(self, reference: Json) -> bool:
        try:
            return bool(self.store.stat(reference["key"]).sha256 == reference["sha256"])
        except NoSuchObject:
            return False


def _changed(key: str, got: str) -> DataError:
    return DataError(
        f"{key} in the bucket is not what was put there", got, "remove it, then run again"
    )
