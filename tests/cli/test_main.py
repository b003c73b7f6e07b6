"""The kit command: help, versions, exit codes, start-up."""

import subprocess
import sys

import pytest

from kit import __version__
from kit.base.errors import CommandFailed, KitError
from kit.cli.main import cli, main

HEAVY = {"torch", "ray", "kfp", "mlflow", "boto3", "swiftclient", "matplotlib", "pandas", "numpy"}


def kit(*arguments: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "kit", *arguments]
    return subprocess.run(argv, capture_output=True, text=True)


def test_version_is_that_of_the_package():
    assert kit("--version").stdout.strip() == f"kit, version {__version__}"


@pytest.mark.parametrize("arguments", [["--nonsense"], ["nonsense"], ["run"], ["run", "moon"]])
def test_wrong_usage_ends_with_2_and_says_what_is_allowed(arguments):
    done = kit(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr or "No such" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_and_import_need_no_heavy_library(arguments):
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


def test_every_command_says_what_it_does():
    context = None
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help, f"kit {name} has no help"


def test_an_error_shows_what_was_tried_what_came_back_and_the_next_step():
    error = KitError("opened the box", got="a spring", next_step="close it")
    assert str(error) == "opened the box\n  got:  a spring\n  next: close it"
    assert str(KitError("only this")) == "only this"


def test_a_failed_command_keeps_its_fields_through_pickling_between_processes():
    import pickle

    error = CommandFailed(["ls", "x"], 2, "", "no such file\n", "look")
    again = pickle.loads(pickle.dumps(error))
    assert (again.argv, again.code, again.err) == (("ls", "x"), 2, "no such file\n")
    assert "exit code 2" in str(again)
    assert "no such file" in str(again)


def test_ctrl_c_leaves_what_is_remote_alone_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kit.cli.main.cli", interrupted)
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 130
    assert "the same command goes on where it was" in said
    assert "kit cancel RUN ends it" in said
