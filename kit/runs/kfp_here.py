"""Run a Kubeflow pipeline here (kfp.local) or on a cluster, and say live how it stands.

`pipeline` is the name of a pipeline object, `package.module:object`; the same object serves
both. kfp.local prints, changes the root logger and blocks, so it runs in a child process.
"""

import contextlib
import json
import os
import pkgutil
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.base import KitError
from kit.runs.kfp_log import ComponentState, LogReader, exception_text, own_traceback

LOG_LINES = 15  # of a failed component's log, shown with the error

States = tuple[ComponentState, ...]
OnChange = Callable[[States], None]


class PipelineFailed(KitError):
    """A component failed; its own traceback and log are fields."""

    def __init__(self, component: str, traceback: str, log: str, states: States, where: str):
        what = f"component {component}" if component else "the pipeline"
        got = exception_text(traceback) or "\n".join(log.splitlines()[-5:]) or "no output"
        super().__init__(f"{what} failed", got, f"read {where}, then run again: it goes on")
        self.component, self.traceback, self.log = component, traceback, log
        self.states, self.where = states, where

    def __str__(self) -> str:
        """Give the message, then the component's own traceback and the end of its log."""
        said = self.log.partition("Traceback (most recent call last)")[0].strip().splitlines()
        parts = [
            super().__str__(),
            self.traceback,
            "\n".join(["its log ended with:", *said[-LOG_LINES:]]) if said else "",
        ]
        return "\n\n".join(part for part in parts if part)

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the fields."""
        return type(self), (self.component, self.traceback, self.log, self.states, self.where)


def ignore(states: States) -> None:
    """Show nothing."""


def run_local(
    pipeline: str,
    names: Sequence[str],
    arguments: Mapping[str, Any],
    folder: Path,
    on_change: OnChange = ignore,
    tick_s: float = 1.0,
    clock: Callable[[], float] = time.time,
) -> States:
    """Run a pipeline on this machine; its log is `folder/pipeline.log`.

    `on_change` gets the states of all components at each change and every `tick_s`.
    Raises PipelineFailed; an interrupt ends the components as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arguments.json").write_text(json.dumps(dict(arguments)), encoding="utf-8")
    argv = [sys.executable, "-u", "-m", __name__, pipeline, str(folder)]
    reader = LogReader(names)
    with (
        _scratch(folder / "tmp") as scratch,
        (folder / "pipeline.log").open("w", encoding="utf-8") as log,
        _child(argv, {**os.environ, "TMPDIR": str(scratch)}) as child,
    ):
        on_change(tuple(reader.states.values()))
        for lines in _batches(child, tick_s):
            for line in lines:
                log.write(reader.feed(line, clock()) + "\n")
            on_change(tuple(reader.states.values()))
    states = tuple(reader.states.values())
    if child.returncode == 0:
        return states
    failed = reader.failed()
    lines = reader.logs.get(failed, reader.rest)
    text = "\n".join(lines).strip()
    raise PipelineFailed(failed, own_traceback(lines), text, states, str(folder / "pipeline.log"))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder for the copies of component sources that KFP never removes."""
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _child(argv: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child in a process group of its own; when the block is left early, end the group."""
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
    """Give the child's lines as they come, and an empty list when `tick_s` went by without."""
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
    """Be the child: run the named pipeline object under kfp.local."""
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
    """End this group of processes when the parent, which may be killed, lets go of our stdin."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _run_child(sys.argv[1], Path(sys.argv[2]))
