"""The forwarder: one pass turns what the buckets hold of each run into Prometheus gauges, and
publishes the tunnels of live runs.

The gauges are a function of the buckets alone: they survive a restart, and go when a bucket goes.
A run is read again only when one of its objects has changed; one whose texts are damaged, or a
bucket that cannot be read, costs only itself.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kit.base import (
    SCHEMA,
    DataError,
    Json,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    UsageError,
    dumps,
    parse_json,
)
from kit.base.settings import Settings
from kit.billing import job_units
from kit.forwarder import gauges, tunnels
from kit.forwarder.gauges import STAGES, RunSnapshot, Sample
from kit.runs.requests import RUN_ID, RunRequests, statuses_from_keys
from kit.store import ObjectInfo, ObjectStore, bucket_name, open_store, user_of

PASS_S = 5.0  # between two passes, and between two scrapes
PASSES = "passes.json"  # the newest passes that found something new; overwritten
KEPT_PASSES = 20
LARGEST = 4 << 20  # bytes of an object that is read
_KEY = re.compile(rf"runs/(?P<run>{RUN_ID})/(?:try-(?P<number>\d+)/)?(?P<name>[\w-]+)\.json")
MAX_PARALLEL = 16  # runs read at the same time
_MOMENTS = ("request", "submitted", "ended", "cancel", "result")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Buckets:
    """The two buckets of one user: requests and results, and the files of the stages."""

    user: str
    name: str
    request_store: ObjectStore
    data: ObjectStore


@dataclass(frozen=True)
class _Read:
    """The samples of one run, and the objects that they were read from."""

    seen: tuple[ObjectInfo, ...]
    samples: list[Sample]


class Forwarder:
    """Keeps the text of a scrape (`text`) as of the last pass."""

    def __init__(
        self,
        loaded: Settings,
        users: Iterable[Buckets],
        own: ObjectStore,
        own_name: str,
        clock: Callable[[], float] = time.time,
        cluster: tunnels.TunnelServices | None = None,
    ) -> None:
        self.settings, self.users, self.own, self.own_name = loaded, list(users), own, own_name
        self.clock, self.cluster = clock, cluster
        self.text = b""
        self._runs: dict[str, dict[str, _Read]] = {}
        self._passes: list[Json] | None = None
        self._last_reported: list[str] = []
        self._tunnels: dict[str, list[tunnels.Tunnel]] = {}

    def once(self, waited_s: float = 0.0) -> list[str]:
        """Do one pass; return what could not be read. `waited_s`: how late the pass is.

        Raises KitError when the forwarder's own bucket cannot be read or written.
        """
        start, new = self.clock(), 0
        problems: list[str] = []
        if self._passes is None:
            self._passes = self._read_passes()
        for user in self.users:
            try:
                new += self._collect(user, problems)
            except Exception as err:  # noqa: BLE001 - costs this user alone; the last gauges stay
                problems.append(f"{user.name}: {err}")
        if self.cluster is not None:
            try:
                self.cluster.publish(tunnel for rows in self._tunnels.values() for tunnel in rows)
            except KitError as err:
                problems.append(str(err))
        if new or not self.text:
            ran = self.clock() - start
            if new:
                self._keep_pass({"id": f"{start:.3f}", "waited_s": waited_s, "ran_s": ran})
            self.text = gauges.exposition(self._samples())
        return problems

    def run_pass(self, waited_s: float = 0.0) -> None:
        """Do one pass that never fails: problems are logged when they change."""
        try:
            problems = self.once(waited_s)
        except Exception as err:  # noqa: BLE001 - the next pass may succeed, the gauges stay
            unexpected = f"unexpected {type(err).__name__}: {err}"
            problems = [str(err) if isinstance(err, KitError) else unexpected]
        for problem in problems if problems != self._last_reported else []:
            log.warning("%s", problem)
        self._last_reported = problems

    def _samples(self) -> Iterable[Sample]:
        for runs in self._runs.values():
            for read in runs.values():
                yield from read.samples
        yield from gauges.task_samples(self.own_name, "forwarder-pass", self._passes or [])

    def _collect(self, user: Buckets, problems: list[str]) -> int:
        """Read the changed runs of one user; return how many changed, removed runs included."""
        before = self._runs.get(user.name, {})
        objects = _by_run(user)
        same = {run for run, read in before.items() if read.seen == objects.get(run)}
        changed = {run: seen for run, seen in objects.items() if run not in same}
        with ThreadPoolExecutor(MAX_PARALLEL) as pool:
            made = list(pool.map(lambda pair: self._one(user, *pair), changed.items()))
        problems += [problem for _, problem in made if problem]
        news = dict(zip(changed, (read for read, _ in made), strict=True))
        self._runs[user.name] = {run: news.get(run) or before[run] for run in objects}
        if self.cluster is not None:
            keys = (info.key for seen in objects.values() for info in seen)
            statuses, requests = statuses_from_keys(keys), RunRequests(user.request_store)
            self._tunnels[user.name] = tunnels.live_tunnels(
                self.settings, user.user, requests, statuses.values()
            )
        return len(changed) + len(before.keys() - objects.keys())

    def _one(self, user: Buckets, run: str, seen: tuple[ObjectInfo, ...]) -> tuple[_Read, str]:
        """Return the samples of one run, without what is damaged, and what that is."""
        unread: list[str] = []
        samples: list[Sample] = []
        try:
            samples = gauges.run_samples(self._kept(user, run, seen, unread), unread)
        except (DataError, NoSuchObject) as err:
            unread = [str(err)]
        problem = f"{run}: {'; '.join(unread[:5])}" if unread else ""
        if problem:
            log.warning("%s", problem)
        return _Read(seen, samples), problem

    def _kept(
        self, user: Buckets, run: str, seen: Iterable[ObjectInfo], unread: list[str]
    ) -> RunSnapshot:
        moments: dict[str, float] = {}
        last: dict[str, int] = {}
        stages: dict[str, Json] = {}
        result: Json | None = None
        for info in seen:
            match = _KEY.fullmatch(info.key)
            name, number = (match["name"], int(match["number"] or 0)) if match else ("", 0)
            if name in STAGES:
                stages[name] = _json(user.data, info)
            elif number >= last.get(name, 0):
                moments[name], last[name] = info.modified.timestamp(), number
            if name == "result":
                result = _json(user.request_store, info)
        zone = self.settings.hpc.timezone if self.settings.hpc else "UTC"
        units = self._units(user, result, unread) if result else None
        return RunSnapshot(run, user.user, user.name, zone, moments, result, stages, units)

    def _units(self, user: Buckets, result: Json, unread: list[str]) -> float | None:
        """Price the run's job where seff does not say what it cost.

        None without a price, or without accounting, where sacct.txt is empty.
        """
        try:
            if "Non-Interactive BUs" in result["seff"]:
                return None
            at = result["files"]["sacct.txt"]
            text = user.data.get(at["key"], sha256=at["sha256"]).decode()
            return job_units(self.settings, text) if text else None
        except UsageError as err:
            log.info("no price: %s", err)
        except (KeyError, TypeError, UnicodeDecodeError, DataError) as err:
            unread.append(f"sacct.txt: {repr(err)[:200]}")
        return None

    def _read_passes(self) -> list[Json]:
        try:
            rows = parse_json(self.own.get(PASSES), PASSES)["passes"][-KEPT_PASSES:]
            gauges.task_samples(self.own_name, "forwarder-pass", rows)  # they can be shown
            return list(rows)
        except (DataError, ValueError, KeyError, TypeError):
            return []  # for display only

    def _keep_pass(self, row: Json) -> None:
        self._passes = [*(self._passes or []), row][-KEPT_PASSES:]
        content = dumps({"schema": SCHEMA, "passes": self._passes}).encode()
        self.own.put(PASSES, content, make_bucket=True)


def buckets_of(loaded: Settings, user: str) -> Buckets:
    """Open the buckets of a user; the profile's login must have the right to them."""
    requests = bucket_name(loaded, "submitter", user)
    data = open_store(loaded, bucket_name(loaded, "pipeline", user))
    return Buckets(user, requests, open_store(loaded, requests), data)


