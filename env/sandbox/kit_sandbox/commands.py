"""`kit sandbox`: start, stop and show the services on this machine."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
import psutil
from tabulate import tabulate

from kit.base import Busy, KitError, UsageError
from kit.base.ports import port_holders
from kit.base.settings import Settings, load
from kit_sandbox import files, install, keys, machine, old, processes, roots, services
from kit_sandbox.files import PLACES, PROGRAMS
from kit_sandbox.services import Report, Service
from kit_sandbox.sites import PROFILES, SITES, VM_ACCOUNTS

AS_ROOT = (
    "root starts it, so its services have root's rights on this machine; started by an ordinary "
    "user they have that user's only"
)

profile_option = click.option(
    "--profile", type=click.Choice(PROFILES), default="sandbox", show_default=True, help="Site."
)


def up(settings: Settings, report: Report) -> None:
    """Start every service and wait until each health check passes; safe to call again.

    Raises UsageError (something to install, a folder that cannot be used), Busy (a port is
    taken, another sandbox runs) and KitError if a service does not become healthy.
    """
    _check_places(settings)
    folder = files.state_folder(settings)
    _refuse_old_sandbox(folder, report)
    _refuse_other_sandbox(settings)
    with _exclusive(folder):
        if services.supervisor(folder) is None:
            _end_leftovers(folder, report)
            _refuse_taken_ports(settings)
            root = install.install(settings, report, SITES[settings.profile].root)
            _prepare(settings, folder, root)
            services.start_supervisor(folder)
        else:
            services.refuse_other_version(settings)
            services.start_stopped(folder, report)
        keys.sign(folder, SITES[settings.profile].user, VM_ACCOUNTS[0])
        services.wait_until_healthy(folder, report)


def down(settings: Settings, wipe: bool, report: Report) -> None:
    """Cancel the jobs, stop every process; with `wipe` remove the state folder as well."""
    folder = files.folder_of(settings)
    if not (folder / files.MARKER).exists():
        report(f"no sandbox was found in {folder}")
        return
    folder = files.state_folder(settings)
    with _exclusive(folder):
        supervisor = services.supervisor(folder)
        if supervisor is not None:
            _cancel_jobs(folder, SITES[settings.profile].user, report)
            below = processes.descendants(supervisor)
            # jobs that are still there: slurmd would wait for them
            processes.end(services.orphans(folder, supervisor), grace_s=0.5)
            services.stop_programs(folder, report)
            processes.end([supervisor], grace_s=5)
            processes.end(below, grace_s=2)
        _end_leftovers(folder, report)
        processes.end(processes.of_sandbox(folder, roots.STAMP), grace_s=2)
    if wipe:
        shutil.rmtree(folder)
    report(f"down; {'removed' if wipe else 'kept'} {folder}")


def _check_places(settings: Settings) -> None:
    """Raise UsageError if the state folder is nothing for a sandbox that is to be started."""
    folder = files.folder_of(settings)
    files.check_length(folder)
    if services.supervisor(folder) is None:
        machine.check_state(folder)


def _prepare(settings: Settings, folder: Path, root: Path) -> None:
    try:
        files.prepare(settings, folder, root)
    except OSError as err:  # a full disk, a quota
        step = "fix what it names (free space, quota), then repeat the command"
        raise KitError(f"write the sandbox's files below {folder}", str(err), step) from err


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Run one `up` or `down` of this folder at a time; the others wait."""
    with open(folder / files.MARKER, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _refuse_old_sandbox(folder: Path, report: Report) -> None:
    left, step = old.left(), "kit sandbox remove, once nothing in it is needed"
    if old.is_old(folder):
        tried = f"the sandbox in {folder} was made by an earlier version, which installed on the"
        raise UsageError(f"{tried} machine", left or "only this folder is left of it", step)
    if left:
        report(f"an earlier version left {left}; to remove that: kit sandbox remove")


def _refuse_other_sandbox(settings: Settings) -> None:
    base = settings.sandbox_dir.absolute()
    for other in processes.supervisors():
        if base not in (other.folder, other.folder.parent):
            raise Busy(
                "another sandbox is running on this machine",
                f"user {other.user}, folder {other.folder}, pid {other.process.pid}",
                f"use it with KIT_SANDBOX_DIR={other.folder}, or stop it: kit sandbox down",
            )


def _refuse_taken_ports(settings: Settings) -> None:
    names = {
        program: PLACES[program] for program in files.programs_of(settings) if program in PLACES
    }
    places = {files.place_of(settings, name): (program, name) for program, name in names.items()}
    for (address, port), holder in port_holders(places).items():
        program, name = places[address, port]
        raise Busy(
            f"port {port} on {address}, which {program} needs, is taken",
            f"by {holder}",
            f"stop that, or change {name}'s port in env/sites/{settings.profile}.toml",
        )


def _end_leftovers(folder: Path, report: Report) -> None:
    """End the daemons that a killed supervisor left; running jobs are left to the next slurmd."""
    left: list[psutil.Process] = []
    for record in (folder / "run" / "pids").glob("*"):
        words = record.read_text().split()
        process = processes.live_process(int(words[0])) if len(words) == 2 else None
        if process and processes.start_ticks(process) == int(words[1]):
            left += [process, *processes.descendants(process)]
        record.unlink()
    if left:
        report(f"ending {len(left)} processes that a killed supervisor left behind")
        processes.end(left)


def _cancel_jobs(folder: Path, user: str, report: Report) -> None:
    """Cancel all jobs and wait a few seconds for them to end."""
    try:
        services.run(folder, ["scancel", f"--user={user}"], timeout=3)
        for _ in range(12):
            queue = services.run(folder, ["squeue", "-h"], timeout=3)
            if not queue.stdout.strip():
                return
            time.sleep(0.2)
        report("some jobs did not end in time; their processes are killed")
    except subprocess.TimeoutExpired:
        report("slurmctld does not answer; the jobs' processes are killed")


@click.group()
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    help="Site of exec, logs and status.  [default: sandbox]",
)
@click.pass_context
def group(ctx: click.Context, profile: str | None) -> None:
    """Start and stop the local services.

    They are Allas, a Slurm site, a cloud VM, MLflow, Redis, Prometheus and the kit's own services,
    started from the checkout that this command is called from.

    \b
    Example:
    kit sandbox up
    """
    name = ctx.invoked_subcommand or ""
    if profile and name not in ("exec", "logs", "status"):
        raise click.UsageError(f"--profile before {name!r} has no effect", ctx)
    ctx.default_map = {name: {"profile": profile}} if profile else {}


