"""`kit plan`: what a run would do, with which script, for how much; nothing is done for it.

Nobody is asked and no account is needed: all of it is in the profile, and the ssh certificate,
where there is one, is read from its file.
"""

import dataclasses
import shlex
from dataclasses import dataclass

from kit.base import UsageError
from kit.base.settings import Hpc, Settings
from kit.billing import tables as bill_tables
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.requests import RunRequest
from kit.slurm import JobSpec, SitePaths, build_script, node_hours, parse_duration, sbatch_argv
from kit.store import as_row, bucket_name, certificates, describe_expiry
from kit.submitter import job as ray_job
from kit.submitter import tunnel_key as tunnel

EXAMPLE = RunRequest(run="cloud-hpc-000000000000-1", data_hash="0" * 64)


@dataclass(frozen=True)
class Batch:
    """The batch job of a run: what sbatch is called with, its script, the job as data."""

    argv: tuple[str, ...]
    script: str
    spec: JobSpec


def site_of(loaded: Settings) -> Hpc:
    """Give the profile's site. Raises UsageError when it has none, or the site is closed."""
    if loaded.hpc is None or loaded.site.closed:
        got = loaded.site.closed or "it has no section [hpc]"
        raise UsageError(f"use the site of {loaded.profile}", got, "use another profile")
    return loaded.hpc


def batch(loaded: Settings, request: RunRequest) -> Batch:
    """Make the batch job of a request; folders and files named by a hash are examples."""
    hpc = site_of(loaded)
    task = ray_job.build_task(hpc, request, 1, "0" * 64)
    task = dataclasses.replace(task, token="0" * 12)
    if hpc.build_env_on == "login":
        task = dataclasses.replace(task, environment=f"{SitePaths(hpc).venvs}/made-by-ssh")
    cloud = loaded.cloud
    if cloud and cloud.tunnel_address and request.wants_tunnel(hpc.tunnel):
        reach = {"host": cloud.ssh_host, "port": 22, "user": "kit-tunnel"}
        task = dataclasses.replace(task, tunnel=tunnel.tunnel_settings(cloud, reach))
    spec, folder = ray_job.job_spec(hpc, task), SitePaths(hpc).attempt(task.token)
    return Batch(tuple(sbatch_argv(folder)), build_script(spec, folder), spec)


def end_of(loaded: Settings, now: float) -> float:
    """When a job's time limit would be over, were it submitted now and started at once."""
    return now + (parse_duration(site_of(loaded).time) or 0)


def sections(loaded: Settings, target: str, now: float) -> list[tuple[str, str]]:
    """Say what a run of `target` would do: title and text of each section."""
    if target == "local":
        return [("what would happen", _local(loaded))]
    if loaded.store is None:
        got, step = "it has no section [store]", "use another profile"
        raise UsageError(f"plan {target} on {loaded.profile}", got, step)
    if target == "cloud":
        price = bill_tables.estimate_text(loaded, target)
        return [("what would happen", _cloud(loaded)), ("bill", price)]
    job = batch(loaded, EXAMPLE)
    return [
        ("what would happen", _cloud_hpc(loaded)),
        ("estimate", _estimate(job.spec)),
        ("bill", bill_tables.estimate_text(loaded, target)),
        ("credentials", _credentials(loaded, now)),
        ("submitted with", shlex.join(job.argv)),
        ("batch script", job.script),
    ]


def _local(loaded: Settings) -> str:
    epochs, place = Parameters().epochs, loaded.profile_dir / "local"
    return f"training in the notebook's own process, {epochs} epochs\nresults in {place}"


def _cloud(loaded: Settings) -> str:
    cluster = loaded.cloud is not None and loaded.cloud.runner == "cluster"
    where = f"on {loaded.cloud.kfp_url}" if cluster and loaded.cloud else "by kfp.local, here"
    return (
        f"data set into the bucket {_bucket(loaded, 'pipeline')}, unless it is there\n"
        f"pipeline preprocess-train, evaluate {where}\n"
        f"results in {loaded.profile_dir / 'cloud'}"
    )


def _cloud_hpc(loaded: Settings) -> str:
    hpc = site_of(loaded)
    return (
        f"data set into the bucket {_bucket(loaded, 'pipeline')}, unless it is there\n"
        f"request into the bucket {_bucket(loaded, 'submitter')}\n"
        f"submitter: code, data and list of packages to {hpc.ssh_host}:{hpc.project_dir}/kit,\n"
        f"  one batch job, its log, figures and files to the store\n"
        f"evaluation, MLflow, results in {loaded.profile_dir / 'cloud-hpc'}"
    )


def _bucket(loaded: Settings, role: str) -> str:
    """Name a bucket; without a login the person's part of its name is not known."""
    try:
        return bucket_name(loaded, role)
    except UsageError:
        return f"{bucket_name(loaded, 'forwarder').replace('forwarder', role)}-<user>"


def _estimate(spec: JobSpec) -> str:
    hours = f"{node_hours(spec):.3g}"
    return (
        f"at most {hours} node-hours: {spec.nodes} node(s) of {spec.partition}"
        f" for at most {spec.time}, {spec.cpus} core(s) and {spec.memory} each,"
        f" account {spec.account}\nthe job ends by itself as soon as it is done"
    )


def _credentials(loaded: Settings, now: float) -> str:
    """Hold what is known before a run against the end of the job, were it submitted now."""
    end, lines = end_of(loaded, now), []
    for row in certificates(loaded, now):
        until = as_row(row)["expires"]
        lines.append(f"{row.what}: until {until}; to the job's end: {describe_expiry(row, end)}")
    if loaded.store is not None and loaded.store.auth_url:
        lines.append("Keystone token: obtained when the run starts, renewed by itself")
    lines.append("time in the queue comes on top: kit credentials, kit doctor")
    return "\n".join(lines)
