"""Whether differences between columns are more than noise, and where the seconds went."""

import itertools
import statistics
from collections.abc import Iterable

from kit.report.article.figures import SHARE, by_kind, published_seconds
from kit.report.table import Column, differences, differing_parameters

INTERVAL = "95 % Wilson interval over the test images"
OVER_SEEDS = "over seeds (Student's t)"


def compare(columns: Iterable[Column]) -> list[str]:
    """Report for every two new columns whether their differences are more than noise.

    Rule for times: more than noise when the ranges of at least two runs each do not meet. Rule
    for the share: more than noise when the intervals do not meet, that over seeds where a sweep
    has trained the same with several, else Wilson's around the median. Where the two were trained
    with different parameters, the statement says so.
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
        names = ", ".join(differing_parameters(pair))
        remark = f" They were trained with different parameters: {names}." if names else ""
        judged = _training_noise(*pair), _share_noise(*pair)
        lines += [text + remark for text in judged if text]
    return lines


def _training_noise(first: Column, second: Column) -> str:
    a, b = first.values.get("training_s", ()), second.values.get("training_s", ())
    if min(len(a), len(b)) < 2:
        return ""
    meet = min(a) <= max(b) and min(b) <= max(a)
    gap = abs(statistics.median(a) - statistics.median(b))
    verdict = "within the noise: the ranges meet" if meet else "more than noise"
    return f"{first.title} and {second.title}, training: {gap:.2f} s apart, {verdict}."


def _share_noise(first: Column, second: Column) -> str:
    a, b = first.judged_interval(), second.judged_interval()
    if a is None or b is None:
        return ""
    (low, middle, high), (other_low, other_middle, other_high) = a, b
    gap = abs(middle - other_middle)
    verdict = "within the noise" if low <= other_high and other_low <= high else "more than noise"
    seeded = " and ".join(column.title for column in (first, second) if column.seeds)
    over = f" (over the seeds of {seeded})" if seeded else ""
    return f"{first.title} and {second.title}, {SHARE}: {gap:.4f} apart, {verdict}{over}."


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
