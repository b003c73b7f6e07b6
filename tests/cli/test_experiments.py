"""An experiment of one's own: made, tried, refused."""

import pytest
from click.testing import CliRunner
from own_experiments import GOOD, changed, write

from kit.base import UsageError
from kit.cli.experiments import check_command, new_command


def call(command, *words):
    return CliRunner().invoke(command, words, catch_exceptions=False).output


def test_new_experiment_passes_its_check_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "wrote my_model.py" in call(new_command, "my_model")
    output = call(check_command, "my_model")
    assert "again: resumed after step 100" in output
    assert "metrics: error 0." in output
    assert "files: model.json" in output
    with pytest.raises(UsageError, match="exists"):
        call(new_command, "my_model")


@pytest.mark.parametrize("name", ["digits", "My Model", "../x", "random"])
def test_illegal_or_taken_name_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        call(new_command, name)
    assert list(tmp_path.iterdir()) == []


def test_check_reports_a_training_that_does_not_resume(tmp_path):
    text = changed("ctx.report(step, ctx.parameters.steps, 1 / step)", "pass")
    output = call(check_command, str(write(tmp_path, text)))
    assert "never calls ctx.report" in output
    assert "keeps nothing in ctx.checkpoint" in output


def test_check_shows_the_error_of_the_experiments_own_code(tmp_path):
    path = write(tmp_path, GOOD + "\n\ndef evaluate(ctx):\n    raise ValueError('in evaluate')\n")
    with pytest.raises(ValueError, match="in evaluate"):
        call(check_command, str(path))
