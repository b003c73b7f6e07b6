"""The people who may ask the forwarder: each has a token, and buckets of their own."""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kit.base import Busy, Json, NoSuchBucket, NoSuchObject, UsageError, read_private
from kit.base.settings import Settings
from kit.forwarder.collect import Buckets, buckets_of
from kit.forwarder.tunnels import Tunnel, live_tunnels
from kit.runs.requests import RunRequest, RunRequests, RunState, RunStatus

FRESH_S = 0.3  # a listing of a person's runs answers everything that is asked meanwhile


@dataclass(frozen=True)
class Shown:
    """How a run stands, what is shown of it, what it ended with."""

    standing: RunStatus
    progress: Json | None
    ended: Json

    @property
    def why(self) -> str:
        """Why it came to nothing."""
        return str(self.ended.get("why", ""))


class Person:
    """One person's runs. Methods raise NoSuchObject for a run that is not theirs."""

    def __init__(
        self, loaded: Settings, buckets: Buckets, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = loaded
        self.name, self.jobs, self.data = buckets.user, RunRequests(buckets.jobs), buckets.data
        self.clock = clock
        self._lock = threading.Lock()
        self._listed: tuple[float, Mapping[str, RunStatus]] | None = None
        self._shown: dict[str, tuple[float, Shown]] = {}

    def statuses(self) -> Mapping[str, RunStatus]:
        """Say how all runs stand, as of FRESH_S ago at most."""
        with self._lock:
            if self._listed is None or self.clock() - self._listed[0] > FRESH_S:
                try:
                    found = self.jobs.statuses()
                except NoSuchBucket:  # nothing was asked for yet
                    found = {}
                self._listed = self.clock(), found
            return self._listed[1]

    def known(self, run: str) -> RunStatus:
        """Say how one run stands."""
        standing = self.statuses().get(run)
        if standing is None or standing.state is RunState.UNKNOWN:
            raise NoSuchObject(f"find {run}", RunState.UNKNOWN.when, "ask for it first")
        return standing

    def ask(self, request: RunRequest) -> RunStatus:
        """Ask for a run; once more changes nothing. Raises Busy for one with other settings."""
        self.jobs.store.ensure_bucket()
        standing = self.jobs.ask(request)
        if not self.jobs.request(request.run).same_training(request):
            raise Busy(f"ask for {request.run}", "it was asked for with other settings",
                       "start a new run")  # fmt: skip
        return self._changed(standing)

    def cancel(self, run: str) -> RunStatus:
        """Say that a run is no longer wanted; what has finished stays."""
        self.known(run)
        return self._changed(self.jobs.cancel(run))

    def _changed(self, standing: RunStatus) -> RunStatus:
        with self._lock:
            self._listed = None
        return standing

    def look(self, run: str) -> Shown:
        """Say how a run stands and what is shown of it, as of FRESH_S ago at most."""
        standing, now = self.known(run), self.clock()
        at, shown = self._shown.get(run, (0.0, None))
        if shown is None or shown.standing != standing or now - at > FRESH_S:
            shown = Shown(standing, self.jobs.read(run, "progress"), self.ended(standing))
            fresh = {key: one for key, one in self._shown.items() if now - one[0] <= FRESH_S}
            self._shown = fresh | {run: (now, shown)}
        return shown

    def ended(self, standing: RunStatus) -> Json:
        """Read a run's result, or why it came to nothing and the end of its log."""
        last = f"try-{standing.number}/ended"
        names = {RunState.DONE: "result", RunState.REFUSED: "refused"}
        names |= dict.fromkeys((RunState.ENDED, RunState.CANCELLED), last)
        name = names.get(standing.state)
        return (self.jobs.read(standing.run, name) or {}) if name else {}

    def tunnels(self) -> list[Tunnel]:
        """Say where the dashboards of live runs are seen."""
        return live_tunnels(self.settings, self.name, self.jobs, self.statuses().values())

    def files(self, run: str) -> Mapping[str, Json]:
        """Name the files of a finished run: references to what `file` gives."""
        if self.known(run).state is not RunState.DONE:
            return {}
        return dict((self.jobs.read(run, "result") or {}).get("files", {}))

    def file(self, run: str, name: str) -> bytes:
        """Give one file of a finished run, checked by its hash."""
        at = self.files(run).get(name)
        if at is None:
            raise NoSuchObject(f"fetch {name[:80]!r} of {run}", "it has no file of that name")
        return self.data.get(str(at["key"]), sha256=str(at["sha256"]))

    def log(self, run: str) -> str:
        """Give the log of a run that has ended; the end of it where it came to nothing."""
        standing = self.known(run)
        if standing.state is RunState.DONE:
            return self.file(run, "job.log").decode(errors="replace")
        return str(self.ended(standing).get("log", ""))


def people_of(loaded: Settings) -> dict[str, Person]:
    """Read who may ask from the file KIT_FORWARDER_PEOPLE; nobody without it."""
    given = os.environ.get("KIT_FORWARDER_PEOPLE")
    return people(Path(given), loaded, lambda user: buckets_of(loaded, user)) if given else {}


def people(path: Path, loaded: Settings, buckets: Callable[[str], Buckets]) -> dict[str, Person]:
    """Read who may ask, a line each: the user and the SHA-256 of the token; by that hash.

    Raises UsageError for a file that is missing, others may read, or has another line.
    """
    step = "write `USER SHA256-OF-TOKEN` on each line, mode 600"
    lines = read_private(path, f"read who may ask in {path}", step).splitlines()
    found: dict[str, Person] = {}
    for number, line in enumerate(lines, start=1):
        match = re.fullmatch(r"([a-z0-9-]{1,40})\s+([0-9a-f]{64})", line.strip())
        if not match or match[2] in found:
            raise UsageError(f"{path}, line {number}, names nobody, or one token twice", "", step)
        found[match[2]] = Person(loaded, buckets(match[1]))
    return found
