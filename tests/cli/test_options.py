"""Options that are the same at every command."""

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
        ["forwarder", "--port", "7000", "worker"],
        ["forwarder", "--profile", "lumi", "flower"],
        ["submitter", "--once", "template"],
    ],
)
def test_an_option_that_a_subcommand_ignores_is_an_error(words):
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert f"{words[1]} before '{words[-1]}' has no effect" in done.stderr
