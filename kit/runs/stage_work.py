"""What the components of both pipelines do alike: open a stage, judge a model, log it.

A stage whose record is in the store is done: started again it gives the same answer at once.
Needs no PyTorch: a component that trains on the site starts quickly.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import filelock

from kit.base import DataError, Json, Timeline, time_record
from kit.base.settings import Cloud, Settings, load
from kit.experiments import GatesNotPassed, Thresholds
from kit.runs.objects import StageStore
from kit.store import open_store
from kit.tracking.delivery import Tracking, tracking_for
from kit.tracking.stage_log import run_log

KINDS = ("accuracy", "precision", "recall")
# gives the record's `objects`, `performance` and `confusion`; leaves model and predictions in
# the folder
Measure = Callable[[StageStore, Path, Json, Timeline], Json]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The stage that judges: its name, that of the stage that trained, and how to measure."""

    name: str
    trains: str
    measure: Measure

    def __call__(
        self,
        profile: str,
        run_id: str,
        bucket: str,
        trained: str,
        gates: Mapping[str, float],
        strict: bool = False,
        commit: str = "",
        mlflow_url: str = "",
    ) -> tuple[str, dict[str, float]]:
        """Judge the model of the record with hash `trained`; give this record's hash, figures.

        `gates` are the least values by metric. Raises GatesNotPassed with `strict`, after
        everything is recorded.
        """
        least = Thresholds(gates)
        with stage(profile, run_id, bucket, self.name) as (chosen, objects, work):
            if done := objects.record(self.name):
                log.info("already done, its record is in the store")
                record, record_hash = done
            else:
                tags = {"kit.profile": profile, "mlflow.source.git.commit": commit or "unknown"}
                place = tracking_for(_with_mlflow(chosen, mlflow_url), "cloud")
                record = self._judged(objects, work, trained, least, place, tags)
                record_hash = objects.commit(self.name, record)
        if strict and not record["gates"]["passed"]:
            raise GatesNotPassed(
                "the model did not pass the gates, and the run is strict",
                "; ".join(record["gates"]["missed"]),
                "train longer, or lower min_accuracy, min_precision, min_recall",
            )
        return record_hash, {kind: record["performance"][kind] for kind in KINDS}

    def _judged(
        self,
        objects: StageStore,
        work: Path,
        trained: str,
        gates: Thresholds,
        place: Tracking,
        tags: Json,
    ) -> Json:
        start, timeline = time.time(), Timeline()
        before = trained_record(objects, self.trains, trained)
        record = {**self.measure(objects, work, before, timeline), "trained": trained}
        record |= {"gates": gates.judge(record["performance"]), "tags": tags}
        log.info("gates: %s", "; ".join(record["gates"]["missed"]) or "passed")
        losses = json.loads(objects.get(before["objects"]["losses.json"]))
        with timeline.span("mlflow"):
            run = run_log(objects.run_id, before, record, losses, work)
            record["mlflow"] = dataclasses.asdict(place.log(run))
        log.info("mlflow: %s %s", record["mlflow"]["state"], record["mlflow"]["reason"])
        times = time_record(self.name, start, time.time())
        return {**record, "time": times, "spans": timeline.seconds()}


def trained_record(objects: StageStore, trains: str, trained: str) -> Json:
    """Give the record of the training stage; raises DataError when it is not that one."""
    found = objects.record(trains)
    if found is None or found[1] != trained:
        raise DataError(
            f"the training of {objects.run_id} in the bucket is not the one to be evaluated",
            "its record or its model was removed or changed",
            "run again: what is missing is made anew",
        )
    return found[0]


@contextlib.contextmanager
def stage(
    profile: str, run_id: str, bucket: str, name: str
) -> Iterator[tuple[Settings, StageStore, Path]]:
    """Open what a stage needs: settings, the run's objects, a folder to work in.

    The folder is this run's own, locked (a component that outlived its killed pipeline is
    waited for), and removed when the stage is done; it stays for the next try when it failed.
    """
    _talk()
    chosen = load(profile)
    objects = StageStore(open_store(chosen, bucket), run_id)
    work = chosen.cache_dir / "stages" / run_id / name
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work), objects.reporting(name):
        yield chosen, objects, work
        shutil.rmtree(work)
    if _in_component():
        gc.freeze()  # nothing is collected at exit: that takes a second with PyTorch and MLflow


def _in_component() -> bool:
    """Tell whether KFP's executor runs this process."""
    return os.environ.get("_KFP_RUNTIME") == "true"


def _talk() -> None:
    """Let the kit's messages come out plainly inside a component (KFP would mark them its own)."""
    kit = logging.getLogger("kit")
    if _in_component() and not kit.handlers:
        kit.addHandler(logging.StreamHandler(sys.stdout))
        kit.setLevel(logging.INFO)
        kit.propagate = False


def _alone(work: Path) -> contextlib.AbstractContextManager[object]:
    """Take the lock of a folder, and say so when that means waiting."""
    lock = filelock.FileLock(work.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        log.info("waiting: an earlier try of this stage is still at work")
        return lock.acquire()


def _with_mlflow(chosen: Settings, url: str) -> Settings:
    """Put another MLflow address into the settings: inside a cluster it has another name."""
    if not url:
        return chosen
    cloud = dataclasses.replace(chosen.cloud or Cloud(), mlflow_url=url)
    return dataclasses.replace(chosen, cloud=cloud)
