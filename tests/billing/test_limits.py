"""The limits of partitions: what a job may not ask for, and what an exclusive job holds."""

import dataclasses
from decimal import Decimal

import pytest

from kit.base import UsageError
from kit.base.settings import load
from kit.billing import check_affordable, check_job, estimate
from kit.billing.limits import check_limits, held_resources
from kit.slurm import JobSpec

ROIHU, LUMI, SANDBOX = (load(name, {}) for name in ("roihu", "lumi", "sandbox"))


def job(partition, **more):
    return JobSpec("x", ("true",), **{"partition": partition, "time": "00:10:00", **more})


@pytest.mark.parametrize(
    ("site", "asked"),
    [
        (ROIHU, job("small", cpus=384, memory="1500G", time="3-00:00:00")),
        (ROIHU, job("small", memory="0")),
        (ROIHU, job("medium", nodes=6, cpus=384)),
        (ROIHU, job("gpumedium", nodes=4, gres="gpu:gh200:1")),
        (ROIHU, job("gputest", gpus_per_node="gh200:4", nodes=2)),
        (ROIHU, job("gpularge", nodes=99)),  # no limits in the profile
        (LUMI, job("small", memory="1000G")),
        (SANDBOX, job("small", nodes=99)),
    ],
)
def test_job_that_its_partition_holds_is_accepted(site, asked):
    check_limits(site, asked)


@pytest.mark.parametrize(
    ("site", "asked", "reason"),
    [
        (ROIHU, job("small", nodes=2), "2 nodes, at most 1"),
        (ROIHU, job("small", memory="2000G"), "2000 GiB on each node, at most 1500"),
        (ROIHU, job("small", mem_per_cpu="10G", cpus=200), "2000 GiB on each node, at most 1500"),
        (ROIHU, job("small", cpus=385), "385 cores on each node, at most 384"),
        (ROIHU, job("small", cpus=200, tasks_per_node=2), "400 cores on each node"),
        (ROIHU, job("small", gres="gpu:gh200:1"), "1 GPUs on each node, at most 0"),
        (ROIHU, job("gputest", gres="gpu:1", time="30"), "limit of 0.5 h, at most 0.25 h"),
        (ROIHU, job("gputest"), "no GPU, and the partition is for GPUs"),
        (ROIHU, job("gpumedium", gres="gpu:gh200:5"), "5 GPUs on each node, at most 4"),
        (ROIHU, job("gpumedium", nodes=2, gpus_per_node="3"), "6 GPUs in all, at most 4"),
        (LUMI, job("small-g", gpus_per_node="9"), "9 GPUs on each node, at most 8"),
    ],
)
def test_job_over_its_partition_is_refused_with_the_limit(site, asked, reason):
    with pytest.raises(UsageError) as caught:
        check_limits(site, asked)
    assert reason in caught.value.got
    assert f"[partitions.{asked.partition}]" in caught.value.next_step


def test_every_limit_that_is_exceeded_is_named():
    with pytest.raises(UsageError) as caught:
        check_limits(ROIHU, job("small", nodes=2, cpus=999, memory="9999G", time="9-00:00:00"))
    assert caught.value.got.count("at most") == 4


def test_limits_are_checked_before_any_run_is_planned_or_submitted():
    wide = dataclasses.replace(ROIHU, hpc=dataclasses.replace(ROIHU.hpc, nodes=2))
    for refused in (
        lambda: estimate(wide, "cloud-hpc"),
        lambda: check_affordable(wide),
        lambda: check_job(wide, job("small", nodes=2), None),
    ):
        with pytest.raises(UsageError, match="partition small of roihu"):
            refused()
    assert estimate(wide, "cloud").lines
    check_affordable(wide, None, "cloud")


def test_exclusive_job_holds_its_nodes_whole():
    held = held_resources(LUMI, job("small-g", gpus_per_node="1", cpus=7, exclusive=True, nodes=2))
    assert (held.cores, held.gpus, held.memory_gib) == (112, 16, None)
    held = held_resources(ROIHU, job("small", cpus=2, mem_per_cpu="1G", exclusive=True))
    assert (held.cores, held.memory_gib) == (384, Decimal(384))
    held = held_resources(ROIHU, job("small", cpus=2, memory="5G", exclusive=True))
    assert (held.cores, held.memory_gib) == (384, Decimal(5))


def test_exclusive_job_on_unknown_nodes_is_priced_only_where_nodes_are_the_price():
    assert held_resources(SANDBOX, job("medium", exclusive=True)).nodes == 1
    with pytest.raises(UsageError, match="exclusive") as caught:
        held_resources(SANDBOX, job("small", exclusive=True))
    assert "[partitions.small]" in caught.value.next_step


def test_estimate_of_an_exclusive_profile_has_the_whole_node():
    whole = dataclasses.replace(ROIHU, hpc=dataclasses.replace(ROIHU.hpc, exclusive=True))
    assert estimate(whole, "cloud-hpc").lines[0].bu == Decimal("144.0")  # 384 x 0.75 x 0.5 h
