"""The Python environment on the HPC side: a venv over the site's modules, found or made.

It is made in its final, unique folder `kit/venvs/<key>.<unique>` and published by the link
`kit/venvs/<key>`, once: whoever is second keeps a private one, or takes the published. The key
holds everything that it depends on. Wheels come from `kit/wheels/<pins>`, which is filled from
the package index once; a folder that somebody put there serves a site without network.
Tried with pip 23.0 (Python 3.11).
"""

import json
import re
import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from kit.base import ROOT, DataError, Host, UsageError, sha256_of
from kit.base.settings import Hpc
from kit.slurm import ATTEMPT_ID

REQUIREMENTS = ROOT / "env" / "hpc" / "requirements.txt"
LOCK = ROOT / "requirements.lock"

# environment PROJECT KEY PINS PYTHON TOKEN CONFIGURED: name the environment in $venv, make it where
# there is none or CONFIGURED is not yes. $private is $venv when only this try uses it.
# A module's PYTHONPATH would come before the venv's own packages: `module.pth` puts it behind.
FUNCTION = r"""
say() { printf '%(%T)T %s\n' -1 "$*"; }
environment() {
    local root=$1/kit key=$2 python=$4 token=$5 configured=$6 made
    local link=$root/venvs/$key wheels=$root/wheels/$3 pins=$root/wheels/$3.txt
    private=
    if [ "$configured" = yes ] && venv=$(readlink -e "$link") && "$venv/bin/python" -c ''; then
        say "environment: found $venv"; return
    fi
    made=$key.$(cat /proc/sys/kernel/random/uuid) venv=$root/venvs/$made private=$venv
    mkdir -p "$root/venvs" "$wheels" || return
    say "environment: making $venv"
    "$python" -m venv --system-site-packages --without-pip "$venv" || return
    echo "$token" >"$venv/.try"
    tr : '\n' <<<"${PYTHONPATH:-}" >"$(echo "$venv"/lib/python3*/site-packages)/module.pth"
    unset PYTHONPATH
    if [ ! -e "$wheels/complete" ]; then
        say "environment: bringing wheels"
        "$python" -m pip --disable-pip-version-check --quiet download --no-deps \
            --only-binary :all: --dest "$venv/wheels" --requirement "$pins" || return
        mv -n "$venv"/wheels/* "$wheels" && touch "$wheels/complete"
        rm -rf "$venv/wheels"
    fi
    say "environment: installing $(grep -c == "$pins") packages"
    "$python" -m pip --python "$venv/bin/python" --disable-pip-version-check --quiet \
        install --no-deps --no-compile --no-index --find-links "$wheels" \
        --requirement "$pins" || return
    "$venv/bin/python" -c 'import ray, torch' || return
    ln -sT "$made" "$link" 2>/dev/null
    if [ "$(readlink "$link")" = "$made" ]; then
        private=
    elif [ "$configured" = yes ]; then
        rm -rf "$venv"; private= venv=$(readlink -e "$link") || return
    fi
    say "environment: ready $venv"
}
"""

# $1 project folder: each environment as `name|published or private|MB|seconds since 1970|try`.
LIST = r"""
cd "$1/kit/venvs" 2>/dev/null || exit 0
for made in *.*; do
    [ -d "$made" ] || continue
    [ "$(readlink "${made%%.*}")" = "$made" ] && use=published || use=private
    token=$(cat "$made/.try" 2>/dev/null)
    echo "$made|$use|$(du -sm "$made" | cut -f1)|$(stat -c %Y "$made")|$token"
done
"""

# $1 project folder, then names: remove these environments, the links to them first.
REMOVE = r"""
cd "$1/kit/venvs" || exit; shift
for made; do
    key=${made%%.*}
    [ "$(readlink "$key")" != "$made" ] || rm -f "$key"
    rm -rf "$made" && echo "$made"
done
"""
NAME = re.compile("[0-9a-f]{12}[.][0-9a-f-]{36}")


class EnvironmentBuildError(DataError):
    """An environment could not be made on the site."""


@dataclass(frozen=True)
class Environment:
    """One environment on the site; new runs find a published one, `token` is the try it is of."""

    name: str
    published: bool
    megabytes: int
    made: float
    token: str


def pins(names: Path = REQUIREMENTS, lock: Path = LOCK) -> str:
    """Give the packages with their versions, a line each. Raises DataError for one not locked."""
    versions = locked(lock)
    wanted = [line for line in names.read_text().splitlines() if line and line[0] != "#"]
    missing = [name for name in wanted if name not in versions]
    if missing:
        raise DataError(f"{names} names what {lock} has not", ", ".join(missing), "make lock")
    return "".join(f"{name}=={versions[name]}\n" for name in wanted)


