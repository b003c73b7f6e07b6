"""`kit run`: parameters, budget, profile."""

import pytest
from click.testing import CliRunner

import kit.billing
from kit.base import Unreachable, UsageError
from kit.cli.main import cli
from kit.runs import notebooks


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """The parameters of each notebook that was run; nothing is executed."""
    runs = []
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(
        notebooks, "run_notebook", lambda _settings, name, values, _: runs.append((name, values))
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-p", "epochs", "0"), "epochs"),
        (("-p", "batch_size", "0"), "batch_size"),
        (("-p", "threads", "0"), "threads"),
        (("-p", "learning_rate", "nan"), "learning_rate"),
        (("-p", "epoch", "1"), "no parameter 'epoch'"),
        (("--profile", "atlantis"), "profile 'atlantis' does not exist"),
        (("--repeat", "0"), "repeat"),
    ],
)
def test_wrong_input_exits_2_before_a_kernel_starts(monkeypatch, tmp_path, words, message):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(notebooks, "_execute", None)
    done = run("local", *words)
    assert getattr(done.exception, "exit_code", done.exit_code) == 2
    assert message in f"{done.exception} {done.output}"
    assert not list(tmp_path.rglob("local_metrics.json"))


@pytest.mark.parametrize("target", ["local", "cloud"])
@pytest.mark.parametrize("budget", ["20,5", "lots", "-5", "nan", "inf", ""])
def test_a_budget_that_is_not_a_number_is_refused_for_every_target(executed, target, budget):
    done = run(target, f"--budget={budget}")
    assert done.exit_code == 2
    assert "'--budget'" in done.output
    assert executed == []


def test_end_of_a_run_names_what_waits_for_mlflow_and_the_warning_of_its_data(
    executed, monkeypatch
):
    record = {
        "run": "local-0123456789ab-1",
        "target": "local",
        "figures": {"training_s": 1.0, "accuracy": 0.5},
        "tracking": {"run_id": "local-0123456789ab-1", "state": "waiting", "reason": "no answer"},
        "data": {"warning": "no test image of 9 classes"},
    }
    monkeypatch.setattr(notebooks, "run_notebook", lambda *_: record)
    done = run("local")
    assert done.exit_code == 0, done.output
    assert "does not have run local-0123456789ab-1 yet (no answer)" in done.stdout
    assert "data: no test image of 9 classes" in done.stdout


def test_a_sweep_gets_what_varies_what_is_fixed_and_its_options(executed):
    words = ["-p", "seed", "1..3", "-p", "rate=0.1,0.2", "-p", "epochs", "2", "--at-once", "4"]
    words += ["-p", "experiment", "../own.py", "--stop-early", "--trial-limit", "60"]
    done = CliRunner().invoke(cli, ["sweep", "local", *words])
    assert done.exit_code == 0, done.output
    (name, values) = executed[0]
    assert name == "sweep"
    assert values["space"] == {"seed": "1..3", "rate": "0.1,0.2"}
    assert (values["epochs"], values["experiment"], values["parameters"]) == (2, "../own.py", {})
    assert (values["target"], values["at_once"], values["stop_early"]) == ("local", 4, True)
    assert (values["trial_limit_s"], values["trials"], values["fresh"]) == (60.0, 0, False)


@pytest.mark.parametrize("not_run", [0, 21])
def test_the_end_of_a_sweep_says_what_a_cancel_has_left(executed, monkeypatch, not_run):
    sweep = {"done": 24 - not_run, "trials": 24, "failed": 0, "not_run": not_run}
    sweep["best"] = {"learning_rate": 0.01, "seed": 3}
    record = {"run": "cloud-hpc-0123456789ab-1", "sweep": sweep}
    record |= {"primary": "accuracy", "metrics": {"accuracy": 0.985}}
    monkeypatch.setattr(notebooks, "run_notebook", lambda *_: record)
    done = CliRunner().invoke(cli, ["sweep", "local", "-p", "seed", "1..24"])
    assert done.exit_code == 0, done.output
    assert ("21 not run: the same command runs them" in done.stdout) == bool(not_run)
    assert "  best: learning_rate 0.01, seed 3: accuracy 0.985\n" in done.stdout


@pytest.mark.parametrize(
    "words", [["--at-once", "0"], ["--trials", "-1"], ["--trial-limit", "-1"], ["--budget", "x"]]
)
def test_wrong_options_of_a_sweep_are_refused(executed, words):
    done = CliRunner().invoke(cli, ["sweep", "local", "-p", "seed", "1..3", *words])
    assert done.exit_code == 2
    assert executed == []


@pytest.mark.parametrize("words", [["run", "local"], ["sweep", "local", "-p", "seed", "1..3"]])
@pytest.mark.parametrize("reached", [True, False], ids=["too few", "not known"])
def test_a_run_and_a_sweep_are_compared_with_the_units_left(executed, monkeypatch, words, reached):
    def left(settings, host, target, limit):
        assert (target, limit) == ("local", "5")
        if reached:
            raise UsageError("run it", "12 BU are left, it may cost 20")
        raise Unreachable("reach hpc by ssh", "no route to host")

    monkeypatch.setattr(kit.billing, "check_affordable", left)
    done = CliRunner().invoke(cli, [*words, "--budget", "5"])
    assert done.exit_code == (1 if reached else 0)
    assert ("12 BU are left" if reached else "the units left in the project are not known") in (
        str(done.exception) + done.output
    )
    assert bool(executed) != reached
