"""What the notebooks show: texts, tables, code."""

import pytest

from kit.base import UsageError
from kit.notebook.show import Table, Text, accounting_table, experiment_code


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


def test_job_without_accounting_is_a_sentence_in_place_of_a_table():
    assert repr(accounting_table({})) == "This site has no accounting of the job."
