"""The kit command: help texts, old names, exit codes, start-up."""

import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from kit_commands import commands

from kit import __version__
from kit.base import ROOT
from kit.cli.main import LazyGroup, cli, main

HEAVY = {
    *("torch", "ray", "kfp", "mlflow", "boto3", "swiftclient", "matplotlib", "pandas", "numpy"),
    *("fastapi", "celery", "pydantic", "tabulate", "jinja2"),
}
SUMMARY_LENGTH = 45
IMPORT_S = 0.15


def kit(*arguments: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "kit", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)


COMMANDS = [pytest.param(command, id=" ".join(words)) for words, command in commands()]


def test_version_is_that_of_the_package():
    assert kit("--version").stdout.strip() == f"kit, version {__version__}"


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"], ["run"], ["run", "moon"]])
def test_wrong_usage_exits_2_and_names_what_is_allowed(arguments):
    done = kit(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr or "No such" in done.stderr
    assert "Traceback" not in done.stderr


# -- help texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_summary_is_a_complete_sentence_of_45_characters(command):
    summary = command.help.partition("\n")[0]
    assert summary.endswith(".")
    assert len(summary) <= SUMMARY_LENGTH
    assert command.get_short_help_str(60) == summary


def test_no_summary_line_of_the_help_is_cut_at_80_columns():
    lines = CliRunner().invoke(cli, ["--help"], terminal_width=80).output.splitlines()
    rows = lines[lines.index("Commands:") + 1 :]
    assert len(rows) == len(cli.list_commands(click.Context(cli)))
    assert [row for row in rows if not row.endswith(".") or row.endswith("...")] == []


def test_the_list_of_commands_shows_the_first_sentence_of_each_help():
    context = click.Context(cli)
    helps = {
        name: cli.get_command(context, name).help.partition("\n")[0]
        for name in cli.list_commands(context)
    }
    assert helps == LazyGroup.summaries


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text_with_its_default(command):
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
            stated = option.show_default or "[default: " in option.help
            assert stated or option.is_flag or option.is_eager, option.opts


def examples(command):
    """The lines below `Example:` of a help text."""
    text = (command.help or "").partition("Example:\n")[2]
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_parses(command):
    lines = examples(command)
    assert lines
    for line in lines:
        program, *words = shlex.split(re.sub(r"^(sudo |\w+=\w+ )+", "", line))
        assert program == "kit"
        parse(cli, words)


def parse(command, words, parent=None):
    """Parse the words of a command line as click does, without calling anything."""
    context = command.make_context(command.name, words, parent=parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if rest:
            _, found, rest = command.resolve_command(context, rest)
            parse(found, rest, context)
        else:
            assert command.invoke_without_command or command is cli


@pytest.mark.parametrize("words", [[], ["runs"], ["store", "get"], ["forwarder", "api"]])
def test_the_short_help_option_works_on_every_level(words):
    done = CliRunner().invoke(cli, [*words, "-h"])
    assert done.exit_code == 0
    assert done.output.startswith("Usage:")


# -- old names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["jobs"], "kit runs"),
        (["token"], "kit credentials"),
        (["forward"], "kit port-forward"),
        (["forwarder", "face"], "kit forwarder api"),
    ],
)
def test_an_old_name_works_and_names_the_new_one_on_stderr(old, new):
    done = CliRunner().invoke(cli, [*old, "-h"])
    assert done.exit_code == 0
    assert f"is now `{new}`" in done.stderr
    assert "is now" not in done.stdout


def test_old_names_are_not_listed():
    listed = cli.list_commands(click.Context(cli))
    assert not set(LazyGroup.renamed) & set(listed)
    assert set(LazyGroup.renamed.values()) <= set(listed)


# -- start-up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_needs_no_heavy_library(arguments):
    code = (
        "import sys; sys.argv = ['kit', *sys.argv[1:]]\n"
        "from kit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "click" in loaded
    assert not HEAVY & loaded
    assert "kit_sandbox" not in loaded


@pytest.mark.parametrize("code", ["import kit", "import kit.cli.main"])
def test_import_takes_less_than_150_ms_of_processor_time(code):
    timed = f"import time; start = time.process_time(); {code}; print(time.process_time() - start)"
    argv = [sys.executable, "-c", timed]
    times = [float(subprocess.run(argv, capture_output=True, text=True).stdout) for _ in range(3)]
    assert min(times) < IMPORT_S


# -- errors and exit codes ---------------------------------------------------------------------


def run_main(monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr("kit.cli.main.cli", fail)
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_missing_packages_name_the_line_that_installs_them(monkeypatch, capsys):
    error = ModuleNotFoundError("No module named 'botocore'", name="botocore.session")
    assert run_main(monkeypatch, error) == 2
    text = capsys.readouterr().err
    assert "needs the package 'botocore.session', which is not installed" in text
    assert "make setup" in text
    assert "pip install" in text


def test_a_missing_module_of_the_kit_itself_is_not_excused(monkeypatch):
    def fail(**_):
        raise ModuleNotFoundError("No module named 'kit.moon'", name="kit.moon")

    monkeypatch.setattr("kit.cli.main.cli", fail)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_ctrl_c_leaves_remote_work_alone_and_says_how_to_resume(monkeypatch, capsys):
    assert run_main(monkeypatch, KeyboardInterrupt()) == 130
    text = capsys.readouterr().err
    assert "run the same command again to resume" in text
    assert "kit cancel RUN ends one" in text
