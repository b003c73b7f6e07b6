"""The steps that `cloud-hpc.ipynb` calls: credentials, pipeline, the site's work, results."""

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kit import store as stores
from kit.base import Json, UsageError
from kit.base.settings import load
from kit.billing import run as run_bill
from kit.experiments import Thresholds
from kit.experiments import fashion_mnist as article
from kit.experiments.fashion_mnist import data as fashion_mnist
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.notebook import local as experiment
from kit.notebook import plan
from kit.notebook.cloud import (
    compare,
    execute,
    keep,
    outcome_of,
    show_loss,
    show_metrics,
    show_mlflow,
    show_pipeline,
    show_timeline,
)
from kit.runs import history as runs
from kit.runs import hpc_run
from kit.runs.follow import last_seen
from kit.runs.hpc_run import CLOUD_HPC
from kit.runs.hpc_stages import TRAIN
from kit.runs.kfp_here import States
from kit.runs.kfp_log import RUNNING
from kit.runs.objects import StageStore
from kit.runs.outcome import Outcome, Target
from kit.runs.requests import RunRequest, RunRequests, RunState, attempt_id, write_request

if TYPE_CHECKING:
    import pandas

__all__ = [
    "compare", "finish", "run_pipeline", "show_credentials", "show_loss", "show_metrics",
    "show_mlflow", "show_pipeline", "show_request", "show_sacct", "show_script", "show_seff",
    "show_timeline", "show_tunnel", "start_cloud_hpc",
]  # fmt: skip


@dataclass
class CloudHpc:
    """One run of the cloud-hpc target as it goes on; `run_pipeline` fills `outcome`."""

    run: runs.Run
    data: fashion_mnist.Dataset
    hyperparameters: Parameters
    gates: Thresholds
    strict: bool
    objects: StageStore
    request: RunRequest
    jobs: RunRequests
    target: Target = CLOUD_HPC
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
        shown = "no tunnel"
        if self.request.wants_tunnel(hpc.tunnel):
            shown = "the cloud VM shows Ray's dashboard by a reverse tunnel"
        return f"site: {place}; {use}; {shown}; progress by the object store"


def start_cloud_hpc(
    profile: str,
    fresh: bool,
    configured: bool,
    gates: tuple[float, float, float],
    strict: bool,
    workers: int = 1,
    tunnel: str | None = None,
    **values: Any,
) -> CloudHpc:
    """Read settings and data and start a run, or go on with a broken-off one.

    A run that was broken off by a failed try is let work once more. `tunnel`: reverse, none, or
    None for the profile's. Raises as `start_cloud`.
    """
    loaded = load(profile)
    if loaded.hpc is None or loaded.site.closed:
        got = loaded.site.closed or "it has no section [hpc]"
        raise UsageError(f"train on the site of {profile}", got, "use another profile")
    run_bill.refuse_over(loaded, "cloud-hpc")
    chosen, least = Parameters(**values), Thresholds(dict(zip(article.METRICS, gates, strict=True)))
    parameters = {**chosen.model_dump(), "configured": configured, "workers": workers}
    parameters |= {"gates": list(gates), "strict": strict, "tunnel": tunnel or ""}
    run, data = experiment.begin(loaded, "cloud-hpc", parameters, fresh)
    store = stores.open_store(loaded, stores.bucket_name(loaded, "pipeline"))
    objects = StageStore(store, run.id)
    request = RunRequest(
        run=run.id,
        data_hash=data.hash,
        configured=configured,
        hyperparameters=chosen,
        workers=workers,
        tunnel=tunnel or "",
    )
    jobs = hpc_run.jobs_of(loaded)
    return CloudHpc(run, data, chosen, least, strict, objects, request, jobs)


def show_credentials(work: CloudHpc) -> "pandas.DataFrame":
    """Obtain the credentials, make the buckets; say what is valid until when, no secrets.

    Each is held against the end of the job's time limit, were it submitted now.
    """
    for store in (work.jobs.store, work.objects.store):
        store.ensure_bucket()
    end = plan.end_of(work.run.settings, time.time())
    return experiment.credentials_table(work.run.settings, end)


def show_request(work: CloudHpc) -> str:
    """Give the request that the pipeline will put into the store: all that the site is told."""
    return write_request(work.request).decode()


