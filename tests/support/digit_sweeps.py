"""Sweeps of the experiment `digits`, whose trials take seconds: on this machine and on the site."""

import secrets
from pathlib import Path

from hpc_bench import Bench

from kit.base import Json
from kit.experiments import load_experiment
from kit.experiments.running import Data
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, site_id
from kit.sweeps import Sweep, run_sweep, trials_of
from kit.sweeps.here import ProcessSlots

DIGITS = load_experiment("digits")
EPOCHS = 300  # a trial takes some seconds


def seeds(count: int) -> list[Json]:
    """Trials that differ in their seed."""
    return [{"seed": number} for number in range(count)]


def sweep_here(data: Data, trials: list[Json], at_once: int, folder: Path) -> list[Json]:
    """Run a sweep in processes of this machine; return the table of its trials."""
    sweep = Sweep(trials=trials)
    slots = ProcessSlots(DIGITS, data.folder, at_once)
    return run_sweep(DIGITS, sweep, trials_of(DIGITS, {"epochs": EPOCHS}, sweep), folder, slots)


def ask_digits(
    bench: Bench, data: Data, trials: list[Json], workers: int = 2, epochs: int = EPOCHS
) -> str:
    """Request a sweep on the site; without trials one training."""
    StageStore(bench.submitter.data, "any").put_data(data)
    run = f"cloud-hpc-{secrets.token_hex(6)}-1"
    request = RunRequest(
        run=run,
        data_hash=data.hash,
        experiment="digits",
        hyperparameters={"epochs": epochs},
        workers=workers,
        sweep=Sweep(trials=trials),
        profile=bench.profile.profile,
        site=site_id(bench.profile),
    )
    bench.requests.ask(request)
    return run
