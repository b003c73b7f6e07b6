"""The steps that `cloud.ipynb` calls, and those that `cloud-hpc.ipynb` has in common with it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from kit import store as stores
from kit.base import Json
from kit.base.settings import load
from kit.billing import rates as billing
from kit.billing import run as run_bill
from kit.experiments import Thresholds
from kit.experiments import fashion_mnist as article
from kit.experiments.fashion_mnist import data as fashion_mnist
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.notebook import local as experiment
from kit.notebook.local import too_early
from kit.report import plots
from kit.report.article import figures as published
from kit.runs import history as runs
from kit.runs import outcome as cloud_run
from kit.runs.kfp_here import States
from kit.runs.kfp_log import ComponentState
from kit.runs.objects import StageStore
from kit.runs.outcome import CLOUD, Outcome, Target
from kit.runs.picture import PipelinePicture, live_picture
from kit.tracking import delivery as tracking
from kit.tracking.stage_log import experiment_of, units_log

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

METRICS = "cloud/artifacts/cloud-metrics.json"
TIMES = "cloud/times/pipeline_data.json"
_Least = tuple[float, float, float]


class Work(Protocol):
    """One run of a pipeline as it goes on, as far as the common steps need it."""

    run: runs.Run
    data: fashion_mnist.Dataset
    hyperparameters: Parameters
    objects: StageStore
    target: Target
    outcome: Outcome | None


@dataclass
class Cloud:
    """One run of the cloud target as it goes on; `run_pipeline` fills `outcome`."""

    run: runs.Run
    data: fashion_mnist.Dataset
    hyperparameters: Parameters
    gates: Thresholds
    strict: bool
    bucket: str
    objects: StageStore
    target: Target = CLOUD
    outcome: Outcome | None = None

    def __repr__(self) -> str:
        """Show the run, its data and its bucket."""
        return f"{experiment.describe(self.run, self.data)}\nbucket: {self.bucket}"

    def _repr_html_(self) -> str:
        """The same for a notebook, the warning where nobody can miss it."""
        return experiment.banner(self.run, self.data, f"bucket: {self.bucket}")


def start_cloud(
    profile: str, fresh: bool, gates: _Least, strict: bool, runner: str = "", **values: Any
) -> Cloud:
    """Read settings and data and start a run, or go on with a broken-off one.

    `gates` are the least accuracy, precision and recall; `values` the fields of `Parameters`;
    `runner` is where the pipeline runs, "" for what the profile says.
    Raises UsageError, DataError, Busy as `experiment.start_local` does.
    """
    loaded = cloud_run.with_runner(load(profile), runner)
    run_bill.refuse_over(loaded, "cloud")
    chosen, least = Parameters(**values), Thresholds(dict(zip(article.METRICS, gates, strict=True)))
    parameters = {**chosen.model_dump(), "gates": list(gates), "strict": strict}
    run, data = experiment.begin(loaded, "cloud", parameters, fresh)
    bucket = stores.bucket_name(loaded, "pipeline")
    objects = StageStore(stores.open_store(loaded, bucket), run.id)
    return Cloud(run, data, chosen, least, strict, bucket, objects)


def show_credentials(work: Cloud) -> "pandas.DataFrame":
    """Obtain the credentials and say what is valid until when; never the secrets."""
    return experiment.credentials_table(work.run.settings)


def upload(work: Cloud) -> "pandas.DataFrame":
    """Make the bucket and put the data set there, unless the same one is there already."""
    import pandas

    store = work.objects.store
    with work.run.timeline.span("upload"):
        store.ensure_bucket()
        fresh = work.objects.put_data(work.data)
    rows = [{"key": o.key, "bytes": o.size} for o in store.list(f"data/{work.data.hash}")]
    frame = pandas.DataFrame(rows)
    frame["state"] = "uploaded" if fresh else "was there, same hash"
    return frame


def show_pipeline(work: Work) -> PipelinePicture:
    """Draw the pipeline before anything runs."""
    return live_picture(work.target.flows, [ComponentState(n) for n in work.target.components])


def run_pipeline(work: Cloud) -> str:
    """Run the pipeline; the picture above the result shows each component as it goes on."""
    arguments = cloud_run.arguments_of(
        work.run.settings,
        work.run.id,
        work.bucket,
        work.data.hash,
        work.hyperparameters,
        work.gates,
        work.strict,
    )
    return execute(work, arguments)


def execute(
    work: Work, arguments: Mapping[str, Any], note: Callable[[States], str] = lambda _: ""
) -> str:
    """Run the pipeline of `work` with its picture; `note` gives what stands below that."""
    show, flows = _live(show_pipeline(work)), work.target.flows
    with work.run.timeline.span("pipeline"):
        outcome = work.outcome = cloud_run.run_pipeline(
            work.run.settings,
            work.objects,
            dict(arguments),
            work.run.folder,
            lambda states: show(live_picture(flows, states, note=note(states))),
            target=work.target,
        )
    gates = outcome.evaluated["gates"]
    passed = "passed: the model is registered" if gates["passed"] else "; ".join(gates["missed"])
    job = outcome.trained["slurm"]["job"] if "slurm" in outcome.trained else None
    told = f" job {job['id']} {job['state']};" if job else ""
    return f"pipeline {outcome.pipeline_s:.1f} s;{told} gates {passed}"


def _live(first: PipelinePicture) -> Any:
    """Show a picture in the cell's output and give a function that replaces it."""
    from IPython.display import DisplayHandle

    handle = DisplayHandle()  # type: ignore[no-untyped-call]
    handle.display(first)  # type: ignore[no-untyped-call]
    return handle.update


