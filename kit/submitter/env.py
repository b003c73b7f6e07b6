"""The Python environment on the HPC side: a venv over the site's modules, found or built.

It is built in its final, unique folder `kit/venvs/<key>.<unique>` and published once by the link
`kit/venvs/<key>`: the second builder keeps a private one, or takes the published one. The key is
a hash of everything that an environment depends on. Packages come from `kit/wheels/<pins>`, which
is filled from the package index once; a folder that was filled by hand serves a site without
network.
Tried with pip 23.0 (Python 3.11).
"""

import contextlib
import json
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kit.base import ROOT, CommandFailed, DataError, Host, UsageError, sha256_of
from kit.base.settings import Hpc
from kit.experiments.packages import canonical, with_dependencies
from kit.slurm import ATTEMPT_ID, SitePaths, module_lines
from kit.submitter.container import image_lines
from kit.submitter.scripts import script

REQUIREMENTS = ROOT / "env" / "hpc" / "requirements.txt"
LOCK = ROOT / "requirements.lock"

FUNCTION = script("container") + script("environment")
NAME = re.compile("[0-9a-f]{12}[.][0-9a-f-]{36}")
NEXT_STEP = "fix what it names, then run again"

# The replies are lines that begin with a mark: other output of the site may surround them.
_REPLY = """printf '@environment %s\\n@private %s\\n' "$venv" "$private"\n"""
_EXIT = """printf '@exit %s\\n' "$?"\n"""


class EnvironmentBuildError(DataError):
    """An environment could not be built on the site."""


@dataclass(frozen=True)
class Environment:
    """One environment on the site. New runs use a published one; `attempt` is its attempt's id."""

    name: str
    published: bool
    megabytes: int
    made: float
    attempt: str


def pins(more: Sequence[str] = (), names: Path = REQUIREMENTS, lock: Path = LOCK) -> str:
    """Return the packages with their versions, one a line. Raises DataError for one not locked.

    `more` are an experiment's own: with the version of the lock, or as they are written, and with
    the packages that these need, as far as they are installed here.
    """
    versions = locked(lock)
    wanted = [line for line in names.read_text().splitlines() if line and line[0] != "#"]
    missing = [name for name in wanted if name not in versions]
    if missing:
        raise DataError(f"{names} names what {lock} has not", ", ".join(missing), "make lock")
    lines = [f"{name}=={versions[name]}" for name in wanted]
    asked = set(map(canonical, more))
    more = [
        text
        for text in with_dependencies(more)
        if canonical(text) in asked or text not in module_packages()
    ]
    lines += [f"{name}=={versions[name]}" if name in versions else name for name in more]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def site_packages(more: Sequence[str] = ()) -> list[str]:
    """Return the names of all packages that an experiment finds on the site."""
    return [*map(canonical, pins(more).splitlines()), *module_packages()]


@cache  # it reads what is installed here: only an experiment with packages of its own needs it
def module_packages() -> frozenset[str]:
    """Return what the site's module brings: PyTorch, NumPy, and what these need."""
    return frozenset(map(canonical, with_dependencies(["torch", "numpy"])))


def locked(lock: Path = LOCK) -> dict[str, str]:
    """Return the version of every package in the lock."""
    return dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)


def environment_key(hpc: Hpc, text: str) -> str:
    """Return a hash of all that an environment depends on: packages, modules, Python, image."""
    site = [hpc.modules, hpc.module_path, hpc.module_init, hpc.python, SitePaths(hpc).image]
    parts = [text, *site, FUNCTION]
    return sha256_of(json.dumps(parts).encode())[:12]


def published_link(hpc: Hpc) -> str:
    """Return the symlink on the site to the environment that a run with configured = True uses."""
    return f"{SitePaths(hpc).venvs}/{environment_key(hpc, pins())}"


def pins_key(text: str) -> str:
    """Return a hash of a list of packages."""
    return sha256_of(text.encode())[:12]


