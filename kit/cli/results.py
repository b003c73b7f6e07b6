"""`kit bill`, `kit report`: thin commands over what finished runs left."""

import json
from pathlib import Path

import click

PROFILE = click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
FORMS = ("table", "md", "html", "csv", "tex")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("bill")
@click.argument("run", required=False)
@PROFILE
@AS_JSON
def bill_command(run: str | None, profile: str | None, as_json: bool) -> None:
    """Show what each finished run cost, or the bill of RUN with what was wasted."""
    from kit.base import settings
    from kit.base import text as tables
    from kit.billing import run as run_bill
    from kit.billing import tables as bill_tables

    loaded = settings.load(profile)
    if run is None:
        found, problems = bill_tables.of_all(loaded)
        click.echo(json.dumps(found) if as_json else tables.text(found) or "no finished run")
        for problem in problems:
            click.echo(f"note: {problem}", err=True)
        return
    record = run_bill.find(loaded, run)
    bill, job = run_bill.of_run(loaded, record), bill_tables.used(loaded, record)
    offers = bill_tables.offers(job) if job else []
    advice = bill_tables.advice(loaded, record)
    if as_json:
        shown = {"run": run, **bill.as_json(), "elsewhere": offers, "advice": advice}
        click.echo(json.dumps(shown))
        return
    parts = [tables.text(bill_tables.rows(bill.lines)), "\n".join(bill_tables.summary(bill))]
    if offers:
        parts.append("The same job elsewhere:\n" + tables.text(offers))
    click.echo("\n\n".join(part for part in [*parts, "\n".join(advice)] if part))


@click.command("report")
@PROFILE
@click.option("--format", "form", default="table", type=click.Choice(FORMS), help="Of the text.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Write the pictures there, as SVG and PDF.")  # fmt: skip
def report_command(profile: str | None, form: str, pictures: Path | None) -> None:
    """Show the article's table with the new runs beside it, and what to make of it."""
    from kit.base import settings
    from kit.report import page as report_page

    loaded = settings.load(profile)
    shown, problems = report_page.text(loaded, form)
    click.echo(shown)
    for path in report_page.save_pictures(loaded, pictures) if pictures else []:
        click.echo(f"wrote {path}", err=True)
    for problem in problems:
        click.echo(f"note: {problem}", err=True)


@click.command("export")
@click.argument("run")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@PROFILE
def export_command(run: str, folder: Path | None, profile: str | None) -> None:
    """Write RUN as a Workflow Run RO-Crate into FOLDER (default: RUN-crate, here)."""
    from kit.base import settings
    from kit.billing import run as run_bill
    from kit.report import crate

    loaded = settings.load(profile)
    record = run_bill.find(loaded, run)
    click.echo(crate.export(loaded, record, (folder or Path(f"{run}-crate")).absolute()))
