"""The results of a finished run: published files, the run's folder, MLflow, the history."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from kit import tracking
from kit.base import Json, KitError, time_record
from kit.billing import bill_figures, bill_of_run, totals
from kit.experiments import DEFAULT, Context, Thresholds
from kit.experiments.running import Data, Trained, out_names
from kit.notebook.cloud_hpc import JOB_FILES
from kit.runs.history import StoredRun
from kit.runs.objects import StageStore
from kit.runs.outcome import Outcome, published_facts
from kit.sweeps.engine import FROM_RUN
from kit.sweeps.space import named
from kit.tracking import units_log


@dataclass(frozen=True)
class Options:
    """How a run of a pipeline is judged and where it works; the last three are cloud-hpc's."""

    gates: Thresholds
    strict: bool = False
    configured: bool = True
    workers: int = 1
    tunnel: str = ""

    def as_parameters(self, target: str) -> Json:
        """Return what the record of a run lists beside the experiment's parameters."""
        judged = {"gates": dict(self.gates), "strict": self.strict}
        if target == "cloud":
            return judged
        on_site = {"configured": self.configured, "workers": self.workers, "tunnel": self.tunnel}
        return {**judged, **on_site} if target == "cloud-hpc" else {}


def finish_local(
    run: StoredRun, data: Data, ctx: Context, trained: Trained, metrics: Mapping[str, float]
) -> Json:
    """Publish a local run; return its record."""
    times = time_record("local-model-training", trained.start, trained.end, trained.seconds)
    files = _published(run, {"metrics": metrics, "time": times})
    with run.timeline.span("records"):
        names = _save_published(run, files)
        run.save("losses.json", ctx.losses)
    with run.timeline.span("mlflow"):
        logged = _log_local(run, data, ctx, trained, metrics, names.values())
    figures = {"training_s": times["total-seconds"], "cloud_bu": 0.0, "total_bu": 0.0}
    return run.finish(names, {**_measured(run, data, metrics, figures), "tracking": asdict(logged)})


def _published(run: StoredRun, facts: Json) -> dict[str, Json]:
    """Return the files to publish by path; a sweep replaces none of those of a run."""
    if sweep := run.more.get("sweep"):
        return {f"sweeps/{run.id}.json": {**sweep, **facts}}
    return run.experiment.published(run.target, facts)


def _save_published(run: StoredRun, files: Mapping[str, Json]) -> dict[str, str]:
    """Write the published files into the run's folder; return their names there by path."""
    names = {path: path.rpartition("/")[2] for path in files}
    for path, content in files.items():
        run.save(names[path], content)
    return names


def _measured(
    run: StoredRun, data: Data, metrics: Mapping[str, float], figures: Mapping[str, float]
) -> Json:
    """Return what the record of every run holds of its data, its metrics and its figures.

    The article's table reads the primary metric beside the times: there it is a figure, too.
    """
    primary = run.experiment.primary
    shown = {primary: metrics[primary]} if run.experiment.name == DEFAULT else {}
    return {
        "data": data.info.facts(data.hash),
        "figures": {**figures, **shown},
        "metrics": dict(metrics),
        "primary": primary,
    }


def _log_local(
    run: StoredRun,
    data: Data,
    ctx: Context,
    trained: Trained,
    metrics: Mapping[str, float],
    files: Iterable[str],
) -> tracking.Logged:
    """Log to MLflow: embedded SQLite, or the server that MLFLOW_TRACKING_URI names."""
    end_ms = int(trained.end * 1000)
    seconds = ("training-seconds", round(trained.seconds, 5), 0, end_ms)
    losses = [("loss", loss, step, end_ms) for step, loss in ctx.losses]
    tags = {"kit.run_id": run.id, "kit.target": "local", "kit.profile": run.settings.profile}
    tags |= {"kit.data": data.info.source, "kit.experiment": run.experiment.name}
    tags["mlflow.source.git.commit"] = run.commit or "unknown"
    return tracking.log_run(
        run.settings,
        tracking.RunLog(
            experiment=tracking.experiment_of("local", run.experiment.label),
            run_name=run.id,
            run_id=run.id,
            start_ms=int(trained.start * 1000),
            end_ms=end_ms,
            params=tracking.mlflow_params(ctx.parameters.model_dump()),
            metrics=(*tracking.metric_points(metrics, end_ms), seconds, *losses),
            tags=tags,
            artifacts=tuple((str(run.folder / name), "records") for name in files),
        ),
    )