def environment_call(hpc: Hpc, attempt_id: str, configured: bool, more: Sequence[str] = ()) -> str:
    """Return the line that calls `environment`. Raises UsageError for an invalid attempt id."""
    if not ATTEMPT_ID.fullmatch(attempt_id):
        raise UsageError(
            f"{attempt_id[:80]!r} is not an attempt id", next_step="give 12 hex digits"
        )
    text, use = pins(more), "yes" if configured else "no"
    keys = [environment_key(hpc, text), pins_key(text)]
    return f"environment {shlex.join([hpc.project_dir, *keys, hpc.python, attempt_id, use])}"


def pins_file(hpc: Hpc, more: Sequence[str] = ()) -> str:
    """Return where the list of packages is on the site."""
    return f"{SitePaths(hpc).wheels}/{pins_key(pins(more))}.txt"


def stage_pins(host: Host, hpc: Hpc, more: Sequence[str] = ()) -> None:
    """Write the list of packages on the site, unless it is there as it was written."""
    text, target = pins(more).encode(), pins_file(hpc, more)
    if sha256_on(host, target) != sha256_of(text):
        host.put(text, target)


def sha256_on(host: Host, path: str) -> str:
    """Return the SHA-256 of a file on the site; "" where it cannot be read."""
    output = host.run(["sha256sum", "--", path], check=False, repeat=True)
    return output.out.partition(" ")[0] if output.code == 0 else ""


def make_environment(
    host: Host,
    hpc: Hpc,
    attempt_id: str,
    configured: bool,
    say: Callable[[str], None],
    more: Sequence[str] = (),
) -> tuple[str, bool]:
    """Find or build the environment on the login node; return its folder and whether it is private.

    Raises EnvironmentBuildError for every failure on the site, Unreachable without contact.
    """
    stage_pins(host, hpc, more)
    call = environment_call(hpc, attempt_id, configured, more)
    text = "\n".join([*module_lines(hpc), *image_lines(hpc), FUNCTION, call])
    body = f"main() {{\numask 077\n(\n{text} || exit\n{_REPLY})\n{_EXIT}}}\nmain; exit 0\n"
    tried = f"build the Python environment on {host.name}"
    try:
        output = host.run(["bash", "-s"], body.encode(), timeout=1800)
    except CommandFailed as err:
        raise EnvironmentBuildError(tried, err.got, NEXT_STEP) from err
    marked: dict[str, str] = {}
    for line in output.out.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("@environment", "@private", "@exit"):
            marked[word] = rest
        else:
            say(rest)
    if marked.get("@exit") != "0" or not marked.get("@environment"):
        got = output.err.strip()[-1000:] or f"exit code {marked.get('@exit', 'unknown')}"
        raise EnvironmentBuildError(tried, got, NEXT_STEP)
    return marked["@environment"], bool(marked.get("@private"))


def list_environments(host: Host, hpc: Hpc) -> list[Environment]:
    """List the environments on the site. Lines that cannot be read are left out."""
    argv = ["bash", "-c", script("list_environments"), "bash", hpc.project_dir]
    environments = []
    for line in host.run(argv, timeout=600, repeat=True).out.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            environment = Environment(**json.loads(line))
            if NAME.fullmatch(environment.name):
                environments.append(environment)
    return environments


def remove_environments(
    host: Host, hpc: Hpc, open_attempt_ids: Collection[str], names: Collection[str] = ()
) -> list[str]:
    """Remove these environments, without `names` every private one; return the removed names.

    Keeps environments of open attempts, and published ones while any attempt is open. Raises
    UsageError for a name that may not be removed, before anything is removed.
    """
    environments = {row.name: row for row in list_environments(host, hpc)}
    for name in names:
        if name not in environments:
            raise UsageError(f"unknown environment {name[:80]!r}", next_step="kit envs ls")
        environment = environments[name]
        published_in_use = environment.published and open_attempt_ids
        if environment.attempt in open_attempt_ids or published_in_use:
            got = f"an open run may use it, one of {len(open_attempt_ids)}"
            raise UsageError(f"{name} is in use", got, "wait for its end, or `kit cancel` it")
    private = {name: row for name, row in environments.items() if not row.published}
    unused = [name for name, row in private.items() if row.attempt not in open_attempt_ids]
    chosen = list(names) or unused
    if not chosen:
        return []
    argv = ["bash", "-c", script("remove_environments"), "bash", hpc.project_dir, *chosen]
    return host.run(argv, timeout=600, repeat=True).out.splitlines()