@group.command("up")
@click.option(
    "--site",
    type=click.Choice(["first", "both"]),
    default="first",
    show_default=True,
    help="Slurm sites.",
)
def up_command(site: str) -> None:
    """Start all services.

    The command returns when each of them passes its health check. The second site is the profile
    sandbox-trixie: Debian 13 with Slurm 24.11.

    \b
    Example:
    kit sandbox up --site both
    """
    sites = [_load(profile) for profile in PROFILES[: 2 if site == "both" else 1]]
    for settings in sites:
        files.check_length(files.folder_of(settings))  # of both, before one of them starts
    for settings in sites:
        _up(settings)


def _up(settings: Settings) -> None:
    begin = time.monotonic()
    if os.getuid() == 0 and settings.profile == PROFILES[0]:
        _report(AS_ROOT)
    up(settings, _report)
    _report(f"the sandbox is up ({time.monotonic() - begin:.1f} s) in {files.folder_of(settings)}")


@group.command("down")
@click.option("--wipe", is_flag=True, help="Also remove its files (default: keep them).")
@click.option(
    "--site",
    type=click.Choice(["both", "second"]),
    default="both",
    show_default=True,
    help="Slurm sites.",
)
def down_command(wipe: bool, site: str) -> None:
    """Cancel all jobs and stop all services.

    \b
    Example:
    kit sandbox down --wipe
    """
    _down(wipe, only_second=site == "second")


def _down(wipe: bool, only_second: bool = False) -> None:
    """Stop both sites; the second one first, which uses services of the first."""
    second = _load(PROFILES[1])
    if files.folder_of(second).exists():
        down(second, wipe, _report)
    if not only_second:
        down(_load(PROFILES[0]), wipe, _report)


@group.command("install")
def install_command() -> None:
    """Make what is missing, start nothing.

    A Debian root and Python software below the cache folder; nothing is installed on the machine.

    \b
    Example:
    kit sandbox install
    """
    install.install(_load("sandbox"), _report)