def forwarder_for(loaded: Settings, users: Iterable[str] = ()) -> Forwarder:
    """Return the forwarder of a profile, over the buckets of its login and of `users`."""
    own = bucket_name(loaded, "forwarder")
    names = dict.fromkeys([user_of(loaded), *users])
    buckets = [buckets_of(loaded, user) for user in names]
    cluster = tunnels.tunnel_services(loaded)
    return Forwarder(loaded, buckets, open_store(loaded, own), own, cluster=cluster)


def run_passes(forwarder: Forwarder, stop: Callable[[], bool] = lambda: False) -> None:
    """Run passes until `stop` returns true."""
    due = time.monotonic()
    while not stop():
        forwarder.run_pass(max(0.0, time.monotonic() - due))
        due = time.monotonic() + PASS_S
        time.sleep(PASS_S)


def _by_run(user: Buckets) -> dict[str, tuple[ObjectInfo, ...]]:
    """List the objects of each run that carry data; a missing bucket has none."""
    objects: dict[str, list[ObjectInfo]] = {}
    for store, names in ((user.request_store, _MOMENTS), (user.data, STAGES)):
        try:
            listed = list(store.list("runs/"))
        except NoSuchBucket:
            continue
        for info in listed:
            match = _KEY.fullmatch(info.key)
            if match and match["name"] in names:
                objects.setdefault(match["run"], []).append(info)
    return {run: tuple(infos) for run, infos in objects.items()}


def _json(store: ObjectStore, info: ObjectInfo) -> Json:
    """Read a JSON object of the kit. Raises DataError, NoSuchObject."""
    if info.size > LARGEST:
        raise DataError(f"read {info.key}", f"{info.size} bytes, at most {LARGEST} are read")
    return parse_json(store.get(info.key), info.key)
