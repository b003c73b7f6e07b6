"""A person's own program as the work of one attempt. Pure: texts in, a JobSpec out.

A job that is submitted by its description alone has an identity: a hash of what it is. Its
commands run in a subshell, and the attempt is committed when they end with exit code 0.
"""

import dataclasses
import getopt
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from kit.base import UsageError, sha256_of
from kit.slurm.script import OPTIONS, JobSpec, refused, shell

FORMAT = 1  # part of every identity: raised when the jobs of an older kit must not be found
_FIELDS = {option: field for option, field, *_ in OPTIONS if field not in ("name", "comment")} | {
    "job-name": "name",
    "chdir": "chdir",
}
_SHORT = {
    **{"A": "account", "p": "partition", "q": "qos", "M": "clusters", "C": "constraint"},
    **{"L": "licenses", "N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time"},
    **{"w": "nodelist", "x": "exclude"},
    **{"J": "job-name", "D": "chdir", "o": "output", "e": "error", "a": "array", "d": "dependency"},
}
_NUMBERS = ("nodes", "tasks_per_node", "cpus", "ntasks")
_SEPARATELY = "submit each task by itself, with a name or an argument of its own"
REFUSED = {
    "array": f"one attempt has one owner, so one task alone would work: {_SEPARATELY}",
    "dependency": "submit the job when the other one has ended: kit submit --wait",
    "export": "a job gets no variable of the login: name each with --env NAME=VALUE",
    "comment": "the job's comment is its name: --name",
    "requeue": "an attempt starts once: kit submit --again after its end",
}
_REPLACED = ("output", "error")
_FLAGS = ("no-requeue", "exclusive")


def identity(profile: str, project_dir: str, job: JobSpec) -> str:
    """Return the hash of what makes two submissions the same.

    Profile, project folder, and every field that is set: name, commands, resources, environment.
    """
    table = {name: value for name, value in vars(job).items() if value}
    table["environment"] = dict(job.environment)
    parts = [FORMAT, profile, project_dir, table]
    return sha256_of(json.dumps(parts, sort_keys=True).encode())


def numbered_attempt_id(identity_hash: str, number: int) -> str:
    """Return the id of attempt `number`, from 1, of a job with this identity."""
    return sha256_of(f"{identity_hash} {number}".encode())[:12]


def committing(job: JobSpec) -> JobSpec:
    """Return a job that commits if its commands end with exit code 0.

    They run in `chdir`, else in the folder `work` of the attempt. The name becomes the comment:
    the job itself has the attempt's.
    """
    folder = () if job.chdir else ("mkdir -p work && cd work || exit 98",)
    commands = (*folder, "(", *job.commands, ") &", shell("finish").rstrip())
    return dataclasses.replace(job, commands=commands, comment=job.comment or job.name)


def script_commands(text: str, arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the commands that write a script beside the job's and execute it.

    Raises UsageError for a text that sbatch would refuse, too.
    """
    if not text.startswith("#!"):
        step = "begin it with the interpreter, such as #!/bin/bash or #!/usr/bin/env python3"
        raise UsageError("the script does not begin with #!", repr(text[:40]), step)
    if "\r\n" in text or "\0" in text:
        step = "save it with line feeds alone (dos2unix), or submit a command: kit submit -- …"
        raise UsageError("the script has DOS line ends or a NUL character", next_step=step)
    end = f"end-{sha256_of(text.encode())[:16]}"
    write = f'cat >"$attempt/program" <<\'{end}\' && chmod 700 "$attempt/program" || exit 98'
    call = ['exec "$attempt/program"', *map(shlex.quote, arguments)]
    return (f"{write}\n{text.removesuffix(chr(10))}\n{end}", " ".join(call))


def read_directives(text: str) -> tuple[dict[str, Any], list[str]]:
    """Read the `#SBATCH` lines of a script: fields of JobSpec, and a note on each not used.

    Raises UsageError for an option that cannot be kept, with the reason. As with sbatch, lines
    after the first command are not options; a note says so.
    """
    fields: dict[str, Any] = {}
    notes: list[str] = []
    before = True
    for number, line in enumerate(text.splitlines(), start=1):
        before = before and (not line.strip() or line.startswith("#"))
        if not line.startswith("#SBATCH"):
            continue
        if not before:
            notes.append(f"line {number} is after the first command, where Slurm reads no option")
            continue
        for option, value in _options(line, number):
            if option in _REPLACED:
                notes.append(f"line {number}: --{option} is replaced: kit logs shows both outputs")
            elif option != "no-requeue":
                fields |= _field(option, value)
    return fields, notes


def resolve_tasks(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with `ntasks`, the tasks of all nodes, as tasks of each node."""
    count, nodes = fields.get("ntasks"), fields.get("nodes", 1)
    if count is None:
        return fields
    if count % nodes:
        step = "write --ntasks-per-node, or a number of tasks that the nodes can share evenly"
        raise UsageError(f"{count} tasks on {nodes} nodes", "an uneven number", step)
    rest = {name: value for name, value in fields.items() if name != "ntasks"}
    return {"tasks_per_node": count // nodes, "nodes": nodes} | rest


def _options(line: str, number: int) -> Iterator[tuple[str, str]]:
    """Yield the options of one `#SBATCH` line by their long names."""
    known = [*_FIELDS, "ntasks", "signal", *_REPLACED]
    short = "".join(f"{letter}:" for letter, name in _SHORT.items() if name not in REFUSED)
    where = f"line {number} of the script: {line.strip()}"
    try:
        words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
        pairs, rest = getopt.getopt(words, short, [*(f"{name}=" for name in known), *_FLAGS])
    except (getopt.GetoptError, ValueError) as err:
        name = str(getattr(err, "opt", ""))
        why = REFUSED.get(_SHORT.get(name, name), "take the line out, or use sbatch for this job")
        raise UsageError(where, str(err), why) from err
    if rest or not pairs:
        raise UsageError(where, "it is not an option of sbatch", "take the line out")
    for option, value in pairs:
        name = option.lstrip("-")
        yield (_SHORT[name] if len(name) == 1 else name), value


def _field(option: str, value: str) -> dict[str, Any]:
    """Return the field of JobSpec that an option sets."""
    if option == "exclusive":
        return {"exclusive": True}
    if option == "signal":
        match = re.fullmatch(r"(B:)?(SIG)?(TERM|15)@(\d+)", value)
        if not match:
            raise refused("signal", value, "TERM@60: the seconds before the limit")
        return {"warning_s": int(match[4])}
    if option == "gpus-per-node":
        return {"gres": f"gpu:{value}"}
    field = _FIELDS.get(option, option)
    if field not in _NUMBERS:
        return {field: value}
    if not re.fullmatch(r"[1-9]\d{0,8}", value):
        raise refused(option, value, "a whole number from 1")
    return {field: int(value)}
