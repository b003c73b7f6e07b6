"""`kit run`: parameters, budget, profile."""

import pytest
from click.testing import CliRunner

from kit.cli.main import cli
from kit.runs import notebooks


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """The parameters of each notebook that was run; nothing is executed."""
    runs = []
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(
        notebooks, "run", lambda _settings, name, values: runs.append((name, values))
    )
    return runs


def run(*words):
    return CliRunner().invoke(cli, ["run", *words])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["-p", "epochs", "1"], {"epochs": 1}),
        (["-p", "epochs=1"], {"epochs": 1}),
        (["-p", "epochs=1", "-p", "device", "cpu"], {"epochs": 1, "device": "cpu"}),
        (["--parameter", "note=a=b"], {"note": "a=b"}),
        (["-p", "note", "a=b"], {"note": "a=b"}),
        (["-p", "note="], {"note": ""}),
    ],
)
def test_a_parameter_is_given_as_two_words_or_with_an_equals_sign(executed, words, values):
    done = run("local", *words)
    assert done.exit_code == 0, done.output
    assert executed == [("local", values)]


def test_the_profile_is_not_a_parameter_of_the_notebook(executed):
    """A second profile would bypass the budget that was checked for the first one."""
    done = run("cloud", "--profile", "sandbox", "--budget", "20", "-p", "profile", "dear")
    assert done.exception.exit_code == 2
    assert "use --profile" in str(done.exception)
    assert executed == []


@pytest.mark.parametrize("target", ["local", "cloud"])
@pytest.mark.parametrize("budget", ["20,5", "lots", "-5", "nan", "inf", ""])
def test_a_budget_that_is_not_a_number_is_refused_for_every_target(executed, target, budget):
    done = run(target, f"--budget={budget}")
    assert done.exit_code == 2
    assert "'--budget'" in done.output
    assert executed == []
