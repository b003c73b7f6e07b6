"""What a job holds while it runs: asked for in its script, or held as sacct says. Pure."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from kit.base import UsageError
from kit.base.settings import Hpc
from kit.slurm.script import JobSpec
from kit.slurm.usage import Usage
from kit.slurm.values import seconds, size

GIB = 2**30


@dataclass(frozen=True)
class Load:
    """What a job holds while it runs, summed over its nodes; `gib` None: not known."""

    partition: str
    seconds: Decimal
    nodes: int
    cores: int
    gib: Decimal | None
    gpus: int = 0
    disk_gib: Decimal = Decimal(0)


def planned(hpc: Hpc) -> JobSpec:
    """Give what a run asks the site for, without what it does there."""
    return JobSpec(
        name="plan", commands=(), account=hpc.account, partition=hpc.partition, nodes=hpc.nodes,
        tasks_per_node=1, cpus=hpc.cpus, memory=hpc.mem, gres=hpc.gres, time=hpc.time,
    )  # fmt: skip


def asked(spec: JobSpec) -> Load:
    """Say what a job holds from its start to its time limit.

    Raises UsageError for a time that has no end.
    """
    limit = seconds(spec.time)
    if limit is None or math.isinf(limit):
        raise UsageError(f"price a job with the time limit {spec.time!r}", "it has no end",
                         "give [hpc] time as hh:mm:ss")  # fmt: skip
    memory = size(spec.memory)
    return Load(
        spec.partition,
        Decimal(str(limit)),
        spec.nodes,
        (spec.tasks or spec.nodes * max(1, spec.tasks_per_node)) * spec.cpus,
        None if memory is None else Decimal(memory) / GIB * spec.nodes,
        _gres(spec.gres, "gpu") * spec.nodes,
        Decimal(_gres(spec.gres, "nvme") * spec.nodes),
    )


def _gres(text: str, name: str) -> int:
    """Count one resource of `gpu:gh200:4,nvme:100` or of AllocTRES' `gres/gpu:a100=4`."""
    counts = re.findall(rf"(?:^|,)(?:gres/)?{name}(?::[A-Za-z][\w.-]*)?(?:[:=](\d+))?(?=,|$)", text)
    return max((int(count or 1) for count in counts), default=0)


def used(usage: Usage) -> Load:
    """Say what one life of a job held, from AllocTRES where sacct has it, else from columns."""
    columns, tres = usage.rows[0].columns, usage.tres
    text = ",".join(f"{key}={value}" for key, value in tres.items())
    nodes = int(tres.get("node", "0")) or usage.nodes or 0
    cores = int(tres.get("cpu", "0")) or usage.cores or 0
    memory = size(tres.get("mem", ""))
    if memory is None and (each := size(columns.get("ReqMem", ""))) is not None:
        memory = each * (cores if columns["ReqMem"].endswith("c") else max(nodes, 1))
    return Load(
        columns.get("Partition", ""),
        Decimal(usage.elapsed_seconds or 0),
        nodes,
        cores,
        None if memory is None else Decimal(memory) / GIB,
        _gres(text, "gpu"),
        Decimal(_gres(text, "nvme")),
    )
