"""Commands about what the kit has on a site: `kit envs`, and `kit tidy` for the buckets as well."""

import time
from typing import TYPE_CHECKING

import click

from kit.cli.options import (
    echo_json,
    echo_rows,
    echo_table,
    json_option,
    pass_on_options,
    profile_option,
)

if TYPE_CHECKING:
    from kit.base.settings import Settings


@click.group("envs")
@profile_option
@click.pass_context
def envs_group(ctx: click.Context, profile: str | None) -> None:
    """Manage Python environments on the site.

    \b
    Example:
      kit envs ls --profile sandbox
    """
    pass_on_options(ctx)


@envs_group.command("ls")
@profile_option
@json_option
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
@profile_option
def envs_rm(names: tuple[str, ...], profile: str | None) -> None:
    """Remove environments from the site.

    Removes NAMES, or without names all that are neither published nor used by an unfinished
    run. If an unfinished run may use one of NAMES, the command fails and removes nothing.

    \b
    Example:
      kit envs rm 0123456789ab.6f1c2a30-58c4-4d8e-9b1f-2f6d1c0a7e55 --profile sandbox
    """
    from kit.cli.runs import open_site
    from kit.submitter import env

    submitter = open_site(profile)
    slurm = submitter.slurm
    for name in env.remove_environments(
        slurm.host, slurm.hpc, submitter.requests.open_attempt_ids(), names
    ):
        click.echo(f"removed {name}")


@click.command("tidy")
@profile_option
@json_option
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Keep what was used within these days.",
)
@click.option("--remove", is_flag=True, help="Remove what is not kept.  [default: only list it]")
def tidy_command(profile: str | None, as_json: bool, days: float, remove: bool) -> None:
    """List and remove old files of runs.

    Lists attempts, inputs, packages and environments on the site, and runs and data sets in the
    buckets, with the reason why a thing is kept. What an unfinished run may need is always kept,
    and so are runs in the buckets whose results are not on this machine.

    \b
    Example:
      kit tidy --profile roihu --older-than 60 --remove
    """
    from kit.cli.runs import open_site
    from kit.submitter import tidy

    submitter = open_site(profile)
    rows = tidy.list_leftovers(submitter, days)
    gone = []
    if remove:
        for row in tidy.remove_leftovers(submitter, rows):
            gone.append(row)
            click.echo(f"removed {row.place} {row.name}", err=as_json)
    if as_json:
        echo_json(gone if remove else rows)
        return
    if not remove:
        echo_table(
            [
                {
                    "mb": f"{row.bytes / 2**20:>8.1f}",
                    "used": time.strftime("%Y-%m-%d", time.localtime(row.used)),
                    "place": row.place,
                    "name": row.name if len(row.name) < 42 else f"{row.name[:38]}...",
                    "kept": row.kept or "-",
                }
                for row in rows
            ]
        )
    chosen = gone if remove else [row for row in rows if not row.kept]
    size = sum(row.bytes for row in chosen) / 2**20
    verb = "removed" if remove else "may be removed: kit tidy --remove"
    click.echo(f"{len(chosen)} of {len(rows)}, {size:.1f} MB, {verb}", err=True)
    stays = sum(row.bytes for row in rows if row.place == "site" and row not in gone)
    if price := _month_on_site(submitter.settings, stays):
        click.echo(price, err=True)


def _month_on_site(settings: "Settings", stays: int) -> str:
    """Return what the kit's files on the site cost in 30 days; "" where the profile has no rate."""
    from decimal import Decimal

    from kit.billing import PROJECT_STORAGE, money, storage_line

    if PROJECT_STORAGE not in settings.rates:
        return ""
    line = storage_line(settings, stays, Decimal(30 * 86400), PROJECT_STORAGE)
    size = f"{stays / 2**30:.2f} GiB on the site"
    return f"{size}: about {money(line.bu)} {line.kind} in 30 days"
