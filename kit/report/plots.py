"""Records in, figures out: every picture of the notebooks, readable in print and without colour.

Every function returns a matplotlib Figure. A `warning` is written across the top of a picture.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from kit.base import Json

# Okabe-Ito, safe for colour-blind readers; the hatches tell the bars apart in print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
_MAX_TICKS = 8  # texts beside one axis of parallel coordinates
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


class Picture(Figure):
    """A figure that a notebook shows by itself, without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        return picture(self, "png", dpi=100)


def _style(number: int) -> dict[str, str]:
    """Return colour and hatch of a series; the pairs of the first 64 series differ."""
    return {"color": COLOURS[number % 8], "hatch": HATCHES[(number + 3 * (number // 8)) % 8]}


def _figure(width: float, height: float, title: str, warning: str) -> tuple[Figure, Any]:
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    _warn(figure, warning)
    return figure, axes


def _warn(figure: Figure, warning: str) -> None:
    if warning:
        figure.suptitle(warning, color="#B00000", fontsize=10, fontweight="bold", wrap=True)


def loss_curve(losses: Sequence[tuple[int, float]], warning: str = "") -> Figure:
    """Draw the mean training loss over steps."""
    figure, axes = _figure(7, 3, "Training loss", warning)
    axes.plot([s for s, _ in losses], [v for _, v in losses], "o-", color=COLOURS[0], markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if all(value >= 0 for _, value in losses):
        axes.set_ylim(bottom=0)
    return figure


def timeline(
    rows: Mapping[str, Mapping[str, float]], warning: str = "", shares: bool = False
) -> Figure:
    """Stack the seconds of each row (a run) by what they were spent on, with the total behind.

    With `shares` every row is drawn to 100 %, for runs of very different lengths. A part without
    seconds in any row is left out, but counts for the colours of the others.
    """
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    shown = {name for parts in rows.values() for name, seconds in parts.items() if seconds}
    lines = -(-len(shown) // 3)
    title = "Where the seconds went" + (", as shares of each run" if shares else "")
    figure, axes = _figure(8, 1.3 + 0.5 * len(rows) + 0.22 * lines, title, warning)
    totals = [sum(parts.values()) for parts in rows.values()]
    units = [100 / (total or 1) if shares else 1.0 for total in totals]
    left = [0.0] * len(rows)
    for number, name in [pair for pair in enumerate(names) if pair[1] in shown]:
        widths = [p.get(name, 0.0) * u for p, u in zip(rows.values(), units, strict=True)]
        style = _style(number)
        axes.barh(list(rows), widths, left=left, label=name, edgecolor="white", **style)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, (end, total) in enumerate(zip(left, totals, strict=True)):
        axes.text(end, row, f" {total:,.1f} s", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("per cent of the run" if shares else "seconds")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _short(value: float) -> str:
    """Return a number with four significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def intervals(points: Mapping[str, tuple[float, float, float]], title: str, unit: str) -> Figure:
    """Draw one value a row with the interval around it: name -> (low, value, high)."""
    figure, axes = _figure(7, 1.0 + 0.4 * len(points), title, "")
    for row, (low, value, high) in enumerate(points.values()):
        new = "(new)" in list(points)[row]
        style = {"fmt": "s" if new else "o", "color": COLOURS[3 * new], "capsize": 4}
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], markersize=5, **style)
        axes.annotate(
            f"{value:.4f}",
            (value, row),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(points)), list(points))
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.set_xlabel(unit)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return figure


def bars(
    groups: Mapping[str, Mapping[str, float]], title: str, unit: str, logarithmic: bool = False
) -> Figure:
    """Draw groups of bars with their numbers on top: group -> series -> height."""
    series = list(dict.fromkeys(name for parts in groups.values() for name in parts))
    figure, axes = _figure(min(1.8 + 1.9 * len(groups), 10), 3.4, title, "")
    width = 0.8 / max(len(series), 1)
    for number, name in enumerate(series):
        there = [place for place, parts in enumerate(groups.values()) if name in parts]
        at = [place + number * width for place in there]
        heights = [parts[name] for parts in groups.values() if name in parts]
        style = _style(number)
        drawn = axes.bar(at, heights, width, label=name, edgecolor="white", **style)
        axes.bar_label(drawn, [_short(height) for height in heights], fontsize=8, padding=2)
    middle = (len(series) - 1) * width / 2
    labels = [name.replace(" ", "\n", 1) for name in groups]
    axes.set_xticks([group + middle for group in range(len(groups))], labels)
    axes.set_ylabel(unit)
    if logarithmic:
        axes.set_yscale("log")
    axes.margins(y=0.15)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def picture(figure: Figure, form: str, dpi: int = 200) -> bytes:
    """Return a figure as svg, pdf or png bytes; the same figure gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with rc_context({"svg.hashsalt": "kit", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, metadata=stamp, dpi=dpi)
    return buffer.getvalue()


def trials_parallel(
    rows: Sequence[Json], primary: str, best: str = "", warning: str = ""
) -> Figure:
    """Draw a line for each trial with a metric, over an axis for each parameter and the metric.

    `rows` are those of `trials.json`. The trial `best` is thick; trials that were stopped early are
    dashed.
    """
    measured = [row for row in rows if primary in row["metrics"]]
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    figure, axes = _figure(8, 3.6, f"Trials by parameter and {primary}", warning)
    columns = [[row["values"].get(name) for row in measured] for name in names]
    columns.append([row["metrics"][primary] for row in measured])
    positions = [_positions(column) for column in columns]
    for number, row in enumerate(measured):
        heights = [column[number] for column in positions]
        style = {"color": COLOURS[0], "alpha": 0.45, "linewidth": 1.2}
        if row["trial"] == best:
            style = {"color": COLOURS[3], "alpha": 1.0, "linewidth": 2.6, "zorder": 3}
        dashes = "--" if row["state"] != "done" else "-"
        axes.plot(range(len(columns)), heights, dashes, **style)
    for place, (column, height) in enumerate(zip(columns, positions, strict=True)):
        axes.axvline(place, color="#444444", linewidth=0.8)
        for text, at in _ticks(column, height):
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(place + 0.04, at, text, fontsize=8, va="center", bbox=box, zorder=4)
    axes.set_xticks(range(len(columns)), [*names, primary])
    axes.set_xlim(-0.2, len(columns) - 0.55)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def metric_by_cost(
    rows: Sequence[Json], primary: str, costs: Sequence[float], unit: str, warning: str = ""
) -> Figure:
    """Draw the metric of each trial over what it cost; `costs` are in the order of `rows`."""
    figure, axes = _figure(8, 3.4, f"{primary} and cost of each trial", warning)
    for state, marker, colour in (("done", "o", COLOURS[0]), ("stopped early", "x", COLOURS[1])):
        points = [
            (cost, row["metrics"][primary])
            for row, cost in zip(rows, costs, strict=True)
            if row["state"] == state and primary in row["metrics"]
        ]
        if points:
            across, up = zip(*points, strict=True)
            axes.plot(across, up, marker, color=colour, label=state, linestyle="none")
    axes.set_xlabel(unit)
    axes.set_ylabel(primary)
    axes.set_xlim(left=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _positions(column: Sequence[Any]) -> list[float]:
    """Return a height from 0 to 1 for each value: numbers by their size or rank, texts by order."""
    numbers = [v for v in column if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(column) and column:
        distinct = sorted(set(numbers))
        if len(distinct) <= _MAX_TICKS:
            return [_rank(distinct, value) for value in column]
        low, high = distinct[0], distinct[-1]
        return [(value - low) / ((high - low) or 1) for value in column]
    texts = list(dict.fromkeys(map(str, column)))
    return [_rank(texts, str(value)) for value in column]


def _rank(values: Sequence[Any], value: Any) -> float:
    return values.index(value) / max(1, len(values) - 1)


def _ticks(column: Sequence[Any], heights: Sequence[float]) -> list[tuple[str, float]]:
    """Return the texts beside an axis: each value, or the least and the largest of many."""
    found = dict(zip(map(_text, column), heights, strict=True))
    if len(found) <= _MAX_TICKS:
        return list(found.items())
    ordered = sorted(found.items(), key=lambda item: item[1])
    return [ordered[0], ordered[-1]]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
