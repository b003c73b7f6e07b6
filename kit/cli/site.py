"""Commands about a profile's site: `kit doctor`, `kit envs`."""

import time

import click

from kit.cli.options import echo_json, echo_table, json_option, profile_option, warn_renamed


@click.command("doctor")
@click.argument("name", required=False, metavar="")
@profile_option
@click.option(
    "--race",
    is_flag=True,
    help="Also test that symlink creation is atomic between login node and compute node; "
    "submits a short job.  [default: no]",
)
@json_option
@click.pass_context
def doctor_command(
    ctx: click.Context, name: str | None, profile: str | None, race: bool, as_json: bool
) -> None:
    """Check a profile's setup.

    Checks every step of the setup, from the settings to the services, side by side. Each failed
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
    rows = doctor.examine(profile or name, race)
    if as_json:
        echo_json([vars(row) for row in rows])
    else:
        click.echo(doctor.to_text(rows))
    ctx.exit(1 if any(row.state == "failed" for row in rows) else 0)


@click.group("envs")
@profile_option
@click.pass_context
def envs_group(ctx: click.Context, profile: str | None) -> None:
    """Manage Python environments on the site.

    \b
    Example:
      kit envs --profile sandbox ls
    """
    ctx.obj = profile


@envs_group.command("ls")
@json_option
@click.pass_obj
def envs_ls(profile: str | None, as_json: bool) -> None:
    """List the environments on the site.

    A published environment is used by new runs; the others belong to one attempt.

    \b
    Example:
      kit envs ls
    """
    from kit.cli.runs import open_site
    from kit.submitter import env

    slurm = open_site(profile).slurm
    rows = env.list_environments(slurm.host, slurm.hpc)
    if as_json:
        echo_json([vars(row) for row in rows])
        return
    echo_table(
        [
            {
                "environment": row.name,
                "mb": f"{row.megabytes:>6}",
                "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(row.made)),
                "use": "published" if row.published else f"attempt {row.token or '?'}",
            }
            for row in rows
        ]
    )


@envs_group.command("rm")
@click.argument("names", nargs=-1)
@click.pass_obj
def envs_rm(profile: str | None, names: tuple[str, ...]) -> None:
    """Remove environments from the site.

    Removes NAMES, or without names all that are not published. An environment that an
    unfinished run may use is refused.

    \b
    Example:
      kit envs rm
    """
    from kit.cli.runs import open_site
    from kit.submitter import env

    submitter = open_site(profile)
    slurm = submitter.slurm
    for name in env.remove_environments(
        slurm.host, slurm.hpc, submitter.jobs.open_attempt_ids(), names
    ):
        click.echo(f"removed {name}")
