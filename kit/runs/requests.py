"""A run's request and its objects in the store: how a run stands is which of them exist.

    runs/<run>/request.json           what is asked for          written by the pipeline
    runs/<run>/cancel.json            no longer wanted           written by the asker
    runs/<run>/try-<n>/asked.json     try n may work again       written by the asker
    runs/<run>/try-<n>/submitted.json try n is on the site       written by the submitter
    runs/<run>/try-<n>/ended.json     try n came to nothing, why written by the submitter
    runs/<run>/refused.json           the request cannot be read written by the submitter
    runs/<run>/result.json            what the run came to       written by the submitter
    runs/<run>/progress.json          for display, overwritten   written by the submitter

Nothing is read to know how a run stands, and nothing but `progress` is ever changed: a listing
that is late delays, it never misleads. A request is data only.
"""

import dataclasses
import enum
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kit.base import (
    SCHEMA,
    DataError,
    Json,
    NoSuchBucket,
    NoSuchObject,
    UsageError,
    dumps,
    sha256_of,
)
from kit.experiments.fashion_mnist.parameters import Parameters

if TYPE_CHECKING:
    from kit.store.opening import ObjectStore

REQUEST_BYTES = 64 * 1024
MOST_WORKERS = 64
REVERSE, NO_TUNNEL = "reverse", "none"
RUN = r"cloud-hpc-[0-9a-f]{12}-[1-9]\d{0,5}"
_KEY = re.compile(
    rf"runs/(?P<run>{RUN})/(?:(?P<name>request|cancel|refused|result|progress)"
    r"|try-(?P<number>[1-9]\d{0,3})/(?P<step>asked|submitted|ended))\.json"
)


class RunState(enum.Enum):
    """How a run stands, and when that is so; `finished` where nothing more will happen."""

    UNKNOWN = False, "there is no request of it"
    REQUESTED = False, "it is asked for and not submitted yet"
    SUBMITTED = False, "a try of it is on the site"
    ENDED = True, "its last try came to nothing"
    CANCELLING = False, "it is no longer wanted, the submitter has not ended it yet"
    CANCELLED = True, "it was cancelled"
    REFUSED = True, "the submitter does not accept its request"
    DONE = True, "its result is there"

    def __init__(self, finished: bool, when: str) -> None:
        self.finished = finished
        self.when = when


@dataclass(frozen=True)
class Standing:
    """How one run stands; `number` is the try that this is about, counted from 1."""

    run: str
    state: RunState = RunState.UNKNOWN
    number: int = 1


@dataclass(frozen=True)
class Request:
    """What a run asks for: the data set by its hash, whether to use what is there, the training.

    `workers` share each epoch (see `training.train`); 1 is what the other targets do. `tunnel`:
    whether the cloud VM shows Ray's dashboard, empty for what the submitter's profile says. Raises
    UsageError for a run id or a hash that is none and for what is out of range.
    """

    run: str
    data_hash: str
    configured: bool = True
    hyperparameters: Parameters = field(default_factory=Parameters)
    workers: int = 1
    tunnel: str = ""

    def __post_init__(self) -> None:
        """Check what is not checked by `Parameters`."""
        if not isinstance(self.run, str) or not re.fullmatch(RUN, self.run):
            raise UsageError(f"{str(self.run)[:80]!r} is no id of a cloud-hpc run")
        if not isinstance(self.data_hash, str) or not re.fullmatch("[0-9a-f]{64}", self.data_hash):
            raise UsageError(f"{str(self.data_hash)[:80]!r} is no hash of a data set")
        if not isinstance(self.configured, bool):
            raise UsageError(f"configured = {str(self.configured)[:80]!r} is not true or false")
        whole = isinstance(self.workers, int) and not isinstance(self.workers, bool)
        if not whole or not 1 <= self.workers <= MOST_WORKERS:
            got = f"workers = {str(self.workers)[:80]!r} is not possible"
            raise UsageError(got, next_step=f"give a whole number from 1 to {MOST_WORKERS}")
        if self.tunnel not in ("", REVERSE, NO_TUNNEL):
            raise UsageError(
                f"tunnel = {str(self.tunnel)[:80]!r} is not possible",
                next_step=f"give {REVERSE}, {NO_TUNNEL} or nothing",
            )

    def through(self, usual: str) -> bool:
        """Say whether a reverse tunnel is wanted, where `usual` is the profile's."""
        return (self.tunnel or usual) == REVERSE


def fold(keys: Iterable[str]) -> dict[str, Standing]:
    """Say how each run stands, from the keys of a listing in any order; other keys count nothing.

    Precedence: result, refused, cancel, then the last try: ended, submitted, asked for.
    """
    found: dict[str, set[str]] = {}
    for match in filter(None, map(_KEY.fullmatch, keys)):
        name = match["name"] or f"{match['step']} {match['number']}"
        found.setdefault(match["run"], set()).add(name)
    return {run: _standing(run, names) for run, names in found.items()}


