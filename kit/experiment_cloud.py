"""The steps that `cloud.ipynb` calls: credentials, data, pipeline, metrics, MLflow, results."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kit import (
    cloud_run,
    experiment,
    fashion_mnist,
    plots,
    report,
    run_bill,
    runs,
    settings,
    tracking,
)
from kit import store as stores
from kit.cloud_run import Outcome
from kit.experiment import too_early
from kit.gates import Gates
from kit.hyperparameters import Hyperparameters
from kit.kfp_log import ComponentState
from kit.pipeline_picture import PipelinePicture, live_picture
from kit.records import Json, Timeline
from kit.stage_store import StageStore

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

METRICS = "cloud/artifacts/cloud-metrics.json"
TIMES = "cloud/times/pipeline_data.json"
FLOWS = ("data set", "model", "metrics")


@dataclass
class Cloud:
    """One run of the cloud target as it goes on; `run_pipeline` fills `outcome`."""

    run: runs.Run
    data: fashion_mnist.Dataset
    hyperparameters: Hyperparameters
    gates: Gates
    strict: bool
    bucket: str
    outcome: Outcome | None = None

    def __repr__(self) -> str:
        """Show the run, its data and its bucket."""
        return f"{experiment.describe(self.run, self.data)}\nbucket: {self.bucket}"

    def _repr_html_(self) -> str:
        """The same for a notebook, the warning where nobody can miss it."""
        return experiment.banner(self.run, self.data, f"bucket: {self.bucket}")


def start_cloud(
    profile: str, fresh: bool, gates: tuple[float, float, float], strict: bool, **values: object
) -> Cloud:
    """Read settings and data and start a run, or go on with a broken-off one.

    `gates` are the least accuracy, precision and recall; `values` are the fields of
    `Hyperparameters`. Raises UsageError, DataError, Busy as `experiment.start_local` does.
    """
    loaded = settings.load(profile)
    run_bill.refuse_over(loaded, "cloud")
    chosen, least = Hyperparameters(**values), Gates(*gates)  # type: ignore[arg-type]
    timeline = Timeline()
    with timeline.span("data"):
        data = fashion_mnist.load(loaded.data_dir, loaded.cache_dir)
    parameters = {**asdict(chosen), "gates": list(gates), "strict": strict}
    run = runs.start_run(loaded, "cloud", parameters, data.hash, fresh)
    run.timeline = timeline
    return Cloud(run, data, chosen, least, strict, stores.bucket_name(loaded, "pipeline"))


def show_credentials(work: Cloud) -> "pandas.DataFrame":
    """Obtain the credentials and say what is valid until when; never the secrets."""
    return experiment.credentials_table(work.run.settings)


def upload(work: Cloud) -> "pandas.DataFrame":
    """Make the bucket and put the data set there, unless the same one is there already."""
    import pandas

    with work.run.timeline.span("upload"):
        store = stores.open_store(work.run.settings, work.bucket)
        store.ensure_bucket()
        fresh = StageStore(store, work.run.id).put_data(work.data)
    rows = [{"key": o.key, "bytes": o.size} for o in store.list(f"data/{work.data.hash}")]
    frame = pandas.DataFrame(rows)
    frame["state"] = "uploaded" if fresh else "was there, same hash"
    return frame


def show_pipeline(work: Cloud) -> PipelinePicture:
    """Draw the pipeline before anything runs."""
    states = [ComponentState(name) for name in cloud_run.COMPONENTS]
    return live_picture(FLOWS, states)


def run_pipeline(work: Cloud) -> str:
    """Run the pipeline; the picture above the result shows each component as it goes on."""
    objects = StageStore(stores.open_store(work.run.settings, work.bucket), work.run.id)
    arguments = cloud_run.arguments_of(
        work.run.settings,
        work.run.id,
        work.bucket,
        work.data.hash,
        work.hyperparameters,
        work.gates,
        work.strict,
    )
    show = _live(show_pipeline(work))
    with work.run.timeline.span("pipeline"):
        work.outcome = cloud_run.run_pipeline(
            work.run.settings,
            objects,
            arguments,
            work.run.folder,
            lambda states: show(live_picture(FLOWS, states)),
        )
    gates = work.outcome.evaluated["gates"]
    passed = "passed: the model is registered" if gates["passed"] else "; ".join(gates["missed"])
    return f"pipeline {work.outcome.pipeline_s:.1f} s; gates {passed}"


def _live(first: PipelinePicture) -> Any:
    """Show a picture in the cell's output and give a function that replaces it."""
    from IPython.display import DisplayHandle

    handle = DisplayHandle()  # type: ignore[no-untyped-call]
    handle.display(first)  # type: ignore[no-untyped-call]
    return handle.update


def show_metrics(work: Cloud) -> "pandas.DataFrame":
    """Give accuracy, precision and recall by class and their mean."""
    return experiment.class_table(_outcome(work).performance)


def show_loss(work: Cloud) -> "Figure":
    """Draw the training loss over the steps."""
    steps = -(-len(work.data.train_labels) // work.hyperparameters.batch_size)
    return plots.loss_curve(_outcome(work).losses, steps, work.data.warning)


def show_mlflow(work: Cloud) -> "pandas.DataFrame":
    """Read back from MLflow what was logged; the caption is the link to the run."""
    logged = _outcome(work).mlflow
    return tracking.table(work.run.settings, "cloud-fmnist-pipeline", work.run.id, logged)


def finish(work: Cloud) -> Json:
    """Write the published files, add the run to the history; give that line."""
    outcome, run = _outcome(work), work.run
    with run.timeline.span("records"):
        run.save("cloud-metrics.json", outcome.cloud_metrics())
        run.save("pipeline_data.json", outcome.pipeline_data())
        run.save("stages.json", {"trained": outcome.trained, "evaluated": outcome.evaluated})
    figures = {
        "training_s": outcome.trained["training"]["total-seconds"],
        "train_component_s": outcome.trained["time"]["total-seconds"],
        "pipeline_s": round(outcome.pipeline_s, 5),
        "accuracy": outcome.performance["accuracy"],
    }
    facts = {"data": experiment.data_facts(work.data), "figures": figures}
    facts |= {"performance": outcome.performance, "tracking": outcome.mlflow}
    facts |= {"gates": outcome.evaluated["gates"], "pipeline": outcome.seconds()}
    facts = run_bill.keep(run, facts, stores.open_store(run.settings, work.bucket))
    return run.finish({METRICS: "cloud-metrics.json", TIMES: "pipeline_data.json"}, facts)


def compare(work: Cloud) -> "pandas.DataFrame":
    """Put this run beside the article's cloud column."""
    return experiment.beside_article(work.run.settings, "cloud", "article cloud")


def show_timeline(work: Cloud) -> "Figure":
    """Draw which share of the pipeline went where, beside the article's."""
    published = report.article()["cloud"]
    training = published["training_s"]
    theirs = {"training": training, "not training": published["pipeline_s"] - training}
    rows = {"article": theirs, "this run": _outcome(work).seconds()}
    return plots.timeline(rows, work.data.warning, shares=True)


def _outcome(work: Cloud) -> Outcome:
    if work.outcome is None:
        raise too_early("run_pipeline")
    return work.outcome
