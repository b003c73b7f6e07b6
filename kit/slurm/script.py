"""A batch job as data, its script as text. Pure: nothing is written or run here.

A script of an attempt begins with the fence: the first start of the first job owns the attempt,
any other start ends before it does anything (98: the link cannot be made, 99: not the owner).
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kit.base import DataError, UsageError
from kit.slurm.text import count_gres, format_duration, parse_duration, parse_memory

if TYPE_CHECKING:
    from kit.base.settings import Hpc


@dataclass(frozen=True)
class JobSpec:
    """One batch job. Field names are sbatch's where it has one; an empty field is left out.

    `time` and `memory` (per node) in any form that sbatch accepts, `gres` such as `gpu:gh200:1`,
    `cpus` per task. `mem_per_cpu` takes the place of `memory`, `gpus_per_node` that of GPUs in
    `gres`; `exclusive`: no other job on the nodes. `warning_s`: seconds before the time limit at
    which the script receives SIGTERM (0: never; less for a short limit). `commands` are bash lines
    that run in `chdir`, else in the attempt's folder (`$attempt`); `commit FILE` publishes, last
    of all. `environment` is written into the script: it is not a place for secrets.
    """

    name: str
    commands: tuple[str, ...]
    account: str = ""
    partition: str = ""
    qos: str = ""
    clusters: str = ""
    constraint: str = ""
    licenses: str = ""
    nodes: int = 1
    tasks_per_node: int = 0
    cpus: int = 1
    memory: str = ""
    gres: str = ""
    time: str = "00:20:00"
    warning_s: int = 0
    module_init: str = ""
    module_path: str = ""
    modules: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    chdir: str = ""
    comment: str = ""
    reservation: str = ""
    mail_type: str = ""
    mail_user: str = ""
    mem_per_cpu: str = ""
    gpus_per_node: str = ""
    nodelist: str = ""
    exclude: str = ""
    burst_buffer: str = ""
    exclusive: bool = False


# sbatch's option, the field, what the field may hold, how to write it. A value is one word: it
# cannot add a line.
WORD = r"[A-Za-z0-9][\w.+-]*"
NODE = r"[A-Za-z0-9][\w.-]*(\[\d[\d,-]*\][\w.-]*)*"  # without /: sbatch would read a file
OPTIONS = (
    ("job-name", "name", WORD, "letters, digits and . _ + -"),
    ("account", "account", WORD, "the project's name"),
    ("partition", "partition", rf"{WORD}(,{WORD})*", "a partition's name, or several with commas"),
    ("qos", "qos", WORD, "the name of a QOS"),
    ("clusters", "clusters", WORD, "the name of one cluster"),
    ("constraint", "constraint", r"[\w.+-]+([&|,][\w.+-]+)*", "features such as a100&nvlink"),
    ("licenses", "licenses", r"[\w.@-]+(:\d+)?(,[\w.@-]+(:\d+)?)*", "such as matlab:1"),
    ("nodes", "nodes", r"[1-9]\d*", "a whole number from 1"),
    ("ntasks-per-node", "tasks_per_node", r"[1-9]\d*", "a whole number from 1"),
    ("cpus-per-task", "cpus", r"[1-9]\d*", "a whole number from 1"),
    ("mem", "memory", r"\d+[KMGT]?", "3G or 3000M; a bare number is MiB, 0 is the whole node"),
    ("gres", "gres", r"[\w.+-]+(:[\w.+-]+)*(,[\w.+-]+(:[\w.+-]+)*)*", "such as gpu:gh200:1"),
    ("time", "time", r"(\d+-)?\d{2}:\d\d:\d\d", "hh:mm:ss or d-hh:mm:ss"),
    ("comment", "comment", WORD, "letters, digits and . _ + -"),
    ("reservation", "reservation", WORD, "the name of a reservation"),
    ("mail-type", "mail_type", r"\w+(,\w+)*", "such as END,FAIL"),
    ("mail-user", "mail_user", r"[\w.+@-]+", "an address"),
    ("mem-per-cpu", "mem_per_cpu", r"[1-9]\d*[KMGT]?", "1000M or 2G; a bare number is MiB"),
    ("gpus-per-node", "gpus_per_node", r"([\w.-]+:)?[1-9]\d*", "2 or a100:2"),
    ("nodelist", "nodelist", rf"{NODE}(,{NODE})*", "names of nodes such as c1,c[4-6]"),
    ("exclude", "exclude", rf"{NODE}(,{NODE})*", "names of nodes such as c1,c[4-6]"),
    ("bb", "burst_buffer", r"#?\w[\w #=:.,/@+-]*", "what the site documents for --bb, no quotes"),
)
# fields of which one takes the place of the other
RIVALS = (("memory", "mem_per_cpu"), ("gres", "gpus_per_node"))
_MUST_BE_SET = ("name", "nodes", "cpus", "time")
LOG_NAME = "job-{}.log"  # the log of a job, in its folder


def job_for(hpc: "Hpc", name: str, commands: Sequence[str], **more: Any) -> JobSpec:
    """Return a job on a profile's site, with everything that its section [hpc] requests."""
    same = {f.name: getattr(hpc, f.name) for f in fields(JobSpec) if hasattr(hpc, f.name)}
    nvme = f"nvme:{hpc.nvme}" if hpc.nvme else ""
    if nvme and count_gres(hpc.gres, "nvme"):
        tried = f"[hpc] nvme = {hpc.nvme} and gres = {hpc.gres!r}"
        raise UsageError(tried, "both request the local disk", "write one of them")
    requested = {
        **same,
        "memory": "" if hpc.mem_per_cpu else hpc.mem,
        "gres": ",".join(filter(None, (hpc.gres, nvme))),
        "tasks_per_node": 1,  # Ray is started once on each node
    }
    return JobSpec(name, tuple(commands), **replace_fields(requested, more))


