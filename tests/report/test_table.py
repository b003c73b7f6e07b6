"""The table: which runs are in a column and what it shows of them."""

import pytest
from report_runs import add_run, add_sweep

import kit
from kit.base import append_history
from kit.report import table as report
from kit.report.article.figures import ROWS
from kit.report.noise import compare


def add(loaded, run, training_s, epochs=5, data="d1", **more):
    loaded.profile_dir.mkdir(parents=True, exist_ok=True)
    facts = {"hash": data, "title": f"title {data}", "test_items": 180, "balanced": True}
    line = {
        "run": run,
        "target": run.rsplit("-", 2)[0],
        "data": more.pop("data_facts", facts),
        "figures": {"training_s": training_s, "accuracy": min(1, training_s / 100), "total_bu": 0},
        "host": more.pop("host", {"cpu": "A CPU"}),
        "git": more.pop("git", {"commit": "a"}),
    }
    line["parameters"] = {"epochs": epochs, "threads": 1, **more}
    append_history(loaded.profile_dir / "history.jsonl", line)


def test_several_runs_are_shown_as_median_and_range(loaded):
    add(loaded, "local-a-1", 50.0)
    assert report.read_table(loaded)[0]["local (new)"]["training s"] == "50.00"
    add(loaded, "local-a-2", 60.0)
    add(loaded, "local-a-3", 40.0)
    column = report.read_table(loaded)[0]["local (new)"]
    assert column["training s"] == "50.00 [40.00 to 60.00]"
    assert (column["runs"], column["hardware"]) == ("3", "A CPU, 1 thread(s)")


def test_runs_with_other_parameters_or_data_are_not_mixed(loaded):
    add(loaded, "local-a-1", 50.0)
    add(loaded, "local-b-1", 10.0, epochs=1)
    add(loaded, "local-c-1", 20.0, data="d2")
    column = report.read_table(loaded)[0]["local (new)"]
    assert (column["runs"], column["data"], column["training s"]) == ("1", "title d2", "20.00")
    add(loaded, "local-a-2", 70.0)
    assert report.read_table(loaded)[0]["local (new)"]["training s"] == "60.00 [50.00 to 70.00]"


def test_runs_with_other_parameters_than_the_article_say_so(loaded):
    add(loaded, "local-a-1", 50.0)
    table, label = report.read_table(loaded)[0], "parameter epochs"
    assert report.table_notes(table) == []
    add(loaded, "cloud-a-1", 50.0, epochs=1)
    table = report.read_table(loaded)[0]
    assert {title: column[label] for title, column in table.items()} == {
        "article local": "5",
        "article cloud": "5",
        "article cloud-hpc-1": "5",
        "article cloud-hpc-2": "5",
        "local (new)": "5",
        "cloud (new)": "1",
    }
    assert "The columns differ in the parameters epochs" in report.table_notes(table)[0]
    own, other = (kit.compare_with_article(loaded, name) for name in ("local", "cloud"))
    assert (label in own.index, own.attrs["notes"]) == (False, "")
    assert list(other.loc[label]) == ["5", "1"]
    assert "parameters epochs" in other.attrs["notes"]


def test_a_run_with_an_interval_over_seeds_is_shown_beside_the_article(loaded):
    add_run(loaded, "local", 60.0)
    add_sweep(loaded, "local", {"threads": 1, "configured": False}, (0.4, 0.5))
    beside = kit.compare_with_article(loaded, "local")
    assert beside.loc["accuracy, 95 % interval (t over seeds)", "article"] == "-"


def test_unconfigured_and_configured_runs_have_a_column_each_beside_the_articles(loaded):
    add(loaded, "cloud-hpc-b-1", 30.0, configured=True)
    add(loaded, "cloud-hpc-a-1", 20.0, configured=False)
    add(loaded, "local-a-1", 50.0)
    table, _ = report.read_table(loaded)
    new = {title: column["training s"] for title, column in table.items() if "(new)" in title}
    assert new == {
        "local (new)": "50.00",
        "cloud-hpc-1 (new)": "20.00",
        "cloud-hpc-2 (new)": "30.00",
    }
    assert list(new) == ["local (new)", "cloud-hpc-1 (new)", "cloud-hpc-2 (new)"]


