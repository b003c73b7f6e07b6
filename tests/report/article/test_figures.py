"""The published figures and where each is from."""

import json
import os
from pathlib import Path

import pytest

from kit.base import read_json
from kit.report import table as report
from kit.report.article.figures import ARTICLE, ODDITIES, ROWS, SOURCES, article_figures


@pytest.mark.parametrize(
    "said",
    [
        "Run 2 of cloud-hpc was made before run 1",
        "CANCELLED",
        "0.15 %",
        "6.5 s",
        "about 7 s",
        "no spread",
        "80 %",
        "not parallelism",
    ],
)
def test_the_oddities_of_the_published_figures_are_named(said):
    assert any(said in text for text in ODDITIES)


def test_every_figure_of_the_table_says_which_file_it_is_from():
    assert list(SOURCES) == list(ROWS)


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


@pytest.mark.parametrize("target", list(PUBLISHED))
def test_the_article_column_is_the_published_one(loaded, target):
    table, _ = report.read_table(loaded)
    column = table[f"article {target}"]
    assert tuple(column[label] for label in ROWS) == PUBLISHED[target]


def test_the_seconds_of_run_1_add_up_to_its_pipeline_within_one_second():
    went = read_json(ARTICLE)["cloud-hpc-1_went_to_s"]
    assert sum(went.values()) == pytest.approx(
        article_figures()["cloud-hpc-1"]["pipeline_s"], abs=1
    )


@pytest.mark.parametrize(
    ("file", "target", "keys"),
    [
        ("local/artifacts/local_metrics.json", "local", ("performance", "time")),
        ("cloud/artifacts/cloud-metrics.json", "cloud", ("performance", "time")),
    ],
)
def test_the_figures_are_those_of_the_published_files(file, target, keys):
    folder = os.environ.get("KIT_TEST_DATA")
    figures = article_figures()[target]
    if folder is None:  # the published files are not at hand
        assert figures["training_s"] > 1000
        return
    published = json.loads((Path(folder) / "article" / file).read_text())
    assert tuple(published) == keys
    assert figures["training_s"] == published["time"]["total-seconds"]
    assert figures["accuracy"] == round(published["performance"]["accuracy"], 4)
