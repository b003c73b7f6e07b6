"""The commands about a site: `kit plan|jobs|logs|cancel|submitter|envs`."""

import json
import sys
import time
from pathlib import Path

import click

PROFILE = click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
EXIT_UNKNOWN = 3


@click.command("plan")
@click.argument("target", type=click.Choice(["local", "cloud", "cloud-hpc"]))
@PROFILE
def plan_command(target: str, profile: str | None) -> None:
    """Say what a run of TARGET would do, with which script, for how much; nothing is done."""
    from kit.base import settings
    from kit.notebook import plan

    for title, text in plan.sections(settings.load(profile), target, time.time()):
        click.echo(f"# {title}\n\n{text}\n")


@click.command("jobs")
@click.argument("run", required=False)
@PROFILE
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
def jobs_command(ctx: click.Context, run: str | None, profile: str | None, as_json: bool) -> None:
    """Say how all runs on the profile's site stand, or RUN alone; exit 3 when that is not known."""
    from kit.cli import watch

    rows = watch.look(watch.opened(profile, run), run or "")
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows]))
    for row in [] if as_json else rows:
        job = f"job {row.job or '?'} {row.slurm}: " if row.job or row.slurm else ""
        click.echo(f"{row.run}  {row.state:<10}  try {row.number}  {job}{row.why}")
    if not rows:
        click.echo("no runs on this site yet: kit run cloud-hpc", err=True)
    ctx.exit(0 if all(row.known for row in rows) else EXIT_UNKNOWN)


def _write(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


@click.command("logs")
@click.argument("run")
@PROFILE
@click.pass_context
def logs_command(ctx: click.Context, run: str, profile: str | None) -> None:
    """Follow the log of RUN's job to its end; exit 1 when the run did not end well."""
    from kit.cli import watch

    try:
        submitter = watch.opened(profile, run)
        well = watch.follow(submitter, run, _write, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo(
            f"kit: no longer looking; the job goes on. Look again: kit logs {run}; "
            f"end it: kit cancel {run}",
            err=True,
        )
        ctx.exit(130)
    ctx.exit(0 if well else 1)


@click.command("cancel")
@click.argument("run")
@PROFILE
def cancel_command(run: str, profile: str | None) -> None:
    """End RUN: its job leaves the site, nothing of it is published; what had finished stays."""
    from kit.cli import watch

    watch.cancel(watch.opened(profile, run), run, click.echo)


@click.command("doctor")
@click.argument("profile", required=False)
@click.option("--race", is_flag=True, help="Also try the site's links against a job; that costs.")
@click.option("--fix", "diagnosis", default="", metavar="DIAGNOSIS", help="Mend it on the VM.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
def doctor_command(
    ctx: click.Context, profile: str | None, race: bool, diagnosis: str, as_json: bool
) -> None:
    """Check every step of PROFILE's set-up; exit 1 when one failed, with its next step."""
    from kit.doctor import checks as doctor
    from kit.doctor import findings, link_race

    if diagnosis:
        doctor.fix(profile, diagnosis, lambda line: click.echo(f"on the VM: {line}", err=True))
        return
    if race:
        click.echo(f"kit doctor: the race is a job; it costs {link_race.COST}", err=True)
    found = doctor.examine(profile, race)
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in found]))
    else:
        click.echo(findings.text(found))
    ctx.exit(1 if any(finding.state == "failed" for finding in found) else 0)


@click.command("forward")
@PROFILE
@click.option("--bind", default="", help="Listen at this address in place of the profile's.")
@click.option("--print", "only_print", is_flag=True, help="Print plain ssh and kubectl lines.")
def forward_command(profile: str | None, bind: str, only_print: bool) -> None:
    """Bring the platform's services to this machine, by one ssh connection, until Ctrl-C."""
    import signal
    import threading

    from kit.base import settings
    from kit.deploy import connection as forward_connection
    from kit.deploy import port_forward as forward

    loaded = settings.load(profile)
    rows = forward.forwards(loaded, bind)
    host = forward.vm_of(loaded, rows)
    if only_print:
        click.echo(forward.plain(host, rows))
        return
    connection = forward_connection.Connection(host, rows)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the ssh below is ended in any case
        signal.signal(number, lambda *_: stop.set())
    forward_connection.run(
        connection, lambda line: click.echo(f"kit forward: {line}", err=True), click.echo, stop
    )


