"""The `kit` command: thin, every piece of work is done in the other files."""

import json
import sys
from typing import ClassVar

import click

from kit import __version__
from kit.errors import KitError


class _LazyGroup(click.Group):
    """Groups of subcommands that live in the file they are about, imported when asked for."""

    lazy: ClassVar[dict[str, str]] = {"sandbox": "kit.sandbox"}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        import importlib

        group: click.Command = importlib.import_module(self.lazy[cmd_name]).group
        return group


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kit")
def cli() -> None:
    """One small experiment on three targets: a laptop, a cloud platform, a supercomputer."""


@cli.command()
@click.argument("target", type=click.Choice(["local", "cloud", "cloud-hpc"]))
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter.")
@click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
@click.option("--fresh", is_flag=True, help="Compute everything, also what an open run has done.")
@click.option("--repeat", default=1, type=click.IntRange(1), help="So many runs, one by one.")
def run(
    target: str, pairs: tuple[tuple[str, str], ...], profile: str | None, fresh: bool, repeat: int
) -> None:
    """Run the notebook of TARGET and keep what it made under results/."""
    from kit import notebooks, reproduce, settings

    loaded = settings.load(profile)
    values = notebooks.parse(pairs) | ({"fresh": True} if fresh else {})
    for number in range(1, repeat + 1):
        click.echo(
            f"kit run {target}: run {number} of {repeat}, profile {loaded.profile}", err=True
        )
        record = notebooks.run(loaded, target, values)
        click.echo(reproduce.summary(record))
        if record:
            click.echo(f"  files: {loaded.profile_dir / 'runs' / record['run']}")


@cli.command("reproduce")
@click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
@click.pass_context
def reproduce_command(ctx: click.Context, profile: str | None) -> None:
    """Run every notebook, then show the article's table with the new runs beside it."""
    from kit import reproduce, settings

    ctx.exit(reproduce.reproduce(settings.load(profile), click.echo))


@cli.command()
@click.option("--profile", help="The site profile whose runs stand beside the article's.")
@click.option("--format", "form", default="table", type=click.Choice(["table", "md"]))
def report(profile: str | None, form: str) -> None:
    """Show the article's table with the new runs beside it."""
    from kit import report as reports
    from kit import settings

    table, problems = reports.columns(settings.load(profile))
    click.echo(reports.render(table, form))
    for problem in problems:
        click.echo(f"note: {problem}", err=True)


@cli.command()
@click.option("--profile", help="The site profile whose tracking spool is sent.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def sync(profile: str | None, as_json: bool) -> None:
    """Send to MLflow what was kept on disk while its server was away; repeat at will."""
    from kit import settings, tracking

    results = tracking.tracking_for(settings.load(profile)).sync()
    if as_json:
        click.echo(json.dumps([vars(result) for result in results], default=str))
        return
    for result in results:
        click.echo(result)
    click.echo(f"{len(results)} run(s) looked at")


def main() -> None:
    """Run the command; a KitError becomes its message and its exit code."""
    try:
        code = cli(standalone_mode=False)
    except KitError as err:
        click.echo(f"kit: {err}", err=True)
        sys.exit(err.exit_code)
    except click.ClickException as err:
        err.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("kit: stopped; the same command goes on where it was", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
