"""Parameters in which the columns of a table differ: a row each, and a sentence below."""

import pytest

from kit.base import append_history
from kit.notebook.show import Table
from kit.report import experiments, page, parameters
from kit.report.table import table_notes


@pytest.mark.parametrize(
    ("new", "published", "names"),
    [
        ([], {"epochs": 5}, []),
        ([{"epochs": 5}], {"epochs": 5, "momentum": 0.9}, []),
        ([{"epochs": 1, "threads": 2}], {"epochs": 5, "momentum": 0.9}, ["epochs"]),
        ([{"epochs": 1}, {"epochs": 1}], {"epochs": 5}, ["epochs"]),
        ([{"epochs": 1}, {"epochs": 1}], None, []),
        ([{}, {"own": None}], None, ["own"]),
        ([{"own": None}, {}], None, ["own"]),
        ([{"layers": [1, 2]}, {"layers": [2, 1]}], None, ["layers"]),
    ],
)
def test_parameters_that_are_not_the_same_everywhere_are_named(new, published, names):
    assert parameters.differing(new, published) == names


def both(local, cloud):
    """Return a run of each target, with these parameters."""
    about = {"experiment": "digits", "figures": {}, "metrics": {"score": 1.0}, "primary": "score"}
    made = ("local", local), ("cloud", cloud)
    return [{"run": f"{t}-0-1", "target": t, "parameters": given, **about} for t, given in made]


@pytest.mark.parametrize(
    ("cloud", "rows"),
    [
        ({"lr": 0.02, "epochs": 40, "gates": {"accuracy": 0.1}, "strict": True}, {}),
        ({"lr": 0.02, "epochs": 40, "workers": 1}, {}),
        (
            {"lr": 0.01, "epochs": 20},
            {"parameter lr": ["0.02", "0.01"], "parameter epochs": ["40", "20"]},
        ),
        ({"lr": 0.02, "epochs": 40, "workers": 2}, {"parameter workers": ["1", "2"]}),
        ({"lr": 0.02, "epochs": 40, "kind": "l2"}, {"parameter kind": ["-", "l2"]}),
        ({"lr": 0.02, "epochs": 40, "own": None}, {"parameter own": ["-", "null"]}),
    ],
)
def test_parameters_in_which_columns_differ_have_a_row(loaded, cloud, rows):
    runs = both({"lr": 0.02, "epochs": 40}, cloud)
    table = experiments.experiment_table(loaded, runs, "digits")
    labels = [label for label in table["local"] if label.startswith("parameter")]
    assert {n: [table[t][n] for t in ("local", "cloud")] for n in labels} == rows
    (*notes,) = table_notes(table)
    assert len(notes) == bool(rows)
    if rows:
        names = ", ".join(label.removeprefix("parameter ") for label in rows)
        assert f"differ in the parameters {names}: kit report shows the newest" in notes[0]


def test_a_table_says_below_it_that_the_parameters_differ(loaded):
    loaded.profile_dir.mkdir(parents=True)
    for run in both({"lr": 0.02}, {"lr": 0.01}):
        append_history(loaded.profile_dir / "history.jsonl", {**run, "resumed": True})
    for form in ("table", "md", "html"):
        words = " ".join(page.text(loaded, form)[0].split())
        assert "The columns differ in the parameters lr: kit report shows the newest" in words
        assert "A resumed run was interrupted" in words
    shown = repr(Table(page.runs_of_experiment(loaded, "digits")))
    assert "The columns differ in the parameters lr" in shown
