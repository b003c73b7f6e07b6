"""The article's figures, the table, and the sizes of the notebooks."""

import json
import os
from pathlib import Path

import pytest

from kit.base import ROOT, DataError, append_history, read_json
from kit.base.settings import load
from kit.report import plots, sizes
from kit.report import table as report

# Contract of the published table: hand-copied from the article.
PUBLISHED = {
    "local": ("1,555.07", "-", "-", "-", "363", "0.8887", "-", "0.00", "0.00"),
    "cloud": ("1,020.58", "-", "1,023.35", "1,309.75", "3,181", "0.8937", "-", "2.98", "2.98"),
    "cloud-hpc-1": (
        *("271.85", "278.47", "884.72", "1,349.36", "6,642", "0.8941", "23.17", "3.07", "26.24"),
    ),
    "cloud-hpc-2": (
        *("272.92", "279.60", "839.86", "1,431.22", "6,642", "0.8820", "22.56", "3.26", "25.82"),
    ),
}


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    return load("sandbox")


def add(loaded, run, training_s, epochs=5, data="d1", **more):
    loaded.profile_dir.mkdir(parents=True, exist_ok=True)
    line = {
        "run": run,
        "target": run.rsplit("-", 2)[0],
        "parameters": {"epochs": epochs, "threads": 1, **more},
        "data": {"hash": data, "title": f"title {data}"},
        "figures": {"training_s": training_s, "accuracy": training_s / 100, "total_bu": 0},
        "host": {"cpu": "A CPU"},
    }
    append_history(loaded.profile_dir / "history.jsonl", line)


@pytest.mark.parametrize("target", list(PUBLISHED))
def test_the_article_column_is_the_published_one(loaded, target):
    table, _ = report.table(loaded)
    column = table[f"article {target}"]
    assert tuple(column[label] for label in report.ROWS) == PUBLISHED[target]


def test_the_seconds_of_run_1_add_up_to_its_pipeline_within_one_second():
    went = read_json(report.ARTICLE)["cloud-hpc-1_went_to_s"]
    assert sum(went.values()) == pytest.approx(report.article()["cloud-hpc-1"]["pipeline_s"], abs=1)


@pytest.mark.parametrize(
    ("file", "target", "keys"),
    [
        ("local/artifacts/local_metrics.json", "local", ("performance", "time")),
        ("cloud/artifacts/cloud-metrics.json", "cloud", ("performance", "time")),
    ],
)
def test_the_figures_are_those_of_the_published_files(file, target, keys):
    folder = os.environ.get("KIT_TEST_DATA")
    figures = report.article()[target]
    if folder is None:  # the published files are not at hand: the figures stand for themselves
        assert figures["training_s"] > 1000
        return
    published = json.loads((Path(folder) / "article" / file).read_text())
    assert tuple(published) == keys
    assert figures["training_s"] == published["time"]["total-seconds"]
    assert figures["accuracy"] == round(published["performance"]["accuracy"], 4)


def test_one_run_stands_as_it_is_and_several_as_median_and_range(loaded):
    add(loaded, "local-a-1", 50.0)
    assert report.table(loaded)[0]["local (new)"]["training s"] == "50.00"
    add(loaded, "local-a-2", 60.0)
    add(loaded, "local-a-3", 40.0)
    column = report.table(loaded)[0]["local (new)"]
    assert column["training s"] == "50.00 [40.00 to 60.00]"
    assert (column["runs"], column["hardware"]) == ("3", "A CPU, 1 thread(s)")


def test_runs_with_other_parameters_or_data_are_not_mixed(loaded):
    add(loaded, "local-a-1", 50.0)
    add(loaded, "local-b-1", 10.0, epochs=1)
    add(loaded, "local-c-1", 20.0, data="d2")
    column = report.table(loaded)[0]["local (new)"]
    assert (column["runs"], column["data"], column["training s"]) == ("1", "title d2", "20.00")
    add(loaded, "local-a-2", 70.0)
    assert report.table(loaded)[0]["local (new)"]["training s"] == "60.00 [50.00 to 70.00]"


