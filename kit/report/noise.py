"""Whether differences between columns are more than noise, and where the seconds went."""

import itertools
import statistics
from collections.abc import Iterable

from kit.base import read_history
from kit.base.settings import Settings
from kit.report.article.figures import SHARE, by_kind, published_seconds
from kit.report.table import Column, differences

INTERVAL = "95 % Wilson interval over the test images"


def compare(columns: Iterable[Column]) -> list[str]:
    """Report for every two new columns whether their differences are more than noise.

    Rule for times: more than noise when the ranges of at least two runs each do not meet. Rule
    for the share: more than noise when the Wilson intervals of the medians do not meet.
    """
    new = [column for column in columns if column.new]
    single = [column.title for column in new if len(column.values.get("training_s", ())) < 2]
    lines = []
    if single and len(new) > 1:
        names = ", ".join(single)
        lines.append(
            f"{names}: fewer than two runs, the noise of their times is not known "
            "(kit run --repeat 5)."
        )
    lines += [
        f"{column.title}: its median mixes runs{mixed}."
        for column in new
        if (mixed := differences(column.runs))
    ]
    for pair in itertools.combinations(new, 2):
        lines += [text for text in (_training_noise(*pair), _share_noise(*pair)) if text]
    return lines


def spread_over_seeds(settings: Settings) -> list[str]:
    """Return a line for each combination that sweeps have trained with several seeds.

    Mean and standard deviation of the primary metric, of trials that were trained to their end.
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in read_history(settings.profile_dir / "trials.jsonl")[0]:
        values, primary = dict(row.get("values", {})), str(row.get("primary", ""))
        if row.get("state") != "done" or "seed" not in values or primary not in row["metrics"]:
            continue
        del values["seed"]
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        key = (str(row["experiment"]), str(row["target"]), words, primary, str(row["run"]))
        groups.setdefault(key, []).append(row["metrics"][primary])
    return [
        f"{', '.join(filter(None, key[:3]))}: {key[3]} {statistics.mean(found):.4f} ± "
        f"{statistics.stdev(found):.4f} over {len(found)} seeds ({key[4]})."
        for key, found in groups.items()
        if len(found) > 1
    ]


def _training_noise(first: Column, second: Column) -> str:
    a, b = first.values.get("training_s", ()), second.values.get("training_s", ())
    if min(len(a), len(b)) < 2:
        return ""
    meet = min(a) <= max(b) and min(b) <= max(a)
    gap = abs(statistics.median(a) - statistics.median(b))
    verdict = "within the noise: the ranges meet" if meet else "more than noise"
    return f"{first.title} and {second.title}, training: {gap:.2f} s apart, {verdict}."


def _share_noise(first: Column, second: Column) -> str:
    a, b = first.interval(), second.interval()
    if a is None or b is None:
        return ""
    gap = abs((first.median(SHARE) or 0) - (second.median(SHARE) or 0))
    verdict = "within the noise" if a[0] <= b[1] and b[0] <= a[1] else "more than noise"
    return f"{first.title} and {second.title}, {SHARE}: {gap:.4f} apart, {verdict}."


def seconds_by_kind(columns: Iterable[Column]) -> dict[str, dict[str, float]]:
    """Return where the seconds of each published and newest new run went: title -> kind -> s."""
    return {
        column.title: by_kind(
            column.runs[-1].get("pipeline") or column.runs[-1].get("seconds", {})
            if column.new
            else published_seconds(column.name)
        )
        for column in columns
    }
