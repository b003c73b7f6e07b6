"""The Grafana dashboard: its shape, and that it asks only for what the forwarder has."""

import dataclasses
import json
import re
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from dashboard_queries import BOARD, FILE, queries

from kit.base.settings import load
from kit.forwarder import gauges
from kit.report import dashboard

METRICS = {
    gauges.SEFF: {"BiUn", "Nod", "MemUtiByte", "MemEffByte"},
    gauges.SACCT: {"EnTi"},
    gauges.PIPELINE: {"ToSec"},
    gauges.TASK: {"ToWaiSec", "ToRunSec", "ToTasSec"},
}


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


@pytest.fixture
def prometheus(tmp_path):
    """A Prometheus that gives `answer(query)`; `profile` is a profile that leads to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            words = b64encode(b"kit:sesame").decode()
            good = self.headers["Authorization"] == f"Basic {words}"
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            body = server.answer(query) if good else b"Unauthorized"
            self.send_response(200 if good else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer = lambda query: vector([])
    file = tmp_path / "prometheus.env"
    file.write_text("PROMETHEUS_USERNAME=kit\nPROMETHEUS_PASSWORD=sesame\n")
    file.chmod(0o600)
    ours = load("sandbox")
    url = f"http://127.0.0.1:{server.server_port}"
    cloud = dataclasses.replace(ours.cloud, prometheus_url=url, prometheus_env_file=str(file))
    server.profile = dataclasses.replace(ours, cloud=cloud)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def vector(rows):
    result = [{"metric": labels, "value": [0, value]} for labels, value in rows]
    return json.dumps({"data": {"result": result}}).encode()


def test_all_panels_are_drawn_with_their_titles_and_every_series(prometheus):
    asked = []

    def answer(query):
        asked.append(query)
        label = "jobid" if "seff" in query else "name" if "pipeline" in query else "group"
        return vector([({label: "one"}, "2.5"), ({label: "two"}, "1e9"), ({label: "x"}, "+Inf")])

    prometheus.answer = answer
    drawn, missing = dashboard.panels(prometheus.profile)
    assert missing == ""
    assert list(drawn) == [one["title"] for one in BOARD["panels"]]
    assert asked == [query for _, query in queries()]
    figure = drawn["Last 5 jobs"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["one", "two"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["billing units", "nodes", "memory used, GiB", "memory held, GiB"]
    assert [round(bar.get_height(), 3) for bar in figure.axes[0].containers[2]] == [0, 0.931]
    assert figure.axes[0].get_yscale() == "log"


def test_a_dashboard_without_runs_names_what_is_missing(prometheus):
    drawn, missing = dashboard.panels(prometheus.profile)
    assert drawn == {}
    assert missing.startswith("Prometheus has nothing yet for: Last 5 jobs, Pipeline")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"data": {"result": [{"metric": {}, "value": []}]}}']
)
def test_an_invalid_answer_is_reported_in_a_sentence(prometheus, body):
    prometheus.answer = lambda query: body
    drawn, missing = dashboard.panels(prometheus.profile)
    assert drawn == {}
    assert missing.startswith("The dashboard is not drawn. ")
    assert "kit sandbox status" in missing


def test_wrong_password_and_missing_server_are_distinguished(prometheus):
    ours = prometheus.profile

    def error_of(**changes):
        cloud = dataclasses.replace(ours.cloud, **changes)
        return dashboard.panels(dataclasses.replace(ours, cloud=cloud))[1]

    assert "give PROMETHEUS_USERNAME and PROMETHEUS_PASSWORD" in error_of(prometheus_env_file="")
    assert "kit sandbox status" in error_of(prometheus_url="http://127.0.0.1:1")
    assert "has no Prometheus" in error_of(prometheus_url="")
