"""The steps of the notebooks: one run from start to results, steps out of order, displays."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from idx_files import striped_images, write_folder

import kit
from kit.base import KitError, UsageError, read_json
from kit.experiments.fashion_mnist.training import load_model
from kit.notebook import cloud_hpc
from kit.notebook.run import check_gates
from kit.notebook.show import Table, Text, experiment_code


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
        (run.show_confusion, "evaluate"),
        (run.show_results, "finish"),
        (run.show_metrics, "run_pipeline"),
    ]:
        with pytest.raises(UsageError, match=rf"came too early[\s\S]*{step}"):
            early()
    assert run.train().startswith("2 epochs: ")
    assert run.evaluate().frame.shape == (11, 3)
    with pytest.raises(UsageError, match="finish"):
        run.compare()
    record = run.finish()
    assert record["parameters"]["epochs"] == 2
    assert record["data"]["test_items"] == 30
    assert run.run.folder.name in repr(run.show_results())
    load_model(run.run.folder / "model.safetensors")
    assert "article" in run.compare().frame.columns
    for figure in (run.show_images(), run.show_loss(), run.show_confusion(), run.show_timeline()):
        assert figure._repr_png_().startswith(b"\x89PNG")
    published = read_json(environ / "results/sandbox/local/artifacts/local_metrics.json")
    assert published["performance"] == record["performance"]


def test_an_interrupted_run_resumes_and_keeps_its_earlier_seconds(environ, monkeypatch):
    from kit.notebook import progress

    def interrupt(self, step, steps, loss):
        if step > steps * 0.7:
            time.sleep(0.2)
            raise KeyboardInterrupt

    first = kit.start("sandbox", "local", {"epochs": 4})
    with monkeypatch.context() as patch:
        patch.setattr(progress.Bar, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.train()
    first.run.lock.release(force=True)
    second = kit.start("sandbox", "local", {"epochs": 4})
    assert second.run.id == first.run.id
    assert ", 2 of them before" in second.train()
    second.evaluate()
    record = second.finish()
    assert record["resumed"] is True
    assert record["seconds"]["training"] >= 0.2


@pytest.mark.parametrize("gates", [{"accuracy": 80}, {"recall": -0.1}, {"f1": 0.5}])
def test_a_gate_that_no_figure_can_have_is_refused(gates):
    with pytest.raises(UsageError, match="is not valid"):
        check_gates(gates)


def test_a_wrong_parameter_is_refused_before_anything_starts(environ):
    with pytest.raises(UsageError, match="epochs = 0 is not valid"):
        kit.start("sandbox", "local", {"epochs": 0})
    assert not (environ / "results").exists()


def test_the_notebook_shows_why_its_own_submitter_ended(tmp_path):
    log = tmp_path / "submitter.log"
    log.write_text("one line\nKIT_COMPOSE_SECRETS names a file that does not exist\n")
    requests = SimpleNamespace(read=lambda run, name: None)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        submitter = cloud_hpc.Submitter(child, log)
        assert cloud_hpc.note(submitter, requests, "run", ()) == ""
        child.kill()
        child.wait()
    with pytest.raises(KitError, match="KIT_COMPOSE_SECRETS names a file") as caught:
        cloud_hpc.note(submitter, requests, "run", ())
    assert "exit code -9" in caught.value.tried
    assert "run this cell again" in caught.value.next_step


def test_texts_are_escaped_and_long_ones_are_folded():
    shown = Text("a < b")._repr_html_()
    assert shown == "<pre style='font-family:monospace'>a &lt; b</pre>"
    folded = Text("#SBATCH", "The batch script")._repr_html_()
    assert folded.startswith("<details><summary>The batch script</summary>")
    assert repr(Text("#SBATCH", "The batch script")) == "#SBATCH"


def test_a_table_has_its_link_and_its_sentences():
    import pandas

    table = Table(pandas.DataFrame({"a": [1]}), "http://127.0.0.1:5000/#/x", "3 BU < 4 BU")
    shown = table._repr_html_()
    assert '<a href="http://127.0.0.1:5000/#/x">' in shown
    assert "3 BU &lt; 4 BU" in shown
    assert "3 BU < 4 BU" in repr(table)
    assert repr(Table(pandas.DataFrame(), notes="Nothing to pay.")) == "Nothing to pay."


def test_the_code_that_is_shown_is_the_code_that_runs():
    assert "<span style=" in experiment_code("PlainStep")._repr_html_()
    shown = repr(experiment_code("PlainStep"))
    assert "loss.backward()" in shown
    assert "self.optimizer.step()" in shown
    with pytest.raises(UsageError, match="no such name"):
        experiment_code("Nothing")
