"""The steps of the notebooks: one run from start to results, steps out of order, displays."""

import dataclasses
import os
import textwrap
import time

import numpy as np
import pytest
from idx_files import striped_images, write_folder
from own_experiments import GOOD, changed, write

import kit
from kit import tracking
from kit.base import DataError, UsageError, read_json
from kit.experiments.fashion_mnist import published_files


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """Results and data in a folder of the test."""
    monkeypatch.setenv("KIT_DATA_DIR", str(write_folder(tmp_path / "data", striped_images(50, 30))))
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_local_run_from_start_to_results(environ):
    run = kit.start("sandbox", "local", {"epochs": 2})
    assert "data: own files 50 + 30" in repr(run)
    for early, step in [
        (run.evaluate, "train"),
        (run.finish, "train"),
        (run.compare, "finish"),
        (run.show_loss, "train"),
        (run.show_results, "finish"),
        (run.show_metrics, "run_pipeline"),
    ]:
        with pytest.raises(UsageError, match=rf"came too early[\s\S]*{step}"):
            early()
    assert run.train().startswith("trained for ")
    assert run.evaluate().frame.shape == (11, 3)
    with pytest.raises(UsageError, match="finish"):
        run.compare()
    record = run.finish()
    assert record["parameters"]["epochs"] == 2
    assert record["data"]["test_items"] == 30
    shown = repr(run.show_results())
    assert run.run.folder.name in shown
    names = {}
    exec(textwrap.dedent(shown.partition("load the model:\n")[2]), names)
    assert list(names["model"].state_dict()), "the lines that are shown load it"
    assert "article" in run.compare().frame.columns
    for figure in (run.show_loss(), run.show_timeline()):
        assert figure._repr_png_().startswith(b"\x89PNG")
    pictures = run.show_figures()
    assert set(pictures.figures) == {"images", "confusion"}
    assert "data:image/png;base64," in pictures._repr_html_()
    assert run.show_figures().figures == {}, "each is shown once"
    published = read_json(environ / "results/sandbox/local/artifacts/local_metrics.json")
    assert published["performance"] == published_files.performance(record["metrics"])


def test_the_commit_of_the_start_goes_to_mlflow(environ, monkeypatch):
    """The person commits, or changes the branch, while the training runs."""
    run, logged = kit.start("sandbox", "local", {"epochs": 1}), []
    run.run.first["git"] = {"commit": "c" * 40, "clean": True}
    run.train()
    run.evaluate()
    send = tracking.log_run
    monkeypatch.setattr(tracking, "log_run", lambda *both: logged.append(both[1]) or send(*both))
    run.finish()
    assert logged[0].tags["mlflow.source.git.commit"] == "c" * 40


def test_data_with_absent_classes_is_marked_wherever_the_run_is_shown(environ):
    images = striped_images(50, 30)
    one_class = dataclasses.replace(images, test_labels=np.zeros_like(images.test_labels))
    write_folder(environ / "data", one_class)
    run = kit.start("sandbox", "local", {"epochs": 1})
    assert "no test image of 9 classes" in repr(run)
    assert "no test image of 9 classes" in run._repr_html_()