def test_a_damaged_history_line_is_reported_and_left_out(loaded):
    add(loaded, "local-a-1", 50.0)
    with (loaded.profile_dir / "history.jsonl").open("a") as file:
        file.write("{broken\n")
    table, problems = report.read_table(loaded)
    assert table["local (new)"]["runs"] == "1"
    assert len(problems) == 1


def test_markdown_table_has_every_row_and_column(loaded):
    table, _ = report.read_table(loaded)
    markdown = report.to_form(table, "md").splitlines()
    assert len(markdown) == len(ROWS) + 6 + 2
    assert {line.count("|") for line in markdown} == {len(table) + 2}


def test_terminal_table_fits_100_columns_with_every_row_and_column(loaded):
    cpu = "An Extraordinarily Long Processor Name with 64 Cores @ 2.40GHz"
    for target in ("local", "cloud", "cloud-hpc"):
        for number, seconds in enumerate((1051.25, 1060.0, 1040.0), 1):
            add(loaded, f"{target}-a-{number}", seconds, host={"cpu": cpu}, configured=False)
    table, problems = report.read_table(loaded)
    assert problems == []
    text = report.to_form(table, "table")
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    for column in table:
        assert all(word in words for word in column.split())
    for label in ROWS:
        assert text.count(f"\n{label}  ") == text.count("\n\n") + 1 == 2
    assert "1,051.25 [1,040.00 to" in words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"figures": {"accuracy": 99.1}}, "accuracy is not between 0 and 1"),
        ({"figures": {"accuracy": -0.1}}, "accuracy is not between 0 and 1"),
        ({"figures": None}, "figures is not a table"),
        ({"figures": []}, "figures is not a table"),
        ({"figures": {"training_s": "50"}}, "training_s is not a number"),
        ({"data": None}, "data is not a table"),
        ({"data": "official"}, "data is not a table"),
        ({"data": {"title": 7}}, "data.title is not a text"),
        ({"host": None}, "host is not a table"),
        ({"target": None}, "no known target"),
        ({"parameters": None}, "parameters is not a table"),
        ({"parameters": {"threads": [1]}}, "parameters.threads"),
        ({"data": {"test_items": "180"}}, "data.test_items is not a number"),
        ({"pipeline": "none"}, "pipeline is not a table"),
        ({"pipeline": {"training": None}}, "pipeline.training is not a number"),
    ],
)
def test_one_odd_field_of_the_history_costs_only_its_line(loaded, change, words):
    add(loaded, "local-a-1", 50.0)
    line = {"run": "local-b-1", "target": "local", "parameters": {"threads": 1}, **change}
    append_history(loaded.profile_dir / "history.jsonl", line)
    table, problems = report.read_table(loaded)
    assert table["local (new)"]["training s"] == "50.00"
    (problem,) = problems
    assert words in problem


def test_a_median_over_several_machines_or_code_versions_says_so(loaded):
    add(loaded, "local-a-1", 50.0)
    add(loaded, "local-a-2", 10.0, host={"cpu": "Another CPU"}, git={"commit": "b"})
    column = report.read_table(loaded)[0]["local (new)"]
    assert column["runs"] == "2 on 2 machines, 2 code versions"
    assert "mixes runs on 2 machines" in compare(report.columns(loaded)[0])[0]


@pytest.mark.parametrize(
    "data", [{"test_items": 180}, {"test_items": 180, "balanced": False}, {"balanced": True}, {}]
)
def test_no_interval_where_wilsons_condition_is_not_known_to_hold(loaded, data):
    """Macro accuracy is a share of the items only where all classes have the same size."""
    add(loaded, "local-a-1", 50.0, data_facts={"hash": "d", "title": "own 720 + 180", **data})
    column = report.read_table(loaded)[0]["local (new)"]
    assert column["accuracy"] == "0.5000"
    assert column["accuracy, 95 % interval (Wilson)"] == "-"