def test_unconfigured_and_configured_runs_have_a_column_each_beside_the_articles(loaded):
    add(loaded, "cloud-hpc-b-1", 30.0, configured=True)
    add(loaded, "cloud-hpc-a-1", 20.0, configured=False)
    add(loaded, "local-a-1", 50.0)
    table, _ = report.table(loaded)
    new = {title: column["training s"] for title, column in table.items() if "(new)" in title}
    assert new == {
        "local (new)": "50.00",
        "cloud-hpc-1 (new)": "20.00",
        "cloud-hpc-2 (new)": "30.00",
    }
    assert list(new) == ["local (new)", "cloud-hpc-1 (new)", "cloud-hpc-2 (new)"]


def test_a_damaged_history_line_is_told_and_costs_only_itself(loaded):
    add(loaded, "local-a-1", 50.0)
    with (loaded.profile_dir / "history.jsonl").open("a") as file:
        file.write("{broken\n")
    table, problems = report.table(loaded)
    assert table["local (new)"]["runs"] == "1"
    assert len(problems) == 1


def test_markdown_and_terminal_table_have_every_row_and_column(loaded):
    table, _ = report.table(loaded)
    markdown = report.render(table, "md").splitlines()
    terminal = report.render(table, "table").splitlines()
    assert len(markdown) == len(terminal) == len(report.ROWS) + 6 + 2
    assert {line.count("|") for line in markdown} == {len(table) + 2}
    assert terminal[2].split()[:3] == ["training", "s", "1,555.07"]


def _notebook(path: Path, *sources: str) -> Path:
    cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
    cells.insert(0, {"cell_type": "markdown", "source": ["# no code\n", "at all"]})
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_rows_are_the_lines_of_all_code_cells(tmp_path):
    notebook = _notebook(tmp_path / "n.ipynb", "a = 1\n\n# comment\nb = 2", "", "c")
    assert report.notebook_rows(notebook) == 5


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": 3}', '{"cells": [{}]}'])
def test_what_is_no_notebook_is_named(tmp_path, content):
    path = tmp_path / "odd.ipynb"
    path.write_text(content)
    with pytest.raises(DataError, match="odd.ipynb"):
        report.notebook_rows(path)


def test_package_lines_follow_the_imports_of_the_files_imported(tmp_path):
    notebook = _notebook(
        tmp_path / "n.ipynb", "%matplotlib inline\nfrom kit.runs import history as runs"
    )
    lines = sizes.package_lines(notebook)
    assert {"runs/history.py", "base/files.py", "base/errors.py", "base/settings.py"} <= set(lines)
    assert "training.py" not in lines
    source = (ROOT / "kit" / "runs" / "history.py").read_text()
    assert lines["runs/history.py"] == len(source.splitlines())


def test_a_notebook_without_the_kit_pulls_in_only_the_package_itself(tmp_path):
    assert set(sizes.package_lines(_notebook(tmp_path / "n.ipynb", "import os"))) == {"__init__.py"}


def test_the_size_table_has_the_articles_rows_and_ours():
    table = sizes.table()
    assert table.loc["local", "article rows"] == 363
    assert table.loc["local", "our rows"] == report.notebook_rows(report.NOTEBOOKS / "local.ipynb")
    assert sizes.details().loc["together", "local"] == table.loc["local", "lines of kit/"]
    assert len(sizes.chart().axes) == 1


def test_no_two_parts_of_a_timeline_look_alike():
    parts = {f"part {number}": 1.0 for number in range(13)}
    (axes,) = plots.timeline({"a run": parts}).axes
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches]
    assert len(set(looks)) == len(looks) == 13


def test_a_part_looks_the_same_in_pictures_that_lack_another_one():
    both, one = {"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0}
    (more,), (less,) = plots.timeline({"x": both}).axes, plots.timeline({"x": one}).axes
    assert len(less.patches) == 1
    assert less.patches[0].get_facecolor() == more.patches[1].get_facecolor()
