"""Bad experiments, as persons write them: `kit check` names what is wrong, nothing is submitted.

Modules that cannot be loaded are in test_loader.py, results of each function in test_running.py.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from own_experiments import GOOD, changed, write

from kit.base import KitError, UsageError
from kit.cli.experiments import check_command
from kit.experiments import running
from kit.experiments.contract import Context
from kit.experiments.loader import load_experiment

DATA = 'return kit.DataInfo(title="three numbers", test_items=3)'
NUMBERS = '    (folder / "numbers.json").write_text("[1, 2, 3]")'
TRAIN = "    numbers ="
EVALUATE = 'return {"error": abs(json.loads((ctx.out / "model.json").read_text()) - 2)}'


def in_data(line):
    return changed(NUMBERS, f"{NUMBERS}\n    {line}")


def in_train(line):
    return changed(TRAIN, f"    {line}\n{TRAIN}")


def in_evaluate(line):
    return changed(EVALUATE, f"{line}\n    {EVALUATE}")


VALIDATOR = """
    @__import__("pydantic").field_validator("steps")
    @classmethod
    def odd(cls, value):
        raise KeyError("in Parameters")
"""
BAD = {
    "module that does not import": (GOOD + "\nraise ValueError('at import')\n", "at import"),
    "import of something absent": ("import no_such_package\n" + GOOD, "install no_such_package"),
    "syntax error": (GOOD + "\ndef x(:\n", r"line \d+: "),
    "no train": (changed("def train", "def fit"), "it has no function train"),
    "train with another signature": (
        changed("def train(ctx)", "def train(ctx, more)"),
        r"train\(ctx, more\) cannot be called as train\(ctx\)",
    ),
    "evaluate without an argument": (
        changed("def evaluate(ctx)", "def evaluate()"),
        r"evaluate\(\) cannot be called",
    ),
    "name illegal in a bucket, a pipeline or MLflow": (
        changed('"mean_model"', '"mean/model"'),
        "its NAME is 'mean/model'",
    ),
    "default outside its range": (changed("default=3", "default=0"), "steps = 0 is not valid"),
    "Parameters raises": (
        changed('training")\n', 'training")\n' + VALIDATOR),
        "Parameters raised KeyError: 'in Parameters'",
    ),
    "data raises": (in_data("raise ValueError('in data')"), "ValueError: in data"),
    "train raises": (in_train("raise ValueError('in train')"), "ValueError: in train"),
    "evaluate raises": (in_evaluate("raise ValueError('in it')"), "ValueError: in it"),
    "figures raises": (
        GOOD + "\n\ndef figures(ctx):\n    raise ValueError('in figures')\n",
        "ValueError: in figures",
    ),
    "published raises": (
        GOOD + "\n\ndef published(target, facts):\n    raise ValueError('in published')\n",
        "ValueError: in published",
    ),
    "train ends its process": (in_train("raise SystemExit(3)"), "ended with the exit code 3"),
    "train is killed": (in_train("import os; os.kill(os.getpid(), 9)"), "ended by SIGKILL"),
    "data folder is empty": (changed(NUMBERS, "    pass"), "data wrote no file"),
    "data of very many files": (
        in_data("[(folder / str(n)).touch() for n in range(10_000)]"),
        "10001 files, at most 10000[\\s\\S]*archives",
    ),
    "train writes nothing": (changed('(ctx.out / "model.json").write_text', "str"), "no file"),
    "train writes 6 GiB": (
        in_train("(ctx.out / 'big').open('wb').truncate(6 * 2**30)"),
        "6.0 GiB, at most 5 GiB",
    ),
    "evaluate writes a symbolic link": (
        in_evaluate("(ctx.out / 'm').symlink_to('/etc/passwd')"),
        "m is a symbolic link",
    ),
    "train writes beside ctx.out": (
        in_train("(ctx.out / '../x').write_text('')"),
        "writes outside ctx.out: x",
    ),
    "train writes beside ctx.data": (
        in_train("(ctx.data / '../y').write_text('')"),
        "writes outside ctx.out: y",
    ),
    "metric is NaN": (changed(EVALUATE, "return {'error': float('nan')}"), "error is nan"),
    "metrics are a text": (changed(EVALUATE, "return 'good'"), "returned 'good'"),
    "metrics are nested": (changed(EVALUATE, "return {'error': {'a': 1}}"), "error is {'a': 1}"),
    "metrics are nothing": (changed(EVALUATE, "pass"), "returned None"),
    "steps go backwards": (
        changed("ctx.report(step, ctx", "ctx.report(4 - step, 9 + ctx"),
        "step 1 after step 2: points are lost",
    ),
    "a copy of the process returns": (
        in_train("import os; os.fork()"),
        "it forks .* and the copy returns",
    ),
}


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """No folder or service of the person is used: a check must not need one."""
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_check_names_what_is_wrong_and_what_to_do(apart, capfd, case):
    text, wanted = BAD[case]
    path = write(apart / "own", text)
    with pytest.raises(KitError, match=wanted) as caught:
        CliRunner().invoke(check_command, [str(path)], catch_exceptions=False)
    assert caught.value.tried
    assert caught.value.next_step
    shown = capfd.readouterr().err.partition("Traceback")[2]
    assert "kit/experiments/trial.py" not in shown, "the kit's own lines help nobody"
    assert not (apart / "results").exists()
    assert {path.name for path in (apart / "own").iterdir()} <= {path.name, "__pycache__"}


HARMLESS = {
    "changes the working directory": "import os; os.chdir('/')",
    "catches SIGTERM": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "leaves a process": "import subprocess; subprocess.Popen(['sleep', '30'])",
    "a child that ends itself": "import os; os.fork() or os._exit(0)",
}


@pytest.mark.parametrize("line", HARMLESS.values(), ids=HARMLESS)
def test_what_a_function_changes_in_its_process_does_no_harm(apart, line):
    before = os.getcwd(), signal.getsignal(signal.SIGTERM)
    for text in (in_data(line), in_train(line), in_evaluate(line)):
        experiment = load_experiment(str(write(apart / "own", text)))
        data = running.make_data(experiment, apart / "cache", None)
        ctx = Context(data.folder, apart / "run", experiment.parameters())
        running.train(experiment, ctx)
        assert running.evaluate(experiment, ctx) == {"error": 0}
        assert (os.getcwd(), signal.getsignal(signal.SIGTERM)) == before


def test_process_that_is_left_does_not_hold_the_check(apart):
    path = write(apart / "own", in_train(HARMLESS["leaves a process"].replace("30", "60")))
    with_time = CliRunner().invoke(check_command, [str(path)], catch_exceptions=False)
    assert "metrics: error 0" in with_time.output


def test_data_changed_between_runs_are_other_data(apart):
    text = changed('"[1, 2, 3]"', "(source / 'numbers.json').read_text()")
    experiment = load_experiment(str(write(apart / "own", text)))
    hashes = set()
    for numbers in ([1], [2], [1]):
        write(apart / "mine", json.dumps(numbers), "numbers").rename(apart / "mine/numbers.json")
        data = running.make_data(experiment, apart / "cache", apart / "mine")
        assert json.loads((data.folder / "numbers.json").read_text()) == numbers
        hashes.add(data.hash)
    assert len(hashes) == 2
    (apart / "mine/numbers.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"numbers\.json"):
        running.make_data(experiment, apart / "cache", apart / "mine")
    assert {path.name[:11] for path in (apart / "cache").iterdir()} == {"mean_model-"}


def test_same_name_with_other_code_is_another_experiment(apart):
    first = load_experiment(str(write(apart / "own")))
    second = load_experiment(str(write(apart / "own", GOOD + "\n# changed\n")))
    assert first.name == second.name
    assert first.code != second.code


def test_training_that_repeats_its_process_is_recorded_once(apart):
    text = in_train("import os; os.fork()")
    experiment = load_experiment(str(write(apart / "own", text)))
    data = running.make_data(experiment, apart / "cache", None)
    ctx, process = Context(data.folder, apart / "run", experiment.parameters()), os.getpid()
    running.train(experiment, ctx)
    with (apart / "processes").open("a") as file:
        file.write(f"{os.getpid()}\n")
    assert (apart / "processes").read_text() == f"{process}\n"


def test_error_of_an_unknown_parameter_is_shown_without_a_traceback(apart, capfd):
    from kit.experiments.trial import check

    with pytest.raises(UsageError, match="unknown parameter 'moons'"):
        check(write(apart / "own"), moons=3)
    assert "Traceback" not in capfd.readouterr().err


PASSWORD = "a password of 31 characters 0815"
AT_RUN = {
    "train raises": (in_train("raise ValueError('in train')"), "got:  ValueError: in train", True),
    "metric is NaN": (changed(EVALUATE, "return {'error': float('nan')}"), "error is nan", True),
    "prints a secret": (
        in_train("import os; print(os.environ['CSC_PASSWORD'])"),
        "keep local.ipynb",
        False,
    ),
}


def failed_run(apart, target, text):
    """A run without services that fails; the password is in nothing that it leaves or shows."""
    words = ["run", target, "--profile", "laptop", "-p", "experiment"]
    argv = [sys.executable, "-m", "kit", *words, str(write(apart / "own", text))]
    more = {"CSC_PASSWORD": PASSWORD, "KIT_CACHE_DIR": str(apart / "cache")}
    environ = {**os.environ, **more, "KIT_RESULTS_DIR": str(apart / "results")}
    done = subprocess.run(argv, cwd=apart, env=environ, capture_output=True, text=True)
    assert done.returncode != 0
    stored = [path for path in apart.rglob("*") if path.is_file()]
    assert [path for path in stored if PASSWORD.encode() in path.read_bytes()] == []
    assert PASSWORD not in done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("case", AT_RUN)
def test_failed_run_shows_the_error_and_keeps_its_cells_unless_they_hold_a_secret(apart, case):
    text, wanted, kept = AT_RUN[case]
    done = failed_run(apart, "local", text)
    error = done.stderr[done.stderr.rindex("kit: ") :]
    assert wanted in error
    assert "next: " in error
    assert "Traceback" not in error
    assert bool([*apart.rglob("local-failed.ipynb")]) == kept


SHOWS_IT = "import os; it = os.environ['CSC_PASSWORD']; print('it is', it); raise ValueError(it)"


@pytest.mark.slow
def test_secret_that_a_component_prints_and_raises_is_taken_out_of_its_log_and_error(apart):
    done = failed_run(apart, "cloud", in_train(SHOWS_IT))
    assert "ValueError: (a secret)" in done.stderr
    (log,) = apart.rglob("pipeline.log")
    assert "it is (a secret)" in log.read_text()
    assert [*apart.rglob("cloud-failed.ipynb")]
