"""The same job elsewhere, to the digit of the published example, and waste in a sentence."""

from dataclasses import replace
from decimal import Decimal

import pytest

from kit.base.settings import load
from kit.billing import rates, waste
from kit.billing.rates import money
from kit.slurm import Resources

SITES = [load(name, {}) for name in ("mahti-2024", "roihu", "lumi", "sandbox")]
# The article's job: 417 s on 2 nodes, 2 cores and 20 GiB asked for, 310.966 s of CPU time worked,
# 2.21 GiB used, 512 hardware threads reserved.
ARTICLE = waste.JobUse(
    Resources("medium", Decimal(417), 2, 512, Decimal(20)),
    2,
    Decimal(20),
    Decimal("310.966"),
    Decimal("2.21"),
)


def prices(job):
    return {
        (offer.site, offer.partition, offer.what): str(money(offer.line.bu))
        for offer in waste.elsewhere(job, SITES)
    }


def test_the_articles_job_has_the_published_prices_elsewhere():
    found = prices(ARTICLE)
    # Mahti: 2 x 100 x 417 / 3600; Roihu medium: 2 x 288 x 417 / 3600;
    # small: 20 GiB x 0.375 x 417 / 3600 (memory decides); 3 GiB x 0.375 x 417 / 3600
    assert found["mahti-2024", "medium", "2 full nodes"] == "23.17"
    assert found["roihu", "medium", "2 full nodes"] == "66.72"
    assert found["roihu", "small", "same request (2 cores, 20 GiB)"] == "0.87"
    assert found["roihu", "small", "what it used (1 core, 3 GiB)"] == "0.13"
    # LUMI standard: 2 x 128 x 417 / 3600; small: max(2, ceil(20 / 2)) = 10 x 417 / 3600
    assert found["lumi", "standard", "2 full nodes"] == "29.65"
    assert found["lumi", "small", "same request (2 cores, 20 GiB)"] == "1.16"


def test_only_what_could_hold_the_job_is_priced():
    partitions = {key[1] for key in prices(ARTICLE)}
    assert not partitions & {"gputest", "gpumedium", "small-g"}  # it asked for no GPU
    long = replace(ARTICLE, held=replace(ARTICLE.held, seconds=Decimal(2 * 86400)))
    assert {key[1] for key in prices(long)} == {"small", "longrun", "hugemem_longrun", "standard"}
    wide = replace(ARTICLE, held=replace(ARTICLE.held, nodes=7), requested_cores=4000)
    assert ("roihu", "medium") not in {key[:2] for key in prices(wide)}
    gpu = replace(ARTICLE, held=replace(ARTICLE.held, nodes=1, gpus=4))
    assert {key[:2] for key in prices(gpu)} == {
        ("roihu", "gpumedium"),
        ("lumi", "small-g"),
        ("lumi", "standard-g"),
    }


def test_waste_is_reported_with_the_one_change_that_would_have_saved_most():
    roihu = SITES[1]
    cost = rates.job_lines(roihu, ARTICLE.held)[0]
    advice = waste.sentences(ARTICLE, cost, waste.elsewhere(ARTICLE, [roihu]))
    assert advice == [
        "CPU efficiency 0.15 %: 311 core-seconds were worked of 213,504 reserved.",
        "1 of 2 nodes had nothing to do.",
        "20.0 GiB of memory were requested, 2.2 GiB were used.",
        "2 nodes were reserved, 1 core and 2.2 GB used: `--partition small --cpus-per-task 1 "
        "--mem 3G` on roihu would have cost 0.13 instead of 66.72 CPU BU.",
    ]


def test_a_job_that_used_what_it_held_gets_no_advice():
    busy = waste.JobUse(
        Resources("small", Decimal(3600), 1, 2, Decimal(4)),
        2,
        Decimal(4),
        Decimal(7100),
        Decimal("3.5"),
    )
    cost = rates.job_lines(SITES[1], busy.held)[0]
    advice = waste.sentences(busy, cost, waste.elsewhere(busy, [SITES[1]]))
    assert advice == ["CPU efficiency 98.61 %: 7100 core-seconds were worked of 7,200 reserved."]


