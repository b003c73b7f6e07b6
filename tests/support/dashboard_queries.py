"""The Grafana dashboard of the platform and its queries."""

import json

from kit.base import ROOT

FILE = ROOT / "env" / "platform" / "grafana" / "integration-dashboard.json"
BOARD = json.loads(FILE.read_text())


def queries():
    """List the queries of the dashboard: (title of the panel, PromQL)."""
    return [
        (panel["title"], target["expr"]) for panel in BOARD["panels"] for target in panel["targets"]
    ]