@click.group("submitter", invoke_without_command=True)
@PROFILE
@click.option("--once", is_flag=True, help="Do one pass and end; no face.")
@click.option("--address", default="127.0.0.1", help="Where its face listens.", show_default=True)
@click.option("--port", default=6600, type=click.IntRange(1, 65535), show_default=True)
@click.pass_context
def submitter_group(
    ctx: click.Context, profile: str | None, once: bool, address: str, port: int
) -> None:
    """Be the submitter of a profile: see requests, have the site work, publish results."""
    if ctx.invoked_subcommand:
        return
    from kit.submitter import loop as submitter_loop

    with submitter_loop.open_submitter(profile) as (loaded, submitter):
        if once:
            stood = submitter.once().values()
            done = sum(each.state.finished for each in stood)
            click.echo(f"{len(stood)} runs, {done} of them finished before this pass", err=True)
            return
        from kit.forwarder import services

        app = services.submitter_api(submitter, services.api_token(loaded))
        with services.serve(app, address, port):
            token = services.api_token_path(loaded)
            click.echo(f"face: http://{address}:{port}/runs, token in {token}", err=True)
            submitter_loop.run_loop(submitter)


@submitter_group.command("template")
@PROFILE
@click.option(
    "--to",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to write into.",
)
def template_command(profile: str | None, folder: Path) -> None:
    """Write compose-secrets.json and a block for ~/.ssh/config, to be filled in."""
    from kit.base import settings
    from kit.submitter import compose_secrets

    loaded = settings.load(profile)
    hpc, cloud = loaded.hpc, loaded.cloud
    ssh = compose_secrets.ssh_template(
        hpc.ssh_host if hpc else "",
        cloud.ssh_host if cloud else "",
        hpc.renew_hint if hpc and hpc.certificate else "",
    )
    secrets, config = compose_secrets.write_templates(folder, ssh)
    click.echo(f"{config}: fill in what stands in <...>, then append it to ~/.ssh/config")
    click.echo(f"{secrets}: for the submitter's container; give each HPC_ key its value, leave")
    click.echo("  'none' where there is none; mode 600, never into git. Then: kit doctor")


@click.group("envs")
@PROFILE
@click.pass_context
def envs_group(ctx: click.Context, profile: str | None) -> None:
    """List and remove the Python environments on a profile's site."""
    ctx.obj = profile


@envs_group.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def envs_ls(profile: str | None, as_json: bool) -> None:
    """List them: name, whether new runs find it, MB, when made."""
    from kit.cli import watch
    from kit.submitter import env as hpc_env

    slurm = watch.opened(profile).slurm
    rows = hpc_env.list_environments(slurm.host, slurm.hpc)
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows]))
    for row in [] if as_json else rows:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.made))
        use = "published" if row.published else f"of try {row.token or '?'}"
        click.echo(f"{row.name}  {row.megabytes:>6} MB  {made}  {use}")


@envs_group.command("rm")
@click.argument("names", nargs=-1)
@click.pass_obj
def envs_rm(profile: str | None, names: tuple[str, ...]) -> None:
    """Remove NAMES, or all that are not published; what an open run may use stays."""
    from kit.cli import watch
    from kit.submitter import env as hpc_env

    submitter = watch.opened(profile)
    slurm = submitter.slurm
    for name in hpc_env.remove_environments(
        slurm.host, slurm.hpc, submitter.jobs.open_tokens(), names
    ):
        click.echo(f"removed {name}")
