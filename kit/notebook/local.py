"""The steps that the notebooks call for the local target, each one short to read there.

A notebook holds one `Local` and passes it from step to step: start, look at the data, train,
evaluate, keep the results, compare.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kit.base import ROOT, Json, Timeline, UsageError, git_state, time_record
from kit.base.settings import Settings, load
from kit.experiments.fashion_mnist import data as fashion_mnist
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.notebook.progress import Bar
from kit.report import plots
from kit.report import table as report
from kit.runs import history as runs
from kit.store import as_row, describe_expiry, list_credentials
from kit.tracking import delivery as tracking
from kit.tracking import runlog

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

EXPERIMENT = "local-fmnist"
PUBLISHED = "local/artifacts/local_metrics.json"


@dataclass
class Local:
    """One run of the local target as it goes on; filled by `train` and `evaluate`."""

    run: runs.Run
    data: fashion_mnist.Dataset
    hyperparameters: Parameters
    trained: training.Trained | None = None
    evaluation: training.Evaluation | None = None

    def __repr__(self) -> str:
        """Show the run, the data and, for stand-in data, the warning."""
        return describe(self.run, self.data)

    def _repr_html_(self) -> str:
        """The same for a notebook, the warning where nobody can miss it."""
        return banner(self.run, self.data)


def describe(run: runs.Run, data: fashion_mnist.Dataset) -> str:
    """Name a run, its data and folder and, for stand-in data, the warning."""
    lines = [repr(run), f"data: {data.title}", f"folder: {run.folder}"]
    return "\n".join([*lines, *([f"!!! {data.warning} !!!"] if data.warning else [])])


def banner(run: runs.Run, data: fashion_mnist.Dataset, more: str = "") -> str:
    """Give `describe` as HTML: the warning white on red above everything."""
    style = "background:#B00000;color:white;font-weight:bold;padding:8px"
    top = f"<p style='{style}'>{data.warning}</p>" if data.warning else ""
    return f"{top}<p>{run!r}<br>data: {data.title}<br>{more}</p>"


def start_local(profile: str, fresh: bool, **hyperparameters: Any) -> Local:
    """Read the settings and the data and start a run, or go on with a broken-off one.

    `hyperparameters` are the fields of `Parameters`. Raises UsageError for a
    value that cannot be, DataError for damaged data, Busy when the run is being executed.
    """
    loaded = load(profile)
    chosen = Parameters(**hyperparameters)
    return Local(*begin(loaded, "local", chosen.model_dump(), fresh), chosen)


def begin(
    loaded: Settings, target: str, parameters: Json, fresh: bool
) -> tuple[runs.Run, fashion_mnist.Dataset]:
    """Read the data and start a run of a target, or go on with a broken-off one."""
    timeline = Timeline()
    with timeline.span("data"):
        data = fashion_mnist.load(loaded.data_dir, loaded.cache_dir)
    run = runs.start_run(loaded, target, parameters, data.hash, fresh)
    run.timeline.add(timeline)
    return run, data


def credentials_table(loaded: Settings, job_end: float | None = None) -> "pandas.DataFrame":
    """Obtain the profile's credentials; say what is valid until when, never the secrets.

    With `job_end` (seconds since 1970) each is held against it.
    """
    import pandas

    held = list_credentials(loaded)
    rows = [as_row(row) for row in held]
    if job_end is not None:
        for row, each in zip(rows, held, strict=True):
            row["to the job's end"] = describe_expiry(each, job_end)
    names = [row.pop("credential") for row in rows]
    return pandas.DataFrame(rows, index=pandas.Index(names, name="credential"))


def show_images(work: Local) -> "Figure":
    """Draw one training image of each class."""
    names = fashion_mnist.LABELS
    labels = work.data.train_labels.tolist()
    return plots.image_grid(work.data.train_images, labels, names, work.data.warning)


def train(work: Local) -> str:
    """Train with a progress bar; a run that was broken off goes on after its last epoch."""
    with work.run.timeline.span("training"):
        checkpoints = work.run.folder / "checkpoint"
        work.trained = training.train(work.data, work.hyperparameters, checkpoints, Bar())
    done = work.trained
    skipped = f", {done.epochs_resumed} of them before it was broken off" * bool(
        done.epochs_resumed
    )
    return f"{work.hyperparameters.epochs} epochs{skipped}: {done.seconds:.1f} s of training"


def evaluate(work: Local) -> "pandas.DataFrame":
    """Evaluate on the test images; the table has one row a class and one for the mean."""
    if work.trained is None:
        raise too_early("train")
    with work.run.timeline.span("evaluation"):
        work.evaluation = training.evaluate(work.trained.model, work.data, work.hyperparameters)
    return class_table(work.evaluation.performance)


def class_table(performance: Json) -> "pandas.DataFrame":
    """Give accuracy, precision and recall by class and their mean, four digits."""
    import pandas

    kinds = ("accuracy", "precision", "recall")
    columns = {kind: [*performance[f"class-{kind}"], performance[kind]] for kind in kinds}
    return pandas.DataFrame(columns, index=[*fashion_mnist.LABELS, "mean (macro)"]).round(4)


def show_loss(work: Local) -> "Figure":
    """Draw the training loss over the steps."""
    if work.trained is None:
        raise too_early("train")
    steps = -(-len(work.data.train_labels) // work.hyperparameters.batch_size)
    return plots.loss_curve(work.trained.losses, steps, work.data.warning)


def show_confusion(work: Local) -> "Figure":
    """Draw which class was taken for which."""
    if work.evaluation is None:
        raise too_early("evaluate")
    return plots.confusion_matrix(
        work.evaluation.confusion, fashion_mnist.LABELS, work.data.warning
    )


def finish(work: Local) -> Json:
    """Write the published file, log to MLflow, add the run to the history; give that line."""
    if work.trained is None or work.evaluation is None:
        raise too_early("train and evaluate")
    run, trained, performance = work.run, work.trained, work.evaluation.performance
    seconds = time_record("local-model-training", trained.start, trained.end, trained.seconds)
    with run.timeline.span("records"):
        run.save("local_metrics.json", {"performance": performance, "time": seconds})
        run.save("losses.json", trained.losses)
        training.save_model(trained.model, run.folder / "model.safetensors")
        logged = _log(work, seconds, performance)
    figures = {"training_s": seconds["total-seconds"], "accuracy": performance["accuracy"]}
    figures |= {"cloud_bu": 0.0, "total_bu": 0.0}
    facts = {"data": work.data.facts(), "figures": figures, "performance": performance}
    return run.finish({PUBLISHED: "local_metrics.json"}, {**facts, "tracking": asdict(logged)})


def _log(work: Local, time_record: Json, performance: Json) -> tracking.Logged:
    """Log the run to MLflow: embedded SQLite, or the server that MLFLOW_TRACKING_URI names."""
    run, losses = work.run, work.trained.losses if work.trained else []
    end_ms = int(time_record["end-time"] * 1000)
    git = git_state(ROOT)["commit"]
    tags = {"kit.run_id": run.id, "kit.target": "local", "kit.profile": run.settings.profile}
    metrics = runlog.performance_metrics(performance, fashion_mnist.LABELS, end_ms)
    seconds = ("training-seconds", time_record["total-seconds"], 0, end_ms)
    return tracking.tracking_for(run.settings, "local").log(
        runlog.RunLog(
            experiment=EXPERIMENT,
            run_name=run.id,
            run_id=run.id,
            start_ms=int(time_record["start-time"] * 1000),
            end_ms=end_ms,
            params=runlog.hyperparameters(work.hyperparameters.model_dump()),
            metrics=(*metrics, seconds, *(("loss", loss, step, end_ms) for step, loss in losses)),
            tags=tags
            | {"kit.data": work.data.source, "mlflow.source.git.commit": git or "unknown"},
            artifacts=((str(run.folder / "local_metrics.json"), "records"),),
        )
    )


def compare(work: Local) -> "pandas.DataFrame":
    """Put this run beside the article's local row."""
    return beside_article(work.run.settings, "local", "article local")


def beside_article(loaded: Settings, target: str, published: str) -> "pandas.DataFrame":
    """Put the newest runs of a target beside a column of the article; empty rows left out."""
    import pandas

    table, _ = report.table(loaded)
    theirs = table[published]
    rows = {
        label: [theirs[label], text]
        for label, text in table[f"{target} (new)"].items()
        if text != "-"
    }
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["article", "this machine"])


def show_timeline(work: Local) -> "Figure":
    """Draw where the seconds of this run went."""
    seconds = work.run.timeline.seconds()
    seconds["other"] = max(0.0, work.run.active_s() - sum(seconds.values()))
    return plots.timeline({work.run.target: seconds}, work.data.warning)


def too_early(step: str) -> UsageError:
    """Say which step of the notebook has to come first."""
    return UsageError("this step came too early", next_step=f"run the cell with `{step}` first")
