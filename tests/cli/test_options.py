"""Options that are the same at every command."""

from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from kit_commands import commands

from kit.base import KitError
from kit.cli.main import cli


def test_profile_and_json_are_the_same_option_everywhere():
    seen = {"--profile": set(), "--json": set()}
    for _, command in commands():
        for option in command.params:
            for name in seen.keys() & set(option.opts):
                if option.name != "lines":
                    seen[name].add((option.name, option.help))
    ours = {name: rows for name, rows in seen.items() if rows}
    assert {name for name, _ in ours["--profile"]} == {"profile"}
    assert {name for name, _ in ours["--json"]} == {"as_json"}


@pytest.mark.parametrize("name", ["api", "face"])
def test_the_profile_of_a_group_is_that_of_its_subcommand(monkeypatch, name):
    loaded = []

    def load(profile):
        loaded.append(profile)
        raise KitError("stop here")

    monkeypatch.setattr("kit.base.settings.load", load)
    CliRunner().invoke(cli, ["forwarder", "--profile", "lumi", name])
    CliRunner().invoke(cli, ["forwarder", "--profile", "lumi", name, "--profile", "roihu"])
    assert loaded == ["lumi", "roihu"]


@pytest.mark.parametrize(
    "words",
    [
        ["forwarder", "--once", "api"],
        ["forwarder", "--port", "7000", "api"],
        ["forwarder", "--profile", "lumi", "flower"],
        ["submitter", "--once", "template"],
        ["vm", "--profile", "lumi", "cloud-init"],
        ["sandbox", "--profile", "sandbox-trixie", "up"],
        ["platform", "--profile", "lumi", "source"],
    ],
)
def test_an_option_that_a_subcommand_ignores_is_an_error(words):
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert f"{words[1]} before '{words[-1]}' has no effect" in done.stderr


GROUPS = [
    (words, sub, option)
    for words, command in commands()
    if isinstance(command, click.Group) and words[1:]
    for sub in command.commands.values()
    for option in sub.params
    if option.name in ("profile", "bucket")
]


@pytest.mark.parametrize(
    ("words", "command", "option"),
    [pytest.param(*row, id=f"{row[2].name}-of-{row[0][-1]}-{row[1].name}") for row in GROUPS],
)
def test_an_option_is_taken_before_and_after_the_command(monkeypatch, words, command, option):
    taken = []
    monkeypatch.setattr(command, "callback", lambda **values: taken.append(values[option.name]))
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    needed = [getattr(each.type, "choices", [__file__])[0] for each in arguments if each.required]
    values = getattr(option.type, "choices", ["lumi", "roihu"])
    pair, other = ([option.opts[0], value] for value in reversed(values))
    for call in ([*pair, command.name], [command.name, *pair], [*other, command.name, *pair]):
        done = CliRunner().invoke(cli, [*words[1:], *call, *needed])
        assert done.exit_code == 0, done.output
    assert taken == [values[1]] * 3


def test_the_options_of_every_group_are_tried():
    groups = {words[1] for words, *_ in GROUPS}
    assert groups == {"envs", "forwarder", "platform", "sandbox", "store", "submitter", "vm"}


def test_several_options_of_a_group_are_passed_on(monkeypatch):
    taken = []
    monkeypatch.setattr(
        "kit.cli.store._open", lambda *where: taken.append(where) or SimpleNamespace(list=iter)
    )
    words = ["store", "--profile", "lumi", "--bucket", "b", "ls"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert taken == [("lumi", "b")]
