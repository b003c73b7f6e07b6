"""Commands about the Python environments on a site: `kit envs`."""

import time

import click

from kit.cli.options import echo_rows, json_option, profile_option


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
    echo_rows(
        rows,
        as_json,
        lambda row: {
            "environment": row.name,
            "mb": f"{row.megabytes:>6}",
            "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(row.made)),
            "use": "published" if row.published else f"attempt {row.attempt or '?'}",
        },
    )


@envs_group.command("rm")
@click.argument("names", nargs=-1)
@click.pass_obj
def envs_rm(profile: str | None, names: tuple[str, ...]) -> None:
    """Remove environments from the site.

    Removes NAMES, or without names all that are neither published nor used by an unfinished
    run. If an unfinished run may use one of NAMES, the command fails and removes nothing.

    \b
    Example:
      kit envs --profile sandbox rm 0123456789ab.6f1c2a30-58c4-4d8e-9b1f-2f6d1c0a7e55
    """
    from kit.cli.runs import open_site
    from kit.submitter import env

    submitter = open_site(profile)
    slurm = submitter.slurm
    for name in env.remove_environments(
        slurm.host, slurm.hpc, submitter.requests.open_attempt_ids(), names
    ):
        click.echo(f"removed {name}")