def log_trials(run: StoredRun, rows: Iterable[Json], parameters: Mapping[str, Any]) -> None:
    """Log each trial of a sweep to MLflow, below the run of the sweep."""
    logs = []
    for row in [row for row in rows if row["metrics"]]:
        end_ms, seconds = int(row["end"] * 1000), row["training"].get("total-seconds")
        tags = {"kit.target": run.target, "kit.profile": run.settings.profile}
        tags |= {"kit.experiment": run.experiment.name}
        tags |= {"kit.trial": row["trial"], "kit.state": row["state"]}
        points = tracking.metric_points(row["metrics"], end_ms)
        points += () if seconds is None else (("training-seconds", seconds, 0, end_ms),)
        logs.append(
            tracking.RunLog(
                experiment=tracking.experiment_of(run.target, run.experiment.label),
                run_name=named(row["values"]),
                run_id=f"{run.id}/trials/{row['trial']}",
                start_ms=int(row["start"] * 1000),
                end_ms=end_ms,
                params=tracking.mlflow_params({**parameters, **row["values"]}),
                metrics=points,
                tags=tags | ({f"kit.{FROM_RUN}": row[FROM_RUN]} if FROM_RUN in row else {}),
                parent=run.id,
            )
        )
    tracking.log_runs(run.settings, logs)


def finish_cloud(run: StoredRun, data: Data, objects: StageStore, outcome: Outcome) -> Json:
    """Publish a run of the cloud pipeline; return its record."""
    return _finish_pipeline(run, data, objects, outcome, {}, {})


def finish_cloud_hpc(run: StoredRun, data: Data, objects: StageStore, outcome: Outcome) -> Json:
    """Publish a run of the cloud-hpc pipeline; return its record."""
    figures = {"ray_job_s": outcome.trained["ray_job"]["total-seconds"]}
    more = {"slurm": outcome.trained["slurm"], "site": outcome.trained["site"]}
    return _finish_pipeline(run, data, objects, outcome, figures, more)


def _finish_pipeline(
    run: StoredRun,
    data: Data,
    objects: StageStore,
    outcome: Outcome,
    figures: Mapping[str, float],
    more: Mapping[str, Any],
) -> Json:
    """Publish the files of a pipeline's run; `figures` and `more` are a target's own."""
    files = _published(run, published_facts(outcome))
    with run.timeline.span("records"):
        names = _save_published(run, files)
        _save_objects(run, objects, outcome)
        run.save("stages.json", outcome.stages)
    common = {
        "training_s": outcome.trained["training"]["total-seconds"],
        "train_component_s": outcome.trained["time"]["total-seconds"],
        "pipeline_s": round(outcome.pipeline_s, 5),
    }
    facts = _measured(run, data, outcome.metrics, {**common, **figures})
    facts |= {"tracking": outcome.mlflow}
    facts |= {"gates": outcome.evaluated["gates"], "pipeline": outcome.seconds(), **more}
    facts |= {"resumed": run.resumed or outcome.resumed}
    facts, units = _with_bill(run, facts, objects)
    if units:
        with run.timeline.span("mlflow"):
            logged = tracking.log_run(run.settings, units_log(run.id, outcome.trained, units))
        facts["tracking"] = outcome.mlflow if logged.state == "logged" else asdict(logged)
    return run.finish(names, facts)


def _save_objects(run: StoredRun, objects: StageStore, outcome: Outcome) -> None:
    """Fetch what the stages left into the run's folder: the experiment's files, log of the job."""
    run.save("losses.json", outcome.losses)
    objects.get_files(out_names(outcome.files), run.folder / "out")
    for name in JOB_FILES:
        if name in outcome.files:
            run.save(name, objects.get(outcome.files[name]))


def _with_bill(run: StoredRun, facts: Json, objects: StageStore) -> tuple[Json, dict[str, Decimal]]:
    """Write the bill into the run's folder; return the facts with its figures, and its totals.

    Includes the cost of the objects that the run stores. A missing rate does not fail the run;
    `bill` then holds the reason.
    """
    prefixes = f"data/{facts['data']['hash']}", f"runs/{run.id}/"
    stored = sum(row.size for prefix in prefixes for row in objects.store.list(prefix))
    facts = {**facts, "stored_bytes": stored}
    try:
        bill = bill_of_run(run.settings, {"run": run.id, "target": run.target, **facts})
    except KitError as err:
        return {**facts, "bill": {"problem": str(err)}}, {}
    run.save("bill.json", bill.as_json())
    merged = facts["figures"] | (bill_figures(bill) if bill.lines else {})
    facts |= {"figures": merged, "bill": bill.as_json()["totals"]}
    return facts, totals(bill.lines)
