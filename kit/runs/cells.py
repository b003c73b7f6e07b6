"""The progress of a notebook that runs: section, cell, time so far and the time it usually takes.

On a terminal it is one line that is rewritten each second, elsewhere a line for each section. What
the cell shows while it runs (`LIVE`) is above it.
"""

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from kit.base import DataError, Json, read_history, read_json
from kit.base.settings import Settings

EARLIER_RUNS = 5  # the newest ones, whose median is shown
REDRAW_INTERVAL_S = 1.0
CLEAR_LINE = "\r\x1b[2K"
LINE_ABOVE = "\x1b[1A"
# In the metadata of a cell's output: the terminal shows its text too, above the line. The value is
# a list of lines, each of which is written once where nothing can be rewritten.
LIVE = "kit-live"


def cell_headings(cells: Iterable[Json]) -> dict[str, str]:
    """Return the id of each code cell, with the heading above it."""
    title, titles = "", {}
    for cell in cells:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "code":
            titles[cell["id"]] = title
        elif lines and lines[0].startswith("#"):
            title = lines[0].lstrip("# ")
    return titles


def usual_seconds(settings: Settings, name: str, values: Mapping[str, Any]) -> float | None:
    """Return the median duration of earlier runs of a notebook with the same parameters.

    Resumed runs did not execute everything, so they do not count. None without an earlier run.
    """
    base, wanted = settings.profile_dir, {k: v for k, v in values.items() if k != "fresh"}
    runs = [
        line["run"]
        for line in read_history(base / "history.jsonl")[0]
        if line.get("target") == name and not line.get("resumed")
    ]
    executed = [base / "runs" / run / f"{name}.ipynb" for run in runs]
    durations: list[float] = []
    for path in reversed([base / f"{name}.ipynb", *executed]):
        durations += _duration(path, wanted)
        if len(durations) == EARLIER_RUNS:
            break
    return statistics.median(durations) if durations else None


def _duration(path: Path, wanted: Mapping[str, Any]) -> Iterator[float]:
    """Yield the seconds that papermill noted in an executed notebook, if it is of that kind."""
    try:
        noted = read_json(path)["metadata"]["papermill"]
        given = {k: v for k, v in noted["parameters"].items() if k != "fresh"}
        if given == wanted and not noted["exception"]:
            yield float(noted["duration"])
    except (DataError, KeyError, TypeError, AttributeError):
        return  # a notebook that was removed or edited: there is one run less to learn from


class CellProgress:
    """Show which cell runs. Use it as a context manager around the execution.

    `hide` takes secrets out of the notebook's own output.
    """

    def __init__(
        self,
        name: str,
        titles: Mapping[str, str],
        usual_s: float | None,
        screen: TextIO,
        clock: Callable[[], float] = time.monotonic,
        hide: Callable[[str], str] = str,
    ) -> None:
        self._name, self._titles, self._usual_s = name, titles, usual_s
        self._screen, self._clock, self._hide = screen, clock, hide
        self._numbers = {cell_id: number for number, cell_id in enumerate(titles, start=1)}
        self._begin = clock()
        self._number, self._title = 0, ""
        self._cell: Json = {}
        self._drawn_lines, self._written = 1, set[str]()
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._rewrites = screen.isatty()

    def __enter__(self) -> Self:
        self._begin = self._clock()
        threading.Thread(target=self._redraw, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._write_live()
            self._ended.set()
            self.clear()

    def start_cell(self, cell: Json, cell_index: int) -> None:
        """Show that a cell begins; the one that papermill adds belongs to the cell before it."""
        if cell["id"] not in self._numbers:
            return
        with self._lock:
            self._write_live()
            self._cell = cell
            new = self._titles[cell["id"]] != self._title or self._number == 0
            self._number, self._title = self._numbers[cell["id"]], self._titles[cell["id"]]
            if self._rewrites:
                self._draw()
            elif new:
                self._screen.write(self.line() + "\n")
                self._screen.flush()

    def line(self) -> str:
        """Return the line that is shown now, such as `local: cell 3 of 11, Data, 0:04`."""
        so_far = clock_text(self._clock() - self._begin)
        usual = f" of usually {clock_text(self._usual_s)}" if self._usual_s else ""
        where = f"cell {self._number} of {len(self._titles)}, {self._title}"
        return f"{self._name}: {where}, {so_far}{usual}"

    def clear(self) -> None:
        """Remove the line from a terminal, so that other text can be written there."""
        if self._rewrites:
            with self._lock:
                self._screen.write(self._erase())
                self._screen.flush()

    def around(self, stream: TextIO) -> "Stream":
        """Return a stream for the notebook's own output, which takes the place of the line."""
        return Stream(stream, self.clear, self._hide)

    def _erase(self) -> str:
        """Return what removes the lines that are shown, and leaves the cursor at the first."""
        above, self._drawn_lines = self._drawn_lines - 1, 1
        return CLEAR_LINE + (LINE_ABOVE + CLEAR_LINE) * above

    def _draw(self) -> None:
        with self._lock:
            if self._number and not self._ended.is_set():
                columns = shutil.get_terminal_size().columns
                lines = [*self._live()[0].splitlines(), self.line()]
                text = "\n".join(line[: columns - 1] for line in lines)
                self._screen.write(self._erase() + text)
                self._screen.flush()
                self._drawn_lines = len(lines)

    def _write_live(self) -> None:
        """Write the lines of the live output that are new, where nothing can be rewritten."""
        if self._rewrites:
            return
        new = [line for line in self._live()[1] if line not in self._written]
        self._written.update(new)
        self._screen.write("".join(f"{line}\n" for line in new))
        self._screen.flush()

    def _live(self) -> tuple[str, list[str]]:
        """Return the text of the running cell's live output and its lines; empty without one."""
        for output in self._cell.get("outputs", []):
            if (lines := output.get("metadata", {}).get(LIVE)) is not None:
                return output["data"]["text/plain"], lines
        return "", []

    def _redraw(self) -> None:
        while not self._ended.wait(REDRAW_INTERVAL_S):
            if self._rewrites:
                self._draw()
            with self._lock:
                self._write_live()


class Stream:
    """A text stream that calls a function before each write, and another one with the text."""

    def __init__(
        self, stream: TextIO, before: Callable[[], None], hide: Callable[[str], str]
    ) -> None:
        self._stream, self._before, self._hide = stream, before, hide

    def write(self, text: str) -> int:
        """Write the text, without secrets."""
        self._before()
        return self._stream.write(self._hide(text))

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


def clock_text(seconds: float) -> str:
    """Return minutes and seconds, such as `1:05`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
