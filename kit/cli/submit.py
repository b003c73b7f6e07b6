"""Jobs of a person's own: `kit submit`, and what the commands about runs do with them."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.base import Busy, CredentialRefused, HostKeyRefused, KitError, Unreachable, UsageError
from kit.cli.options import echo_json, json_option, profile_option

if TYPE_CHECKING:
    from kit.base.settings import Settings
    from kit.cli.runs import Row
    from kit.slurm import JobSpec, JobStatus, Slurm
    from kit.submitter import JobRecord

ACCOUNTING_WAIT_S = 30.0  # sacct lists the end of a job after 2 to 5 s
# option of the command, field of the job, help; a value replaces the script's and the profile's
RESOURCES = (
    ("-A", "--account", "account", "Account that is charged."),
    ("-p", "--partition", "partition", "Partition."),
    ("-q", "--qos", "qos", "Quality of service."),
    ("-C", "--constraint", "constraint", "Features of the nodes."),
    ("-t", "--time", "time", "Time limit."),
    ("-N", "--nodes", "nodes", "Number of nodes."),
    ("-n", "--ntasks", "ntasks", "Number of tasks on all nodes."),
    ("-c", "--cpus-per-task", "cpus", "Cores of each task."),
    ("", "--mem", "memory", "Memory of each node, such as 3G."),
    ("", "--mem-per-cpu", "mem_per_cpu", "Memory of each core, in place of --mem."),
    ("", "--gres", "gres", "Generic resources of each node, such as gpu:1."),
    ("-D", "--chdir", "chdir", "Folder on the site to work in."),
)
OTHER_DEFAULTS = {"nodes": "1", "ntasks": "one on each node", "chdir": "a new folder"}


class SubmitCommand(click.Command):
    """A command whose words after `--` are a command of the job, not a script."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as usual, then note whether all words follow a `--`."""
        words = tuple(args)
        rest = super().parse_args(ctx, args)
        after = words[words.index("--") + 1 :] if "--" in words else None
        ctx.params["is_command"] = after == ctx.params["words"]
        return rest


def _resource_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for short, long, field, text in reversed(RESOURCES):
        kind = click.IntRange(1) if field in ("nodes", "ntasks", "cpus") else click.STRING
        default = OTHER_DEFAULTS.get(field, "the profile's")
        text += f"  [default: the script's, else {default}]"
        flags = [short, long] if short else [long]
        command = click.option(*flags, field, type=kind, help=text)(command)
    return command


@click.command("submit", cls=SubmitCommand, context_settings={"allow_interspersed_args": False})
@click.argument("words", nargs=-1, required=True, metavar="SCRIPT [ARGUMENTS] | -- COMMAND")
@profile_option
@click.option("--name", help="Name of the job.  [default: the script's, else the file's]")
@_resource_options
@click.option(
    "--module",
    "modules",
    multiple=True,
    help="Module to load, repeatable.  [default: the profile's]",
)
@click.option(
    "--env",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="Variable, repeatable; no secrets.  [default: none]",
)
@click.option("--again", is_flag=True, help="Submit a job again that has ended.  [default: no]")
@click.option("--wait", is_flag=True, help="Follow its log to the end.  [default: no]")
@json_option
@click.pass_context
def submit_command(
    ctx: click.Context, /, words: tuple[str, ...], is_command: bool, **options: Any
) -> None:
    """Submit a job to Slurm at most once.

    SCRIPT is a file here, as for sbatch; COMMAND is executed as it is. The same profile, name,
    text and resources are the same job: another call, from anywhere, finds it and submits
    nothing. When the job has ended, its exit code is that of this command.

    \b
    Example:
      kit submit --profile slurm --time 01:00:00 --wait job.sh
    """
    from kit.base.settings import load
    from kit.cli.runs import write_now
    from kit.submitter import collect_job, exit_code_of, job_record, open_slurm

    settings = load(options["profile"])
    slurm = open_slurm(settings, _note)
    job = described_job(slurm, words, is_command, options)
    status = slurm.submit(job, again=options["again"])
    record = job_record(settings, f"job-{status.attempt_id}")
    if options["wait"] and not record.ended:
        status = follow_job(slurm, record, write_now, _note)
        record = wait_for_figures(slurm, record, status)
    elif status.done:
        record = collect_job(slurm, record, status)
        _note("it has ended and is submitted again with --again only")
    row = job_row(record, status)
    if options["as_json"]:
        echo_json([row])
    else:
        click.echo(f"{row.run} {row.state}: {row.slurm} {row.job}, {row.why}", err=options["wait"])
    if status.message:
        _note(f"the site says: {status.message}")
    if not status.done:
        of = f"--profile {settings.profile} {row.run}"
        _note(f"follow it: kit logs {of}; end it: kit cancel {of}")
    ctx.exit(exit_code_of(status) if status.done else 0)


def described_job(
    slurm: "Slurm", words: tuple[str, ...], is_command: bool, options: dict[str, Any]
) -> "JobSpec":
    """Return the job that the words and options describe, with the profile's values beside."""
    import shlex

    from kit.slurm import read_directives, replace_fields, resolve_tasks, script_commands

    fields: dict[str, Any] = {}
    if is_command:
        commands: tuple[str, ...] = (f"exec {shlex.join(words)}",)
    else:
        text = _script(Path(words[0]))
        commands = script_commands(text, words[1:])
        fields, notes = read_directives(text)
        for note in notes:
            _note(f"{words[0]}: {note}")
    given = {field: options[field] for _, _, field, _ in RESOURCES if options[field]}
    fields = resolve_tasks(replace_fields(fields, given))
    fields |= {"modules": options["modules"]} if options["modules"] else {}
    fields["environment"] = dict(_pair(text) for text in options["pairs"])
    own_name = fields.pop("name", "")
    name = options["name"] or own_name or Path(words[0]).name
    return slurm.job(name, commands, **fields)


