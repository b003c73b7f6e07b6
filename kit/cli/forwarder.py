"""The commands of the forwarder: `kit forwarder [api|worker|flower|token]`."""

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any

import click

from kit.cli.options import (
    listening_options,
    pass_on_options,
    port_option,
    profile_option,
    warn_renamed,
)


class ForwarderGroup(click.Group):
    """The group of the forwarder; it accepts the old name of `kit forwarder api`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called, by its present or its old name."""
        if args and args[0] == "face":
            warn_renamed("kit forwarder face", "kit forwarder api")
            args = ["api", *args[1:]]
        return super().resolve_command(ctx, args)


@click.group("forwarder", cls=ForwarderGroup, invoke_without_command=True)
@profile_option
@click.option("--once", is_flag=True, help="Do one pass, print the gauges and exit.  [default: no]")
@listening_options(6502, "the gauges")
@port_option(6500, "the HTTP API", "--api-port")
@click.option(
    "--face-port",
    "old_api_port",
    type=click.IntRange(1, 65535),
    hidden=True,
    help="Old name of --api-port.  [default: none]",
)
@click.pass_context
def forwarder_group(
    ctx: click.Context,
    profile: str | None,
    once: bool,
    address: str,
    port: int,
    api_port: int,
    old_api_port: int | None,
) -> None:
    """Serve gauges and accept run requests.

    Collects what runs left in the object store into Prometheus gauges and serves them. With a
    list of people (KIT_FORWARDER_PEOPLE) it also serves the HTTP API that accepts run requests.

    \b
    Example:
      kit forwarder --profile sandbox --once
    """
    if ctx.invoked_subcommand:
        pass_on_options(ctx)
        return
    if old_api_port:
        warn_renamed("--face-port", "--api-port")
        api_port = old_api_port
    from kit.forwarder import collect

    settings, people, forwarder = _open(profile)
    if once:
        for problem in forwarder.once():
            click.echo(f"kit: left out: {problem}", err=True)
        click.echo(forwarder.text, nl=False)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_serve_gauges(settings, forwarder, address, port))
        if people:
            stack.enter_context(_serve_api(people, address, api_port))
        collect.run_passes(forwarder)


@forwarder_group.command("api")
@profile_option
@listening_options(6500, "the HTTP API")
def api_command(profile: str | None, address: str, port: int) -> None:
    """Serve the HTTP API for run requests.

    Accepts requests of the people in KIT_FORWARDER_PEOPLE and shows them their runs.

    \b
    Example:
      kit forwarder api --profile sandbox
    """
    from kit.base import UsageError
    from kit.base.settings import load
    from kit.forwarder import people as forwarder_people

    people = forwarder_people.people_of(load(profile))
    if not people:
        raise UsageError(
            "serve the HTTP API",
            "there is nobody who may use it",
            "list the people in a file of mode 600 and name it in KIT_FORWARDER_PEOPLE",
        )
    with _serve_api(people, address, port):
        threading.Event().wait()


@forwarder_group.command("worker")
@profile_option
@listening_options(6502, "the gauges")
@click.pass_context
def worker_command(ctx: click.Context, profile: str | None, address: str, port: int) -> None:
    """Collect gauges on a schedule.

    Runs as a Celery worker on the Redis of KIT_FORWARDER_REDIS and serves the gauges.

    \b
    Example:
      kit forwarder worker --profile sandbox
    """
    from kit.forwarder import schedule

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    url = schedule.redis_url()
    settings, _, forwarder = _open(profile)
    forwarder.run_pass()  # so that the first scrape has what was there before a restart
    with _serve_gauges(settings, forwarder, address, port):
        ctx.exit(schedule.run_worker(url, forwarder))


@forwarder_group.command("flower")
@listening_options(6501, "the page")
def flower_command(address: str, port: int) -> None:
    """Serve Flower, the page of the schedule.

    Needs the Redis of KIT_FORWARDER_REDIS and the login of KIT_FLOWER_LOGIN.

    \b
    Example:
      kit forwarder flower --port 6501
    """
    from kit.forwarder import schedule

    url = schedule.redis_url()
    login = schedule.secret_of("KIT_FLOWER_LOGIN", "USER:PASSWORD")
    click.echo(f"flower: http://{address}:{port}/", err=True)
    schedule.watch(url, login, address, port)


@forwarder_group.command("token")
@click.argument("user", metavar="USER")
@click.option(
    "--people",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="KIT_FORWARDER_PEOPLE",
    help="File of the people.  [default: env/platform/secrets/people]",
)
@click.option(
    "--revoke", is_flag=True, help="Remove the person's older tokens as well.  [default: no]"
)
def token_command(user: str, file: Path | None, revoke: bool) -> None:
    """Make a token for a person.

    Prints the token once; the file of people gets its SHA-256 only. A running forwarder knows the
    token after a restart, on the platform after `kit platform apply`.

    \b
    Example:
      kit forwarder token anna
    """
    from kit.deploy import manifests
    from kit.forwarder import people as forwarder_people

    path = file or manifests.FOLDER / "secrets" / "people"
    click.echo(forwarder_people.new_token(path, user, revoke))
    click.echo(f"for {user}, shown only now; its hash is in {path}", err=True)


def _open(profile: str | None) -> Any:
    """Load a profile; return the settings, the people who may ask, and the forwarder."""
    from kit.base.settings import load
    from kit.forwarder import collect
    from kit.forwarder import people as forwarder_people

    settings = load(profile)
    people = forwarder_people.people_of(settings)
    names = sorted(person.name for person in people.values())
    return settings, people, collect.forwarder_for(settings, names)


def _serve_gauges(settings: Any, forwarder: Any, address: str, port: int) -> Any:
    from kit.forwarder import api, serve

    app = api.metrics_api(forwarder, serve.api_token(settings))
    token = serve.api_token_path(settings)
    click.echo(f"gauges: http://{address}:{port}/metrics, token in {token}", err=True)
    return serve.serve(app, address, port)


def _serve_api(people: Any, address: str, port: int) -> Any:
    from kit.forwarder import api, serve

    click.echo(f"API: http://{address}:{port}/docs", err=True)
    return serve.serve(api.forwarder_api(people), address, port)
