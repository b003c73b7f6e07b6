"""What a sweep costs beside its training, and what it saves: ratios of one run on this machine.

Where the sandbox is up, one job of 24 trials of the 900 images, two at once, is compared with 24
runs one after another: three of them are measured, and counted eight times each.
Usage: make bench NAMES=sweeps
"""

import contextlib
import dataclasses
import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

import measured
import psutil
from digit_sweeps import DIGITS, EPOCHS, ask_digits, seeds, sweep_here
from hpc_bench import Bench
from sandbox_command import kit_sandbox

from kit.base.settings import load
from kit.experiments import running
from kit.experiments.running import Data
from kit.report import page as report_page
from kit.runs.requests import RunState
from kit.sweeps import Sweep, table_of, trials_of
from kit.sweeps.engine import DONE, progress_of, training_of

OVERHEAD_S, TWICE, JOBS_RATIO, TRIAL_GB = 1.5, 1.5, 4.0, 1.5
TRIALS, JOBS, MANY, MANY_S = 24, 3, 200, 300.0
LISTED, LISTED_S, REPORTED, REPORTED_S = 1_000, 1.0, 10_000, 15.0
SWEEPS = 10  # that the reported trials are from


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


def listing() -> None:
    """Seconds until the table of many finished trials is read from their folders."""
    sweep = Sweep(trials=seeds(LISTED))
    trials = trials_of(DIGITS, {"epochs": EPOCHS}, sweep)
    times = {"start-time": 1.0, "end-time": 2.0, "total-seconds": 1.0}
    result = {"state": DONE, "metrics": {"accuracy": 0.5}, "training": times}
    result |= {"files": {"model.npy": "0" * 64}, "bytes": 1, "start": 1.0, "end": 3.0}
    with tempfile.TemporaryDirectory() as name:
        for trial in trials:
            folder = Path(name) / "trials" / trial.id
            folder.mkdir(parents=True)
            (folder / "rung-0.json").write_text(json.dumps(result))
        start = time.monotonic()
        rows = table_of(DIGITS, sweep, trials, Path(name))
        progress_of(rows, {}, DIGITS.goal)
        seconds = time.monotonic() - start
    assert len(rows) == LISTED
    measured.show(f"listing {LISTED:,} trials", seconds, "s", LISTED_S)


def report() -> None:
    """CPU seconds of the report over the trials of some sweeps, five seeds of a combination."""
    run = {"schema": 1, "target": "local", "experiment": "digits", "primary": "accuracy"}
    run |= {"data": {"hash": "d", "title": "digits", "test_items": 360}, "metrics": {}}
    with tempfile.TemporaryDirectory() as name:
        loaded = load("sandbox", {**os.environ, "KIT_RESULTS_DIR": name})
        loaded.profile_dir.mkdir(parents=True)
        history, trials = [], []
        for sweep in range(SWEEPS):
            own = run | {"run": f"local-{sweep:012}-1"}
            history.append({**own, "parameters": {"alpha": sweep, "sweep": "{}"}, "sweep": {}})
            for number in range(REPORTED // SWEEPS):
                values = {"learning_rate": 1 + number // 5, "seed": number % 5}
                row = {**own, "trial": f"{number:012}", "values": values, "state": DONE}
                trials.append({**row, "metrics": {"accuracy": 0.5 + number % 5 / 100}})
        measured_run = {**run, "run": "local-1-1", "metrics": {"accuracy": 0.5}}
        measured_run["parameters"] = {"alpha": 1, "learning_rate": 3, "seed": 9}
        for file, lines in (("history", [*history, measured_run]), ("trials", trials)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (loaded.profile_dir / f"{file}.jsonl").write_text(text)
        start = time.process_time()
        text = report_page.page(loaded)
        seconds = time.process_time() - start
    assert "(5 seeds)" in text
    measured.show(f"report as a page, {REPORTED:,} trials", seconds, "CPU s", REPORTED_S)


def timed(bench: Bench, run: str, look=lambda: None) -> float:
    """Seconds until a run that was just requested is done; `look` is called meanwhile."""
    start = time.monotonic()
    bench.passes_until(run, lambda: look() or bench.requests.status(run).state.finished, 900)
    status = bench.requests.status(run)
    assert status.state is RunState.DONE, (status, bench.shown(run))
    return time.monotonic() - start


def in_one_job(bench: Bench, run: str, count: int, what: str) -> float:
    """Seconds of a sweep in one job; shows what a trial of it costs beside its training."""
    sizes = [0.0]

    def look() -> None:
        """Note the memory of each process that trains."""
        if bench.requests.status(run).state is not RunState.SUBMITTED:
            return
        for pid in bench.workers(run) if (bench.folder(run) / "owner").is_symlink() else ():
            with contextlib.suppress(psutil.Error):
                sizes.append(psutil.Process(pid).memory_full_info().pss / 1e9)

    seconds = timed(bench, run, look)
    result = bench.requests.read(run, "result")
    rows = json.loads(bench.submitter.data.get(result["files"]["trials.json"]["key"]))
    assert [row["state"] for row in rows] == [DONE] * count, rows
    start, end, trained = training_of(rows)
    overhead = (2 * (end - start) - trained) / count
    measured.show(f"overhead of a trial of {what} in the job", overhead, "s", OVERHEAD_S)
    measured.show(f"memory of a trial of {what} in the job", max(sizes), "GB", TRIAL_GB)
    return seconds


def in_jobs(data: Data) -> None:
    """One job for all trials against a job for each, and a job of many short trials."""
    settings = load("sandbox")
    store = dataclasses.replace(settings.store, bucket_prefix=f"b{secrets.token_hex(4)}")
    with contextlib.closing(Bench(dataclasses.replace(settings, store=store))) as bench:
        timed(bench, bench.ask(workers=2))  # whatever is missing is made
        sweep = Sweep(trials=seeds(TRIALS))
        one = in_one_job(bench, bench.ask(workers=2, sweep=sweep), TRIALS, "the 900 images")
        each = [timed(bench, bench.ask(seed=number)) for number in range(JOBS)]
        apart = sum(each) * TRIALS / JOBS
        print(
            f"{TRIALS} trials of the 900 images: {one:.1f} s in one job; {JOBS} runs took ", end=""
        )
        print(f"{sum(each):.1f} s one after another, so {TRIALS} take {apart:.0f} s")
        what, note = f"{TRIALS} runs beside one job", f"{JOBS} of the runs were measured"
        measured.show(what, apart / one, "", JOBS_RATIO, more_is_better=True, note=note)
        seconds = in_one_job(bench, ask_digits(bench, data, seeds(MANY), epochs=30), MANY, "digits")
        measured.show(f"{MANY} trials of digits in one job", seconds, "s", MANY_S)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    listing()
    report()
    with tempfile.TemporaryDirectory() as folder:
        data = running.make_data(DIGITS, Path(folder), None)
        on_this_machine(data, count)
        if kit_sandbox("status").returncode == 0:
            in_jobs(data)
        else:
            print("the sandbox is not up, so nothing is compared in jobs: kit sandbox up")


if __name__ == "__main__":
    main()