@pytest.mark.parametrize("address", ["127.0.0.1:5000", "databricks"])
def test_run_with_a_wrong_address_of_mlflow_is_published_and_waits(environ, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    run = kit.start("sandbox", "local", {"epochs": 1})
    run.train()
    run.evaluate()
    record = run.finish()
    assert record["tracking"]["state"] == "waiting"
    assert "MLFLOW_TRACKING_URI is not an address" in record["tracking"]["reason"]
    assert (environ / "results/sandbox/local/artifacts/local_metrics.json").exists()


def interrupted(monkeypatch, parameters, experiment):
    """A run whose training was interrupted after most of its steps."""
    from kit.notebook import progress

    def interrupt(self, step, steps, loss):
        if step > steps * 0.7:
            time.sleep(0.2)
            raise KeyboardInterrupt

    run = kit.start("sandbox", "local", parameters, experiment=experiment)
    with monkeypatch.context() as patch:
        patch.setattr(progress.Bar, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.train()
    run.run.lock.release(force=True)
    return run


@pytest.mark.parametrize(
    ("experiment", "step"),
    [("fashion_mnist", 26), ("digits", 135)],
    ids=["fashion_mnist", "digits"],
)
def test_an_interrupted_run_resumes_and_keeps_its_earlier_seconds(
    environ, monkeypatch, experiment, step
):
    first = interrupted(monkeypatch, {"epochs": 4}, experiment)
    second = kit.start("sandbox", "local", {"epochs": 4}, experiment=experiment)
    assert second.run.id == first.run.id
    assert f", resumed after step {step}" in second.train()
    second.evaluate()
    record = second.finish()
    assert record["resumed"] is True
    assert record["seconds"]["training"] >= 0.2


@pytest.mark.parametrize("least", [float("nan"), "0.5", None, True])
def test_a_gate_that_is_not_a_number_is_refused(environ, least):
    with pytest.raises(UsageError, match="gate of accuracy"):
        kit.start("sandbox", "local", {}, gates={"accuracy": least})


def test_a_wrong_parameter_is_refused_before_anything_starts(environ):
    with pytest.raises(UsageError, match="epochs = 0 is not valid"):
        kit.start("sandbox", "local", {"epochs": 0})
    assert not (environ / "results").exists()


def test_digits_run_from_start_to_results_with_their_own_metrics(environ):
    run = kit.start("sandbox", "local", {"epochs": 5}, experiment="digits")
    assert "experiment: digits" in repr(run)
    run.train()
    assert list(run.evaluate().frame.columns) == ["accuracy", "cross_entropy"]
    record = run.finish()
    assert (record["experiment"], record["primary"]) == ("digits", "accuracy")
    assert set(record["metrics"]) == {"accuracy", "cross_entropy"}
    assert "accuracy" not in record["figures"]
    beside = run.compare().frame
    assert list(beside.columns) == ["local"]
    assert beside.loc["accuracy", "local"] == f"{record['metrics']['accuracy']:.4f}"
    assert "model.npy" in repr(run.show_results())
    published = read_json(environ / "results/sandbox/local/artifacts/digits-metrics.json")
    assert published["metrics"] == record["metrics"]
    assert "np.save" in repr(kit.show_code("Model", experiment="digits"))


def test_pipeline_has_the_data_set_without_a_step_that_uploads_it(environ, monkeypatch):
    """As in the notebook that `kit new` writes."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setenv("KIT_CACHE_DIR", str(environ / "cache"))
    monkeypatch.setattr("kit.runs.outcome.run_pipeline", stop)
    run = kit.start("laptop", "cloud", {"epochs": 1}, experiment="digits")
    with pytest.raises(KeyboardInterrupt):
        run.run_pipeline()
    assert list(run.objects.store.list(f"data/{run.data.hash}"))


OTHER_CODE = changed("1 / step", "2 / step")
READS = changed('"[1, 2, 3]"', "(source / 'numbers.txt').read_text()")


@pytest.mark.parametrize("change", ["code", "data"])
def test_open_run_is_not_resumed_with_other_code_or_data(environ, monkeypatch, change):
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    write(environ / "data", "[1, 2, 3]").rename(environ / "data/numbers.txt")
    path = write(environ / "own", READS)
    first = interrupted(monkeypatch, {"steps": 9}, str(path))
    steps = dict(first.context.losses)
    if change == "code":
        path.write_text(changed("1 / step", "2 / step", READS))
    else:
        (environ / "data/numbers.txt").write_text("[4]")
    second = kit.start("sandbox", "local", {"steps": 9}, experiment=str(path))
    assert second.run.id != first.run.id
    assert not second.run.resumed
    assert second.train().startswith("trained for")
    assert second.context.resumed_step == 0
    second.evaluate()
    record = second.finish()
    assert record["resumed"] is False
    assert record["metrics"] == {"error": 0.0 if change == "code" else 2.0}
    kept = (second.run.folder / "source/experiment/mean_model.py").read_text()
    assert kept == path.read_text()
    path.write_text(READS)  # the first version, or nothing, comes back: so does the first run
    (environ / "data/numbers.txt").write_text("[1, 2, 3]")
    third = kit.start("sandbox", "local", {"steps": 9}, experiment=str(path))
    assert third.run.id == first.run.id
    assert third.run.resumed
    third.train()
    assert dict(third.context.losses).items() >= steps.items()


def test_two_versions_of_an_experiment_are_open_at_once_and_each_keeps_its_code(
    environ, monkeypatch
):
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    path, runs = environ / "own" / "mean_model.py", []
    for text in (GOOD, OTHER_CODE):
        write(environ / "own", text)
        runs.append(kit.start("sandbox", "local", {"steps": 4}, experiment=str(path)))
    for run, text, last in zip(runs, (GOOD, OTHER_CODE), (0.25, 0.5), strict=True):
        run.train()
        assert run.context.losses[-1] == (4, last)
        run.evaluate()
        run.finish()
        assert (run.run.folder / "source/experiment/mean_model.py").read_text() == text


def test_file_that_is_edited_while_the_run_starts_is_not_recorded_as_its_code(environ, monkeypatch):
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    edits = "    from pathlib import Path\n    Path(__file__).write_text('# edited')\n"
    text = changed("def data(folder, source):\n", f"def data(folder, source):\n{edits}")
    path = write(environ / "own", text)
    with pytest.raises(DataError, match="when they were loaded"):
        kit.start("sandbox", "local", {}, experiment=str(path))
    assert list((environ / "results").rglob("run.json")) == []


def test_an_experiment_of_ones_own_runs_from_its_file(environ, monkeypatch):
    monkeypatch.setenv("KIT_EXPERIMENTS", "")
    path = write(environ / "own")
    run = kit.start("sandbox", "local", {"steps": 2}, experiment=str(path))
    run.train()
    run.evaluate()
    record = run.finish()
    assert record["metrics"] == {"error": 0.0}
    assert (run.run.folder / "source/experiment/mean_model.py").read_text() == path.read_text()
    assert os.environ["KIT_EXPERIMENTS"] == str(path), "programs that it starts find it"
