"""What a sweep costs beside its training, and what it saves: ratios of one run on this machine.

The trials are those of `digits`, some seconds each. Where the sandbox is up, one sweep of JOBS
trials, two at once in one job, is compared with as many jobs of one training, one after another.
Usage: make bench NAMES=sweeps
"""

import contextlib
import dataclasses
import secrets
import sys
import tempfile
import time
from pathlib import Path

import measured
from digit_sweeps import DIGITS, ask_digits, seeds, sweep_here
from hpc_bench import Bench
from sandbox_command import kit_sandbox

from kit.base.settings import load
from kit.experiments import running
from kit.experiments.running import Data
from kit.runs.requests import RunState
from kit.sweeps.engine import DONE, training_of

OVERHEAD_S, TWICE, JOBS_RATIO = 1.5, 1.5, 2.0


def here(data: Data, count: int, at_once: int) -> tuple[float, float]:
    """Seconds of a sweep on this machine, and the sum of its trials' training."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        rows = sweep_here(data, seeds(count), at_once, Path(folder))
        seconds = time.monotonic() - start
    assert [row["state"] for row in rows] == [DONE] * count, rows
    return seconds, training_of(rows)[2]


def on_this_machine(data: Data, count: int) -> None:
    """Overhead of each trial, and two at once against one after another."""
    here(data, 2, 2)  # the server process, and the caches of the machine
    alone, trained = here(data, count, 1)
    together, _ = here(data, count, 2)
    print(f"{count} trials of digits: {alone:.1f} s one after another, {trained:.1f} s of training")
    measured.show("overhead of a trial", (alone - trained) / count, "s", OVERHEAD_S)
    measured.show("one after another beside pure training", alone / trained, "", 2.0)
    faster = alone / together
    measured.show("one after another beside two at once", faster, "", TWICE, more_is_better=True)


def timed(bench: Bench, run: str) -> float:
    """Seconds until a run that was just requested is done."""
    start = time.monotonic()
    status = bench.finish(run)
    assert status.state is RunState.DONE, (status, bench.shown(run))
    return time.monotonic() - start


def in_jobs(data: Data, count: int) -> None:
    """One job for all trials against a job for each."""
    settings = load("sandbox")
    store = dataclasses.replace(settings.store, bucket_prefix=f"b{secrets.token_hex(4)}")
    with contextlib.closing(Bench(dataclasses.replace(settings, store=store))) as bench:
        timed(bench, ask_digits(bench, data, []))  # whatever is missing is made
        one = timed(bench, ask_digits(bench, data, seeds(count)))
        each = sum(timed(bench, ask_digits(bench, data, [])) for _ in range(count))
    print(f"{count} trials on the sandbox: {one:.1f} s in one job, {each:.1f} s in {count} jobs")
    what = f"{count} jobs beside one job with {count} trials"
    measured.show(what, each / one, "", JOBS_RATIO, more_is_better=True)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    with tempfile.TemporaryDirectory() as folder:
        data = running.make_data(DIGITS, Path(folder), None)
        on_this_machine(data, count)
        if kit_sandbox("status").returncode == 0:
            in_jobs(data, jobs)
        else:
            print("the sandbox is not up, so nothing is compared in jobs: kit sandbox up")


if __name__ == "__main__":
    main()
