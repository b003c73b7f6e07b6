"""The commands of the kit, found by walking from its first group."""

import click

from kit.cli.main import cli


def commands(command=cli, words=("kit",)):
    """Every command and group below `command`, with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*words, name))
