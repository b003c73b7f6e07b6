"""A run's request and its objects in the store: the status of a run is which of them exist.

    runs/<run>/request.json           what the run asks for            written by the pipeline
    runs/<run>/cancel.json            the run is cancelled             written by the person
    runs/<run>/try-<n>/asked.json     attempt n may start              written by the person
    runs/<run>/try-<n>/submitted.json attempt n is on the site         written by the submitter
    runs/<run>/try-<n>/ended.json     attempt n failed, and why        written by the submitter
    runs/<run>/refused.json           the request is not accepted      written by the submitter
    runs/<run>/result.json            the result of the run            written by the submitter
    runs/<run>/progress.json          for display, overwritten         written by the submitter
    open/<run>.json                   the run may have to be worked on written with each request

No object is read to find out the status, and none but `progress` is ever changed: a listing that is
late delays, it never misleads. `refused` is removed when the person starts the run again: it had no
job, or one of another submitter, which is then followed. The submitter removes `open/<run>.json`
when the run has finished, so that finished runs need not be listed; the status does not depend on
it. A request is data only. A bucket that does not exist holds no runs.
"""

import contextlib
import enum
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat, field_validator, model_validator

from kit.base import (
    SCHEMA,
    DataError,
    Json,
    NoSuchBucket,
    NoSuchObject,
    UsageError,
    dumps,
    parse_json,
    sha256_of,
)
from kit.experiments import DEFAULT, load_experiment
from kit.experiments.parameters import Parameters as Checked
from kit.sweeps import Sweep, trials_of

if TYPE_CHECKING:
    from kit.base.settings import Settings
    from kit.store import ObjectStore

MAX_REQUEST_BYTES = 64 * 1024
MAX_WORKERS = 64
_ADDRESSEE = ("profile", "site")
_OPTIONAL = (*_ADDRESSEE, "sweep")
RUN_ID = r"cloud-hpc-[0-9a-f]{12}-[1-9]\d{0,5}"
_KEY = re.compile(
    rf"runs/(?P<run>{RUN_ID})/(?:(?P<name>request|cancel|refused|result|progress)"
    r"|try-(?P<number>[1-9]\d{0,3})/(?P<step>asked|submitted|ended))\.json"
)
_OPEN_KEY = re.compile(rf"open/({RUN_ID})\.json")


class RunState(enum.Enum):
    """The state of a run and when it holds; `finished`: nothing more will happen."""

    UNKNOWN = False, "no request of this run is stored"
    REQUESTED = False, "it is requested and not submitted yet"
    SUBMITTED = False, "an attempt of it is on the site"
    ENDED = True, "its last attempt failed"
    CANCELLING = False, "it is cancelled, the submitter has not ended its job yet"
    CANCELLED = True, "it was cancelled"
    REFUSED = True, "the submitter does not accept its request"
    DONE = True, "its result is stored"

    def __init__(self, finished: bool, when: str) -> None:
        self.finished = finished
        self.when = when


@dataclass(frozen=True)
class RunStatus:
    """The status of one run; `number` is its current attempt, counted from 1."""

    run: str
    state: RunState = RunState.UNKNOWN
    number: int = 1

    @property
    def attempt_id(self) -> str:
        """The id of the current attempt."""
        return attempt_id(self.run, self.number)

    @property
    def next_attempt_id(self) -> str:
        """The id of the attempt after it, which a submitter may be preparing already."""
        return attempt_id(self.run, self.number + 1)


def attempt_id(run: str, number: int) -> str:
    """Return the id of one attempt of a run: 12 hex digits."""
    return sha256_of(f"{run} {number}".encode())[:12]


