"""What a cloud-hpc run costs beside its training (article: 1077, 1158 s), and the submitter.

Needs the sandbox, with the wheels of the environment on its site (any earlier unconfigured run).
Usage: make bench NAMES=cloud_hpc
"""

import contextlib
import dataclasses
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import measured
import psutil
from buckets import remove_bucket
from idx_files import as_data, official_images, striped_images

from kit.base.settings import Settings, load
from kit.experiments import Thresholds, load_experiment
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.experiments.running import Data
from kit.runs.objects import StageStore
from kit.runs.outcome import CLOUD_HPC, Outcome, hpc_arguments_of, run_pipeline
from kit.runs.requests import RunRequest, RunRequests, attempt_id
from kit.store import bucket_name, open_store
from kit.submitter import loop as submitter_loop
from kit.submitter.loop import submitter_for

AIMS = {True: 14.0, False: 20.0}
ARTICLE = {True: 1431.2155 - 272.92072, False: 1349.36426 - 271.85157}
SEEN_S, CANCEL_S, PASS_S, SHARE, CPU, RSS = 2.0, 6.0, 5.0, 0.6, 0.01, 150e6


class Bench:
    """Buckets of its own on a profile's site, with a submitter of theirs."""

    def __init__(self, profile: str) -> None:
        loaded = load(profile)
        store = dataclasses.replace(loaded.store, bucket_prefix=f"b{secrets.token_hex(4)}")
        self.settings = dataclasses.replace(loaded, store=store)
        names = [bucket_name(self.settings, which) for which in ("submitter", "pipeline")]
        self.stores = [open_store(self.settings, name) for name in names]
        self.requests, self.slurm = RunRequests(self.stores[0]), submitter_for(self.settings).slurm

    @contextlib.contextmanager
    def open(self) -> Iterator["Bench"]:
        """Have the buckets there and a submitter at work in the block."""
        for store in self.stores:
            store.ensure_bucket()
        done = threading.Event()
        loop = threading.Thread(
            target=submitter_loop.run_loop, args=(submitter_for(self.settings), done.is_set)
        )
        loop.start()
        try:
            yield self
        finally:
            done.set()
            loop.join()
            for store in self.stores:
                remove_bucket(store)

    def request(self, data: Data, configured: bool, epochs: int) -> RunRequest:
        run = f"cloud-hpc-{secrets.token_hex(6)}-1"
        StageStore(self.stores[1], run).put_data(data)
        return RunRequest(
            run=run,
            data_hash=data.hash,
            configured=configured,
            hyperparameters=Parameters(epochs=epochs).model_dump(),
        )

    def pipeline(self, data: Data, configured: bool, epochs: int) -> Outcome:
        """Run the pipeline as the notebook does."""
        request = self.request(data, configured, epochs)
        given = hpc_arguments_of(
            self.settings,
            request,
            load_experiment("fashion_mnist"),
            gates=Thresholds({"accuracy": 0, "precision": 0, "recall": 0}),
        )
        with tempfile.TemporaryDirectory() as folder:
            objects = StageStore(self.stores[1], request.run)
            return run_pipeline(self.settings, objects, given, Path(folder), target=CLOUD_HPC)


def until(done: Callable[[], object], pause_s: float = 0.05) -> float:
    """Wait for something; give the seconds that it took."""
    start = time.monotonic()
    while not done():
        time.sleep(pause_s)
    return time.monotonic() - start


def overhead(bench: Bench, repeats: int) -> None:
    """Pipeline minus training, and where it goes."""
    data = as_data(striped_images(720, 180))
    bench.pipeline(data, True, 1)  # whatever is missing is made
    for configured, aim in AIMS.items():
        outcomes = [bench.pipeline(data, configured, 5) for _ in range(repeats)]
        rest = [o.pipeline_s - o.trained["training"]["total-seconds"] for o in outcomes]
        what = "configured" if configured else "unconfigured"
        measured.show(f"pipeline beside its training, {what}", rest, "s", aim)
        ratio = statistics.median(rest) / ARTICLE[configured]
        measured.show(f"the same, beside the article's, {what}", ratio, "")
        for name, seconds in outcomes[-1].seconds().items():
            print(f"  {name:30} {seconds:7.2f} s")


def share(bench: Bench) -> None:
    """Share of the job's own time that is training, at full size."""
    trained = bench.pipeline(as_data(official_images()), True, 5).trained
    training, job = trained["training"]["total-seconds"], trained["slurm"]["elapsed_s"]
    measured.show(
        "training of the job's time, 60,000 images",
        100 * training / job,
        "%",
        100 * SHARE,
        more_is_better=True,
    )


def reaction(bench: Bench, repeats: int) -> None:
    """From a request to its being seen; from a cancel to released nodes."""
    seen, released = [], []
    for _ in range(repeats):
        request = bench.request(as_data(striped_images(720, 180)), True, 3000)
        bench.requests.ask(request)
        seen.append(until(lambda run=request.run: bench.requests.read(run, "progress")))
        until(lambda run=request.run: (bench.requests.read(run, "progress") or {}).get("training"))
        argv = ["squeue", "-h", f"--name=kit-{attempt_id(request.run, 1)}"]
        bench.requests.cancel(request.run)
        released.append(until(lambda argv=argv: not bench.slurm.host.run(argv).out, 0.2))
    measured.show("request seen after", seen, "s", SEEN_S)
    measured.show("cancel to released nodes", released, "s", CANCEL_S)


def idle(profile: str, seconds: float = 20.0) -> None:
    """What a submitter uses that has nothing to do."""
    argv = [sys.executable, "-m", "kit.submitter", profile]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as child:
        time.sleep(8)
        process = psutil.Process(child.pid)
        before = process.cpu_times()
        time.sleep(seconds)
        after, memory = process.cpu_times(), process.memory_info().rss
        child.terminate()
    used = after.user + after.system - before.user - before.system
    measured.show("idle submitter, of a core", 100 * used / seconds, "%", 100 * CPU)
    measured.show("idle submitter, resident", memory / 1e6, "MB", RSS / 1e6)


def passes(loaded: Settings) -> None:
    """One pass over a bucket of 200 finished runs."""
    bench = Bench(loaded.profile)
    with bench.open():
        for number in range(1, 201):
            for name in ("request", "try-1/submitted", "result", "progress"):
                bench.requests.write(f"cloud-hpc-0123456789ab-{number}", name, {})
        submitter = submitter_for(bench.settings)
        submitter.once()
        start = time.monotonic()
        submitter.once()
        measured.show("pass over 200 finished runs", time.monotonic() - start, "s", PASS_S)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    profile = sys.argv[2] if len(sys.argv) > 2 else os.environ.get("KIT_PROFILE", "sandbox")
    bench = Bench(profile)
    with bench.open():
        overhead(bench, repeats)
        reaction(bench, repeats)
        share(bench)
    idle(profile)
    passes(load(profile))


if __name__ == "__main__":
    main()
