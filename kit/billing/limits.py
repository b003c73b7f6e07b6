"""What a job holds on its partition, and whether the partition gives that to one job. Pure.

The limits are those of the profile's [partitions]; a partition that has none there is not checked.
"""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from kit.base import UsageError
from kit.base.settings import Partition, Settings
from kit.slurm import JobSpec, Resources, parse_duration, requested_resources


def held_resources(settings: Settings, job: JobSpec) -> Resources:
    """Return what a job holds: of an exclusive one all cores and GPUs of its nodes.

    Memory is what was requested: Slurm gives an exclusive job all of a node's only for `mem = 0`.
    Raises UsageError for an exclusive job on a partition whose nodes the profile does not describe.
    """
    held = requested_resources(job)
    if not job.exclusive or (job.partition in settings.rates and _is_whole(settings, job)):
        return held
    partition = settings.partitions.get(job.partition)
    if partition is None:
        got = f"{settings.file} does not say how many cores a node of {job.partition!r} has"
        step = f"add [partitions.{job.partition}] with time, nodes, cores, gib and gpus"
        raise UsageError("price an exclusive job", got, step)
    cores = partition.cores * job.nodes
    memory = held.memory_gib
    if job.mem_per_cpu and memory is not None and held.cores:
        memory = memory / held.cores * cores
    return replace(held, cores=cores, memory_gib=memory, gpus=partition.gpus * job.nodes)


def check_limits(settings: Settings, job: JobSpec) -> None:
    """Raise UsageError if a job is more than its partition gives to one job, with each reason."""
    partition = settings.partitions.get(job.partition)
    if partition is None:
        return
    reasons = list(_excess(partition, requested_resources(job)))
    if reasons:
        raise UsageError(
            f"submit a job to the partition {job.partition} of {settings.profile}",
            "; ".join(reasons),
            "ask for less in [hpc], or name another partition; the limits are [partitions"
            f".{job.partition}] in {settings.file}",
        )


def _is_whole(settings: Settings, job: JobSpec) -> bool:
    """Report whether the price counts nodes alone, so that it does not matter what is in them."""
    rate = settings.rates[job.partition]
    return rate.per == "node-h" and not rate.max


def _excess(partition: Partition, asked: Resources) -> Iterator[str]:
    """Yield a clause for each limit of a partition that a job exceeds. Figures are per node."""
    nodes = max(1, asked.nodes)
    longest = parse_duration(partition.time) or 0
    if asked.seconds > Decimal(str(longest)):
        yield f"a time limit of {float(asked.seconds) / 3600:g} h, at most {longest / 3600:g} h"
    memory = (asked.memory_gib or Decimal(0)) / nodes
    for what, count, most in (
        ("nodes", asked.nodes, partition.nodes),
        ("cores on each node", asked.cores // nodes, partition.cores),
        ("GiB on each node", memory, partition.gib),
        ("GPUs on each node", asked.gpus // nodes, partition.gpus),
        ("GPUs in all", asked.gpus, partition.max_gpus or asked.gpus),
    ):
        if count > most:
            yield f"{float(count):g} {what}, at most {most}"
    if partition.gpus and not asked.gpus:
        yield "no GPU, and the partition is for GPUs: write gres or gpus_per_node"
