"""One run of a target, as a notebook carries it out: start, steps, results.

A notebook calls `start` first and then the run's methods, in the order of its cells. A step that
needs an earlier one says which.
"""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import kit
from kit.base import Json, UsageError
from kit.base.settings import Settings, load
from kit.billing import (
    Bill,
    bill_advice,
    bill_of_run,
    bill_rows,
    bill_summary,
    estimate,
    job_of_run,
    offers_elsewhere,
)
from kit.experiments import (
    DEFAULT,
    Context,
    Thresholds,
    load_experiment,
    remember,
    running,
)
from kit.experiments.parameters import Parameters
from kit.experiments.running import Data, Trained, model_file
from kit.notebook import cloud_hpc, plan, results, show
from kit.notebook.opening import open_target, refuse_workers, stored_run
from kit.notebook.results import Options
from kit.notebook.show import Pictures, Table, Text
from kit.notebook.timeline import with_pipeline
from kit.runs import history
from kit.runs import outcome as pipelines
from kit.runs.kfp_here import ComponentState
from kit.runs.objects import StageStore
from kit.runs.outcome import CLOUD, CLOUD_HPC, Outcome, PipelineSpec
from kit.runs.picture import PipelinePicture, live_picture
from kit.runs.requests import RunRequest, RunRequests, site_id, write_request
from kit.store import bucket_name, open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


def start(
    profile: str,
    target: str,
    parameters: Mapping[str, Any],
    *,
    experiment: str = DEFAULT,
    fresh: bool = False,
    gates: Mapping[str, float | str] | None = None,
    strict: bool = False,
    runner: str = "",
    configured: bool = True,
    workers: int = 1,
    tunnel: str | None = None,
) -> "Run":
    """Read settings and data and start a run of a target, or resume an interrupted one.

    `experiment` is the name of one, or the path of its file; `parameters` are its own. `gates` are
    the bounds of the metrics of a model that is registered, such as {"score": 0.8} or
    {"loss": "<= 0.3"} (None: the experiment's); `strict` fails the run when one is missed.
    `runner` is where the pipeline runs ("" for the profile's). For cloud-hpc: `configured` uses an
    environment that is on the site, `workers` share the training, `tunnel` is reverse, none, or
    None for the profile's. Raises UsageError for a wrong value, DataError for damaged data, Busy
    when the run is being executed.
    """
    settings = open_target(profile, target, runner)
    wanted = load_experiment(experiment)
    remember(wanted)
    chosen = wanted.parameters(**parameters)
    least = wanted.gates if gates is None else Thresholds(gates)
    options = Options(least, strict, configured, workers, tunnel or "")
    refuse_workers(settings, target, workers, getattr(chosen, "device", "cpu"))
    recorded = {**chosen.model_dump(), **options.as_parameters(target)}
    run, data = stored_run(settings, target, wanted, recorded, fresh)
    return Run(run, data, chosen, options)


def show_code(*names: str, experiment: str = DEFAULT) -> Text:
    """Show code of an experiment: classes and functions by name, those of its own files.

    Where it has none of these names its `train` and `evaluate` are shown.
    """
    return show.experiment_code(load_experiment(experiment), *names)


def show_estimate(profile: str, target: str) -> Table:
    """Show what a run may cost at most."""
    return _bill_table(estimate(load(profile), target))


def _bill_table(bill: Bill, advice: Iterable[str] = ()) -> Table:
    return show.rows_table(bill_rows(bill.lines), "what", [*bill_summary(bill), *advice])


