"""The Grafana dashboard drawn here: its seven panels, its queries, answered by Prometheus."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import (
    ROOT,
    CredentialRefused,
    DataError,
    Json,
    KitError,
    Unreachable,
    UsageError,
    ca_bundle_step,
    read_env,
    read_json,
)
from kit.base.settings import Settings
from kit.report import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = ROOT / "env" / "platform" / "grafana" / "integration-dashboard.json"
TIMEOUT_S = 10.0


def panels(settings: Settings) -> tuple[dict[str, "Figure"], str]:
    """Draw each panel under its title; also return what is missing, and why."""
    drawn: dict[str, Figure] = {}
    empty = []
    try:
        for panel in read_json(FILE)["panels"]:
            bars = _bars(settings, panel)
            if bars:
                heights = [h for row in bars.values() for h in row.values() if h > 0]
                wide = bool(heights) and max(heights) > 1000 * min(heights)
                unit = "s" if set(_units(panel).values()) == {"s"} else ""
                drawn[panel["title"]] = plots.bars(bars, panel["title"], unit, logarithmic=wide)
            else:
                empty.append(panel["title"])
    except KitError as err:
        return drawn, f"The dashboard is not drawn. {err}"
    return drawn, f"Prometheus has nothing yet for: {', '.join(empty)}" if empty else ""


def _units(panel: Json) -> dict[str, str]:
    """Return the unit of each series."""
    rows = panel["fieldConfig"]["overrides"]
    return {row["matcher"]["options"]: row["properties"][0]["value"] for row in rows}


def _bars(settings: Settings, panel: Json) -> dict[str, dict[str, float]]:
    """Send the queries of a panel; return bar -> series -> height, bytes in GiB."""
    names = panel["transformations"][1]["options"]["renameByName"]
    bars: dict[str, dict[str, float]] = {}
    for target in panel["targets"]:
        series = names[f"Value #{target['refId']}"]
        scale = 1.0
        if _units(panel)[series] == "bytes":
            series, scale = f"{series}, GiB", 2.0**30
        for label, height in _ask(settings, target["expr"], panel["options"]["xField"]):
            bars.setdefault(label, {})[series] = height / scale
    return bars


def _ask(settings: Settings, query: str, label: str) -> list[tuple[str, float]]:
    """Query Prometheus for a vector; return one label and the value of each finite sample."""
    import requests

    cloud = settings.cloud
    if cloud is None or not cloud.prometheus_url:
        raise UsageError(
            f"profile {settings.profile} has no Prometheus", next_step="set [cloud] prometheus_url"
        )
    url = f"{cloud.prometheus_url.rstrip('/')}/api/v1/query"
    step = "check [cloud] prometheus_url; for the sandbox: kit sandbox status"
    path = Path(cloud.prometheus_env_file) if cloud.prometheus_env_file else None
    given: dict[str, str] = {}
    if path and path.exists():
        given = read_env(path, f"cannot read the login of Prometheus in {path}", step)
    names = ("PROMETHEUS_USERNAME", "PROMETHEUS_PASSWORD")
    words = tuple(given.get(name) or "" for name in names)
    auth = (words[0], words[1]) if any(words) else None
    try:
        answer = requests.get(url, {"query": query}, auth=auth, timeout=TIMEOUT_S)
        if answer.status_code == 401:
            raise CredentialRefused(
                f"ask {url}",
                "401",
                f"give {' and '.join(names)} in the file that [cloud] prometheus_env_file names",
            )
        answer.raise_for_status()
        rows = answer.json()["data"]["result"]
        found = [(str(row["metric"][label]), float(row["value"][1])) for row in rows]
    except requests.JSONDecodeError as err:
        raise DataError(f"ask {url}", "the answer is not JSON", step) from err
    except OSError as err:  # requests' own errors among them
        raise Unreachable(f"ask {url}", str(err)[:300], ca_bundle_step(err, step)) from err
    except (ValueError, KeyError, TypeError, IndexError) as err:
        raise DataError(f"ask {url}", f"not an answer of Prometheus: {err!r:.200}", step) from err
    return [(text, value) for text, value in found if math.isfinite(value)]
