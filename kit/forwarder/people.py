"""The people who may ask the forwarder: each has a token, and buckets of their own."""

import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kit.base import (
    Busy,
    Json,
    NoSuchObject,
    UsageError,
    file_lock,
    read_private,
    sha256_of,
    write_text,
)
from kit.base.settings import Settings
from kit.forwarder.collect import Buckets, buckets_of
from kit.forwarder.tunnels import Tunnel, live_tunnels
from kit.runs.follow import write_stored_log
from kit.runs.requests import RunRequest, RunRequests, RunState, RunStatus

FRESH_S = 0.3  # a listing of a person's runs answers everything that is asked meanwhile


@dataclass(frozen=True)
class RunView:
    """The status of a run, its progress and what it ended with."""

    status: RunStatus
    progress: Json | None
    ended: Json

    @property
    def why(self) -> str:
        """Why it failed."""
        return str(self.ended.get("why", ""))


class Person:
    """One person's runs. Methods raise NoSuchObject for a run that is not theirs."""

    def __init__(
        self, settings: Settings, buckets: Buckets, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.name = buckets.user
        self.requests = RunRequests(buckets.request_store)
        self.data = buckets.data
        self.clock = clock
        self._lock = threading.Lock()
        self._owned = False
        self._listed: tuple[float, Mapping[str, RunStatus]] | None = None
        self._views: dict[str, tuple[float, RunView]] = {}

    def statuses(self) -> Mapping[str, RunStatus]:
        """Return the status of all runs, as of FRESH_S ago at most. Raises BucketTaken."""
        with self._lock:
            if self._listed is None or self.clock() - self._listed[0] > FRESH_S:
                statuses = self.requests.statuses()
                if statuses and not self._owned:
                    self.requests.store.ensure_bucket()
                self._owned = bool(statuses)
                self._listed = self.clock(), statuses
            return self._listed[1]

    def known(self, run: str) -> RunStatus:
        """Return the status of one run, also of one that was requested just now."""
        status = self.statuses().get(run) or self.requests.status(run)
        if status.state is RunState.UNKNOWN:
            raise NoSuchObject(f"find {run}", RunState.UNKNOWN.when, "request it first")
        return status

    def ask(self, request: RunRequest) -> RunStatus:
        """Store a request, for this forwarder's profile; a repeated one changes nothing.

        Raises Busy for another request of the same run, NoSuchObject for one of another profile.
        """
        if not request.is_for(self.settings):
            got = f"this forwarder is for profile {self.settings.profile}"
            step = "ask the forwarder of that profile"
            raise NoSuchObject(f"request {request.run} for {request.profile}", got, step)
        self.requests.store.ensure_bucket()
        status = self.requests.ask(request.addressed_to(self.settings))
        if not self.requests.request(request.run).same_training(request):
            got = "it was asked for with other settings"
            raise Busy(f"ask for {request.run}", got, "start a new run")
        return self._changed(status)

    def cancel(self, run: str) -> RunStatus:
        """Cancel a run; a finished run stays as it is."""
        self.known(run)
        return self._changed(self.requests.cancel(run))

    def _changed(self, status: RunStatus) -> RunStatus:
        with self._lock:
            self._listed = None
        return status

    def view(self, run: str) -> RunView:
        """Return a run's status, progress and ending, as of FRESH_S ago at most."""
        status, now = self.known(run), self.clock()
        at, view = self._views.get(run, (0.0, None))
        if view is None or view.status != status or now - at > FRESH_S:
            progress = self.requests.read(run, "progress")
            view = RunView(status, progress, self.requests.ending(status))
            fresh = {key: row for key, row in self._views.items() if now - row[0] <= FRESH_S}
            self._views = fresh | {run: (now, view)}
        return view

    def tunnels(self) -> list[Tunnel]:
        """List where the dashboards of live runs are."""
        return live_tunnels(self.settings, self.name, self.requests, self.statuses().values())

    def files(self, run: str) -> Mapping[str, Json]:
        """List the files of a finished run: references to what `file` returns."""
        if self.known(run).state is not RunState.DONE:
            return {}
        return dict((self.requests.read(run, "result") or {}).get("files", {}))

    def file(self, run: str, name: str) -> bytes:
        """Return one file of a finished run, checked by its hash."""
        at = self.files(run).get(name)
        if at is None:
            raise NoSuchObject(f"fetch {name[:80]!r} of {run}", "it has no file of that name")
        return self.data.get(str(at["key"]), sha256=str(at["sha256"]))

    def log(self, status: RunStatus) -> bytes:
        """Return the log of a finished run, or why it failed where there is none; else nothing."""
        pieces: list[bytes] = []
        if status.state.finished:
            write_stored_log(self.requests, self.data, status, pieces.append)
        return b"".join(pieces)


def people_of(settings: Settings) -> dict[str, Person]:
    """Read who may ask from the file KIT_FORWARDER_PEOPLE; nobody without it."""
    path = os.environ.get("KIT_FORWARDER_PEOPLE")
    return people(Path(path), settings, lambda user: buckets_of(settings, user)) if path else {}


def people(path: Path, settings: Settings, buckets: Callable[[str], Buckets]) -> dict[str, Person]:
    """Read who may ask, by the SHA-256 of their token. Raises what `read_people` raises."""
    users = read_people(path)
    return {sha256: Person(settings, buckets(user)) for sha256, user in users.items()}


def read_people(path: Path) -> dict[str, str]:
    """Read who may ask, a line each: the user and the SHA-256 of the token; users by that hash.

    Raises UsageError for a file that is missing, others may read, or has another line.
    """
    step = "make a line with `kit forwarder token USER`; the file has mode 600"
    lines = read_private(path, f"read who may ask in {path}", step).splitlines()
    users: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = re.fullmatch(r"([a-z0-9-]{1,40})\s+([0-9a-f]{64})", line.strip())
        if not match or match[2] in users:
            raise UsageError(f"{path}, line {number}, names nobody, or one token twice", "", step)
        users[match[2]] = match[1]
    return users


def new_token(path: Path, user: str, revoke: bool = False) -> str:
    """Return a new token for a person; the file gets its SHA-256 only.

    `revoke` removes the person's older tokens. Raises UsageError for a user that no bucket can
    have, and what `read_people` raises.
    """
    if not re.fullmatch("[a-z0-9-]{1,40}", user):
        got = f"{user!r:.60} is not 1 to 40 of a-z, 0-9 and -"
        raise UsageError("make a token", got, "give the user of their buckets")
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = Busy(f"change {path}", "another command changes it", "run it again")
    with file_lock(path.with_name(f".{path.name}.lock"), 10, busy, "use a local folder"):
        users = read_people(path) if path.exists() else {}
        token = secrets.token_urlsafe(32)
        users = {sha256: name for sha256, name in users.items() if not revoke or name != user}
        users[sha256_of(token.encode())] = user
        write_text(path, "".join(f"{name} {sha256}\n" for sha256, name in users.items()), 0o600)
    return token