def test_two_workers_on_two_nodes_left_no_node_idle_however_little_they_worked():
    roihu, job = SITES[1], replace(ARTICLE, workers=2)
    advice = waste.sentences(
        job, rates.job_lines(roihu, job.held)[0], waste.elsewhere(job, [roihu])
    )
    assert not [line for line in advice if "nothing to do" in line]
    assert "2 nodes were reserved, 2 cores and 2.2 GB used: `--partition small" in advice[-1]
    wide = replace(job, held=replace(job.held, nodes=5))
    assert "3 of 5 nodes had nothing to do." in waste.sentences(wide, None, [])


def test_a_site_without_prices_gets_advice_and_no_prices():
    advice = waste.sentences(ARTICLE, None, waste.elsewhere(ARTICLE, SITES))
    assert advice[0].startswith("CPU efficiency 0.15 %")
    assert not [line for line in advice if "would have cost" in line]


def test_a_job_of_no_time_divides_by_nothing():
    held = Resources("small", Decimal(0), 1, 1, Decimal(1))
    nothing = waste.JobUse(held, 1, Decimal(1), Decimal(0), Decimal(0))
    cost = rates.job_lines(SITES[1], nothing.held)[0]
    assert waste.sentences(nothing, cost, waste.elsewhere(nothing, SITES)) == [
        "1.0 GiB of memory were requested, 0.0 GiB were used."
    ]


def test_memory_that_is_not_known_is_not_zero():
    unknown = replace(ARTICLE, needed_gib=None)
    cost = rates.job_lines(SITES[1], unknown.held)[0]
    offers = waste.elsewhere(unknown, [SITES[1]])
    assert not [offer for offer in offers if "used" in offer.what]
    advice = waste.sentences(unknown, cost, offers)
    assert not [line for line in advice if "GiB were used" in line or "--mem" in line]
    nothing = waste.elsewhere(replace(unknown, requested_gib=None), [SITES[1]])
    assert {offer.what for offer in nothing} == {"2 full nodes"}


def test_rays_own_processes_are_not_a_second_core():
    job = replace(ARTICLE, held=replace(ARTICLE.held, seconds=Decimal(72)))
    assert replace(job, worked_seconds=Decimal(73)).needed_cores == 1
    assert replace(job, worked_seconds=Decimal(100)).needed_cores == 2
    assert replace(job, worked_seconds=Decimal(0)).needed_cores == 1


def test_a_partition_without_a_rate_has_no_offer():
    roihu = SITES[1]
    without = {name: rate for name, rate in roihu.rates.items() if name != "longrun"}
    offers = waste.elsewhere(ARTICLE, [replace(roihu, rates=without)])
    assert "longrun" not in {offer.partition for offer in offers}
    assert "small" in {offer.partition for offer in offers}


def test_partitions_for_tests_are_never_suggested():
    assert not {key[1] for key in prices(ARTICLE)} & {"test", "debug", "gputest", "dev-g"}
    roihu = SITES[1]
    tests = {name for name, partition in roihu.partitions.items() if partition.for_tests}
    assert tests == {"test", "gputest"}


@pytest.mark.parametrize(
    ("parts", "threads", "cores", "wanted"),
    [
        (
            {"training": 272.0, "polling": 479.0, "rest": 598.0},
            1,
            1,
            ["80 % of the pipeline was not training; most of that went to rest (598.0 s)."],
        ),
        ({}, 4, 2, ["4 threads on 2 cores: they wait for each other; -p threads 2 at most."]),
        ({}, 1, 8, ["1 thread(s) on 8 reserved cores: [hpc] cpus = 1 would be enough."]),
    ],
)
def test_the_share_that_was_not_training_and_threads_against_cores_are_reported(
    parts, threads, cores, wanted
):
    assert waste.pipeline(parts, threads, cores) == wanted