def replace_fields(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job with `more` in their place, without the rivals of `more`."""
    gone = {b for pair in RIVALS for a, b in (pair, pair[::-1]) if more.get(a) and b not in more}
    return {name: value for name, value in fields.items() if name not in gone} | dict(more)


def build_script(job: JobSpec, folder: str) -> str:
    """Return the batch script of an attempt whose folder on the site is `folder` (absolute).

    It begins with the fence, which no caller can leave out. Raises UsageError for a value that
    Slurm or bash would take for something else.
    """
    if not folder.startswith("/") or "\n" in folder:
        raise UsageError(
            f"the job's folder {folder!r} is not an absolute path",
            next_step="write [hpc] project_dir in full in the profile",
        )
    if "%" in folder:  # Slurm expands %j, %u … in the path of the log, and cannot open it then
        raise UsageError(
            f"the job's folder {folder!r} has a '%' in its name",
            "Slurm would not find the job's log there",
            "choose a [hpc] project_dir without '%'",
        )
    lines = ["#!/bin/bash", *_directives(job), "", f"attempt={shlex.quote(folder)}", shell("fence")]
    lines += [*module_lines(job), *_environment(job.environment)]
    if job.chdir:
        lines.append(f"cd {shlex.quote(_checked('chdir', job.chdir, '/.*'))} || exit 98")
    lines += [_checked("commands", command, r"[^\0]*") for command in job.commands]
    return "\n".join(lines) + "\n"


def sbatch_argv(folder: str) -> list[str]:
    """Return the command that submits the script `job.sh` in `folder`.

    Nothing of the login shell's environment travels along (`NIL`; `NONE` would run the person's
    login profile on the node).
    """
    return ["sbatch", "--parsable", "--export=NIL", f"--chdir={folder}", f"{folder}/job.sh"]


def node_hours(job: JobSpec) -> float:
    """Return the most that a job can take: its nodes times its time limit, in node-hours."""
    return job.nodes * (parse_duration(job.time) or 0) / 3600


def module_lines(site: "JobSpec | Hpc") -> list[str]:
    """Return the bash lines that load the modules of a job or a profile; a failure exits 96.

    A batch shell has no `module` before its start file was read: `module_init`, else the site's
    /etc/profile. Used by the job, by the environment's builder on the login node and by the doctor.
    """
    lines = []
    if site.module_init:
        lines.append(f"source {shlex.quote(_checked('module_init', site.module_init, '/.*'))}")
    elif site.module_path or site.modules:
        lines.append(shell("profile").rstrip())
    if site.module_path:
        lines.append(f"module use {shlex.quote(_checked('module_path', site.module_path, '/.*'))}")
    names = [_checked("modules", name, r"[\w.+/-]+") for name in site.modules]
    if names:
        lines += [shell("modules").rstrip(), *(f"load_module {name}" for name in names)]
    return lines


@cache
def shell(name: str) -> str:
    """Return the text of one of the room's shell files, `scripts/<name>.sh`."""
    return (files(__package__) / "scripts" / f"{name}.sh").read_text(encoding="utf-8")


