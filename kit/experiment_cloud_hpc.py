"""The steps that `cloud-hpc.ipynb` calls: credentials, pipeline, the site's work, results."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kit import experiment, fashion_mnist, hpc_run, plan, plots, report, run_bill, runs, tracking
from kit import settings as profiles
from kit import store as stores
from kit.errors import UsageError
from kit.experiment import too_early
from kit.experiment_cloud import _live
from kit.gates import Gates
from kit.hpc_follow import last_seen
from kit.hpc_run import Outcome
from kit.hpc_stages import TRAIN
from kit.hyperparameters import Hyperparameters
from kit.jobs import Jobs, Request, RunState, write_request
from kit.kfp_log import RUNNING, ComponentState
from kit.kfp_runner import States
from kit.pipeline_picture import PipelinePicture, live_picture
from kit.records import Json, Timeline
from kit.stage_store import StageStore

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

FLOWS = ("data set", "request", "result", "metrics")


@dataclass
class CloudHpc:
    """One run of the cloud-hpc target as it goes on; `run_pipeline` fills `outcome`."""

    run: runs.Run
    data: fashion_mnist.Dataset
    request: Request
    gates: Gates
    strict: bool
    jobs: Jobs
    objects: StageStore
    outcome: Outcome | None = None

    def __repr__(self) -> str:
        """Show the run, its data and its site."""
        return f"{experiment.describe(self.run, self.data)}\n{self._site}"

    def _repr_html_(self) -> str:
        """The same for a notebook, the warning where nobody can miss it."""
        return experiment.banner(self.run, self.data, self._site)

    @property
    def _site(self) -> str:
        hpc = self.run.settings.hpc
        if hpc is None:
            return "no site"
        use = "uses the environment that is there" if self.request.configured else "makes its own"
        place = f"{hpc.ssh_host}, {hpc.nodes} x {hpc.partition}, account {hpc.account}"
        return f"site: {place}; {use}; progress by the object store, no tunnel"


def start_cloud_hpc(
    profile: str,
    fresh: bool,
    configured: bool,
    gates: tuple[float, float, float],
    strict: bool,
    workers: int = 1,
    **values: object,
) -> CloudHpc:
    """Read settings and data and start a run, or go on with a broken-off one.

    A run that was broken off by a failed try is let work once more. Raises as `start_cloud`.
    """
    loaded = profiles.load(profile)
    if loaded.hpc is None or loaded.site.closed:
        got = loaded.site.closed or "it has no section [hpc]"
        raise UsageError(f"train on the site of {profile}", got, "use another profile")
    run_bill.refuse_over(loaded, "cloud-hpc")
    chosen, least = Hyperparameters(**values), Gates(*gates)  # type: ignore[arg-type]
    timeline = Timeline()
    with timeline.span("data"):
        data = fashion_mnist.load(loaded.data_dir, loaded.cache_dir)
    parameters = {**asdict(chosen), "configured": configured, "workers": workers}
    parameters |= {"gates": list(gates)}
    run = runs.start_run(loaded, "cloud-hpc", {**parameters, "strict": strict}, data.hash, fresh)
    run.timeline = timeline
    store = stores.open_store(loaded, stores.bucket_name(loaded, "pipeline"))
    request = Request(run.id, data.hash, configured, chosen, workers)
    objects = StageStore(store, run.id)
    return CloudHpc(run, data, request, least, strict, hpc_run.jobs_of(loaded), objects)


def show_credentials(work: CloudHpc) -> "pandas.DataFrame":
    """Obtain the credentials, make the buckets; say what is valid until when, no secrets.

    Each is held against the end of the job's time limit, were it submitted now.
    """
    for store in (work.jobs.store, work.objects.store):
        store.ensure_bucket()
    end = plan.end_of(work.run.settings, time.time())
    return experiment.credentials_table(work.run.settings, end)


def show_pipeline(work: CloudHpc) -> PipelinePicture:
    """Draw the pipeline before anything runs."""
    return live_picture(FLOWS, [ComponentState(name) for name in hpc_run.COMPONENTS])


def show_request(work: CloudHpc) -> str:
    """Give the request that the pipeline will put into the store: all that the site is told."""
    return write_request(work.request).decode()


def show_script(work: CloudHpc) -> str:
    """Give the batch script that the site will run, with example paths."""
    return plan.batch(work.run.settings, work.request).script


def run_pipeline(work: CloudHpc) -> str:
    """Run the pipeline; the picture above the result shows each component as it goes on.

    A submitter runs here meanwhile; another one somewhere else does no harm.
    """
    settled, run = work.run.settings, work.run
    if work.jobs.standing(run.id).state is RunState.ENDED:
        work.jobs.ask_again(run.id)
    arguments = hpc_run.arguments_of(settled, work.request, work.gates, work.strict)
    show = _live(show_pipeline(work))
    with run.timeline.span("pipeline"), _submitter(work):
        work.outcome = hpc_run.run_pipeline(
            settled,
            work.objects,
            arguments,
            run.folder,
            lambda states: show(live_picture(FLOWS, states, note=_standing(work, states))),
        )
    slurm, gates = work.outcome.trained["slurm"], work.outcome.evaluated["gates"]
    passed = "passed: the model is registered" if gates["passed"] else "; ".join(gates["missed"])
    job = f"job {slurm['job']['id']} {slurm['job']['state']}"
    return f"pipeline {work.outcome.pipeline_s:.1f} s; {job}; gates {passed}"


def _standing(work: CloudHpc, states: States) -> str:
    """Say how the run stands on the site while its training component runs."""
    running = [each.name for each in states if each.state == RUNNING]
    return last_seen(work.jobs, work.run.id) if running == [TRAIN] else ""


@contextlib.contextmanager
def _submitter(work: CloudHpc) -> Iterator[None]:
    """Have a submitter of this profile run beside the block; its log is in the run's folder."""
    argv = [sys.executable, "-m", "kit.submitter_loop", work.run.settings.profile]
    with (
        (work.run.folder / "submitter.log").open("ab") as log,
        subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as child,
    ):
        try:
            yield
        finally:
            child.terminate()


