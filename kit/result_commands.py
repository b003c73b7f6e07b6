"""`kit bill`: thin commands over what finished runs left."""

import json

import click

PROFILE = click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("bill")
@click.argument("run", required=False)
@PROFILE
@AS_JSON
def bill_command(run: str | None, profile: str | None, as_json: bool) -> None:
    """Show what each finished run cost, or the bill of RUN with what was wasted."""
    from kit import bill_tables, run_bill, settings, tables

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
