"""Options and output that several commands share."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
from click.core import ParameterSource

from kit.base import narrowed

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

TARGETS = click.Choice(["local", "cloud", "cloud-hpc"])
profile_option = click.option(
    "--profile", metavar="NAME", help="Site profile.  [default: KIT_PROFILE, else sandbox]"
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON.  [default: a table]"
)


def listening_options(port: int, what: str) -> Decorator:
    """Return the options of address and port at which something listens, such as "the gauges"."""
    address = click.option(
        "--address",
        default="127.0.0.1",
        show_default=True,
        metavar="IP",
        help="Address to listen at.",
    )
    return lambda command: address(port_option(port, what)(command))


def port_option(default: int, what: str, name: str = "--port") -> Decorator:
    """Return the option of the port at which something listens, such as "the gauges"."""
    key = name.removeprefix("--").replace("-", "_")
    return click.option(
        name,
        key,
        default=default,
        type=click.IntRange(1, 65535),
        show_default=True,
        help=f"Port of {what}.",
    )


def pass_on_options(ctx: click.Context) -> None:
    """Pass the options of a group on to its subcommand, and refuse what the subcommand ignores.

    An option such as `--profile` means the same before and after the subcommand. Raises
    click.UsageError for an option of the group that was given before a subcommand which does not
    have the same one.
    """
    name = ctx.invoked_subcommand or ""
    subcommand = (
        ctx.command.get_command(ctx, name) if isinstance(ctx.command, click.Group) else None
    )
    accepted = {_meaning(param) for param in subcommand.params} if subcommand else set()
    passed = {}
    for param in ctx.command.params:
        key = param.name or ""
        if ctx.get_parameter_source(key) is not ParameterSource.COMMANDLINE:
            continue
        if _meaning(param) not in accepted:
            text = (
                f"{param.opts[0]} before {name!r} has no effect; see {ctx.command_path} {name} -h"
            )
            raise click.UsageError(text, ctx)
        passed[key] = ctx.params[key]
    ctx.default_map = {name: passed}


def _meaning(param: click.Parameter) -> tuple[str | None, str | None]:
    """Return what two options have in common that are the same one."""
    return param.name, getattr(param, "help", None)


def echo_json(value: object) -> None:
    """Print a value as one JSON document; dataclasses as objects, times as text."""
    click.echo(json.dumps(value, default=_plain))


def _plain(value: Any) -> object:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


def echo_rows(
    rows: Sequence[Any], as_json: bool, cells: Callable[[Any], Mapping[str, str]]
) -> None:
    """Print rows as JSON, or as a table of their cells."""
    if as_json:
        echo_json(rows)
    else:
        echo_table([cells(row) for row in rows])


def echo_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows as a table with a header; long cells are wrapped to fit a terminal."""
    if not rows:
        return
    from tabulate import tabulate

    lines = [list(row.values()) for row in narrowed(rows)]
    headers = [name.upper() for name in rows[0]]
    click.echo(tabulate(lines, headers, "plain", disable_numparse=True))


def warn_renamed(old: str, new: str) -> None:
    """Print on stderr that an old name is accepted for one release, and the new one."""
    click.echo(
        f"kit: `{old}` is now `{new}`; the old name will be removed in the next release", err=True
    )
