"""What every run begins with: a profile that can run the target, the data set, a run's folder."""

from kit.base import Json, Timeline
from kit.base.settings import Settings, load
from kit.billing import refuse_over
from kit.experiments import Experiment, running
from kit.experiments.running import Data
from kit.runs.history import StoredRun, start_run
from kit.runs.outcome import with_runner
from kit.submitter.staging import refuse_too_many


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
    settings: Settings, target: str, experiment: Experiment, recorded: Json, fresh: bool
) -> tuple[StoredRun, Data]:
    """Prepare the data set, and start a run or resume an interrupted one."""
    timeline = Timeline()
    with timeline.span("data"):
        data = running.make_data(experiment, settings.cache_dir / "datasets", settings.data_dir)
    run = start_run(settings, target, recorded, data.hash, fresh, experiment)
    run.timeline.add(timeline)
    return run, data
