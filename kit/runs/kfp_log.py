"""What the log of a local Kubeflow pipeline says: each component's state, log and traceback.

kfp.local (2.17) gives no states: a failed task looks like a finished one, and the component's
exception is only in the log. Lines of the runner start with a time; lines of a component are
indented by four blanks. Pure: lines in, values out.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TIME = r"^\d\d:\d\d:\d\d\.\d{3} - [A-Z]+ - "
_STARTED = re.compile(_TIME + r"Executing task '(?P<name>[^']+)'$")
_ENDED = re.compile(_TIME + r"Task '(?P<name>[^']+)' finished with status (?P<status>[A-Z]+)$")
_CHAINED = ("The above exception was", "During handling of the above")
_FOREIGN_FRAMES = ("/kfp/dsl/", "<frozen runpy>")


@dataclass(frozen=True)
class ComponentState:
    """One component: pending, running, done or failed; epoch seconds; the last line it said."""

    name: str
    state: str = PENDING
    start: float | None = None
    end: float | None = None
    message: str = ""
    tries: int = 0

    def seconds(self, now: float) -> float:
        """Give how long it ran, up to `now` while it is running."""
        if self.start is None:
            return 0.0
        return (now if self.end is None else self.end) - self.start


class LogReader:
    """Follows a log line by line; `states` and `logs` are right after each line."""

    def __init__(self, names: Sequence[str]) -> None:
        self.states = {name: ComponentState(name) for name in names}
        self.logs: dict[str, list[str]] = {name: [] for name in names}
        self.rest: list[str] = []
        self._current: str | None = None
        self._in_dump = False

    def feed(self, line: str, now: float) -> str:
        """Take one line; give it without colours."""
        text = _ANSI.sub("", line.rstrip("\n"))
        if started := _STARTED.match(text):
            self._start(started["name"], now)
        elif ended := _ENDED.match(text):
            self._end(ended["name"], ended["status"], now)
        elif self._current and text.startswith("    "):
            self._said(self._current, text[4:].rstrip())
        elif self._current is None:
            self.rest.append(text)
        return text

    def failed(self) -> str:
        """Name the component that failed and was not tried again, or nothing."""
        return next((n for n, s in self.states.items() if s.state == FAILED), "")

    def _start(self, name: str, now: float) -> None:
        tries = self.states[name].tries if name in self.states else 0
        self.states[name] = ComponentState(name, RUNNING, now, None, "", tries + 1)
        self.logs[name] = []
        self._current, self._in_dump = name, False

    def _end(self, name: str, status: str, now: float) -> None:
        state = DONE if status == "SUCCESS" else FAILED
        before = self.states.get(name, ComponentState(name))
        self.states[name] = dataclasses.replace(before, state=state, end=now)
        self._current = None

    def _said(self, name: str, text: str) -> None:
        """Keep a line of the component, without what the KFP executor says of itself."""
        if self._in_dump or text.startswith("[KFP Executor "):
            self._in_dump = text.endswith("Got executor_input:") or (self._in_dump and text != "}")
            return
        self.logs[name].append(text)
        if text:
            self.states[name] = dataclasses.replace(self.states[name], message=text)


def own_traceback(lines: Sequence[str]) -> str:
    """Give the last traceback of a log with the errors it came from, without KFP's frames."""
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if not starts:
        return ""
    first = starts[-1]
    for earlier in reversed(starts[:-1]):
        if not any(line.startswith(_CHAINED) for line in lines[earlier:first]):
            break
        first = earlier
    return "\n".join(_without_foreign_frames(lines[first:])).strip()


def exception_text(traceback: str) -> str:
    """Give what stands after the frames of a traceback: the error's type and message."""
    lines = traceback.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if not starts:
        return ""
    after = starts[-1] + 1
    while after < len(lines) and (lines[after].startswith(" ") or not lines[after]):
        after += 1
    return "\n".join(lines[after:])


def _without_foreign_frames(lines: Sequence[str]) -> list[str]:
    kept, dropping = [], False
    for line in lines:
        if line.startswith('  File "'):
            dropping = any(part in line for part in _FOREIGN_FRAMES)
        elif not line.startswith("    "):
            dropping = False
        if not dropping:
            kept.append(line)
    return kept
