"""`kit sandbox`: start, stop and look at the sandbox's services on this machine."""

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

from kit.base import settings
from kit.base.errors import Busy
from kit.base.settings import Settings
from kit_sandbox import files as sandbox_files
from kit_sandbox import install as sandbox_install
from kit_sandbox import keys as sandbox_keys
from kit_sandbox import processes as sandbox_processes
from kit_sandbox import services as sandbox_services
from kit_sandbox.files import PLACES, PROGRAMS
from kit_sandbox.processes import Process
from kit_sandbox.services import Say, Service

READY_S = 150.0  # longer than any first start that was seen, on a busy machine
CHECK_S = 15.0


def up(loaded: Settings, say: Say) -> None:
    """Bring every service up and wait until each health check is good; harmless when it is.

    Raises UsageError (something to install, a folder that cannot be used), Busy (a port is
    taken, another sandbox runs) and KitError when a service does not become healthy.
    """
    folder = sandbox_files.folder_of(loaded)
    _refuse_another(folder)
    with _alone(folder):
        if sandbox_services.supervisor(folder) is None:
            _clean(folder, say)
            _refuse_taken_ports(loaded)
            sandbox_install.install(say)
            sandbox_install.adopt_homes(folder)
            sandbox_files.prepare(loaded, folder)
            sandbox_install.lend_address(folder, say)
            sandbox_services.start(folder)
        else:
            sandbox_services.refuse_another_kit(folder)
            sandbox_services.start_stopped(folder, say)
        sandbox_keys.sign(folder, *sandbox_files.users()[:2])
        sandbox_services.wait(folder, say)


