"""The last trials of a sweep while it runs, as its progress carries them and as lines. Pure.

A table has at most `MAX_ROWS` rows of at most `MAX_COLUMNS` characters, however many trials there
are.
"""

from collections.abc import Mapping, Sequence

from kit.base import Json
from kit.sweeps.space import named

MAX_ROWS = 8
MAX_COLUMNS = 100
_VALUES_COLUMNS = 40
_TEXT_COLUMNS = 200  # of a text in the progress, which is published again with each change
_RUNNING = "running"


def last_trials(
    rows: Sequence[Json], begun: Mapping[str, float], now: float, primary: str
) -> list[Json]:
    """Return the trials that ended last, then those that run: at most half of `MAX_ROWS`.

    `rows` is the table of all trials, `begun` says since when a trial runs (epoch seconds).
    """
    ended, running = [], []
    for number, row in enumerate(rows, start=1):
        shown = {"number": number, "values": named(row["values"])[:_TEXT_COLUMNS]}
        shown |= {"metric": row["metrics"].get(primary), "why": row["why"][:_TEXT_COLUMNS]}
        if row["trial"] in begun:
            start = begun[row["trial"]]
            running.append((start, {**shown, "state": _RUNNING, "seconds": int(now - start)}))
        elif "end" in row:
            seconds = round(row["slot_seconds"], 1)
            ended.append((row["end"], {**shown, "state": row["state"], "seconds": seconds}))
    working = [row for _, row in sorted(running, key=lambda pair: pair[0])][: MAX_ROWS // 2]
    before = [row for _, row in sorted(ended, key=lambda pair: pair[0])]
    return [*before[-(MAX_ROWS - len(working)) :], *working]


def table_lines(training: Json) -> list[str]:
    """Return the last trials of a sweep's progress as a table, empty before one has begun.

    Raises KeyError, TypeError or ValueError for a progress of another shape.
    """
    trials, steps = training["trials"], training["steps"]
    cells = [[f"{row['number']}/{steps}", *_cells(row)] for row in trials["last"]]
    if not cells:
        return []
    cells.insert(0, ["trial", "values", "state", trials["primary"], "seconds", ""])
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    left = (False, True, True, False, False, True)
    return [
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, left, strict=True)
        ).rstrip()[:MAX_COLUMNS]
        for row in cells
    ]


def ended_lines(training: Json) -> list[str]:
    """Return a line for each of the last trials that has ended, for a screen that only grows.

    Raises KeyError, TypeError or ValueError for a progress of another shape.
    """
    trials, lines = training["trials"], []
    for row in trials["last"]:
        if row["state"] == _RUNNING:
            continue
        _, state, metric, seconds, why = _cells(row)
        facts = [state, f"{trials['primary']} {metric}" if metric else "", f"{seconds} s", why]
        text = f"trial {row['number']} of {training['steps']}, {row['values']}: "
        lines.append((text + ", ".join(filter(None, facts)))[:MAX_COLUMNS])
    return lines


def _cells(row: Json) -> list[str]:
    metric = "" if row["metric"] is None else f"{row['metric']:.4f}"
    values, why = str(row["values"]), " ".join(str(row["why"]).split())
    if len(values) > _VALUES_COLUMNS:
        values = values[: _VALUES_COLUMNS - 1] + "…"
    seconds = f"{row['seconds']:.0f}" if row["state"] == _RUNNING else f"{row['seconds']:.1f}"
    return [values, str(row["state"]), metric, seconds, why]
