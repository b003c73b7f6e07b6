"""Lists and removes what the kit left on a site and in the buckets; never what an open run needs.

On the site an attempt that has not ended is kept, no matter who submitted it, and so are its
inputs. In the buckets a run is kept unless its results are here. Attempts go before the objects of
their run, and its request before its result: a run that is half removed is not executed again.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kit.base import NoSuchBucket
from kit.runs.requests import RunState, RunStatus, attempt_id
from kit.submitter import env
from kit.submitter.scripts import script
from kit.submitter.submitter import Submitter

KEEP_DAYS = 30.0
DAY_S = 86400
NEEDED = "an open run may need it"
_ON_SITE = re.compile(
    r"tries/[0-9a-f]{12}|inputs/[0-9a-f]{64}\.(zip|safetensors)(\.sha256)?"
    r"|wheels/[0-9a-f]{12}(\.txt)?"
)
_GROUP = re.compile(r"runs/(local|cloud|cloud-hpc)-[0-9a-f]{12}-\d+/|data/[0-9a-f]{64}")


@dataclass(frozen=True)
class Leftover:
    """A thing that was left; it may be removed unless `kept` says why not.

    `place` is site or store; `name` a path below the kit's folder there, or what its keys begin
    with. `used` is when it was last used or changed.
    """

    place: str
    name: str
    bytes: int
    used: float
    kept: str = ""


def list_leftovers(submitter: Submitter, keep_days: float = KEEP_DAYS) -> list[Leftover]:
    """List what is on the site and in the buckets, oldest first. Raises KitError."""
    statuses = submitter.requests.statuses()
    rows = [*_on_site(submitter, statuses), *_in_store(submitter, statuses)]
    before = submitter.slurm.clock() - keep_days * DAY_S
    young = f"used within {keep_days:g} days"
    rows = [
        Leftover(row.place, row.name, row.bytes, row.used, row.kept or young)
        if row.used > before
        else row
        for row in rows
    ]
    return sorted(rows, key=lambda row: row.used)


def remove_leftovers(submitter: Submitter, rows: Iterable[Leftover]) -> Iterator[Leftover]:
    """Remove those of `rows` that are not kept; yield each that is gone. Raises KitError."""
    chosen = [row for row in rows if not row.kept]
    on_site = {row.name: row for row in chosen if row.place == "site"}
    if on_site:
        argv = ["bash", "-c", script("remove_leftovers"), "bash", submitter.slurm.paths.root]
        names = "".join(f"{name}\n" for name in on_site).encode()
        for name in submitter.slurm.host.run(argv, names, timeout=600, repeat=True).out.split():
            yield on_site[name]
    for row in chosen:
        if row.place == "store":
            for store in (submitter.requests.store, submitter.data):
                keys = [info.key for info in store.list(row.name)]
                for key in sorted(keys, key=lambda key: not key.endswith("/request.json")):
                    store.delete(key)
            yield row


def _on_site(submitter: Submitter, statuses: dict[str, RunStatus]) -> Iterator[Leftover]:
    """Yield attempts, inputs, packages and environments of the site."""
    host, hpc = submitter.slurm.host, submitter.slurm.hpc
    argv = ["bash", "-c", script("list_leftovers"), "bash", submitter.slurm.paths.root]
    sizes, _, rest = host.run(argv, timeout=600, repeat=True).out.partition("@times\n")
    times, _, needed = rest.partition("@needed\n")
    used = {name: float(at) for at, name in (line.split(" ", 1) for line in times.splitlines())}
    attempts = {name.split("/")[1] for name in used if name.startswith("tries/")}
    ended = {name.split("/")[1] for name in used if name.endswith("/commit")}
    finished = {
        attempt_id(run, number)
        for run, status in statuses.items()
        if status.state.finished
        for number in range(1, status.number + 2)
    }
    pins = f"wheels/{env.pins_key(env.pins())}"

    def why_kept(name: str) -> str:
        """Return why a file of the site is kept; empty for one that may go."""
        folder, _, rest = name.partition("/")
        if folder == "tries":
            unknown = "no finished run of this profile has it"
            return NEEDED if rest not in ended else "" if rest in finished else unknown
        if folder == "inputs":
            return NEEDED if name.removesuffix(".sha256") in needed.split() else ""
        current = name.removesuffix(".txt") == pins
        return "new runs use it" if current else NEEDED if attempts - ended else ""

    for line in sizes.splitlines():
        kib, _, name = line.partition("\t")
        if not _ON_SITE.fullmatch(name):
            continue
        times_of_it = [used.get(f"{name}{end}", 0.0) for end in ("/commit", ".txt", "")]
        yield Leftover("site", name, int(kib) * 1024, max(times_of_it), why_kept(name))
    for row in env.list_environments(host, hpc):
        kept = NEEDED if row.attempt in attempts - ended else ""
        kept = "new runs use it (kit envs rm)" if row.published else kept
        yield Leftover("site", f"venvs/{row.name}", row.megabytes * 2**20, row.made, kept)


def _in_store(submitter: Submitter, statuses: dict[str, RunStatus]) -> Iterator[Leftover]:
    """Yield the runs and the data sets of both buckets, each with all its objects."""
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    for store in (submitter.requests.store, submitter.data):
        with contextlib.suppress(NoSuchBucket):  # nothing was requested yet
            for info in store.list():
                if match := _GROUP.match(info.key):
                    name = match[0]
                    sizes[name] = sizes.get(name, 0) + info.size
                    used[name] = max(used.get(name, 0.0), info.modified.timestamp())
    is_open = any(not status.state.finished for status in statuses.values())
    for name, size in sizes.items():
        if name.startswith("data/"):
            kept = NEEDED if is_open else ""
        else:
            run = Path(name).name
            state = statuses.get(run, RunStatus(run)).state
            here = submitter.settings.profile_dir / "runs" / run / "record.json"
            kept = "" if here.exists() else f"its results are not in {here.parents[1]}"
            kept = kept if state.finished or state is RunState.UNKNOWN else NEEDED
        yield Leftover("store", name, size, used[name], kept)