def down(loaded: Settings, wipe: bool, say: Say) -> None:
    """Cancel the jobs, stop every process; with `wipe` remove the state folder as well."""
    folder = loaded.sandbox_dir.absolute()
    if not (folder / sandbox_files.MARK).exists():
        say(f"there is no sandbox in {folder}")
        return
    folder = sandbox_files.folder_of(loaded)
    with _alone(folder):
        supervisor = sandbox_services.supervisor(folder)
        if supervisor is not None:
            _cancel_jobs(folder, say)
            below = sandbox_processes.descendants(supervisor.pid)
            # jobs that are still there: slurmd would wait for them
            sandbox_processes.end(sandbox_services.orphans(folder, supervisor), grace_s=0.5)
            sandbox_services.stop_programs(folder, say)
            sandbox_processes.end([supervisor], grace_s=5)
            sandbox_processes.end(below, grace_s=2)
        _clean(folder, say)
        if os.getuid() == 0:
            sandbox_processes.end(sandbox_processes.owned_by(sandbox_install.account_uids()), 2)
            sandbox_install.take_back_address(folder)
    if wipe:
        shutil.rmtree(folder)
    say(f"down; {'removed' if wipe else 'kept'} {folder}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one `up` or `down` of this folder go on at a time; the others wait."""
    with open(folder / sandbox_files.MARK, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _refuse_another(folder: Path) -> None:
    for other in sandbox_processes.supervisors():
        if other.folder != folder:
            raise Busy(
                "a sandbox is running on this machine already",
                f"user {other.user}, folder {other.folder}, pid {other.process.pid}",
                f"use it with KIT_SANDBOX_DIR={other.folder}, or stop it: kit sandbox down",
            )


def _refuse_taken_ports(loaded: Settings) -> None:
    for program, name in PLACES.items():
        address, port = sandbox_files.place_of(loaded, name)
        holder = sandbox_processes.holder(address, port)
        if holder:
            raise Busy(
                f"port {port} on {address}, which {program} needs, is taken",
                f"by {holder}",
                f"stop that, or change {name}'s port in env/sites/{loaded.profile}.toml",
            )


def _clean(folder: Path, say: Say) -> None:
    """End the daemons that a killed supervisor left; running jobs are left to the next slurmd."""
    left = []
    for record in (folder / "run" / "pids").glob("*"):
        words = record.read_text().split()
        if len(words) == 2:
            one = Process(int(words[0]), int(words[1]))
            left += [one, *sandbox_processes.descendants(one.pid)] if one.alive else []
        record.unlink()
    if left:
        say(f"ending {len(left)} processes that a killed supervisor left behind")
        sandbox_processes.end(left)


def _cancel_jobs(folder: Path, say: Say) -> None:
    """Cancel all jobs and give them a few seconds to end."""
    environ = sandbox_services.environment(folder)
    environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
    user = f"--user={sandbox_files.users()[0]}"
    try:
        subprocess.run(["scancel", user], env=environ, capture_output=True, timeout=3)
        for _ in range(12):
            queue = subprocess.run(["squeue", "-h"], env=environ, capture_output=True, timeout=3)
            if not queue.stdout.strip():
                return
            time.sleep(0.2)
        say("some jobs did not end in time; their processes are killed")
    except subprocess.TimeoutExpired:
        say("slurmctld does not answer; the jobs' processes are killed")


@click.group()
def group() -> None:
    """Real services on this machine: Allas, a Slurm site, a cloud VM, MLflow, Redis, Prometheus."""


@group.command("up")
@click.option("--profile", help="The profile that says where they are (default: sandbox).")
def up_command(profile: str | None) -> None:
    """Start all services and wait until each answers its health check."""
    loaded = settings.load(profile or "sandbox")
    begin = time.monotonic()
    up(loaded, _say)
    _say(f"the sandbox is up ({time.monotonic() - begin:.1f} s) in {loaded.sandbox_dir}")


@group.command("down")
@click.option("--wipe", is_flag=True, help="Remove its files, too.")
def down_command(wipe: bool) -> None:
    """Cancel the jobs, stop every process."""
    down(settings.load("sandbox"), wipe, _say)


@group.command("install")
def install_command() -> None:
    """Install what is missing, start nothing."""
    sandbox_install.install(_say)


@group.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: services, hpc, files.")
@click.pass_context
def status_command(ctx: click.Context, as_json: bool) -> None:
    """Ask each service; exit code 3 when one is down."""
    loaded = settings.load("sandbox")
    sandbox_services.refuse_another_kit(loaded.sandbox_dir)
    services = sandbox_services.status(loaded)
    if as_json:
        site = asdict(loaded.hpc) if loaded.hpc else {}
        table = {"services": [asdict(one) for one in services], "hpc": site}
        click.echo(json.dumps(table | {"files": sandbox_services.files(loaded.sandbox_dir)}))
    else:
        click.echo(render(services))
    ctx.exit(0 if all(one.up for one in services) else 3)


@group.command("logs")
@click.argument("name", type=click.Choice(PROGRAMS))
@click.option("-n", "lines", default=40, type=click.IntRange(1), help="So many lines.")
def logs_command(name: str, lines: int) -> None:
    """Show the end of a service's output and of its own log file."""
    for path, text in logs(settings.load("sandbox"), name, lines):
        click.echo(f"== {path}\n{text}")


def render(services: list[Service]) -> str:
    """Show the services as a table; memory in MB (10^6 bytes)."""
    rows = [("service", "up", "since", "pid", "address", "MB", "check s", "answer")]
    for one in services:
        since = time.strftime("%H:%M:%S", time.localtime(one.since)) if one.since else "-"
        where = f"{one.address}:{one.port}" if one.port else "-"
        megabytes, seconds = f"{one.rss / 1e6:.0f}", f"{one.health_s:.2f}"
        state = "yes" if one.up else "NO"
        rows.append(
            (one.name, state, since, str(one.pid or "-"), where, megabytes, seconds, one.answer)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    total = sum(one.rss for one in services) / 1e6
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), f"{total:.0f} MB resident in all"])


def logs(loaded: Settings, name: str, lines: int = 40) -> Iterator[tuple[Path, str]]:
    """Give the last lines of each file that a service writes: (path, text)."""
    folder = loaded.sandbox_dir / "log"
    for path in (folder / f"{name}.out", folder / f"{name.replace('slurmd-', 'slurmd.')}.log"):
        if path.exists():
            text = path.read_text(errors="replace")
            yield path, "\n".join(text.splitlines()[-lines:])


def _say(text: str) -> None:
    click.echo(f"kit sandbox: {text}", err=True)
