"""The commands of the forwarder: `kit forwarder [face|worker|flower]`."""

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import click

PROFILE = click.option("--profile", help="The site profile (default: KIT_PROFILE, else sandbox).")
ADDRESS = click.option("--address", default="127.0.0.1", help="Where it listens.",
                       show_default=True)  # fmt: skip

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def _port(default: int, name: str = "--port") -> Option:
    return click.option(name, default=default, type=click.IntRange(1, 65535), show_default=True)


@click.group("forwarder", invoke_without_command=True)
@PROFILE
@click.option("--once", is_flag=True, help="Do one pass, print the gauges and end.")
@ADDRESS
@_port(6502)
@_port(6500, "--face-port")
@click.pass_context
def forwarder_group(
    ctx: click.Context, profile: str | None, once: bool, address: str, port: int, face_port: int
) -> None:
    """Be the forwarder of a profile: show what runs left as gauges; with a list of people
    (KIT_FORWARDER_PEOPLE) also take their requests. Needs no Redis."""
    if ctx.invoked_subcommand:
        return
    from kit.forwarder import collect as forwarder

    loaded, known, ours = _opened(profile)
    if once:
        for problem in ours.once():
            click.echo(f"kit: left out: {problem}", err=True)
        click.echo(ours.text, nl=False)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_gauges(loaded, ours, address, port))
        if known:
            stack.enter_context(_face(known, address, face_port))
        forwarder.run(ours)


@forwarder_group.command("face")
@PROFILE
@ADDRESS
@_port(6500)
def face_command(profile: str | None, address: str, port: int) -> None:
    """Take the requests of the people in KIT_FORWARDER_PEOPLE, show them their runs."""
    from kit.base import settings
    from kit.base.errors import UsageError
    from kit.forwarder import people as forwarder_people

    known = forwarder_people.people_of(settings.load(profile))
    if not known:
        step = "name them in a file of mode 600, and that with KIT_FORWARDER_PEOPLE"
        raise UsageError("nobody may ask", "there are no people", step)
    with _face(known, address, port):
        threading.Event().wait()


@forwarder_group.command("worker")
@PROFILE
@ADDRESS
@_port(6502)
@click.pass_context
def worker_command(ctx: click.Context, profile: str | None, address: str, port: int) -> None:
    """Do the pass on a schedule as a Celery worker (KIT_FORWARDER_REDIS); serve the gauges."""
    from kit.forwarder import schedule as forwarder_schedule

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    url = forwarder_schedule.redis_url()
    loaded, _, ours = _opened(profile)
    ours.attempt()  # so that the first scrape finds what was there before a restart
    with _gauges(loaded, ours, address, port):
        ctx.exit(forwarder_schedule.work(url, ours))


@forwarder_group.command("flower")
@ADDRESS
@_port(6501)
def flower_command(address: str, port: int) -> None:
    """Serve Flower, which shows the schedule, to whoever has the login in KIT_FLOWER_LOGIN."""
    from kit.forwarder import schedule as forwarder_schedule

    url = forwarder_schedule.redis_url()
    login = forwarder_schedule.secret_of("KIT_FLOWER_LOGIN", "USER:PASSWORD")
    click.echo(f"flower: http://{address}:{port}/", err=True)
    forwarder_schedule.watch(url, login, address, port)


def _opened(profile: str | None) -> Any:
    """Load the profile; give it, who may ask, and its forwarder."""
    from kit.base import settings
    from kit.forwarder import collect as forwarder
    from kit.forwarder import people as forwarder_people

    loaded = settings.load(profile)
    known = forwarder_people.people_of(loaded)
    names = sorted(each.name for each in known.values())
    return loaded, known, forwarder.forwarder_for(loaded, names)


def _gauges(loaded: Any, ours: Any, address: str, port: int) -> Any:
    from kit.forwarder import services

    app = services.metrics_api(ours, services.api_token(loaded))
    token = services.api_token_path(loaded)
    click.echo(f"gauges: http://{address}:{port}/metrics, token in {token}", err=True)
    return services.serve(app, address, port)


def _face(known: Any, address: str, port: int) -> Any:
    from kit.forwarder import api as forwarder_face
    from kit.forwarder import services

    click.echo(f"face: http://{address}:{port}/docs", err=True)
    return services.serve(forwarder_face.forwarder_api(known), address, port)
