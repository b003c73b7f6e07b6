"""The figures of a benchmark: each is shown beside its aim, and kept for `make bench`."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

KEEP = "KIT_BENCH_FIGURES"  # a file that takes the figures of a whole `make bench`


def show(
    what: str,
    values: float | Sequence[float],
    unit: str,
    aim: float | None = None,
    *,
    more_is_better: bool = False,
    note: str = "",
) -> None:
    """Print the median of some values, its range, and its aim; an aim is a limit, not a wish."""
    samples = [values] if isinstance(values, int | float) else list(values)
    row = {
        "what": what,
        "median": statistics.median(samples),
        "lowest": min(samples),
        "highest": max(samples),
        "samples": len(samples),
        "unit": unit,
        "aim": aim,
        "more_is_better": more_is_better,
        "note": note,
    }
    print(line(row), flush=True)
    if kept := os.environ.get(KEEP):
        with Path(kept).open("a") as file:
            file.write(json.dumps(row) + "\n")


def line(row: dict) -> str:
    """Return a figure as a line of at most 100 characters."""
    spread = f" {row['lowest']:.4g} to {row['highest']:.4g}" if row["samples"] > 1 else ""
    aim = ""
    if row["aim"] is not None:
        word = "reached" if reached(row) else "MISSED"
        aim = f"  aim {row['aim']:g} {word}"
    note = f"  {row['note']}" if row["note"] else ""
    return f"{row['what']:46} {row['median']:9.4g} {row['unit']:5}{spread}{aim}{note}"


def reached(row: dict) -> bool:
    """Whether a figure with an aim reaches it."""
    more = row["median"] >= row["aim"]
    return more if row["more_is_better"] else row["median"] <= row["aim"]


def slower(row: dict, last: dict) -> bool:
    """Whether a figure is worse than the last one by more than the spread of either.

    A single value has no spread: a tenth of it is taken for that.
    """
    spread = max(_spread(row), _spread(last))
    change = row["median"] - last["median"]
    return (-change if row["more_is_better"] else change) > spread


def _spread(row: dict) -> float:
    if row["samples"] == 1:
        return 0.1 * abs(row["median"])
    return row["highest"] - row["lowest"]
