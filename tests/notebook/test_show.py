"""What the notebooks show: texts, tables, code."""

from kit.experiments import load_experiment
from kit.notebook.show import Table, Text, accounting_table, experiment_code, metrics_table


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
    fashion = load_experiment("fashion_mnist")
    assert "<span style=" in experiment_code(fashion, "PlainStep")._repr_html_()
    shown = repr(experiment_code(fashion, "PlainStep"))
    assert "loss.backward()" in shown
    assert "self.optimizer.step()" in shown
    other = repr(experiment_code(load_experiment("digits"), "PlainStep"))
    assert "def train(ctx" in other, "an experiment without that name shows its two functions"
    assert "def evaluate(ctx" in other


def test_metrics_of_classes_are_rows_and_those_of_all_the_last_one():
    metrics = {"accuracy": 0.5, "loss": 1.23456, "top-accuracy": 0.25, "bag-accuracy": 0.75}
    frame = metrics_table(metrics).frame
    assert list(frame.index) == ["top", "bag", "all"]
    assert list(frame.columns) == ["accuracy", "loss"]
    assert (frame.loc["bag", "accuracy"], frame.loc["all", "loss"]) == (0.75, 1.2346)


def test_job_without_accounting_is_a_sentence_in_place_of_a_table():
    assert repr(accounting_table({})) == "This site has no accounting of the job."
