"""Objects of the stages of a run: files by hash, one record a stage.

    data/<hash>/<file>        a file of the data set with that hash over names and contents
    data/<hash>.json          which files it has, with their SHA-256, and where it came from
    runs/<run>/out/<file>     a file that the experiment wrote
    runs/<run>/<file>         a file that a stage wrote
    runs/<run>/<stage>.json   the record of a finished stage, written last
    runs/<run>/<stage>.started.json  when a stage that outlives its process was started first
    runs/<run>/<stage>.failed.json   the traceback of its last failure

A reader takes nothing whose SHA-256 is not the one that the record (or the caller) names.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kit.base import (
    SCHEMA,
    DataError,
    Json,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    dumps,
    parse_json,
    sha256_of,
)
from kit.experiments.contract import files_below, hash_of
from kit.experiments.running import OUT, Data, check_name
from kit.store import ObjectStore

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
FILES_AT_ONCE = 4


@dataclass(frozen=True)
class StageStore:
    """The objects of one run in one bucket. The constructor only stores."""

    store: ObjectStore
    run_id: str

    def put_data(self, data: Data) -> bool:
        """Upload a data set; return False if the bucket has it already.

        Its record is written again then: the time shows that the data set is in use.
        """
        record = f"data/{data.hash}.json"
        known = self._read(record)
        if known and self._are_there(known["objects"].values()):
            self._put(record, dumps(known).encode())
            return False
        about: Json = {"schema": SCHEMA, **data.info.facts(data.hash)}
        about["objects"] = {
            name: self._put(f"data/{data.hash}/{name}", path)
            for name, path in files_below(data.folder).items()
        }
        self._put(record, dumps(about).encode())
        return True

    def get_data(self, data_hash: str, folder: Path) -> Json:
        """Download a data set into a folder; return its record.

        Raises DataError if the bucket has no data set of that hash.
        """
        key = f"data/{data_hash}.json"
        about = self._read(key)
        if about is None:
            raise DataError(f"the data set {data_hash} is not in the bucket", "", "upload it first")
        if not isinstance(about.get("objects"), dict):
            raise _changed(key, "not a data set: it names no files")
        self.get_files(about["objects"], folder)
        found = hash_of(files_below(folder))
        if found != data_hash:
            raise _changed(key, f"the data set {found}")
        return about

    def data_bytes(self, data_hash: str) -> int:
        """Return the size of a data set; 0 if the bucket has none."""
        about = self._read(f"data/{data_hash}.json") or {}
        return sum(int(reference["bytes"]) for reference in about.get("objects", {}).values())

    def get_files(self, references: Mapping[str, Json], folder: Path) -> None:
        """Download files by their names below a folder. Raises DataError for a name outside it."""
        paths = {name: folder / check_name(name) for name in references}

        def get(name: str) -> None:
            """Download one file."""
            reference, path = references[name], paths[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            self.store.get_file(reference["key"], path, sha256=reference["sha256"])

        _at_once(get, references)

    def keep_out(self, files: Mapping[str, Path]) -> dict[str, Json]:
        """Put the experiment's own files; return their references by name, with `OUT` before it."""
        return {
            OUT + name: self._put(f"runs/{self.run_id}/{OUT}{name}", path)
            for name, path in files.items()
        }

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
        if record is None or not self._are_there(record["objects"].values()):
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
    def reporting(self, stage: str, hide: Callable[[str], str] = str) -> Iterator[None]:
        """Store the traceback if the block fails (a pod's log is soon gone).

        `hide` takes secrets out of it.
        """
        with contextlib.ExitStack() as stack:
            stack.push(lambda kind, error, _: self._report(stage, error, hide))
            yield

    def failure(self, stage: str, since: float = 0.0) -> str:
        """Return the traceback of a stage's last failure after `since`, or an empty text."""
        failed = self._read(f"runs/{self.run_id}/{stage}.failed.json") or {}
        return str(failed.get("traceback", "")) if failed.get("time", since) >= since else ""

    def _report(self, stage: str, error: BaseException | None, hide: Callable[[str], str]) -> None:
        if error is None:
            return
        text = hide("".join(traceback.format_exception(error)))
        content = {"schema": SCHEMA, "time": time.time(), "traceback": text}
        with contextlib.suppress(KitError):  # the store may be what failed
            self.keep(f"{stage}.failed.json", dumps(content).encode())

    def _put(self, key: str, content: bytes | Path) -> Json:
        info = self.store.put(key, content)
        return {"key": key, "sha256": info.sha256, "bytes": info.size}

    def _read(self, key: str) -> Json | None:
        """Read a JSON object; None if there is none or it is damaged."""
        try:
            return parse_json(self.store.get(key), key)
        except NoSuchBucket:
            raise
        except DataError:
            return None

    def _are_there(self, references: Iterable[Json]) -> bool:
        return all(_at_once(self._is_there, references))

    def _is_there(self, reference: Json) -> bool:
        try:
            return bool(self.store.stat(reference["key"]).sha256 == reference["sha256"])
        except NoSuchObject:
            return False


def _at_once(call: Callable[[_Item], _Answer], items: Iterable[_Item]) -> list[_Answer]:
    """Call with each item, some at a time: an answer of a distant store takes a while."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return list(pool.map(call, items))


def _changed(key: str, got: str) -> DataError:
    return DataError(
        f"{key} in the bucket is not what was put there", got, "remove it, then run again"
    )
