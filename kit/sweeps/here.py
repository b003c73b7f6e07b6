"""The slots of a sweep on this machine: a process for each trial, so that none can harm another.

The processes are forks of one server process that has imported what the experiment imports. They
end when this process ends, however it ends: two never work on one trial.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.base import last_error
from kit.experiments import Experiment, load_experiment
from kit.experiments.packages import imported_modules
from kit.sweeps.engine import KILLED_CAUSE, carry_out

LOG = "trial.log"
_LOG_END = 500


class ProcessSlots:
    """Runs trials of an experiment in processes of this machine, `count` at once."""

    def __init__(self, experiment: Experiment, data: Path, count: int) -> None:
        self.count = count
        self._experiment, self._data = experiment, data
        self._running: dict[str, tuple[Any, Path]] = {}
        self._context = multiprocessing.get_context("forkserver")
        modules = set().union(*map(imported_modules, experiment.sources.values()))
        self._context.set_forkserver_preload(["kit.sweeps.here", *sorted(modules - {"kit"})])

    def start(self, trial: str, parameters: Mapping[str, Any], folder: Path, rung: str) -> None:
        """Start a trial in a process; what it prints is in its folder."""
        what = self._experiment.reference, self._data, dict(parameters), folder, rung
        process = self._context.Process(target=_work, args=what, daemon=True)
        process.start()
        self._running[trial] = process, folder

    def ended(self, timeout_s: float) -> dict[str, str]:
        """Return the trials that have ended since, with the last line of those that failed."""
        sentinels = {process.sentinel: trial for trial, (process, _) in self._running.items()}
        found = {}
        for sentinel in multiprocessing.connection.wait(list(sentinels), timeout_s):
            trial = sentinels[sentinel]
            process, folder = self._running.pop(trial)
            process.join()
            found[trial] = "" if process.exitcode == 0 else _why(process.exitcode, folder)
        return found

    def kill(self, trial: str) -> None:
        """End the process of a trial and what it has started."""
        if trial in self._running:
            process, _ = self._running.pop(trial)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()


def _why(code: int, folder: Path) -> str:
    if code < 0:
        return KILLED_CAUSE
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return last_error(text).strip()[:_LOG_END] or f"its process ended with exit code {code}"


def _work(reference: str, data: Path, parameters: dict[str, Any], folder: Path, rung: str) -> None:
    """Do a trial's work, as a process with a log and a process group of its own."""
    os.setsid()
    with (folder / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    carry_out(load_experiment(reference), data, parameters, folder, rung)


def _end_with(parent: Any) -> None:
    parent.join()
    os.killpg(os.getpgrp(), signal.SIGKILL)
