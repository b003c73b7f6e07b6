"""A table of the runs of each experiment, with its own metrics."""

import math
import statistics
from collections.abc import Iterable, Sequence

from kit.base import Json, KitError
from kit.base.settings import Settings
from kit.billing import bill_of_run, format_units, totals
from kit.experiments import DEFAULT
from kit.report.intervals import Spread, read_spreads, spread_of, wilson
from kit.report.parameters import differing, parameter_rows, trained_with
from kit.report.table import Table, count_of, experiment_of_run, newest_groups, read_runs


def own_tables(settings: Settings) -> dict[str, Table]:
    """Return a table for each experiment beside the article's that has finished runs."""
    runs, spreads = read_runs(settings)[0], read_spreads(settings)
    names = dict.fromkeys(map(experiment_of_run, runs))
    return {name: _table(settings, runs, name, spreads) for name in names if name != DEFAULT}


def experiment_table(settings: Settings, runs: Iterable[Json], name: str) -> Table:
    """Return a column for each target: the median of all its runs with the newest parameters.

    Parameters in which the columns differ have a row each.
    The billing units are those of the newest run, each kind for itself. The primary metric has
    its interval over the items tested on, and over seeds where a sweep has trained the same.
    """
    return _table(settings, runs, name, read_spreads(settings))


def _table(settings: Settings, runs: Iterable[Json], name: str, spreads: Sequence[Spread]) -> Table:
    own = [run for run in runs if experiment_of_run(run) == name]
    groups = newest_groups(own, lambda run: str(run["target"]))
    trained = {target: trained_with(group[-1]) for target, group in groups.items()}
    rows = parameter_rows(trained, differing(trained.values()))
    return {
        target: _column(group, spreads) | _units(settings, group[-1]) | rows[target]
        for target, group in groups.items()
    }


def _column(group: Sequence[Json], spreads: Sequence[Spread]) -> dict[str, str]:
    newest = group[-1]
    cells = {"data": str((newest.get("data") or {}).get("title", "")), "runs": count_of(group)}
    for label, key in (("training s", "training_s"), ("pipeline s", "pipeline_s")):
        values = [run["figures"][key] for run in group if key in run.get("figures", {})]
        cells[label] = f"{statistics.median(values):,.2f}" if values else "-"
    for metric in newest.get("metrics") or {}:
        if "-" not in metric:
            values = [run["metrics"][metric] for run in group if metric in run["metrics"]]
            cells[metric] = f"{statistics.median(values):.4f}"
    seeds = spread_of(spreads, newest, str(newest.get("primary")))
    return {**cells, **_interval(newest), **(seeds.cell() if seeds else {})}


def _units(settings: Settings, run: Json) -> dict[str, str]:
    """Return what a run cost by kind; where its files are damaged, the command that says why."""
    try:
        sums = totals(bill_of_run(settings, run).lines)
    except KitError:
        return {"units": f"kit bill {run['run']}"}
    return {f"{kind}, newest run": format_units(units) for kind, units in sums.items()}


def _interval(run: Json) -> dict[str, str]:
    """Return the interval of the primary metric where it is the share of the items tested on."""
    name, items = run.get("primary"), (run.get("data") or {}).get("test_items") or 0
    share = (run.get("metrics") or {}).get(name, math.nan)
    if not (items and 0 <= share <= 1 and math.isclose(share * items, round(share * items))):
        return {}
    low, high = wilson(share, items)
    return {f"{name}, 95 % interval (Wilson)": f"{low:.4f} to {high:.4f}"}