@group.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--host", default="login", show_default=True, help="Name of the host.")
@profile_option
def exec_command(argv: tuple[str, ...], host: str, profile: str) -> None:
    """Run a command where the services run.

    It becomes the command, as the administrator of the Slurm site.

    \b
    Example:
    kit sandbox exec sinfo
    """
    folder = files.folder_of(_load(profile))
    environ = services.administrator(folder)
    words = roots.inside(folder, argv, host)
    os.execve(words[0], words, environ)  # noqa: S606 - no shell on purpose


@group.command("remove")
@click.option("--packages", is_flag=True, help="Also an earlier version's Debian packages.")
def remove_command(packages: bool) -> None:
    """Remove the sandbox and all it was made from.

    It is stopped; its files, the Debian root, kept packages and Python software are removed, and
    what an earlier version left on the machine: accounts, software, on request packages.

    \b
    Example:
    sudo kit sandbox remove --packages
    """
    _down(wipe=True)
    shutil.rmtree(_load("sandbox").cache_dir / "sandbox", ignore_errors=True)
    old.remove(packages, _report)


@group.command("lock")
@click.argument("name", type=click.Choice(roots.NAMES))
def lock_command(name: str) -> None:
    """Write the lock of a Debian root.

    It names each package with its version and SHA-256, as the mirror has them now.

    \b
    Example:
    kit sandbox lock bookworm
    """
    _report(f"wrote {roots.write_lock(_load('sandbox').cache_dir / 'sandbox', name, _report)}")


@group.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: services, hpc, files.")
@profile_option
@click.pass_context
def status_command(ctx: click.Context, as_json: bool, profile: str) -> None:
    """Check each service.

    Exit code 3 when one is down.

    \b
    Example:
    kit sandbox status --json
    """
    settings = _load(profile)
    services.refuse_other_version(settings)
    rows = services.status(settings)
    if as_json:
        site = asdict(settings.hpc) if settings.hpc else {}
        document = {"services": [asdict(row) for row in rows], "hpc": site}
        click.echo(json.dumps(document | {"files": services.files(files.folder_of(settings))}))
    else:
        click.echo(service_table(rows))
    ctx.exit(0 if all(row.up for row in rows) else 3)


@group.command("logs")
@click.argument("name", type=click.Choice(PROGRAMS))
@click.option(
    "-n", "lines", default=40, type=click.IntRange(1), show_default=True, help="Number of lines."
)
@profile_option
def sandbox_logs(name: str, lines: int, profile: str) -> None:
    """Show the end of a service's logs.

    These are its output and its own log file.

    \b
    Example:
    kit sandbox logs mlflow -n 100
    """
    for path, text in logs(_load(profile), name, lines):
        click.echo(f"== {path}\n{text}")


def service_table(rows: list[Service]) -> str:
    """Return the services as a table; memory in MB (10^6 bytes)."""
    header = ("service", "up", "since", "pid", "address", "MB", "check s", "answer")
    cells = [_cells(row) for row in rows]
    text = tabulate(cells, header, tablefmt="plain", disable_numparse=True)
    return f"{text}\n{sum(row.rss for row in rows) / 1e6:.0f} MB resident in all"


def _cells(row: Service) -> tuple[str, ...]:
    return (
        row.name,
        "yes" if row.up else "NO",
        time.strftime("%H:%M:%S", time.localtime(row.since)) if row.since else "-",
        str(row.pid or "-"),
        f"{row.address}:{row.port}" if row.port else "-",
        f"{row.rss / 1e6:.0f}",
        f"{row.health_s:.2f}",
        row.answer,
    )


def logs(settings: Settings, name: str, lines: int = 40) -> Iterator[tuple[Path, str]]:
    """Yield the last lines of each file that a service writes: (path, text)."""
    folder = files.folder_of(settings) / "log"
    for path in (folder / f"{name}.out", folder / f"{name.replace('slurmd-', 'slurmd.')}.log"):
        if path.exists():
            text = path.read_text(errors="replace")
            yield path, "\n".join(text.splitlines()[-lines:])


def _load(profile: str) -> Settings:
    """Return the settings of a site. Raises UsageError for a user without an account."""
    machine.check_person()
    return load(profile)


def _report(text: str) -> None:
    click.echo(f"kit sandbox: {text}", err=True)
