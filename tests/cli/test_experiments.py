"""An experiment of one's own: made, tried, refused."""

import pytest
from click.testing import CliRunner
from own_experiments import GOOD, changed, write

from kit.base import KitError, UsageError
from kit.cli.experiments import check_command, new_command
from kit.experiments.trial import check


def call(command, *words):
    return CliRunner().invoke(command, words, catch_exceptions=False).output


def test_new_experiment_passes_its_check_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "wrote my_model.py" in call(new_command, "my_model")
    names = {"my_model.py", "test_my_model.py", "my_model.ipynb", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    output = call(check_command, "my_model")
    assert "again: resumed after step 100" in output
    assert "metrics: error 0." in output
    assert "files: model.json" in output
    with pytest.raises(UsageError, match="exists"):
        call(new_command, "my_model")


def test_another_experiment_keeps_the_readme_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "other.ipynb").write_text("mine")
    assert "README" not in call(new_command, "my_model")
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(UsageError, match="other.ipynb exists"):
        call(new_command, "other")
    assert not (tmp_path / "other.py").exists()


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


def test_check_shows_the_error_of_the_experiments_own_code(tmp_path, capfd):
    path = write(tmp_path, GOOD + "\n\ndef evaluate(ctx):\n    raise ValueError('in evaluate')\n")
    with pytest.raises(UsageError, match="ValueError: in evaluate"):
        check(path)
    assert "in evaluate" in capfd.readouterr().err.partition("Traceback")[2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import json\n", "import json\nimport click, pandas\n", "pandas, which it imports"),
        ("    numbers =", "    open('left.txt', 'w')\n    numbers =", "working folder: left.txt"),
        (
            "    numbers =",
            "    (ctx.data / 'n.json').write_text('')\n    numbers =",
            "files of ctx.d",
        ),
        ('{"error": abs', '{"error": str', "not a finite number"),
        ('(ctx.out / "model.json").write_text', "str", "wrote no file"),
    ],
)
def test_check_reports_what_would_fail_elsewhere(tmp_path, old, new, message):
    with pytest.raises(KitError, match=message):
        call(check_command, str(write(tmp_path, changed(old, new))))


def test_requirement_that_is_listed_is_no_problem(tmp_path):
    text = changed("import json\n", "import json\nimport pandas\nREQUIREMENTS = ['pandas']\n")
    assert "metrics: error 0" in call(check_command, str(write(tmp_path, text)))
