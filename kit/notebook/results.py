"""The results of a finished run: published files, the run's folder, MLflow, the history."""

from collections.abc import Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kit import tracking
from kit.base import Json, KitError, time_record
from kit.billing import bill_figures, bill_of_run, totals
from kit.experiments.fashion_mnist.images import LABELS, Dataset
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.notebook.cloud_hpc import JOB_FILES
from kit.runs.history import Run
from kit.runs.objects import StageStore
from kit.runs.outcome import Outcome, hpc_files
from kit.tracking import units_log

if TYPE_CHECKING:
    from kit.experiments.fashion_mnist.training import Trained

LOCAL_EXPERIMENT = "local-fmnist"
LOCAL_METRICS = "local/artifacts/local_metrics.json"
CLOUD_METRICS = "cloud/artifacts/cloud-metrics.json"
CLOUD_TIMES = "cloud/times/pipeline_data.json"


def finish_local(
    run: Run, data: Dataset, parameters: Parameters, trained: "Trained", performance: Json
) -> Json:
    """Publish a local run; return its record."""
    from kit.experiments.fashion_mnist import training

    times = time_record("local-model-training", trained.start, trained.end, trained.seconds)
    with run.timeline.span("records"):
        run.save("local_metrics.json", {"performance": performance, "time": times})
        run.save("losses.json", trained.losses)
        training.save_model(trained.model, run.folder / "model.safetensors")
        logged = _log_local(run, data, parameters, trained, performance)
    figures = {"training_s": times["total-seconds"], "accuracy": performance["accuracy"]}
    figures |= {"cloud_bu": 0.0, "total_bu": 0.0}
    facts = {"data": data.info().facts(data.hash), "figures": figures, "performance": performance}
    facts["tracking"] = asdict(logged)
    return run.finish({LOCAL_METRICS: "local_metrics.json"}, facts)


def _log_local(
    run: Run, data: Dataset, parameters: Parameters, trained: "Trained", performance: Json
) -> tracking.Logged:
    """Log to MLflow: embedded SQLite, or the server that MLFLOW_TRACKING_URI names."""
    end_ms = int(trained.end * 1000)
    seconds = ("training-seconds", round(trained.seconds, 5), 0, end_ms)
    losses = [("loss", loss, step, end_ms) for step, loss in trained.losses]
    tags = {"kit.run_id": run.id, "kit.target": "local", "kit.profile": run.settings.profile}
    tags |= {"kit.data": data.source}
    tags["mlflow.source.git.commit"] = run.commit or "unknown"
    return tracking.log_run(
        run.settings,
        tracking.RunLog(
            experiment=LOCAL_EXPERIMENT,
            run_name=run.id,
            run_id=run.id,
            start_ms=int(trained.start * 1000),
            end_ms=end_ms,
            params=tracking.mlflow_params(parameters.model_dump()),
            metrics=(*tracking.performance_metrics(performance, LABELS, end_ms), seconds, *losses),
            tags=tags,
            artifacts=((str(run.folder / "local_metrics.json"), "records"),),
        ),
    )


def finish_cloud(run: Run, data: Dataset, objects: StageStore, outcome: Outcome) -> Json:
    """Publish a run of the cloud pipeline; return its record."""
    metrics = {"performance": outcome.performance, "time": outcome.trained["training"]}
    files = {CLOUD_METRICS: metrics, CLOUD_TIMES: outcome.times()}
    return _finish_pipeline(run, data, objects, outcome, files, {}, {})


def finish_cloud_hpc(
    run: Run, data: Dataset, objects: StageStore, outcome: Outcome, configured: bool
) -> Json:
    """Publish a run of the cloud-hpc pipeline; return its record."""
    files = hpc_files(outcome, configured)
    figures = {"ray_job_s": outcome.trained["ray_job"]["total-seconds"]}
    more = {"slurm": outcome.trained["slurm"], "site": outcome.trained["site"]}
    return _finish_pipeline(run, data, objects, outcome, files, figures, more)


def _finish_pipeline(
    run: Run,
    data: Dataset,
    objects: StageStore,
    outcome: Outcome,
    files: Mapping[str, Json],
    figures: Mapping[str, float],
    more: Mapping[str, Any],
) -> Json:
    """Publish `files` (path below the results: content); `figures`, `more` are a target's own."""
    names = {path: path.rpartition("/")[2] for path in files}
    with run.timeline.span("records"):
        for path, content in files.items():
            run.save(names[path], content)
        _save_objects(run, objects, outcome)
        run.save("stages.json", outcome.stages)
    common = {
        "training_s": outcome.trained["training"]["total-seconds"],
        "train_component_s": outcome.trained["time"]["total-seconds"],
        "pipeline_s": round(outcome.pipeline_s, 5),
        "accuracy": outcome.performance["accuracy"],
    }
    facts: Json = {"data": data.info().facts(data.hash), "figures": {**common, **figures}}
    facts |= {"performance": outcome.performance, "tracking": outcome.mlflow}
    facts |= {"gates": outcome.evaluated["gates"], "pipeline": outcome.seconds(), **more}
    facts |= {"resumed": run.resumed or outcome.resumed}
    facts, units = _with_bill(run, facts, objects)
    if units:
        logged = tracking.log_run(run.settings, units_log(run.id, outcome.trained, units))
        facts["tracking"] = outcome.mlflow if logged.state == "logged" else asdict(logged)
    return run.finish(names, facts)


def _save_objects(run: Run, objects: StageStore, outcome: Outcome) -> None:
    """Fetch what the stages left into the run's folder: model, predictions, log of the job."""
    run.save("losses.json", outcome.losses)
    stored = {**outcome.evaluated["objects"], **outcome.trained["objects"]}
    for name in ("model.safetensors", "predictions.npy", *JOB_FILES):
        if name in stored:
            run.save(name, objects.get(stored[name]))


def _with_bill(run: Run, facts: Json, objects: StageStore) -> tuple[Json, dict[str, Decimal]]:
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
