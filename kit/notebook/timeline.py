"""Where the seconds of a run went: from the command, or the first cell, to the last picture.

The steps of a run are spans of their own. What happens around them has a name as well: IPython's
hooks tell when a cell begins and ends, and the command leaves the time at which it was called.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from kit.base import Json, process_began, time_record
from kit.notebook.progress import in_notebook
from kit.runs.history import RunTimeline
from kit.runs.notebooks import COMMAND_BEGAN

IN_CELLS, BETWEEN_CELLS = "tables and pictures", "between cells"
_Hook = tuple[str, Callable[[Any], None]]
_hooks: list[_Hook] = []  # of the run that is followed now


def spans_before(now: float) -> list[Json]:
    """Return what the time before a run went to: the command, then the start of the kernel.

    Nothing where a person opened the notebook, and for a further run of the same kernel.
    """
    called = os.environ.pop(COMMAND_BEGAN, "")
    if not called:
        return []
    kernel = max(float(called), process_began())
    spans = [time_record("command", float(called), kernel), time_record("kernel", kernel, now)]
    return [span for span in spans if span["total-seconds"] > 0]


def follow_cells(timeline: RunTimeline) -> None:
    """Record the time in cells and between them, from now on; only in a notebook."""
    if not in_notebook():
        return
    import IPython

    events = IPython.get_ipython().events
    while _hooks:
        events.unregister(*_hooks.pop())
    timeline.enter(IN_CELLS)
    _hooks.append(("pre_run_cell", lambda _: timeline.enter(IN_CELLS)))
    _hooks.append(("post_run_cell", lambda _: timeline.enter(BETWEEN_CELLS)))
    for hook in _hooks:
        events.register(*hook)


def with_pipeline(seconds: Mapping[str, float], pipeline: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of a run by name, those of its pipeline by the names of the pipeline."""
    sums = {name: value for name, value in seconds.items() if name != "pipeline"}
    for name, value in pipeline.items():
        sums[name] = sums.get(name, 0.0) + value
    return sums