def _directives(job: JobSpec) -> list[str]:
    """Return the `#SBATCH` lines. Raises UsageError for a value that is not allowed."""
    if job.memory and job.mem_per_cpu:
        raise refused("mem_per_cpu", job.mem_per_cpu, "the memory of a node or of a core, not both")
    if job.gpus_per_node and count_gres(job.gres, "gpu"):
        raise refused("gpus_per_node", job.gpus_per_node, "the GPUs here or in gres, not both")
    lines = []
    for option, name, allowed, form in OPTIONS:
        value = _written(name, str(getattr(job, name) or ""), form)
        if value or name in _MUST_BE_SET:
            text = _checked(name, value, allowed, form)
            lines.append(f"#SBATCH --{option}=" + (f'"{text}"' if " " in text else text))
    lines += ["#SBATCH --exclusive"] if job.exclusive else []
    lines.append(f"#SBATCH --output={LOG_NAME.format('%j')}")
    if job.warning_s:
        limit = parse_duration(job.time) or 0
        # Slurm may send the signal up to 60 s early: a short limit must leave time for the work.
        lines.append(f"#SBATCH --signal=B:TERM@{max(1, min(job.warning_s, int(limit // 10)))}")
    # A second job of the same attempt has no work to do: it waits, then ends 99.
    return [*lines, "#SBATCH --dependency=singleton", "#SBATCH --no-requeue"]


def _written(name: str, value: str, form: str) -> str:
    """Return time and memory in sbatch's full form; other values as they are."""
    try:
        if name == "time" and value:
            limit = parse_duration(value)
            if not limit or math.isinf(limit) or limit % 1:
                raise DataError(f"the time limit {value!r} has no end")
            return format_duration(limit)
        if name in ("memory", "mem_per_cpu") and value:
            parse_memory(value)
            return value.strip().upper().removesuffix("B")
    except DataError as err:
        raise refused(name, value, form) from err
    return value


def _environment(values: Mapping[str, str]) -> list[str]:
    return [
        f"export {_checked('environment', name, r'[A-Za-z_][A-Za-z0-9_]*')}="
        + shlex.quote(_checked("environment", value, r"[^\0]*"))
        for name, value in values.items()
    ]


def _checked(name: str, value: str, allowed: str, form: str = "") -> str:
    flags = re.DOTALL if allowed.startswith("[^") else re.NOFLAG
    if not re.fullmatch(allowed, value, flags):
        raise refused(name, value, form or f"text that matches {allowed}")
    return value


def refused(name: str, value: str, form: str) -> UsageError:
    """Return the error for a value of a job that is not allowed; `form` is what to write."""
    return UsageError(f"the job's {name} = {value!r} is not allowed", next_step=f"write {form}")
