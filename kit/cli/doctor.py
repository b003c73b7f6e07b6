"""The command of the doctor: `kit doctor`."""

import click

from kit.cli.options import echo_json, json_option, profile_option, warn_renamed


@click.command("doctor")
@click.argument("name", required=False, metavar="")
@profile_option
@click.option(
    "--race",
    is_flag=True,
    help="Also test that symlink creation is atomic between login node and compute node; "
    "submits a short job.  [default: no]",
)
@click.option(
    "--job",
    is_flag=True,
    help="Also run a short job of the profile that reports what it sees: modules, Python, PyTorch, "
    "GPUs.  [default: no]",
)
@json_option
@click.pass_context
def doctor_command(
    ctx: click.Context, name: str | None, profile: str | None, race: bool, job: bool, as_json: bool
) -> None:
    """Check a profile's setup.

    Checks every step of the setup, from the settings to the services, in parallel. Each failed
    check shows its cause and the next step; then the exit code is 1.

    \b
    Example:
      kit doctor --profile roihu
    """
    from kit import doctor

    if name:
        warn_renamed(f"kit doctor {name}", f"kit doctor --profile {name}")
    if race:
        click.echo(f"kit doctor: --race submits a job; it costs {doctor.COST}", err=True)
    if job:
        click.echo(f"kit doctor: --job submits a job; it costs {doctor.JOB_COST}", err=True)
    rows = doctor.examine(profile or name, race, job)
    if as_json:
        echo_json(rows)
    else:
        click.echo(doctor.findings_to_text(rows))
    ctx.exit(1 if any(row.state == "failed" for row in rows) else 0)
