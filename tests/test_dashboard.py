"""The Grafana dashboard: its shape, and that it asks only for what the forwarder has."""

import json
import re

import pytest

from kit import gauges, settings

FILE = settings.ROOT / "env" / "platform" / "grafana" / "integration-dashboard.json"
BOARD = json.loads(FILE.read_text())
METRICS = {
    gauges.SEFF: {"BiUn", "Nod", "MemUtiByte", "MemEffByte"},
    gauges.SACCT: {"EnTi"},
    gauges.PIPELINE: {"ToSec"},
    gauges.TASK: {"ToWaiSec", "ToRunSec", "ToTasSec"},
}


def queries():
    """Every query of the dashboard: (title of the panel, PromQL)."""
    return [(one["title"], each["expr"]) for one in BOARD["panels"] for each in one["targets"]]


def test_published_links_and_the_data_source_keep_their_names():
    assert (BOARD["uid"], BOARD["title"]) == ("fdmzvjxt50ni8f", "Integration Dashboard")
    sources = [one["datasource"] for one in BOARD["panels"]]
    sources += [each["datasource"] for one in BOARD["panels"] for each in one["targets"]]
    assert [one for one in sources if one != {"type": "prometheus", "uid": "prometheus"}] == []


def test_there_are_seven_bar_charts_each_with_a_title_of_its_own():
    panels = BOARD["panels"]
    assert [one["type"] for one in panels] == ["barchart"] * 7
    assert len({one["title"] for one in panels}) == len({one["id"] for one in panels}) == 7
    assert [one["title"].split(":")[0] for one in panels] == (
        ["Last 5 jobs", *["Pipeline"] * 2, *["Forwarder"] * 2, *["Submitter"] * 2]
    )


def test_no_two_panels_overlap_and_none_leaves_the_page():
    cells = [
        (x, y)
        for grid in (one["gridPos"] for one in BOARD["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} <= set(range(24))


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_each_query_of_a_panel_becomes_a_named_bar_with_a_unit(panel):
    letters = [one["refId"] for one in panel["targets"]]
    assert letters == sorted(set(letters))
    assert all(one["instant"] and one["format"] == "table" for one in panel["targets"])
    merge, rename, keep = panel["transformations"]
    assert (merge["id"], rename["id"], keep["id"]) == ("merge", "organize", "filterFieldsByName")
    names = rename["options"]["renameByName"]
    assert list(names) == [f"Value #{letter}" for letter in letters]
    bar = panel["options"]["xField"]
    assert keep["options"]["include"]["names"] == [bar, *names.values()]
    units = panel["fieldConfig"]["overrides"]
    assert [one["matcher"]["options"] for one in units] == list(names.values())
    for each in panel["targets"]:
        assert re.search(rf"by \([^)]*\b{bar}\b|seff_metrics", each["expr"]), "no such column"


@pytest.mark.parametrize(("title", "query"), queries())
def test_queries_name_only_gauges_labels_and_metrics_that_there_are(title, query):
    found = re.findall(r"(cloud_hpc_\w+)\{([^}]*)\}", query)
    assert found, title
    for name, matchers in found:
        labels = dict(re.findall(r'(\w+)=~?"([^"]*)"', matchers))
        assert set(labels) <= set(gauges.LABELS[name])
        assert labels["metric"] in METRICS[name]


def test_everything_that_a_panel_is_about_is_asked_for():
    pairs = re.compile(r'(cloud_hpc_\w+)\{[^}]*metric="(\w+)"')
    asked = {pair for _, query in queries() for pair in pairs.findall(query)}
    assert asked == {(name, metric) for name, metrics in METRICS.items() for metric in metrics}
    text = FILE.read_text()
    for word in ("components", "ray-jobs", "-forwarder-", "-submitter-", "max by", "avg by"):
        assert word in text