def show_metrics(work: Work) -> "pandas.DataFrame":
    """Give accuracy, precision and recall by class and their mean."""
    return experiment.class_table(outcome_of(work).performance)


def show_loss(work: Work) -> "Figure":
    """Draw the training loss over the steps."""
    steps = -(-len(work.data.train_labels) // work.hyperparameters.batch_size)
    return plots.loss_curve(outcome_of(work).losses, steps, work.data.warning)


def show_mlflow(work: Work) -> "pandas.DataFrame":
    """Read back from MLflow what was logged; `attrs["link"]` leads to the run."""
    run, logged = work.run, outcome_of(work).mlflow
    return tracking.table(run.settings, experiment_of(run.target), run.id, logged)


def finish(work: Cloud) -> Json:
    """Write the published files, add the run to the history; give that line."""
    outcome = outcome_of(work)
    metrics = {"performance": outcome.performance, "time": outcome.trained["training"]}
    return keep(work, {METRICS: metrics, TIMES: outcome.times()})


def keep(
    work: Work,
    files: Mapping[str, Json],
    figures: Mapping[str, float] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Json:
    """Publish files (path below the results: content) and add the run to the history.

    `figures` and `more` are what the line has beyond that of every run of a pipeline.
    """
    outcome, run = outcome_of(work), work.run
    names = {path: path.rpartition("/")[2] for path in files}
    with run.timeline.span("records"):
        for path, content in files.items():
            run.save(names[path], content)
        run.save("stages.json", outcome.stages)
    common = {
        "training_s": outcome.trained["training"]["total-seconds"],
        "train_component_s": outcome.trained["time"]["total-seconds"],
        "pipeline_s": round(outcome.pipeline_s, 5),
        "accuracy": outcome.performance["accuracy"],
    }
    facts = {"data": work.data.facts(), "figures": {**common, **(figures or {})}}
    facts |= {"performance": outcome.performance, "tracking": outcome.mlflow}
    facts |= {"gates": outcome.evaluated["gates"], "pipeline": outcome.seconds(), **(more or {})}
    facts = run_bill.keep(run, facts, work.objects.store)
    facts["tracking"] = _log_units(work, facts)
    return run.finish(names, facts)


def _log_units(work: Work, facts: Json) -> Json:
    """Add the bill to the run in MLflow; say what became of all that was logged."""
    run, outcome = work.run, outcome_of(work)
    units: dict[str, Decimal] = {}
    if "problem" not in facts["bill"]:
        bill = run_bill.of_run(run.settings, {"run": run.id, "target": run.target, **facts})
        units = billing.totals(bill.lines)
    if not units:
        return outcome.mlflow
    log = units_log(run.id, outcome.trained, units)
    logged = tracking.tracking_for(run.settings, "cloud").log(log)
    return outcome.mlflow if logged.state == "logged" else asdict(logged)


def compare(work: Work) -> "pandas.DataFrame":
    """Put this run beside the article's column of its kind."""
    name = published.column_of(work.run.target, work.run.parameters)
    return experiment.beside_article(work.run.settings, name, f"article {name}")


def show_timeline(work: Work) -> "Figure":
    """Draw which share of the pipeline went where, beside the article's."""
    name = published.column_of(work.run.target, work.run.parameters)
    theirs = published.published_seconds(name)
    rows = {"article": theirs, "this run": outcome_of(work).seconds()}
    shown = {title: published.by_kind(parts) for title, parts in rows.items()}
    return plots.timeline(shown, work.data.warning, shares=True)


def outcome_of(work: Work) -> Outcome:
    """Give what the pipeline came to; raises UsageError when it did not run yet."""
    if work.outcome is None:
        raise too_early("run_pipeline")
    return work.outcome
