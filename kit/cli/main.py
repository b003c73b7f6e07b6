"""The `kit` command: thin, every piece of work is done in the other files."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import click

from kit import __version__
from kit.base.errors import CredentialRefused, KitError, Unreachable

if TYPE_CHECKING:
    from kit.store.objects import ObjectStore


class _LazyGroup(click.Group):
    """Commands that live in the file they are about, imported when asked for."""

    lazy: ClassVar[dict[str, str]] = {
        "bill": "kit.cli.results:bill_command",
        "cancel": "kit.cli.commands:cancel_command",
        "doctor": "kit.cli.commands:doctor_command",
        "envs": "kit.cli.commands:envs_group",
        "forward": "kit.cli.commands:forward_command",
        "forwarder": "kit.cli.forwarder:forwarder_group",
        "jobs": "kit.cli.commands:jobs_command",
        "logs": "kit.cli.commands:logs_command",
        "export": "kit.cli.results:export_command",
        "report": "kit.cli.results:report_command",
        "plan": "kit.cli.commands:plan_command",
        "platform": "kit.deploy.manifests:group",
        "submitter": "kit.cli.commands:submitter_group",
        "sandbox": "kit_sandbox.commands:group",
        "vm": "kit.deploy.vm:group",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands, those not imported yet too."""
        return sorted([*super().list_commands(ctx), *self.lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the file of a command that is asked for."""
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        import importlib

        module, _, name = self.lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


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
@click.option("--budget", default="", metavar="BU", help="Refuse a run that may cost more.")
def run(
    target: str,
    pairs: tuple[tuple[str, str], ...],
    profile: str | None,
    fresh: bool,
    repeat: int,
    budget: str,
) -> None:
    """Run the notebook of TARGET and keep what it made under results/."""
    from kit.base import settings
    from kit.billing import run as run_bill
    from kit.report import reproduce
    from kit.runs import notebooks

    loaded = settings.load(profile)
    run_bill.refuse_over(loaded, target, budget)
    try:
        run_bill.afford(loaded, None, target, budget)
    except (Unreachable, CredentialRefused) as err:
        click.echo(f"note: what the project has left is not known: {err}", err=True)
    values = notebooks.parse(pairs) | ({"fresh": True} if fresh else {})
    for number in range(1, repeat + 1):
        click.echo(
            f"kit run {target}: run {number} of {repeat}, profile {loaded.profile}", err=True
        )
        record = notebooks.run(loaded, target, values)
        click.echo(reproduce.summary(record))
        if record:
            click.echo(f"  files: {loaded.profile_dir / 'runs' / record['run']}")
    if repeat > 1 and record:
        click.echo(reproduce.repeated(loaded, record))


@cli.command("reproduce")
@click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
@click.pass_context
def reproduce_command(ctx: click.Context, profile: str | None) -> None:
    """Run every notebook, then show the article's table with the new runs beside it."""
    from kit.base import settings
    from kit.report import reproduce

    ctx.exit(reproduce.reproduce(settings.load(profile), click.echo))


@cli.command()
@click.option("--profile", help="The site profile whose tracking spool is sent.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def sync(profile: str | None, as_json: bool) -> None:
    """Send to MLflow what was kept on disk while its server was away; repeat at will."""
    from kit.base import settings
    from kit.tracking import delivery as tracking

    results, away = [], []
    for place in tracking.destinations(settings.load(profile)):
        try:
            results += place.sync()
        except KitError as err:  # the other destinations can still be served
            away.append(err)
    if as_json:
        click.echo(json.dumps([vars(result) for result in results]))
    for result in [] if as_json else results:
        click.echo(f"{result.run_id}: {result.state} {result.link or result.reason}")
    click.echo(f"{len(results)} run(s) sent or looked at", err=True)
    if away:
        raise away[0]


@cli.command()
@click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_context
def token(ctx: click.Context, profile: str | None, as_json: bool) -> None:
    """Say which credential is valid until when and how it is renewed; exit 1 when one is not."""
    from kit.base import settings
    from kit.store import keystone as credentials

    rows = credentials.clock(settings.load(profile))
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows]))
    for row in [] if as_json else rows:
        texts = credentials.texts(row)
        click.echo(f"{texts['what']}: until {texts['valid until']}, left {texts['left']}")
        click.echo(f"  renewed {texts['renewed']}")
        if row.problem:
            click.echo(f"  problem: {texts['problem']}")
    ctx.exit(1 if any(row.problem for row in rows) else 0)


@cli.group()
@click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
@click.option("--bucket", help="The bucket (default: the pipeline's).")
@click.pass_context
def store(ctx: click.Context, profile: str | None, bucket: str | None) -> None:
    """List, put, get and remove objects; each one is checked by its SHA-256."""
    from kit.base import settings
    from kit.store import opening as store

    loaded = settings.load(profile)
    ctx.obj = store.open_store(loaded, bucket or store.bucket_name(loaded, "pipeline"))


@store.command("ls")
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.pass_obj
def store_ls(bucket: "ObjectStore", prefix: str, as_json: bool) -> None:
    """List the objects whose key begins with PREFIX: bytes, time, key."""
    rows = bucket.list(prefix)
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows], default=str))
        return
    for row in rows:
        click.echo(f"{row.size:>13,}  {row.modified:%Y-%m-%d %H:%M:%S}  {row.key}")


@store.command("put")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("key", required=False)
@click.pass_obj
def store_put(bucket: "ObjectStore", file: Path, key: str | None) -> None:
    """Put FILE under KEY (default: its name); the bucket is made when it is not there."""
    from kit.store.opening import bar

    bucket.ensure_bucket()
    with bar(file.name, file.stat().st_size) as progress:
        info = bucket.put(key or file.name, file, progress=progress)
    click.echo(f"{info.key}: {info.size:,} bytes, sha256 {info.sha256}")


@store.command("get")
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def store_get(bucket: "ObjectStore", key: str, file: Path) -> None:
    """Get the object KEY into FILE, whole and checked or not at all."""
    from kit.store.opening import bar

    with bar(key, bucket.stat(key).size) as progress:
        info = bucket.get_file(key, file, progress=progress)
    click.echo(f"{file}: {info.size:,} bytes, sha256 {info.sha256}")


@store.command("rm")
@click.argument("keys", nargs=-1, required=True)
@click.pass_obj
def store_rm(bucket: "ObjectStore", keys: tuple[str, ...]) -> None:
    """Remove the objects KEYS."""
    for key in keys:
        bucket.delete(key)
        click.echo(f"removed {key}")


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
        click.echo("  a job on a site goes on: kit jobs shows it, kit cancel RUN ends it", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
