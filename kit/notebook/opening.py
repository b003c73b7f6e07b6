"""What every run begins with: a profile that can run the target, the data set, a run's folder."""

import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Callable

from kit.base import Json, Timeline
from kit.base.settings import Settings, load
from kit.billing import refuse_over
from kit.experiments import Experiment, list_experiment, running
from kit.experiments.packages import imported_modules
from kit.experiments.running import Data
from kit.notebook.progress import in_notebook
from kit.notebook.timeline import follow_cells, spans_before
from kit.runs.history import StoredRun, start_run
from kit.runs.outcome import with_runner
from kit.submitter.staging import refuse_too_many
from kit.tracking import start_ahead

SLOW_IMPORTS = ("torch",)  # a second or more


def refuse_workers(settings: Settings, target: str, workers: int, device: str) -> None:
    """Raise DataError for more workers than the job of a site has CPUs, or GPUs."""
    if target == "cloud-hpc":
        refuse_too_many(settings.hpc_section(), workers, device)


def open_target(profile: str, target: str, runner: str = "") -> Settings:
    """Return the settings of a profile that can run a target within its budget.

    Raises UsageError for a profile that cannot.
    """
    settings = load(profile)
    if target == "cloud-hpc":
        settings.hpc_section(accepts_jobs=True)
    settings = with_runner(settings, runner)
    if target != "local":
        refuse_over(settings, target)
    return settings


def stored_run(
    settings: Settings,
    target: str,
    experiment: Experiment,
    recorded: Json,
    fresh: bool,
    was_cancelled: Callable[[str], bool] = lambda run: False,
) -> tuple[StoredRun, Data]:
    """Prepare the data set, and start a run or resume an interrupted one, see `start_run`.

    An experiment of the person's own is listed, for a submitter that is at work already.
    """
    timeline = Timeline(spans_before(time.time()))
    trains_here = target == "local" and "sweep" not in recorded
    imports = import_in_advance(experiment) if trains_here else []
    with timeline.span("data"):
        data = running.make_data(experiment, settings.cache_dir / "datasets", settings.data_dir)
    with timeline.span("loading"):
        for thread in imports:
            thread.join()
    if target == "cloud-hpc":
        list_experiment(experiment)
    run = start_run(settings, target, recorded, data.hash, fresh, experiment, was_cancelled)
    run.timeline.add(timeline)
    follow_cells(run.timeline)
    if trains_here and in_notebook():
        start_ahead(settings, target)
    return run, data


def import_in_advance(experiment: Experiment) -> list[threading.Thread]:
    """Import in threads what the training will need, while the data set is read.

    Only for an experiment of the kit: its data set needs none of these packages. Another one may
    import a module of the same package meanwhile, which Python 3.11 may answer with an error
    (https://github.com/python/cpython/issues/83065).
    """
    if not experiment.module.__name__.startswith("kit."):
        return []
    imported = set().union(*map(imported_modules, experiment.sources.values()))
    names = imported.intersection(SLOW_IMPORTS) - sys.modules.keys()
    threads = [threading.Thread(target=_import, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    return threads


def _import(name: str) -> None:
    with contextlib.suppress(Exception):  # the training imports it too, and has the error
        importlib.import_module(name)