class Run:
    """One run from start to results; each method is a step of a notebook."""

    def __init__(
        self,
        run: history.StoredRun,
        data: Data,
        parameters: Parameters,
        options: Options,
    ) -> None:
        self.run, self.data, self.parameters, self.options = run, data, parameters, options
        self.experiment = run.experiment
        self.trained: Trained | None = None
        self.metrics: dict[str, float] | None = None
        self.shown: set[str] = set()
        self.outcome: Outcome | None = None
        self.record: Json | None = None

    def __repr__(self) -> str:
        """Return the run, its data and where it works."""
        warning = [f"!!! {self.data.info.warning} !!!"] if self.data.info.warning else []
        return "\n".join([*self._lines(), *warning])

    def _repr_html_(self) -> str:
        return show.banner(self._lines(), self.data.info.warning)

    def _lines(self) -> list[str]:
        lines = [
            repr(self.run),
            f"experiment: {self.experiment.name}",
            f"data: {self.data.info.title}",
            f"folder: {self.run.folder}",
        ]
        if self.run.target == "cloud":
            lines.append(f"bucket: {self.bucket}")
        if self.run.target == "cloud-hpc":
            lines.append(cloud_hpc.describe(self.settings, self.request))
        return lines

    @property
    def settings(self) -> Settings:
        """The settings of the profile."""
        return self.run.settings

    @property
    def objects(self) -> StageStore:
        """The run's objects in the pipeline's bucket."""
        if "_objects" not in vars(self):
            store = open_store(self.settings, self.bucket)
            self._objects = StageStore(store, self.run.id)
        return self._objects

    @property
    def bucket(self) -> str:
        """The name of the pipeline's bucket."""
        return bucket_name(self.settings, "pipeline")

    @property
    def requests(self) -> RunRequests:
        """The requests of all runs on the profile's site."""
        return RunRequests(open_store(self.settings, bucket_name(self.settings, "submitter")))

    @property
    def request(self) -> RunRequest:
        """All that the site learns about this run."""
        return RunRequest(
            run=self.run.id,
            data_hash=self.data.hash,
            configured=self.options.configured,
            experiment=self.experiment.name,
            code=self.experiment.code,
            hyperparameters=self.parameters.model_dump(),
            workers=self.options.workers,
            tunnel=self.options.tunnel,
            profile=self.settings.profile,
            site=site_id(self.settings),
        )

    @property
    def context(self) -> Context:
        """The folders and parameters that the experiment gets when it runs here."""
        if "_context" not in vars(self):
            from kit.notebook.progress import Bar

            folder = self.run.folder
            self._context = Context(self.data.folder, folder, self.parameters, show=Bar())
        return self._context

    def show_figures(self) -> Pictures:
        """Draw the experiment's own pictures that were not shown before."""
        drawn = self.experiment.figures(self.context)
        new = {title: figure for title, figure in drawn.items() if title not in self.shown}
        self.shown |= set(new)
        return Pictures(new)

    def train(self) -> str:
        """Train with a progress bar; an interrupted training resumes from its checkpoint."""
        done = self.trained = running.train_timed(self.run.timeline, self.experiment, self.context)
        resumed = f", resumed after step {done.resumed_step}" if done.resumed_step else ""
        return f"trained for {done.seconds:.1f} s{resumed}"

    def evaluate(self) -> Table:
        """Measure the model: a table of the metrics, those of parts of the data in rows."""
        self._needs(self.trained, "train")
        with self.run.timeline.span("evaluation"):
            self.metrics = running.evaluate(self.experiment, self.context)
        return show.metrics_table(self.metrics)

    def show_credentials(self) -> Table:
        """List the credentials and when they expire, never the secrets.

        For a site each is compared with the end of the job's time limit, were it submitted now.
        """
        if self.run.target != "cloud-hpc":
            return show.credentials_table(self.settings)
        return show.credentials_table(self.settings, plan.job_end(self.settings, time.time()))

    def upload(self) -> Table:
        """Put the data set into the bucket, unless the same one is there already."""
        import pandas

        store = self.objects.store
        with self.run.timeline.span("upload"):
            store.ensure_bucket()
            uploaded = self.objects.put_data(self.data)
        rows = [{"key": o.key, "bytes": o.size} for o in store.list(f"data/{self.data.hash}")]
        state = "uploaded" if uploaded else "was there, same hash"
        return Table(pandas.DataFrame(rows).assign(state=state))

    def show_request(self) -> Text:
        """Show the request that the pipeline puts into the store."""
        return Text(write_request(self.request).decode())

    def show_script(self) -> Text:
        """Show the batch script that the site will run, with example paths, folded."""
        return Text(plan.batch(self.settings, self.request).script, "The batch script")

    def show_tunnel(self) -> Text:
        """Show how to open Ray's dashboard while the job runs."""
        return Text(cloud_hpc.tunnel_text(self.settings, self.request, self.requests))

    def show_pipeline(self) -> PipelinePicture:
        """Draw the pipeline before anything runs."""
        target = self._pipeline
        return live_picture(target.flows, [ComponentState(name) for name in target.components])

    @property
    def _pipeline(self) -> PipelineSpec:
        return CLOUD_HPC if self.run.target == "cloud-hpc" else CLOUD

    def run_pipeline(self) -> str:
        """Run the pipeline; the picture above the result shows each component.

        For a site a submitter is started beside it, which waits while another one works.
        Interrupting it leaves the job on the site running; the same cell resumes.
        """
        judging: Json = {"gates": self.options.gates, "strict": self.options.strict}
        judging["commit"] = self.run.commit
        if self.run.target != "cloud-hpc":
            self.upload()  # it may be the first step, as in the notebook of `kit new`
            of_the_run = self.run.id, self.bucket, self.data.hash, self.experiment
            values = self.parameters.model_dump()
            arguments = pipelines.arguments_of(self.settings, *of_the_run, values, **judging)
            return self._execute(arguments, lambda _: "")
        for store in (self.requests.store, self.objects.store):
            store.ensure_bucket()
        requests, run = self.requests, self.run
        requests.ask_again(run.id)
        if self.settings.cloud is not None and self.settings.cloud.runner == "cluster":
            self.objects.put_data(self.data)  # a component there cannot read files of this machine
        arguments = pipelines.hpc_arguments_of(
            self.settings, self.request, self.experiment, **judging
        )
        with cloud_hpc.submitter(self.settings, requests, run) as child:
            return self._execute(
                arguments, lambda states: cloud_hpc.note(child, requests, run.id, states)
            )

    def _execute(self, arguments: Mapping[str, Any], note: Any) -> str:
        from IPython.display import DisplayHandle

        handle, target = DisplayHandle(), self._pipeline  # type: ignore[no-untyped-call]
        handle.display(self.show_pipeline())  # type: ignore[no-untyped-call]
        with self.run.timeline.span("pipeline"):
            outcome = self.outcome = pipelines.run_pipeline(
                self.settings,
                self.objects,
                dict(arguments),
                self.run.folder,
                lambda states: handle.update(live_picture(target.flows, states, note=note(states))),  # type: ignore[no-untyped-call]
                target=target,
            )
        gates = outcome.evaluated["gates"]
        passed = "; ".join(gates["missed"]) or "passed: the model is registered"
        job = outcome.trained["slurm"]["job"] if "slurm" in outcome.trained else None
        state = f" job {job['id']} {job['state']};" if job else ""
        return f"pipeline {outcome.pipeline_s:.1f} s;{state} gates {passed}"

    def show_metrics(self) -> Table:
        """Show the metrics, those of parts of the data in rows."""
        return show.metrics_table(self._done.metrics)

    def show_sacct(self) -> Table:
        """Show what the accounting reports of the job and its steps."""
        return show.accounting_table(self._done.trained["slurm"]["sacct"])

    def show_seff(self) -> Table:
        """Show how much of what was reserved was used."""
        return show.value_table(self._done.trained["slurm"]["seff"])

    def show_mlflow(self) -> Table:
        """Read back from MLflow what was logged."""
        return show.mlflow_table(self.settings, self.run, self._done.mlflow)

    def show_loss(self) -> "Figure":
        """Draw the training loss over the steps."""
        if self.run.target == "local":
            self._needs(self.trained, "train")
            losses = self.context.losses
        else:
            losses = self._done.losses
        return kit.plots.loss_curve(losses, self.data.info.warning)

    def finish(self) -> Json:
        """Write the published files and add the run to the history; return its record."""
        if self.run.target == "local":
            trained = self._needs(self.trained, "train and evaluate")
            metrics = self._needs(self.metrics, "evaluate")
            record = results.finish_local(self.run, self.data, self.context, trained, metrics)
        elif self.run.target == "cloud":
            record = results.finish_cloud(self.run, self.data, self.objects, self._done)
        else:
            record = results.finish_cloud_hpc(self.run, self.data, self.objects, self._done)
        self.record = record
        return record

    def compare(self) -> Table:
        """Put a run of the article's experiment beside its column, another one beside its like."""
        self._needs(self.record, "finish")
        if self.experiment.name != DEFAULT:
            return Table(kit.compare_runs(self.settings, self.experiment.name))
        return Table(kit.compare_with_article(self.settings, self._column))

    @property
    def _column(self) -> str:
        """The article's column of this run: cloud-hpc has 1, unconfigured, and 2, configured."""
        number = 2 if self.options.configured else 1
        return f"cloud-hpc-{number}" if self.run.target == "cloud-hpc" else self.run.target

    def show_timeline(self) -> "Figure":
        """Draw what the seconds of this run went to, for a pipeline beside the article's."""
        seconds, warning = self.run.seconds(), self.data.info.warning
        if self.run.target == "local":
            return kit.plots.timeline({"local": seconds}, warning)
        parts = self._done.seconds()
        whole = with_pipeline(seconds, parts)
        if self.experiment.name != DEFAULT:
            rows = {f"{self.run.target} pipeline": parts, "with the notebook": whole}
            return kit.plots.timeline(rows, warning)
        return kit.timeline_beside_article(self._column, parts, warning, whole)

    def show_bill(self) -> Table:
        """Show what the run cost, the sums and what was reserved and not used."""
        record = self._needs(self.record, "finish")
        return _bill_table(bill_of_run(self.settings, record), bill_advice(self.settings, record))

    def show_elsewhere(self) -> Table:
        """Price the run's job on every site that could hold it."""
        record = self._needs(self.record, "finish")
        job = job_of_run(self.settings, record)
        return show.rows_table(offers_elsewhere(job) if job else [], "site")

    def show_results(self) -> Text:
        """Show where the results are and how to load the model."""
        self._needs(self.record, "finish")
        out = self.run.folder / "out"
        model = out / model_file(running.out_files(out))
        files = {
            "published files": self.settings.profile_dir / self.run.target,
            "this run": self.run.folder,
        }
        return show.places(files, self.experiment.loading(model))

    @property
    def _done(self) -> Outcome:
        return self._needs(self.outcome, "run_pipeline")

    @staticmethod
    def _needs(result: T | None, step: str) -> T:
        """Return the result of an earlier step. Raises UsageError when it was not run yet."""
        if result is None:
            raise UsageError("this step came too early", "", f"run the cell with `{step}` first")
        return result
