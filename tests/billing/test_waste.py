"""The same job elsewhere, to the digit of the published example, and waste in a sentence."""

from dataclasses import replace
from decimal import Decimal

import pytest

from kit.base.settings import load
from kit.billing import rates as billing
from kit.billing import waste
from kit.billing.rates import money
from kit.slurm import Resources

SITES = [load(name, {}) for name in ("mahti-2024", "roihu", "lumi", "sandbox")]
# The article's job: 417 s on 2 nodes, 2 cores and 20 GiB asked for, 310.966 s of CPU time worked,
# 2.21 GiB used, 512 hardware threads reserved.
ARTICLE = waste.Used(
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
    long = replace(ARTICLE, load=replace(ARTICLE.load, seconds=Decimal(2 * 86400)))
    assert {key[1] for key in prices(long)} == {"small", "longrun", "hugemem_longrun", "standard"}
    wide = replace(ARTICLE, load=replace(ARTICLE.load, nodes=7), asked_cores=4000)
    assert ("roihu", "medium") not in {key[:2] for key in prices(wide)}
    gpu = replace(ARTICLE, load=replace(ARTICLE.load, nodes=1, gpus=4))
    assert {key[:2] for key in prices(gpu)} == {
        ("roihu", "gpumedium"), ("lumi", "small-g"), ("lumi", "standard-g")
    }  # fmt: skip


def test_waste_is_told_with_the_one_change_that_would_have_saved_most():
    roihu = SITES[1]
    cost = billing.job_lines(roihu, ARTICLE.load)[0]
    told = waste.sentences(ARTICLE, cost, waste.elsewhere(ARTICLE, [roihu]))
    assert told == [
        "CPU efficiency 0.15 %: 311 core-seconds were worked of 213,504 reserved.",
        "1 of 2 nodes had nothing to do.",
        "20.0 GiB of memory were asked for, 2.2 GiB were used.",
        "2 nodes were reserved, 1 core and 2.2 GB used: `--partition small --cpus-per-task 1 "
        "--mem 3G` on roihu would have cost 0.13 instead of 66.72 CPU BU.",
    ]


def test_a_job_that_used_what_it_held_is_not_told_off():
    busy = waste.Used(Resources("small", Decimal(3600), 1, 2, Decimal(4)), 2, Decimal(4),
                      Decimal(7100), Decimal("3.5"))  # fmt: skip
    cost = billing.job_lines(SITES[1], busy.load)[0]
    told = waste.sentences(busy, cost, waste.elsewhere(busy, [SITES[1]]))
    assert told == ["CPU efficiency 98.61 %: 7100 core-seconds were worked of 7,200 reserved."]


def test_two_workers_on_two_nodes_left_no_node_idle_however_little_they_worked():
    roihu, job = SITES[1], replace(ARTICLE, workers=2)
    told = waste.sentences(
        job, billing.job_lines(roihu, job.load)[0], waste.elsewhere(job, [roihu])
    )
    assert not [line for line in told if "nothing to do" in line]
    assert "2 nodes were reserved, 2 cores and 2.2 GB used: `--partition small" in told[-1]
    wide = replace(job, load=replace(job.load, nodes=5))
    assert "3 of 5 nodes had nothing to do." in waste.sentences(wide, None, [])


def test_a_site_without_prices_is_told_what_was_not_used_and_nothing_to_save():
    told = waste.sentences(ARTICLE, None, waste.elsewhere(ARTICLE, SITES))
    assert told[0].startswith("CPU efficiency 0.15 %")
    assert not [line for line in told if "would have cost" in line]


def test_a_job_of_no_time_divides_by_nothing():
    held = Resources("small", Decimal(0), 1, 1, Decimal(1))
    nothing = waste.Used(held, 1, Decimal(1), Decimal(0), Decimal(0))
    cost = billing.job_lines(SITES[1], nothing.load)[0]
    assert waste.sentences(nothing, cost, waste.elsewhere(nothing, SITES)) == [
        "1.0 GiB of memory were asked for, 0.0 GiB were used."
    ]


@pytest.mark.parametrize(
    ("parts", "threads", "cores", "wanted"),
    [
        ({"training": 272.0, "polling": 479.0, "rest": 598.0}, 1, 1,
         ["80 % of the pipeline was not training; most of that went to rest (598.0 s)."]),
        ({}, 4, 2, ["4 threads on 2 cores: they wait for each other; -p threads 2 at most."]),
        ({}, 1, 8, ["1 thread(s) on 8 reserved cores: [hpc] cpus = 1 would have done."]),
    ],
)  # fmt: skip
def test_the_share_that_was_not_training_and_threads_against_cores_are_told(
    parts, threads, cores, wanted
):
    assert waste.pipeline(parts, threads, cores) == wanted
