"""Run a Kubeflow pipeline on this machine (kfp.local) and report its state as it changes.

`pipeline` is the name of a pipeline object, `package.module:object`; a cluster runs the same one.
kfp.local prints, changes the root logger and blocks, so it runs in a child process. It (2.17)
reports no states: they are read from its log. Lines of the runner start with a time; lines of a
component are indented by four blanks.
"""

import contextlib
import dataclasses
import json
import os
import pkgutil
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import KitError, last_error

PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TIME = r"^\d\d:\d\d:\d\d\.\d{3} - [A-Z]+ - "
_STARTED = re.compile(_TIME + r"Executing task '(?P<name>[^']+)'$")
_ENDED = re.compile(_TIME + r"Task '(?P<name>[^']+)' finished with status (?P<status>[A-Z]+)$")
LOG_LINES = 15  # of a failed component's log, shown with the error


@dataclass(frozen=True)
class ComponentState:
    """State of one component: pending, running, done or failed; epoch seconds; its last line."""

    name: str
    state: str = PENDING
    start: float | None = None
    end: float | None = None
    message: str = ""
    tries: int = 0

    def seconds(self, now: float) -> float:
        """Return how long it ran, up to `now` while it is running."""
        if self.start is None:
            return 0.0
        return (now if self.end is None else self.end) - self.start


class LogReader:
    """Reads a log line by line; `states` and `logs` are current after each line."""

    def __init__(self, names: Sequence[str]) -> None:
        self.states = {name: ComponentState(name) for name in names}
        self.logs: dict[str, list[str]] = {name: [] for name in names}
        self.rest: list[str] = []
        self._current: str | None = None
        self._in_dump = False

    def feed(self, line: str, now: float) -> str:
        """Read one line; return it without colours."""
        text = _ANSI.sub("", line.rstrip("\n"))
        if started := _STARTED.match(text):
            self._start(started["name"], now)
        elif ended := _ENDED.match(text):
            self._end(ended["name"], ended["status"], now)
        elif self._current and text.startswith("    "):
            self._keep_line(self._current, text[4:].rstrip())
        elif self._current is None:
            self.rest.append(text)
        return text

    def failed(self) -> str:
        """Return the component that failed and was not retried, or an empty text."""
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

    def _keep_line(self, name: str, text: str) -> None:
        """Keep a line of the component, without the KFP executor's own lines."""
        if self._in_dump or text.startswith("[KFP Executor "):
            self._in_dump = text.endswith("Got executor_input:") or (self._in_dump and text != "}")
            return
        self.logs[name].append(text)
        if text:
            self.states[name] = dataclasses.replace(self.states[name], message=text)


States = tuple[ComponentState, ...]
OnChange = Callable[[States], None]


class PipelineFailed(KitError):
    """A component failed. `traceback` is its own, from the object store; `log` from the runner."""

    def __init__(self, component: str, traceback: str, log: str, states: States, where: str):
        failed = f"component {component}" if component else "the pipeline"
        got = last_error(traceback) or "\n".join(log.splitlines()[-5:]) or "no output"
        super().__init__(f"{failed} failed", got, f"read {where}, then run again: it resumes")
        self.component, self.traceback, self.log = component, traceback, log
        self.states, self.where = states, where

    def __str__(self) -> str:
        """Return the message, then the component's traceback, or else the end of its log."""
        if self.traceback:
            return f"{super().__str__()}\n\n{self.traceback}".rstrip()
        lines = self.log.splitlines()[-LOG_LINES:]
        return "\n".join([super().__str__(), "", "its log ended with:", *lines])

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the fields."""
        return type(self), (self.component, self.traceback, self.log, self.states, self.where)


def run_local(
    pipeline: str,
    names: Sequence[str],
    arguments: Mapping[str, Any],
    folder: Path,
    on_change: OnChange = lambda states: None,
    tick_s: float = 1.0,
    clock: Callable[[], float] = time.time,
    hide: Callable[[str], str] = str,
) -> States:
    """Run a pipeline on this machine; its log is `folder/pipeline.log`.

    `on_change` gets the states of all components at each change and every `tick_s`; `hide` takes
    secrets out of a line of the log.
    Raises PipelineFailed; an interrupt ends the components as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.json").write_text(json.dumps(dict(arguments)), encoding="utf-8")
    argv = [sys.executable, "-u", "-m", __name__, pipeline, str(folder)]
    reader = LogReader(names)
    with (
        _scratch(folder / "tmp") as scratch,
        (folder / "pipeline.log").open("w", buffering=1, encoding="utf-8") as log,
        _child(argv, {**os.environ, "TMPDIR": str(scratch)}) as child,
    ):
        on_change(tuple(reader.states.values()))
        for lines in _batches(child, tick_s):
            for line in lines:
                log.write(reader.feed(hide(line), clock()) + "\n")
            on_change(tuple(reader.states.values()))
    states = tuple(reader.states.values())
    if child.returncode == 0:
        return states
    failed = reader.failed()
    lines = reader.logs.get(failed, reader.rest)
    text = "\n".join(lines).strip()
    raise PipelineFailed(failed, "", text, states, str(folder / "pipeline.log"))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder for the copies of component sources that KFP never removes."""
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _child(argv: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child in a process group of its own; end the group if the block is left early."""
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,  # its end is how the child learns of ours
        env=environ,
        start_new_session=True,
    ) as child:
        try:
            yield child
            child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # the usual case: none is left
                os.killpg(child.pid, signal.SIGKILL)


def _batches(child: subprocess.Popen[bytes], tick_s: float) -> Iterator[list[str]]:
    """Yield the child's lines as they come, and an empty list after `tick_s` without any."""
    if child.stdout is None:
        return
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(tick_s):
                yield []
                continue
            data = os.read(child.stdout.fileno(), 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            yield [line.decode(errors="replace") for line in lines]
    if rest:
        yield [rest.decode(errors="replace")]


def _run_child(pipeline: str, folder: Path) -> None:
    """Run the named pipeline object under kfp.local, in the child process."""
    from kfp import local

    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder / "kfp"),
        workspace_root=str(folder / "tmp" / "workspace"),
    )
    pkgutil.resolve_name(pipeline)(**arguments)


def _end_with_the_parent() -> None:
    """End this process group when the parent, which may be killed, closes our stdin."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _run_child(sys.argv[1], Path(sys.argv[2]))