def show_script(work: CloudHpc) -> str:
    """Give the batch script that the site will run, with example paths."""
    return plan.batch(work.run.settings, work.request).script


def show_tunnel(work: CloudHpc) -> str:
    """Say how to see Ray's dashboard while the job runs; its token is shown to its owner by ssh."""
    hpc, cloud = plan.site_of(work.run.settings), work.run.settings.cloud
    if not work.request.wants_tunnel(hpc.tunnel) or cloud is None or not cloud.tunnel_address:
        return "no tunnel: progress comes by the object store"
    standing = work.jobs.status(work.run.id)
    name = attempt_id(work.run.id, standing.number + (standing.state is RunState.ENDED))
    config = ["-F", hpc.ssh_config] if hpc.ssh_config else []
    user = ["-l", hpc.user] if hpc.user else []
    where = f"{hpc.project_dir}/kit/tries/{name}/ray.token"
    secret = shlex.join(["ssh", *config, *user, hpc.ssh_host, "cat", where])
    lines = ["Ray's dashboard is at the address that stands below the picture while the job runs"]
    if not cloud.tunnel_address.startswith("127."):
        way = ["-N", "-L", f"8280:{cloud.tunnel_address}:8280", cloud.ssh_host]
        lines.append(f"bring it to http://127.0.0.1:8280: {shlex.join(['ssh', *config, *way])}")
    return "\n".join([*lines, f"it asks for the job's token; to see that: {secret}"])


def run_pipeline(work: CloudHpc) -> str:
    """Run the pipeline; the picture above the result shows each component as it goes on.

    A submitter of its own works meanwhile where no other one is seen to; two do no harm.
    """
    settled, run = work.run.settings, work.run.id
    if work.jobs.status(run).state is RunState.ENDED:
        work.jobs.ask_again(run)
    if settled.cloud is not None and settled.cloud.runner == "cluster":
        work.objects.put_data(work.data)  # a component there has no access to files of here
    arguments = hpc_run.arguments_of(settled, work.request, work.gates, work.strict)
    with _submitter(work):
        return execute(work, arguments, partial(_standing, work))


def _standing(work: CloudHpc, states: States) -> str:
    """Say how the run stands on the site while its training component runs."""
    running = [each.name for each in states if each.state == RUNNING]
    return last_seen(work.jobs, work.run.id) if running == [TRAIN] else ""


@contextlib.contextmanager
def _submitter(work: CloudHpc) -> Iterator[None]:
    """Have a submitter beside the block that works unless another one is seen to; see its log."""
    argv = [sys.executable, "-m", "kit.submitter", work.run.settings.profile]
    with (
        (work.run.folder / "submitter.log").open("ab") as log,
        subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as child,
    ):
        try:
            yield
        finally:
            child.terminate()


def show_sacct(work: CloudHpc) -> "pandas.DataFrame":
    """Give what the accounting says of the job and its steps, a column each."""
    import pandas

    rows = outcome_of(work).trained["slurm"]["sacct"]
    frame = pandas.DataFrame.from_dict(rows).dropna(how="all").fillna("")
    return frame.set_axis(list(frame.loc["JobID"]), axis="columns").drop("JobID")


def show_seff(work: CloudHpc) -> "pandas.DataFrame":
    """Give how much of what was reserved was used."""
    import pandas

    values = outcome_of(work).trained["slurm"]["seff"]
    return pandas.DataFrame.from_dict(values, orient="index", columns=["value"])


def finish(work: CloudHpc) -> Json:
    """Write the published files, add the run to the history; give that line."""
    outcome = outcome_of(work)
    trained, paths = outcome.trained, hpc_run.published(work.request.configured)
    for name in ("job.sh", "job.log", "sacct.txt", "seff.txt", "sacct-tries.txt"):
        if name in trained["objects"]:
            work.run.save(name, work.objects.get(trained["objects"][name]))
    files = {paths[name]: content for name, content in hpc_run.files(outcome).items()}
    figures = {"ray_job_s": trained["ray_job"]["total-seconds"]}
    return keep(work, files, figures, {"slurm": trained["slurm"], "site": trained["site"]})