def show_metrics(work: CloudHpc) -> "pandas.DataFrame":
    """Give accuracy, precision and recall by class and their mean."""
    return experiment.class_table(_outcome(work).evaluated["performance"])


def show_loss(work: CloudHpc) -> "Figure":
    """Draw the training loss over the steps."""
    steps = -(-len(work.data.train_labels) // work.request.hyperparameters.batch_size)
    return plots.loss_curve(_outcome(work).losses, steps, work.data.warning)


def show_sacct(work: CloudHpc) -> "pandas.DataFrame":
    """Give what the accounting says of the job and its steps, a column each."""
    import pandas

    rows = _outcome(work).trained["slurm"]["sacct"]
    frame = pandas.DataFrame.from_dict(rows).dropna(how="all").fillna("")
    return frame.set_axis(list(frame.loc["JobID"]), axis="columns").drop("JobID")


def show_seff(work: CloudHpc) -> "pandas.DataFrame":
    """Give how much of what was reserved was used."""
    import pandas

    values = _outcome(work).trained["slurm"]["seff"]
    return pandas.DataFrame.from_dict(values, orient="index", columns=["value"])


def show_mlflow(work: CloudHpc) -> "pandas.DataFrame":
    """Read back from MLflow what was logged; the caption is the link to the run."""
    logged, run = _outcome(work).evaluated["mlflow"], work.run
    return tracking.table(run.settings, "cloud-hpc-fmnist-pipeline", run.id, logged)


def finish(work: CloudHpc) -> Json:
    """Write the published files, add the run to the history; give that line."""
    outcome, run = _outcome(work), work.run
    published = hpc_run.published(work.request.configured)
    with run.timeline.span("records"):
        names = {name: f"{name}.json" for name in published}
        for name, content in outcome.files().items():
            run.save(names[name], content)
        run.save("stages.json", outcome.stages)
        for name in ("job.sh", "job.log", "sacct.txt", "seff.txt"):
            if name in outcome.trained["objects"]:
                run.save(name, work.objects.get(outcome.trained["objects"][name]))
    performance = outcome.evaluated["performance"]
    figures = {
        "training_s": outcome.trained["training"]["total-seconds"],
        "ray_job_s": outcome.trained["ray_job"]["total-seconds"],
        "train_component_s": outcome.trained["time"]["total-seconds"],
        "pipeline_s": round(outcome.pipeline_s, 5),
        "accuracy": performance["accuracy"],
    }
    facts = {"data": experiment.data_facts(work.data), "figures": figures}
    facts |= {"performance": performance, "tracking": outcome.evaluated["mlflow"]}
    facts |= {"gates": outcome.evaluated["gates"], "pipeline": outcome.seconds()}
    facts |= {"slurm": outcome.trained["slurm"], "site": outcome.trained["site"]}
    facts = run_bill.keep(run, facts, work.objects.store)
    return run.finish({published[name]: names[name] for name in published}, facts)


def compare(work: CloudHpc) -> "pandas.DataFrame":
    """Put this run beside the article's column: 1 unconfigured, 2 configured."""
    name = report.column_of("cloud-hpc", work.run.parameters)
    return experiment.beside_article(work.run.settings, name, f"article {name}")


def show_timeline(work: CloudHpc) -> "Figure":
    """Draw which share of the pipeline went where, beside the article's."""
    theirs = report.article()["cloud-hpc-1"]
    training = theirs["training_s"]
    published = {"training": training, "not training": theirs["pipeline_s"] - training}
    rows = {"article": published, "this run": _outcome(work).seconds()}
    return plots.timeline(rows, work.data.warning, shares=True)


def _outcome(work: CloudHpc) -> Outcome:
    if work.outcome is None:
        raise too_early("run_pipeline")
    return work.outcome