class RunRequest(Checked):
    """The request of a run: data only, never a command, path, partition or account.

    The same model is the object in the store, the body of the HTTP API and the argument of the
    submitter. Raises UsageError for a value that is not valid.
    """

    run: str = Field(pattern=f"^{RUN_ID}$", description="Id of the run.")
    data_hash: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the data set.")
    configured: bool = Field(
        default=True, description="Whether an environment that exists on the site is used."
    )
    experiment: str = Field(
        default=DEFAULT,
        pattern="^[a-z][a-z0-9_]{0,39}$",
        description="Name of the experiment; the submitter runs its own copy.",
    )
    code: str = Field(
        default="",
        pattern="^([0-9a-f]{64})?$",
        description="SHA-256 of the experiment's source files; empty: the submitter's version.",
    )
    hyperparameters: dict[str, bool | int | FiniteFloat | str | None] = Field(
        default={},
        description="Parameters of the training; those left out have their defaults.",
    )
    workers: int = Field(
        default=1, ge=1, le=MAX_WORKERS, description="Workers that share the training."
    )
    sweep: Sweep = Field(
        default=Sweep(), description="Trials in place of one training, `workers` at once."
    )
    tunnel: str = Field(
        default="",
        pattern="^(reverse|none)?$",
        description="Whether the cloud VM shows Ray's dashboard; empty: as the profile says",
    )
    profile: str = Field(
        default="",
        pattern="^[A-Za-z0-9._-]{0,80}$",
        description="Profile that the run is for; empty: any profile of the bucket.",
    )
    site: str = Field(
        default="",
        pattern="^([0-9a-f]{12})?$",
        description="Id of the site that the run is for (`site_id`); empty: any.",
    )

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _as_table(cls, values: object) -> object:
        """Take the experiment's own Parameters for a table, and the whole table for its rest."""
        return values.model_dump() if isinstance(values, Checked) else values

    @field_validator("sweep", mode="before")
    @classmethod
    def _as_sweep(cls, values: object) -> object:
        """Take a table for the sweep that it describes."""
        return Sweep(**values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_parameters(self) -> "RunRequest":
        """Check the parameters where the experiment is known; elsewhere the submitter does."""
        try:
            experiment = load_experiment(self.experiment, own_files=False, code=self.code)
        except (DataError, UsageError):
            return self
        values = experiment.parameters(**self.hyperparameters).model_dump()
        object.__setattr__(self, "hyperparameters", values)  # the model is frozen
        trials_of(experiment, values, self.sweep)
        return self

    @model_validator(mode="after")
    def _check_continued(self) -> "RunRequest":
        """Check that a sweep continues earlier runs of its own only."""
        kind, _, number = self.run.rpartition("-")
        for name in self.sweep.continues:
            before = re.fullmatch(rf"{kind}-([1-9]\d{{0,5}})", name)
            if before is None or int(before[1]) >= int(number):
                tried = f"continue {name[:80]!r} by {self.run}"
                raise UsageError(tried, "it is not an earlier run of that sweep", "use --fresh")
        return self

    def wants_tunnel(self, default: str) -> bool:
        """Return whether a reverse tunnel is wanted; `default` is the profile's answer."""
        return (self.tunnel or default) == "reverse"

    def same_training(self, other: "RunRequest") -> bool:
        """Return whether another request trains the same; tunnel and addressee may differ."""
        rest = ("tunnel", *_ADDRESSEE)
        return other.model_copy(update={name: getattr(self, name) for name in rest}) == self

    def addressed_to(self, settings: "Settings") -> "RunRequest":
        """Return the request for this profile and its site: no other submitter takes it."""
        where = {"profile": settings.profile, "site": site_id(settings)}
        return self.model_copy(update=where)

    def is_for(self, settings: "Settings") -> bool:
        """Return whether this profile and its site may run the request."""
        return self.profile in ("", settings.profile) and self.site in ("", site_id(settings))


def site_id(settings: "Settings") -> str:
    """Return an id of a profile's site, the same on every machine; empty without a site."""
    if settings.hpc is None:
        return ""
    return sha256_of(json.dumps([settings.hpc.ssh_host, settings.hpc.account]).encode())[:12]


def read_request(run: str, content: bytes) -> RunRequest:
    """Parse the request of a run. Raises DataError for anything `write_request` cannot write."""
    if len(content) > MAX_REQUEST_BYTES:
        raise _unusable(run, _too_large(len(content)))
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
            raise _unusable(run, "not a JSON object of schema 1")
        request = RunRequest(**values)
    except UsageError as err:
        raise _unusable(run, f"{err.tried}: {err.got}"[:500]) from err
    except (ValueError, RecursionError) as err:
        raise _unusable(run, f"not a JSON document: {str(err)[:200]}") from err
    if request.run != run:
        raise _unusable(run, "the id of another run")
    return request


def _unusable(run: str, got: str) -> DataError:
    return DataError(f"read the request of {run}", got, "start the run again with --fresh")


def _too_large(size: int) -> str:
    return f"{size} bytes, at most {MAX_REQUEST_BYTES} are allowed"


def as_json(request: RunRequest) -> Json:
    """Return the fields of a request for JSON; profile, site and sweep are left out where empty."""
    values = request.model_dump()
    values["sweep"] = values["sweep"] if request.sweep.trials else {}
    return {name: values[name] for name in values if values[name] or name not in _OPTIONAL}


def write_request(request: RunRequest) -> bytes:
    """Return a request as the JSON document of the store."""
    return dumps({"schema": SCHEMA, **as_json(request)}).encode()


def parse_key(key: str) -> tuple[str, str, int] | None:
    """Return run, object name and attempt number of an object key; None for other keys.

    The name is that of `RunRequests.read` (`result`, `try-2/ended`); the number is 0 for an object
    of the whole run.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    if match["name"]:
        return match["run"], match["name"], 0
    return match["run"], f"try-{match['number']}/{match['step']}", int(match["number"])


def statuses_from_keys(keys: Iterable[str]) -> dict[str, RunStatus]:
    """Return the status of each run, from the keys of a listing in any order.

    Precedence: result, refused, cancel, then the last attempt: ended, submitted, requested. Keys
    that are not objects of a run are ignored.
    """
    names: dict[str, dict[str, int]] = {}
    for run, name, number in filter(None, map(parse_key, keys)):
        names.setdefault(run, {})[name] = number
    return {run: _status(run, numbers) for run, numbers in names.items()}


def _status(run: str, names: dict[str, int]) -> RunStatus:
    last = max(names.values()) or 1
    ended = f"try-{last}/ended" in names
    if "result" in names:
        state = RunState.DONE
    elif "refused" in names:
        state = RunState.REFUSED
    elif "cancel" in names:
        state = RunState.CANCELLED if ended else RunState.CANCELLING
    elif ended:
        state = RunState.ENDED
    elif f"try-{last}/submitted" in names:
        state = RunState.SUBMITTED
    else:
        state = RunState.REQUESTED if "request" in names else RunState.UNKNOWN
    return RunStatus(run, state, last)


@dataclass(frozen=True)
class RunRequests:
    """The requests and results of all runs in one bucket. The constructor only stores."""

    store: "ObjectStore"

    def statuses(self) -> dict[str, RunStatus]:
        """Return the status of every run: one listing."""
        return statuses_from_keys(self._keys("runs/"))

    def status(self, run: str) -> RunStatus:
        """Return the status of one run."""
        return statuses_from_keys(self._keys(f"runs/{run}/")).get(run, RunStatus(run))

    def open_attempt_ids(self) -> list[str]:
        """Return the ids of attempts that may be on the site: the last and next of open runs."""
        open_runs = [status for status in self.statuses().values() if not status.state.finished]
        return [name for run in open_runs for name in (run.attempt_id, run.next_attempt_id)]

    def marked_runs(self) -> set[str]:
        """Return the runs marked as open: one short listing, however many have finished."""
        return {match[1] for key in self._keys("open/") if (match := _OPEN_KEY.fullmatch(key))}

    def mark(self, run: str) -> None:
        """Mark a run as open, after the object that makes it so: `unmark` relies on the order."""
        self.store.put(f"open/{run}.json", b"{}")

    def unmark(self, run: str) -> None:
        """Remove the mark of a finished run; one that was asked for again meanwhile keeps it."""
        self.store.delete(f"open/{run}.json")
        if not self.status(run).state.finished:
            self.mark(run)

    def ask(self, request: RunRequest) -> RunStatus:
        """Store a request unless there is one of that run; return the status."""
        status = self.status(request.run)
        if status.state is RunState.UNKNOWN:
            self.store.put(_key(request.run, "request"), write_request(request))
            status = RunStatus(request.run, RunState.REQUESTED)
        if not status.state.finished:
            self.mark(request.run)
        return status

    def request(self, run: str) -> RunRequest:
        """Read what a run asks for. Raises DataError, NoSuchObject."""
        key = _key(run, "request")
        try:
            size = self.store.stat(key).size
            if size > MAX_REQUEST_BYTES:
                raise _unusable(run, _too_large(size))
            return read_request(run, self.store.get(key))
        except NoSuchBucket as err:
            raise NoSuchObject(err.tried, err.got, "request the run first") from err

    def ask_again(self, run: str) -> RunStatus:
        """Allow another attempt after a failed one, or remove a refusal; return the status."""
        status = self.status(run)
        if status.state is RunState.ENDED:
            self.write(run, f"try-{status.number + 1}/asked", {})
        elif status.state is RunState.REFUSED:
            self.store.delete(_key(run, "refused"))
        else:
            return status
        self.mark(run)
        return self.status(run)

    def cancel(self, run: str) -> RunStatus:
        """Record that a run is cancelled; a finished run stays as it is."""
        status = self.status(run)
        if status.state.finished or status.state is RunState.CANCELLING:
            return status
        self.write(run, "cancel", {})
        return self.status(run)

    def ending(self, status: RunStatus) -> Json:
        """Read what a finished run ended with: result, reason of a refusal, or of a failure.

        Empty for a run that has not finished. Raises DataError for a damaged object.
        """
        if not status.state.finished:
            return {}
        names = {RunState.DONE: "result", RunState.REFUSED: "refused"}
        return self.read(status.run, names.get(status.state, f"try-{status.number}/ended")) or {}

    def write(self, run: str, name: str, content: Json) -> None:
        """Write an object of a run; the name of an attempt's object is `try-<n>/ended`."""
        self.store.put(_key(run, name), dumps({"schema": SCHEMA, **content}).encode())

    def read(self, run: str, name: str) -> Json | None:
        """Read an object of a run; None if there is none. Raises DataError if it is damaged."""
        key = _key(run, name)
        try:
            return parse_json(self.store.get(key), key)
        except (NoSuchObject, NoSuchBucket):
            return None

    def _keys(self, prefix: str) -> Iterator[str]:
        with contextlib.suppress(NoSuchBucket):  # no run has been requested yet
            for info in self.store.list(prefix):
                yield info.key


def _key(run: str, name: str) -> str:
    key = f"runs/{run}/{name}.json"
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key[:200]!r} is not an object of a run")
    return key
