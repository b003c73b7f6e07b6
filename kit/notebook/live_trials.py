"""The trials of a sweep while it runs: one output of a cell; lines outside a notebook."""

import contextlib
import sys
from typing import Any

from kit.base import Json
from kit.notebook.progress import in_notebook
from kit.runs.cells import LIVE
from kit.runs.follow import training_sentence
from kit.sweeps.live import MAX_COLUMNS, ended_lines, table_lines


class LiveTrials:
    """Shows the progress of a sweep: how far it is, its best trial, its last trials.

    In a notebook each state takes the place of the one before, and `kit sweep` shows it in the
    terminal too. Elsewhere each trial that has ended is a line of stderr.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._written: set[str] = set()

    def show(self, training: Json) -> None:
        """Show a progress; one of another shape is left out: it is for display only."""
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            table, ended = table_lines(training), ended_lines(training)
            self._show("\n".join([training_sentence(training)[:MAX_COLUMNS], *table]), ended)

    def _show(self, text: str, ended: list[str]) -> None:
        if not in_notebook():
            new = [line for line in ended if line not in self._written]
            self._written.update(new)
            sys.stderr.write("".join(f"{line}\n" for line in new))
            return
        import IPython.display

        data, metadata = {"text/plain": text}, {LIVE: ended}
        if self._handle is None:
            self._handle = IPython.display.DisplayHandle()  # type: ignore[no-untyped-call]
            self._handle.display(data, raw=True, metadata=metadata)
        else:
            self._handle.update(data, raw=True, metadata=metadata)