def locked(lock: Path = LOCK) -> dict[str, str]:
    """Give the version of every package in the lock."""
    return dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)


def environment_key(hpc: Hpc, text: str) -> str:
    """Name the environment by all that it depends on: packages, modules, Python."""
    parts = [text, hpc.modules, hpc.module_path, hpc.module_init, hpc.python, FUNCTION]
    return sha256_of(json.dumps(parts).encode())[:12]


def pins_key(text: str) -> str:
    """Name a list of packages."""
    return sha256_of(text.encode())[:12]


def environment_call(hpc: Hpc, token: str, configured: bool) -> str:
    """Give the line that calls `environment`. Raises UsageError for what is no token."""
    if not ATTEMPT_ID.fullmatch(token):
        raise UsageError(f"{token!r} is no token", next_step="give 12 hex digits")
    text, use = pins(), "yes" if configured else "no"
    words = [hpc.project_dir, environment_key(hpc, text), pins_key(text), hpc.python, token, use]
    return f"environment {shlex.join(words)}"


def stage_pins(host: Host, hpc: Hpc) -> None:
    """Put the list of packages on the site; it is made once."""
    text = pins()
    target = f"{hpc.project_dir}/kit/wheels/{pins_key(text)}.txt"
    if host.run(["test", "-e", target], check=False, repeat=True).code:
        host.put(text.encode(), target)


def make_environment(
    host: Host, hpc: Hpc, token: str, configured: bool, say: Callable[[str], None]
) -> tuple[str, bool]:
    """Find or make the environment by ssh, on the login node: its folder, whether private.

    Raises EnvironmentBuildError with what was said last.
    """
    stage_pins(host, hpc)
    text = "\n".join([*_modules(hpc), FUNCTION, environment_call(hpc, token, configured)])
    tail = '\ncode=$?; echo "@$code $venv|$private"; exit 0'
    body = f"main() {{\numask 077\n{text}{tail}\n}}\nmain; exit\n".encode()
    done = host.run(["bash", "-s"], body, timeout=1800)
    lines = done.out.splitlines()
    for line in lines[:-1]:
        say(line.partition(" ")[2])
    code, _, rest = (lines[-1] if lines else "@1 |").partition(" ")
    venv, _, private = rest.partition("|")
    if code != "@0" or not venv:
        got = done.err.strip()[-1000:] or "nothing was said"
        raise EnvironmentBuildError(
            f"make the environment on {host.name}", got, "mend that, then run again"
        )
    return venv, bool(private)


def list_environments(host: Host, hpc: Hpc) -> list[Environment]:
    """List the environments on the site."""
    out = host.run(["bash", "-c", LIST, "bash", hpc.project_dir], timeout=600, repeat=True).out
    rows = [line.split("|") for line in out.splitlines() if line.count("|") == 4]
    return [
        Environment(name, use == "published", int(mb), float(at), token)
        for name, use, mb, at, token in rows
        if NAME.fullmatch(name)
    ]


def remove_environments(
    host: Host, hpc: Hpc, open_attempt_ids: Collection[str], names: Collection[str] = ()
) -> list[str]:
    """Remove these environments, without `names` every private one; give what was removed.

    One of an open try stays, and as long as there is any, so does what is published. Raises
    UsageError for a name that may not go, before anything is removed.
    """
    found = {made.name: made for made in list_environments(host, hpc)}
    for name in names:
        if name not in found:
            raise UsageError(f"there is no environment {name[:80]!r}", next_step="kit envs ls")
        if found[name].token in open_attempt_ids or (found[name].published and open_attempt_ids):
            got = f"an open run may use it, one of {len(open_attempt_ids)}"
            raise UsageError(f"{name} is in use", got, "wait for its end, or `kit cancel` it")
    unused = [m.name for m in found.values() if not m.published and m.token not in open_attempt_ids]
    chosen = list(names) or unused
    if not chosen:
        return []
    argv = ["bash", "-c", REMOVE, "bash", hpc.project_dir, *chosen]
    return host.run(argv, timeout=600, repeat=True).out.splitlines()


def _modules(hpc: Hpc) -> list[str]:
    lines = [f"source {shlex.quote(hpc.module_init)}"] if hpc.module_init else []
    lines += [f"module use {shlex.quote(hpc.module_path)}"] if hpc.module_path else []
    return [*lines, *(f"module load {shlex.quote(name)} || exit 96" for name in hpc.modules)]