def _standing(run: str, names: set[str]) -> Standing:
    numbers = [int(name.split()[1]) for name in names if " " in name]
    last = max(numbers, default=1)
    ended = f"ended {last}" in names
    if "result" in names:
        state = RunState.DONE
    elif "refused" in names:
        state = RunState.REFUSED
    elif "cancel" in names:
        state = RunState.CANCELLED if ended else RunState.CANCELLING
    elif ended:
        state = RunState.ENDED
    elif f"submitted {last}" in names:
        state = RunState.SUBMITTED
    else:
        state = RunState.REQUESTED if "request" in names else RunState.UNKNOWN
    return Standing(run, state, last)


def read_request(run: str, content: bytes) -> Request:
    """Read the request of a run. Raises DataError for everything that `write_request` is not."""
    tried = f"read the request of {run}"
    step = "it is refused; start the run again with --fresh"
    if len(content) > REQUEST_BYTES:
        raise DataError(tried, f"{len(content)} bytes, at most {REQUEST_BYTES} are allowed", step)
    try:
        table = json.loads(content)
        fields = [each.name for each in dataclasses.fields(Request)]
        values = dict(_only(table, ("schema", *fields)))
        if values.pop("schema") != SCHEMA or values["run"] != run:
            raise DataError(tried, "another schema or the id of another run", step)
        given = values.pop("hyperparameters")
        known = list(Parameters.model_fields)
        return Request(hyperparameters=Parameters(**_only(given, known)), **values)
    except (ValueError, RecursionError) as err:
        raise DataError(tried, f"it is no JSON: {str(err)[:200]}", step) from err
    except UsageError as err:
        raise DataError(tried, str(err)[:500], step) from err


def write_request(request: Request) -> bytes:
    """Give the request as JSON."""
    return dumps({"schema": SCHEMA, **as_json(request)}).encode()


def as_json(request: Request) -> Json:
    """Return the request as a JSON object."""
    return {**vars(request), "hyperparameters": request.hyperparameters.model_dump()}


def _only(table: Any, known: Iterable[str]) -> Mapping[str, Any]:
    """Give the table when it has exactly these keys. Raises UsageError."""
    if not isinstance(table, dict) or set(table) != set(known):
        got = ", ".join(map(repr, table))[:200] if isinstance(table, dict) else type(table).__name__
        raise UsageError(f"a table of other keys: {got}", next_step=f"give {', '.join(known)}")
    return table


def token(run: str, number: int) -> str:
    """Name one try of a run: 12 hex digits."""
    return sha256_of(f"{run} {number}".encode())[:12]


@dataclass(frozen=True)
class Jobs:
    """The objects of all runs in one bucket. The constructor only stores."""

    store: "ObjectStore"

    def standings(self) -> dict[str, Standing]:
        """Say how every run stands: one listing."""
        return fold(each.key for each in self.store.list("runs/"))

    def open_tokens(self) -> list[str]:
        """Name the tries that may be on the site: of each open run its last one and the next."""
        try:
            found = [each for each in self.standings().values() if not each.state.finished]
        except NoSuchBucket:  # nobody has asked for anything yet
            return []
        return [token(each.run, each.number + more) for each in found for more in (0, 1)]

    def standing(self, run: str) -> Standing:
        """Say how one run stands."""
        keys = [each.key for each in self.store.list(f"runs/{run}/")]
        return fold(keys).get(run, Standing(run))

    def ask(self, request: Request) -> Standing:
        """Ask for a run, unless that was done before; say how it stands."""
        standing = self.standing(request.run)
        if standing.state is not RunState.UNKNOWN:
            return standing
        self.store.put(_key(request.run, "request"), write_request(request))
        return Standing(request.run, RunState.REQUESTED)

    def request(self, run: str) -> Request:
        """Read what was asked for. Raises DataError, NoSuchObject."""
        if self.store.stat(_key(run, "request")).size > REQUEST_BYTES:
            return read_request(run, b" " * (REQUEST_BYTES + 1))
        return read_request(run, self.store.get(_key(run, "request")))

    def ask_again(self, run: str) -> Standing:
        """Let a run whose last try came to nothing work once more: the person's word for it."""
        standing = self.standing(run)
        if standing.state is RunState.ENDED:
            self.write(run, f"try-{standing.number + 1}/asked", {})
        return self.standing(run)

    def cancel(self, run: str) -> Standing:
        """Say that a run is no longer wanted; what is finished stays as it is."""
        standing = self.standing(run)
        if standing.state.finished or standing.state is RunState.CANCELLING:
            return standing
        self.write(run, "cancel", {})
        return self.standing(run)

    def write(self, run: str, name: str, content: Json) -> None:
        """Write an object of a run (`ended` of a try is `try-<n>/ended`)."""
        self.store.put(_key(run, name), dumps({"schema": SCHEMA, **content}).encode())

    def read(self, run: str, name: str) -> Json | None:
        """Read an object of a run; None when it is not there. Raises DataError."""
        try:
            found = json.loads(self.store.get(_key(run, name)))
        except NoSuchObject:
            return None
        except (ValueError, RecursionError) as err:
            raise DataError(f"read {_key(run, name)}", "it is no JSON", "remove it") from err
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise DataError(f"read {_key(run, name)}", "another schema", "remove it")
        return found


def _key(run: str, name: str) -> str:
    key = f"runs/{run}/{name}.json"
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key[:200]!r} is no object of a run")
    return key
