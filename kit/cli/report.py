"""Commands about finished runs: `kit bill`, `kit report`, `kit export`."""

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.cli.options import echo_json, echo_table, json_option, profile_option

if TYPE_CHECKING:
    from kit.base import Json
    from kit.base.settings import Settings

FORMS = ("table", "md", "html", "csv", "tex")


@click.command("bill")
@click.argument("run", required=False)
@profile_option
@json_option
def bill_command(run: str | None, profile: str | None, as_json: bool) -> None:
    """Show what runs cost.

    Lists the billing units of each finished run, or the bill of RUN line by line, the same job
    on other sites, and what would have saved most. CPU, GPU, Cloud and Storage units are
    separate budgets and are not added up.

    \b
    Example:
      kit bill --profile sandbox
    """
    from kit.base.settings import load
    from kit.billing import (
        bill_advice,
        bill_of_run,
        bill_rows,
        bill_summary,
        job_of_run,
        offers_elsewhere,
    )

    settings = load(profile)
    if run is None:
        _list_bills(settings, as_json)
        return
    record = job_to_price(settings, run) if run.startswith("job-") else find_run(settings, run)
    bill, job = bill_of_run(settings, record), job_of_run(settings, record)
    offers = offers_elsewhere(job) if job else []
    advice = bill_advice(settings, record)
    if as_json:
        echo_json({"run": run, **bill.as_json(), "elsewhere": offers, "advice": advice})
        return
    echo_table(bill_rows(bill.lines))
    click.echo("\n".join(["", *bill_summary(bill)] if bill.lines else bill_summary(bill)))
    if offers:
        click.echo("\nThe same job elsewhere:")
        echo_table(offers)
    if advice:
        click.echo("\n" + "\n".join(advice))


def job_to_price(settings: "Settings", run: str) -> "Json":
    """Return a job of `kit submit` as a run with a bill; its figures are fetched when needed.

    Raises Busy while the job has not ended, or the accounting has no record of its end yet.
    """
    from kit.base import Busy
    from kit.cli.submit import job_rows
    from kit.submitter import job_record

    (row,) = job_rows(settings, run)
    record = job_record(settings, run)
    if not record.ended:
        raise Busy(f"price {run}", f"{row.slurm}: {row.why}", "ask again when it has ended")
    return record.billed


def bills_of_all(settings: "Settings") -> tuple[list[dict[str, str]], list[str]]:
    """Return one row a finished run with its units by kind, and what could not be read."""
    from kit.base import KitError, read_history
    from kit.billing import NO_JOB, bill_of_run, format_units, sacct_of, totals
    from kit.submitter import job_records

    history, problems = read_history(settings.profile_dir / "history.jsonl")
    for record in job_records(settings):
        if record.ended:
            history.append(record.billed)
        else:
            problems.append(f"{record.run}: its end is not stored yet: kit bill {record.run}")
    sums = {}
    for run in history:
        try:
            sums[str(run["run"])] = totals(bill_of_run(settings, run).lines)
            if run["target"] == "cloud-hpc" and not sacct_of(settings, run):
                problems.append(f"{run['run']}: {NO_JOB}")
        except KitError as err:  # its files are damaged: the other runs have their bills
            problems.append(f"{run['run']}: {str(err).splitlines()[0]}")
    kinds = dict.fromkeys(kind for units in sums.values() for kind in units)
    rows = [
        {"run": name, **{kind: format_units(units.get(kind, Decimal(0))) for kind in kinds}}
        for name, units in sums.items()
    ]
    return rows, problems


def _list_bills(settings: "Settings", as_json: bool) -> None:
    rows, problems = bills_of_all(settings)
    if as_json:
        echo_json(rows)
    elif not rows:
        click.echo("no finished run")
    else:
        kinds = [name for name in rows[0] if name != "run"]
        echo_table(rows if kinds else [row | {"billing units": "none"} for row in rows])
    for problem in problems:
        click.echo(f"note: {problem}", err=True)


@click.command("report")
@profile_option
@click.option(
    "--format",
    "form",
    default="table",
    show_default=True,
    type=click.Choice(FORMS),
    help="Format of the report.",
)
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder to write the pictures to, as SVG and PDF.  [default: none]",
)
def report_command(profile: str | None, form: str, pictures: Path | None) -> None:
    """Compare runs with the article.

    Prints the article's table with the new runs beside it, whether the differences are more
    than noise, and what the runs cost.

    \b
    Example:
      kit report --format md
    """
    from kit.base.settings import load
    from kit.report import page

    settings = load(profile)
    text, problems = page.text(settings, form)
    click.echo(text)
    for path in page.save_pictures(settings, pictures) if pictures else []:
        click.echo(f"wrote {path}", err=True)
    for problem in problems:
        click.echo(f"note: {problem}", err=True)


@click.command("export")
@click.argument("run")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@profile_option
def export_command(run: str, folder: Path | None, profile: str | None) -> None:
    """Export a run as an RO-Crate.

    Writes RUN as a Workflow Run RO-Crate into the new folder FOLDER (default: RUN-crate in the
    working folder). A run whose files hold a secret is not exported.

    \b
    Example:
      kit export local-0123456789ab-1 crate
    """
    from kit.base.settings import load
    from kit.report import crate

    settings = load(profile)
    record = find_run(settings, run)
    click.echo(crate.export(settings, record, (folder or Path(f"{run}-crate")).absolute()))


def find_run(settings: "Settings", run: str) -> "Json":
    """Find a finished run in the history. Raises UsageError that lists the newest ones."""
    from kit.base import UsageError, read_history

    history, _ = read_history(settings.profile_dir / "history.jsonl")
    for record in reversed(history):
        if record["run"] == run:
            return record
    newest = ", ".join(str(record["run"]) for record in history[-3:])
    step = f"the newest runs are {newest}; kit bill lists all" if newest else "kit run local"
    raise UsageError(f"profile {settings.profile} has no finished run {run!r}", next_step=step)
