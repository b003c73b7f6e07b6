"""The five gauges of the monitoring, from what the buckets hold of each run. Pure.

Names, labels and values of the label `metric` are those that published dashboards query. A gauge
is there once: `jobkey` and `sampleid` are the run's id, and only what is final is shown. What the
texts do not say has no sample; nothing is made up as 0.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from kit.base import DataError, Json
from kit.slurm import parse_duration, parse_size, parse_time

CONTENT_TYPE = CONTENT_TYPE_LATEST  # of what `exposition` gives
SACCT, SEFF = "cloud_hpc_job_sacct_metrics", "cloud_hpc_job_seff_metrics"
JOB, PIPELINE = "cloud_hpc_job_time_metrics", "cloud_hpc_pipeline_time_metrics"
TASK = "cloud_hpc_task_time_metrics"
LABELS = {
    SACCT: ("user", "jobkey", "jobid", "row", "jobname", "partition", "state", "metric"),
    SEFF: ("user", "jobkey", "jobid", "project", "cluster", "state", "metric"),
    JOB: ("collector", "jobkey", "metric"),
    PIPELINE: ("collector", "sampleid", "group", "name", "metric"),
    TASK: ("collector", "sampleid", "group", "metric"),
}
MEANING = {
    SACCT: "What sacct says of each row (job, then steps) of a finished run's job",
    SEFF: "How well a finished run's job used what it held",
    JOB: "Where a run's seconds went: staging and submitting, environment, job, cancel, collecting",
    PIPELINE: "Seconds of the pipeline's components and of the training on Ray",
    TASK: "Seconds that a task waited, ran, and both",
}
FIRST, TRAIN, LAST = STAGES = "cloud-hpc-preprocess", "cloud-hpc-train", "cloud-hpc-evaluate"
MAX_LABEL = 1000
Sample = tuple[str, tuple[str, ...], float]  # gauge, values of its labels, value


@dataclass(frozen=True)
class RunSnapshot:
    """The objects of one run of `user` in the buckets; `collector` is the bucket of its request.

    `moments` (seconds since 1970, the store's clock) say when its objects were written, of the
    last attempt where they belong to one; `zone` is that of the times in sacct's rows; `units` are
    what its job cost, for a site whose seff does not say it.
    """

    run: str
    user: str
    collector: str
    zone: str = "UTC"
    moments: Mapping[str, float] = field(default_factory=dict)
    result: Json | None = None
    stages: Mapping[str, Json] = field(default_factory=dict)
    units: float | None = None


def run_samples(kept: RunSnapshot, unread: list[str] | None = None) -> list[Sample]:
    """Return the samples of one run; values that cannot be read are left out, named in `unread`.

    Raises DataError when one of its objects has another form.
    """
    unread = [] if unread is None else unread
    try:
        samples = [*_times(kept), *_pipeline(kept)]
        if kept.result is not None:
            samples += [*_sacct(kept, kept.result, unread), *_seff(kept, kept.result, unread)]
        for _, labels, _ in samples:
            _check_labels(labels)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as err:
        got = f"{type(err).__name__}: {str(err)[:200]}"
        raise DataError(f"read what is kept of {kept.run}", got, "its gauges are left out") from err
    return samples


def _check_labels(labels: Iterable[object]) -> None:
    """Raise ValueError for values that cannot be labels: they come from what jobs left."""
    for value in labels:
        if not isinstance(value, str) or len(value) > MAX_LABEL:
            raise ValueError(f"{str(value)[:80]!r} cannot be a label")
        value.encode()  # half a surrogate pair is not UTF-8


def task_samples(collector: str, group: str, tasks: Iterable[Json]) -> list[Sample]:
    """Return the samples of tasks: `id`, `waited_s`, `ran_s`."""
    return [
        (TASK, (collector, str(task["id"]), group, metric), value)
        for task in tasks
        for metric, value in _task(float(task["waited_s"]), float(task["ran_s"]))
    ]


def exposition(samples: Iterable[Sample]) -> bytes:
    """Write samples as Prometheus text; for duplicate labels the last value is used."""
    families = {
        name: GaugeMetricFamily(name, MEANING[name], labels=labels)
        for name, labels in LABELS.items()
    }
    for (name, labels), value in {(name, labels): v for name, labels, v in samples}.items():
        families[name].add_metric(labels, value)

    class _Ours(Collector):
        def collect(self) -> Iterable[GaugeMetricFamily]:
            """Return the families that were built above."""
            return families.values()

    registry = CollectorRegistry()
    registry.register(_Ours())
    return generate_latest(registry)


def khz(text: str) -> float | None:
    """Read AveCPUFreq (`351.33M`, `2.60G`, `0`): thousands of Hz, units of 1000, in kHz."""
    if not text.strip() or text.strip() == "Unknown":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", text.strip())
    if not match:
        raise DataError("a frequency was expected from Slurm", repr(text[:80]))
    return float(match[1]) * {"": 1.0, "K": 1.0, "M": 1e3, "G": 1e6}[match[2]]


def _count(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?K?", text):  # sacct writes 2048 CPUs as 2K
        raise DataError("a count was expected from Slurm", repr(text[:80]))
    return float(text.removesuffix("K")) * (1024 if text.endswith("K") else 1)


_ROWS: dict[str, tuple[str, Callable[[str], float | None]]] = {
    "RqCPUS": ("ReqCPUS", _count),
    "AcCPUS": ("AllocCPUS", _count),
    "RqNod": ("ReqNodes", _count),
    "AcNod": ("AllocNodes", _count),
    "AvCPUSec": ("AveCPU", parse_duration),
    "AvCPUFreqkhz": ("AveCPUFreq", khz),
    "AvDiReByte": ("AveDiskRead", parse_size),
    "AvDiWrByte": ("AveDiskWrite", parse_size),
    "TiLiSec": ("Timelimit", parse_duration),
    "ElaSec": ("Elapsed", parse_duration),
    "PlaSec": ("Planned", parse_duration),
    "PlaCPUSec": ("PlannedCPU", parse_duration),
    "CPUTiSec": ("CPUTime", parse_duration),
    "ToCPUSec": ("TotalCPU", parse_duration),
}


def _read(read: Callable[[str], Any], name: str, text: str, unread: list[str]) -> Any:
    """Return a value, None for one that cannot be read: it costs itself only."""
    try:
        return read(text)
    except (DataError, ValueError, OverflowError) as err:
        unread.append(f"{name}: {str(err)[:200]}")
        return None


_TIMES = (("SuTi", "Submit"), ("StTi", "Start"), ("EnTi", "End"))


def _sacct(kept: RunSnapshot, result: Json, unread: list[str]) -> list[Sample]:
    zone, samples = ZoneInfo(kept.zone), []
    for number, row in result["sacct"].items():
        about = (str(result["job"]["id"]), number, row["JobName"], row["Partition"], row["State"])
        labels = (kept.user, kept.run, *(text or "" for text in about))
        readers = _ROWS | {name: (key, partial(parse_time, zone=zone)) for name, key in _TIMES}
        values = {
            name: _read(read, f"sacct {number} {key}", row[key], unread)
            for name, (key, read) in readers.items()
            if row[key]
        }
        samples += [(SACCT, (*labels, name), v) for name, v in values.items() if v is not None]
    return samples


def _share(text: str, read: Callable[[str], float | None]) -> tuple[float, float | None]:
    """Read `11.04% of 20.00 GB`, `0.15% of 2-11:18:24 core-walltime`: the percents, of what."""
    match = re.match(r"(\d+(?:\.\d+)?)% of (\d\S*(?: [KMGTPE]?B)?)", text)
    if not match:
        raise DataError("a share was expected from seff", repr(text[:80]))
    return float(match[1]), read(match[2])


def _seff(kept: RunSnapshot, result: Json, unread: list[str]) -> list[Sample]:
    seff: Mapping[str, str] = {k: v for k, v in result["seff"].items() if v != "N/A"}
    if seff == {}:  # the accounting never had the job
        return []
    state = re.fullmatch(r"(\w+) \(exit code (\d+)\)", seff["State"])
    if not state:
        raise DataError("a state was expected from seff", repr(seff["State"][:80]))
    labels = (
        *(kept.user, kept.run, seff["Job ID"], seff.get("Billed project", "")),
        *(seff.get("Cluster", ""), f"{state[1]}-{state[2]}"),
    )
    plain: dict[str, tuple[str | None, Callable[[str], float | None]]] = {
        "Nod": (seff.get("Nodes"), _count),
        "CoPeNod": (seff.get("Cores per node", seff.get("Cores")), _count),
        "CPUUSec": (seff.get("CPU Utilized"), parse_duration),
        "JoWaClTISec": (seff.get("Job Wall-clock time"), parse_duration),
        "MemUtiByte": (seff.get("Memory Utilized"), parse_size),
        "BiUn": (seff.get("Non-Interactive BUs"), float),
    }
    values = {
        name: _read(read, f"seff {name}", text, unread)
        for name, (text, read) in plain.items()
        if text
    }
    values.setdefault("BiUn", kept.units)
    for name, unit, key, read in (
        ("CPUEff", "Sec", "CPU Efficiency", parse_duration),
        ("MemEff", "Byte", "Memory Efficiency", parse_size),
    ):
        if text := seff.get(key):
            share = _read(partial(_share, read=read), f"seff {key}", text, unread)
            values[f"{name}Pe"], values[f"{name}{unit}"] = share or (None, None)
    return [(SEFF, (*labels, name), v) for name, v in values.items() if v is not None]


def _times(kept: RunSnapshot) -> list[Sample]:
    """Return where the seconds went; those between two objects are by the store's clock."""
    at = kept.moments
    seconds: dict[str, float] = {}
    if "request" in at and "submitted" in at:
        seconds["ToStaSec"] = at["submitted"] - at["request"]
    if "cancel" in at and "ended" in at:
        seconds["ToCanSec"] = at["ended"] - at["cancel"]
    if trained := kept.stages.get(TRAIN):
        seconds["ToConSec"] = float(trained["spans"]["environment"])
    tasks: list[Sample] = []
    if kept.result is not None and "result" in at:
        ran = float(kept.result["elapsed_s"] or 0)
        waited = float(kept.result["queued_s"] or 0)
        seconds["ToRunSec"] = ran
        if "submitted" in at:
            seconds["ToStoSec"] = at["result"] - at["submitted"] - waited - ran
        if "request" in at:
            rest = max(0.0, at["result"] - at["request"] - ran)
            task = {"id": kept.run, "waited_s": rest, "ran_s": ran}
            tasks = task_samples(kept.collector, "training-job", [task])
    times = {name: max(0.0, value) for name, value in seconds.items()}
    return [(JOB, (kept.collector, kept.run, name), v) for name, v in times.items()] + tasks


def _task(waited: float, ran: float) -> list[tuple[str, float]]:
    return [("ToWaiSec", waited), ("ToRunSec", ran), ("ToTasSec", waited + ran)]


def _pipeline(kept: RunSnapshot) -> list[Sample]:
    """Return the published times; the pipeline's are from its first component to its last."""
    stages = kept.stages
    times = [("components", stage["time"]) for stage in stages.values()]
    if FIRST in stages and LAST in stages:
        lasted = stages[LAST]["time"]["end-time"] - stages[FIRST]["time"]["start-time"]
        times.append(("components", {"name": "cloud-hpc-pipeline", "total-seconds": lasted}))
    if trained := stages.get(TRAIN):
        times += [("ray-jobs", trained["training"]), ("ray-jobs", trained["ray_job"])]
    labels = (kept.collector, kept.run)
    return [
        (PIPELINE, (*labels, group, str(time["name"]), "ToSec"), float(time["total-seconds"]))
        for group, time in times
    ]
