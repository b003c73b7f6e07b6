"""`kit plan`: what a run would do, with which script, for how much; nothing is done for it.

Also how long the trainings of an experiment usually take, for the plan of a sweep.

No account and no network is needed: all of it is in the profile, and the ssh certificate, if
there is one, is read from its file.
"""

import dataclasses
import shlex
import statistics
from dataclasses import dataclass

from kit.base import UsageError, read_history
from kit.base.settings import Settings
from kit.billing import estimate_text
from kit.experiments import load_experiment
from kit.runs.history import TRIAL_LINES
from kit.runs.requests import RunRequest
from kit.slurm import JobSpec, SitePaths, build_script, node_hours, parse_duration, sbatch_argv
from kit.store import as_row, bucket_name, certificates, describe_expiry
from kit.submitter import job_spec, tunnel_settings
from kit.submitter.job import build_task
from kit.sweeps.engine import DONE, FROM_RUN

EXAMPLE = RunRequest(run="cloud-hpc-000000000000-1", data_hash="0" * 64)


@dataclass(frozen=True)
class Batch:
    """The batch job of a run: what sbatch is called with, its script, the job as data."""

    argv: tuple[str, ...]
    script: str
    spec: JobSpec


def batch(settings: Settings, request: RunRequest) -> Batch:
    """Build the batch job of a request; folders and files named by a hash are examples."""
    hpc = settings.hpc_section(accepts_jobs=True)
    experiment = load_experiment(request.experiment, own_files=False)
    task = dataclasses.replace(
        build_task(hpc, request, experiment, 1, "0" * 64), attempt_id="0" * 12
    )
    if hpc.build_env_on == "login":
        task = dataclasses.replace(task, environment=f"{SitePaths(hpc).venvs}/made-by-ssh")
    cloud = settings.cloud
    if cloud and cloud.tunnel_address and request.wants_tunnel(hpc.tunnel):
        reach = {"host": cloud.ssh_host, "port": 22, "user": "kit-tunnel"}
        task = dataclasses.replace(task, tunnel=tunnel_settings(cloud, reach))
    spec, folder = job_spec(hpc, task), SitePaths(hpc).attempt(task.attempt_id)
    return Batch(tuple(sbatch_argv(folder)), build_script(spec, folder), spec)


def job_end(settings: Settings, now: float) -> float:
    """Return when a job's time limit would be over, were it submitted and started now."""
    return now + (parse_duration(settings.hpc_section(accepts_jobs=True).time) or 0)


def training_seconds(settings: Settings, experiment: str, target: str) -> float | None:
    """Return the median training seconds of earlier runs of an experiment on a target.

    The trials of sweeps are among them, where they were trained to their end. None without any.
    """
    wanted, folder = (experiment, target), settings.profile_dir
    found = [
        float(line["figures"]["training_s"])
        for line in read_history(folder / "history.jsonl")[0]
        if (line.get("experiment"), line.get("target")) == wanted
        and "sweep" not in line
        and "training_s" in line.get("figures", {})
    ]
    found += [
        float(line["training"]["total-seconds"])
        for line in read_history(folder / TRIAL_LINES)[0]
        if (line.get("experiment"), line.get("target"), line.get("state")) == (*wanted, DONE)
        and FROM_RUN not in line
    ]
    return statistics.median(found) if found else None


def plan_sections(settings: Settings, target: str, now: float) -> list[tuple[str, str]]:
    """Describe what a run of `target` would do: title and text of each section."""
    if target == "local":
        return [("what would happen", _local(settings))]
    settings.store_section()
    if target == "cloud":
        price = estimate_text(settings, target)
        return [("what would happen", _cloud(settings)), ("bill", price)]
    job = batch(settings, EXAMPLE)
    return [
        ("what would happen", _cloud_hpc(settings)),
        ("estimate", _estimate(job.spec)),
        ("bill", estimate_text(settings, target)),
        ("credentials", _credentials(settings, now)),
        ("submitted with", shlex.join(job.argv)),
        ("batch script", job.script),
    ]


def _local(settings: Settings) -> str:
    place = settings.profile_dir / "local"
    return f"training in the notebook's own process\nresults in {place}"


def _cloud(settings: Settings) -> str:
    cluster = settings.cloud is not None and settings.cloud.runner == "cluster"
    where = f"on {settings.cloud.kfp_url}" if cluster and settings.cloud else "by kfp.local, here"
    return (
        f"data set into the bucket {_bucket(settings, 'pipeline')}, unless it is there\n"
        f"pipeline preprocess-train, evaluate {where}\n"
        f"results in {settings.profile_dir / 'cloud'}"
    )


def _cloud_hpc(settings: Settings) -> str:
    hpc = settings.hpc_section()
    image = SitePaths(hpc).image
    options = f" ({' '.join(hpc.container_options)})" if hpc.container_options else ""
    within = f"  its Python in the container {image}{options}\n" if image else ""
    return (
        f"data set into the bucket {_bucket(settings, 'pipeline')}, unless it is there\n"
        f"request into the bucket {_bucket(settings, 'submitter')}\n"
        f"submitter: code, data and list of packages to {hpc.ssh_host}:{hpc.project_dir}/kit,\n"
        f"  one batch job, its log, figures and files to the store\n"
        f"{within}evaluation, MLflow, results in {settings.profile_dir / 'cloud-hpc'}"
    )


def _bucket(settings: Settings, role: str) -> str:
    """Return a bucket's name; without a login the person's part of it is not known."""
    try:
        return bucket_name(settings, role)
    except UsageError:
        return f"{bucket_name(settings, 'forwarder').replace('forwarder', role)}-<user>"


def _estimate(spec: JobSpec) -> str:
    hours = f"{node_hours(spec):.3g}"
    of_a_core = f"{spec.mem_per_cpu} per core" if spec.mem_per_cpu else ""
    memory = spec.memory or of_a_core or "the site's default memory"
    gpus = f"gpu:{spec.gpus_per_node}" if spec.gpus_per_node else ""
    gres = "".join(f", {text} on each node" for text in (spec.gres, gpus) if text)
    gres += ", no other job on the nodes" if spec.exclusive else ""
    return (
        f"at most {hours} node-hours: {spec.nodes} node(s) of {spec.partition}"
        f" for at most {spec.time}, {spec.cpus} core(s) and {memory} each{gres},"
        f" account {spec.account}\nthe job ends by itself as soon as it is done"
    )


def _credentials(settings: Settings, now: float) -> str:
    """Compare what is known before a run with the end of the job, were it submitted now."""
    end, lines = job_end(settings, now), []
    for row in certificates(settings, now):
        until = as_row(row)["expires"]
        lines.append(f"{row.what}: until {until}; to the job's end: {describe_expiry(row, end)}")
    if settings.store is not None and settings.store.auth_url:
        lines.append("Keystone token: obtained when the run starts, renewed by itself")
    lines.append("time in the queue comes on top: kit credentials, kit doctor")
    return "\n".join(lines)
