"""The command that removes what the kit left on a site and in the buckets: `kit tidy`."""

import time

import click

from kit.cli.options import echo_json, echo_table, json_option, profile_option


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