def _script(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as err:
        step = "name a script of this machine; a command of the site: kit submit -- COMMAND"
        raise UsageError(f"read the script {path}", str(err), step) from err


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"--env {text} has no value", next_step="write NAME=VALUE")
    return name, value


def _note(text: str) -> None:
    click.echo(f"kit: {text}", err=True)


def follow_job(
    slurm: "Slurm",
    record: "JobRecord",
    write: Callable[[bytes], object],
    report: Callable[[str], None],
) -> "JobStatus":
    """Write the log of a job as it grows; return its status when it has ended.

    Raises Unreachable without contact at the start, or after CONTACT_PATIENCE_S without it.
    """
    from kit.cli.runs import CONTACT_PATIENCE_S, write_from
    from kit.runs.follow import poll

    seen, offset = 0.0, 0

    def look() -> tuple["JobStatus | None", str]:
        """Return the status, and what could not be reached; write what the log has grown by."""
        nonlocal seen, offset
        try:
            status = slurm.settle(record.attempt_id)  # before the log: then the log is whole
            offset = write_from(slurm, record.attempt_id, offset, write)
            seen = slurm.clock()
        except HostKeyRefused:
            raise
        except (Busy, Unreachable, CredentialRefused) as err:
            if slurm.clock() - seen > CONTACT_PATIENCE_S:
                raise
            return None, f"no answer, asking again: {err.got or err.tried}"
        text = f"job {status.job_id} {status.state.name}: {status.why}"
        return (status if status.done else None), ("" if offset and not status.done else text)

    return poll(look, report, slurm.sleep, slurm.hpc.poll_floor_s)


def wait_for_figures(slurm: "Slurm", record: "JobRecord", status: "JobStatus") -> "JobRecord":
    """Store what an ended job left; wait at most ACCOUNTING_WAIT_S for its figures.

    Without them, or without contact, `kit runs` and `kit bill` store it later.
    """
    from kit.submitter import collect_job

    end = slurm.clock() + ACCOUNTING_WAIT_S
    with contextlib.suppress(Unreachable):
        while not (record := collect_job(slurm, record, status)).ended and slurm.clock() < end:
            slurm.sleep(1)
    return record


def job_rows(settings: "Settings", run: str = "") -> list["Row"]:
    """Return the rows of submitted jobs, or of one: one query for all whose end is not stored."""
    from kit.submitter import collect_job, job_record, job_records, open_slurm

    records = [job_record(settings, run)] if run else job_records(settings)
    waiting = [record for record in records if not record.ended]
    statuses: dict[str, JobStatus] = {}
    reason = ""
    if waiting:
        slurm = open_slurm(settings, _note)
        try:
            statuses = slurm.status([record.attempt_id for record in waiting])
            records = [
                collect_job(slurm, record, statuses[record.attempt_id])
                if record.attempt_id in statuses
                else record
                for record in records
            ]
        except KitError as err:
            reason = err.sentence
    return [job_row(record, statuses.get(record.attempt_id), reason) for record in records]


def job_row(record: "JobRecord", status: "JobStatus | None", reason: str = "") -> "Row":
    """Return the row of a job, from its stored end, else from its status on the site."""
    from kit.cli.runs import Row

    if end := record.ended:
        word = "DONE" if end["succeeded"] else "ENDED"
        word = "CANCELLED" if end["state"] == "CANCELLED" else word
        values = word, record.number, str(end["job_id"]), str(end["state"])
        return Row(record.run, *values, f"{record.name}: {end['why']}")
    if status is None or not (status.observed or status.done):
        why = status.why if status else reason
        job_id = status.job_id if status else ""
        why = f"{record.name}: {why}"
        return Row(record.run, "SUBMITTED", record.number, job_id, "UNKNOWN", why, known=False)
    word = "SUBMITTED" if not status.done else "DONE" if status.succeeded else "ENDED"
    why = f"{record.name}: {status.why}"
    return Row(record.run, word, record.number, status.job_id, status.state.name, why)


def show_job_log(settings: "Settings", run: str, write: Callable[[bytes], object]) -> int:
    """Write the log of a job to its end; return its exit code."""
    from kit.submitter import exit_code_of, job_record, open_slurm

    record = job_record(settings, run)
    if record.ended:
        stored = record.folder / "job.log"
        write(stored.read_bytes() if stored.exists() else b"")
        return int(record.ended["exit_code"])
    slurm = open_slurm(settings, _note)
    status = follow_job(slurm, record, write, _note)
    wait_for_figures(slurm, record, status)
    return exit_code_of(status)


def cancel_job(settings: "Settings", run: str, report: Callable[[str], None]) -> None:
    """Cancel a job and wait, at most CANCEL_WAIT_S, until it has left the nodes."""
    from kit.cli.runs import CANCEL_WAIT_S
    from kit.submitter import job_record, open_slurm

    record = job_record(settings, run)
    if record.ended:
        report(f"{run} had ended before the cancel: {record.ended['why']}")
        return
    slurm = open_slurm(settings, _note)
    status, end = slurm.cancel(record.attempt_id), slurm.clock() + CANCEL_WAIT_S
    while not status.done and slurm.clock() < end:
        slurm.sleep(slurm.hpc.poll_floor_s)
        status = slurm.settle(record.attempt_id)
    report(f"{run} {status.state.name}: {status.why}")
    if status.done:
        wait_for_figures(slurm, record, status)
    else:
        report(f"it can no longer succeed; its job is still ending: kit runs {run}")
