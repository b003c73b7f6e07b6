"""Runs of each experiment have a table of their own, with its metrics."""

import pytest
from report_runs import DATA, add_run, add_sweep

from kit.base import append_history
from kit.report import experiments, page
from kit.report.table import columns


def run_of(name, target="local", metrics=None, **more):
    data = {"hash": "d", "title": "some data", "test_items": 10}
    return {
        "run": f"{target}-0-1",
        "target": target,
        "experiment": name,
        "parameters": {"a": 1},
        "data": data,
        "figures": {"training_s": 2.0},
        "metrics": metrics or {"accuracy": 0.5, "top-accuracy": 0.25},
        "primary": "accuracy",
        **more,
    }


def test_table_has_the_medians_of_the_newest_kind_of_runs(loaded):
    runs = [
        run_of("digits", metrics={"accuracy": 0.1}, parameters={"a": 0}),
        run_of("digits", metrics={"accuracy": 0.5}),
        run_of("digits", metrics={"accuracy": 0.7}),
        run_of("other"),
    ]
    (column,) = experiments.experiment_table(loaded, runs, "digits").values()
    assert (column["accuracy"], column["runs"], column["training s"]) == ("0.6000", "2", "2.00")
    assert column["accuracy, 95 % interval (Wilson)"] == "0.3968 to 0.8922"
    assert "top-accuracy" not in column


def test_all_runs_with_the_newest_parameters_and_data_are_counted(loaded):
    """Also those before a run with other ones, and on how many versions of the code."""
    runs = [
        run_of("digits", metrics={"accuracy": 0.3}, code="a"),
        run_of("digits", metrics={"accuracy": 0.1}, parameters={"a": 0}, code="a"),
        run_of("digits", metrics={"accuracy": 0.5}, code="b", resumed=True),
    ]
    column = experiments.experiment_table(loaded, runs, "digits")["local"]
    assert (column["accuracy"], column["runs"]) == ("0.4000", "2 on 2 code versions; 1 resumed")


@pytest.mark.parametrize("value", [0.512, 30.0, -1.0])
def test_metric_that_is_not_a_share_of_the_items_has_no_interval(loaded, value):
    runs = [run_of("x", metrics={"accuracy": value})]
    column = experiments.experiment_table(loaded, runs, "x")["local"]
    assert [label for label in column if "interval" in label] == []


def test_interval_over_seeds_is_that_of_the_newest_sweep_with_the_same_parameters(loaded):
    run, label = run_of("digits"), "accuracy, 95 % interval (t over seeds)"
    kind = {"parameters": run["parameters"] | {"seed": 1}, "data": DATA}
    run |= kind
    for number, (parameters, metrics) in enumerate(
        [({"a": 1}, (0.1, 0.2)), ({"a": 1}, (0.5, 0.7)), ({"a": 2}, (0.8, 0.9)), ({"a": 1}, (1,))]
    ):
        add_sweep(loaded, "cloud-hpc", parameters, metrics, number, experiment="digits")
    column = experiments.experiment_table(loaded, [run], "digits")["local"]
    assert column[label] == "-0.6706 to 1.8706 (2 seeds)"
    others = (
        {"data": {**DATA, "hash": "e"}},
        {"primary": "score", "metrics": {"other": 0.5}, "parameters": {"a": 3}},
        {"parameters": {"a": 1, "seed": 1, "workers": 2}},
        {"experiment": "other"},
    )
    for other in others:
        different = run | other
        name = different["experiment"]
        assert label not in experiments.experiment_table(loaded, [different], name)["local"]


def test_units_of_the_newest_run_are_beside_its_metric(loaded):
    figures = {"training_s": 2.0, "pipeline_s": 36.0}
    run = run_of("digits", "cloud-hpc", run="cloud-hpc-0123456789ab-1", figures=figures)
    folder = loaded.profile_dir / "runs" / run["run"]
    folder.mkdir(parents=True)
    names = (
        "JobID|JobName|Partition|State|AllocCPUS|AllocNodes|Submit|Start|End|ElapsedRaw|AllocTRES"
    )
    row = "5|kit-0123456789ab|small|COMPLETED|2|1|100|110|146|36|cpu=2,mem=4G,node=1"
    (folder / "sacct.txt").write_text(f"{names}\n{row}\n")
    column = experiments.experiment_table(loaded, [run], "digits")["cloud-hpc"]
    # max(2 x 0.75, 4 x 0.375) = 1.5 an hour; VM and address 8.60 an hour
    assert (column["CPU BU, newest run"], column["Cloud BU, newest run"]) == ("0.02", "0.09")
    assert column["accuracy"] == "0.5000"


def test_run_whose_files_are_damaged_names_the_command_that_says_why(loaded):
    run = run_of("digits", "cloud-hpc", run="cloud-hpc-0123456789ab-1")
    folder = loaded.profile_dir / "runs" / run["run"]
    folder.mkdir(parents=True)
    (folder / "sacct.txt").write_text("JobID|State\nx|y\n")
    column = experiments.experiment_table(loaded, [run], "digits")["cloud-hpc"]
    assert column["units"] == "kit bill cloud-hpc-0123456789ab-1"


def test_runs_of_another_experiment_are_not_beside_the_article(loaded, monkeypatch):
    add_run(loaded, "local", 60.0)
    before = [column.title for column in columns(loaded)[0]]
    history = loaded.profile_dir / "history.jsonl"
    append_history(history, run_of("digits"))
    assert [column.title for column in columns(loaded)[0]] == before
    text = page.text(loaded, "table")[0]
    assert text.startswith("Below the article's table: digits.\n")
    assert "Experiment digits" in text
    assert "Experiment fashion_mnist" not in text
    assert list(page.runs_of_experiment(loaded, "digits").columns) == ["local"]
