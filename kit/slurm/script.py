"""A batch job as data, its script as text. Pure: nothing is written or run here.

Every script begins with the fence of its try: the first start of the first job owns the try,
any other start ends before it does anything (98: the link cannot be made, 99: not the owner).
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from kit.base import UsageError
from kit.slurm.values import seconds


@dataclass(frozen=True)
class JobSpec:
    """One batch job. Field names are sbatch's where it has one; an empty field is left out.

    `time` is `[d-]hh:mm:ss`, `memory` per node (`3G`), `gres` such as `gpu:gh200:1`, `cpus` per
    task, `signal` such as `B:TERM@60`, `output` relative to the try's folder. `commands` are
    bash lines that run in the try's folder (`$try`); `commit FILE` publishes and comes last.
    `environment` is written into the script: it is no place for secrets.
    """

    name: str
    commands: tuple[str, ...]
    account: str = ""
    partition: str = ""
    nodes: int = 1
    tasks: int = 0
    tasks_per_node: int = 0
    cpus: int = 1
    memory: str = ""
    gres: str = ""
    time: str = "00:20:00"
    output: str = "job-%j.log"
    signal: str = ""
    singleton: bool = True
    requeue: bool = False
    module_init: str = ""
    module_path: str = ""
    modules: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


# sbatch's option, the field, what the field may hold. A value is one word: it cannot add a line.
WORD = r"[A-Za-z0-9][\w.+-]*"
OPTIONS = (
    ("job-name", "name", WORD),
    ("account", "account", WORD),
    ("partition", "partition", rf"{WORD}(,{WORD})*"),
    ("nodes", "nodes", r"[1-9]\d*"),
    ("ntasks", "tasks", r"[1-9]\d*"),
    ("ntasks-per-node", "tasks_per_node", r"[1-9]\d*"),
    ("cpus-per-task", "cpus", r"[1-9]\d*"),
    ("mem", "memory", r"\d+[KMGT]?"),
    ("gres", "gres", r"[\w.+-]+(:[\w.+-]+)*(,[\w.+-]+(:[\w.+-]+)*)*"),
    ("time", "time", r"(\d+-)?\d{1,3}:\d\d:\d\d"),
    ("output", "output", r"[\w.%+-]+"),
    ("signal", "signal", r"(B:)?[A-Z0-9]+(@\d+)?"),
)

PREAMBLE = """\
export SLURM_EXPORT_ENV=ALL PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
umask 077
cd "$try" || exit 98
me=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
ln -sT "$me" owner 2>/dev/null
case "$(readlink owner)" in "$me") ;; "") exit 98 ;; *) exit 99 ;; esac

# commit FILE: publish the try's manifest, once and last; 97: the try was closed before.
commit() {
    local hash
    hash=$(sha256sum <"$1") && hash=${hash%% *} || exit 97
    mv -T "$1" "$try/manifest-$hash" && sync "$try/manifest-$hash" || exit 97
    ln -sT "manifest-$hash" "$try/commit" 2>/dev/null
    [ "$(readlink "$try/commit")" = "manifest-$hash" ] || exit 97
}
"""


def script(spec: JobSpec, folder: str) -> str:
    """Write the batch script of a try whose folder on the site is `folder` (absolute).

    Raises UsageError for a value that Slurm or bash would take for something else.
    """
    if not folder.startswith("/") or "\n" in folder:
        raise UsageError(
            f"the try's folder {folder!r} is no absolute path",
            next_step="give [hpc] project_dir in full in the profile",
        )
    lines = ["#!/bin/bash", *directives(spec), "", f"try={shlex.quote(folder)}", PREAMBLE]
    lines += [*_modules(spec), *_environment(spec.environment)]
    lines += [_checked("commands", command, r"[^\0]*") for command in spec.commands]
    return "\n".join(lines) + "\n"


def directives(spec: JobSpec) -> list[str]:
    """Write the `#SBATCH` lines. Raises UsageError for a value that is not allowed."""
    lines = []
    for option, name, allowed in OPTIONS:
        value = getattr(spec, name)
        if value or name in ("name", "nodes", "cpus", "time"):
            lines.append(f"#SBATCH --{option}={_checked(name, str(value), allowed)}")
    if spec.singleton:
        lines.append("#SBATCH --dependency=singleton")
    lines.append("#SBATCH --requeue" if spec.requeue else "#SBATCH --no-requeue")
    return lines


def argv(folder: str) -> list[str]:
    """Name the command that submits the script `job.sh` of the try in `folder`.

    Nothing of the login shell's environment travels along (`NIL`; `NONE` would run the person's
    login profile on the node).
    """
    return ["sbatch", "--parsable", "--export=NIL", f"--chdir={folder}", f"{folder}/job.sh"]


def node_hours(spec: JobSpec) -> float:
    """Give the most that a job can take: its nodes times its time limit, in node-hours."""
    return spec.nodes * (seconds(spec.time) or 0) / 3600


def _modules(spec: JobSpec) -> list[str]:
    """Load modules; a batch shell has no `module` before its start file was read."""
    lines = []
    if spec.module_init:
        lines.append(f"source {shlex.quote(_checked('module_init', spec.module_init, '/.*'))}")
    if spec.module_path:
        lines.append(f"module use {shlex.quote(_checked('module_path', spec.module_path, '/.*'))}")
    names = [_checked("modules", name, r"[\w.+/-]+") for name in spec.modules]
    return [*lines, *(f"module load {name} || exit 96" for name in names)]


def _environment(values: Mapping[str, str]) -> list[str]:
    return [
        f"export {_checked('environment', name, r'[A-Za-z_][A-Za-z0-9_]*')}="
        + shlex.quote(_checked("environment", value, r"[^\0]*"))
        for name, value in values.items()
    ]


def _checked(name: str, value: str, allowed: str) -> str:
    flags = re.DOTALL if allowed.startswith("[^") else re.NOFLAG
    if not re.fullmatch(allowed, value, flags):
        raise UsageError(
            f"the job's {name} = {value!r} is not allowed", next_step=f"it must match {allowed}"
        )
    return value
