"""The bill: every rate row by hand, the published figures, and what sacct can hold."""

import dataclasses
import json
import os
from decimal import Decimal
from pathlib import Path

import captured
import pytest

from kit.base import ROOT, DataError, UsageError, dumps
from kit.base.settings import Rate, load
from kit.billing import rates
from kit.report.article.figures import article_figures
from kit.slurm import (
    JobSpec,
    Resources,
    account_row,
    allocated_resources,
    job_starts,
    read_account,
    read_usage,
    requested_resources,
    usage_of,
)

ROIHU, LUMI, MAHTI = (load(name, {}) for name in ("roihu", "lumi", "mahti-2024"))


def held_resources(partition, seconds=3600, nodes=1, cores=1, gib=1, gpus=0, disk=0):
    return Resources(partition, Decimal(seconds), nodes, cores, Decimal(gib), gpus, Decimal(disk))


GOLDEN = [
    # Mahti: 2 nodes x 417 s / 3600 x 100 = 23.1666…
    (MAHTI, held_resources("medium", 417, nodes=2), {"CPU BU": "23.17"}),
    # Roihu small: 4 cores x 0.75 = 3; 16 GiB x 0.375 = 6; x 2 h = 12 (the centre's own example)
    (ROIHU, held_resources("small", 7200, cores=4, gib=16), {"CPU BU": "12.00"}),
    # cores decide: 8 x 0.75 = 6, 4 GiB x 0.375 = 1.5; x 0.5 h = 3
    (ROIHU, held_resources("test", 1800, cores=8, gib=4), {"CPU BU": "3.00"}),
    # max(0.75, 0.375) = 0.75, and 100 GiB of disk x 0.02 = 2; x 10 h = 27.5
    (ROIHU, held_resources("longrun", 36000, disk=100), {"CPU BU": "27.50"}),
    # interactive: 2 x 0.75 = 1.5 = 4 x 0.375; x 1 h = 1.5
    (ROIHU, held_resources("interactive", cores=2, gib=4), {"CPU BU": "1.50"}),
    # medium and large: 3 nodes x 288 x 1.5 h = 1296; 20 nodes x 288 x 0.25 h = 1440
    (ROIHU, held_resources("medium", 5400, nodes=3), {"CPU BU": "1296.00"}),
    (ROIHU, held_resources("large", 900, nodes=20), {"CPU BU": "1440.00"}),
    # hugemem: 2 cores x 12 = 24; 1000 GiB x 0.25 = 250; x 2 h = 500
    (ROIHU, held_resources("hugemem", 7200, cores=2, gib=1000), {"CPU BU": "500.00"}),
    # GPU: 2 x 200 x 5 h = 2000 (the centre's own example); cores and memory are free
    (ROIHU, held_resources("gpumedium", 18000, cores=144, gib=434, gpus=2), {"GPU BU": "2000.00"}),
    # LUMI-C: max(4 cores, ceil(5 GiB / 2) = 3) = 4; x 24 h = 96
    (LUMI, held_resources("small", 86400, cores=4, gib=5), {"CPU core-h": "96.00"}),
    # memory decides: ceil(33 / 2) = 17; x 1 h = 17
    (LUMI, held_resources("small", cores=4, gib=33), {"CPU core-h": "17.00"}),
    # whole nodes: 16 x 128 x 12 h = 24576 (the centre's own example)
    (LUMI, held_resources("standard", 43200, nodes=16), {"CPU core-h": "24576.00"}),
    # LUMI-G: max(ceil(9 / 8) = 2, ceil(65 / 64) = 2, 1 GCD) = 2; x 0.5 x 2 h = 2
    (LUMI, held_resources("small-g", 7200, cores=9, gib=65, gpus=1), {"GPU-h": "2.00"}),
    # 8 GCDs: max(ceil(56 / 8) = 7, ceil(480 / 64) = 8, 8) = 8; x 0.5 x 1 h = 4
    (LUMI, held_resources("dev-g", cores=56, gib=480, gpus=8), {"GPU-h": "4.00"}),
]


def sums(lines):
    return {kind: str(rates.money(value)) for kind, value in rates.totals(lines).items()}


@pytest.mark.parametrize(("site", "held", "wanted"), GOLDEN)
def test_each_rate_gives_the_bill_that_was_computed_by_hand(site, held, wanted):
    lines = rates.job_lines(site, held)
    assert sums(lines) == wanted
    assert all(line.source.startswith("https://") and line.checked for line in lines)
    assert all(line.quantity * line.rate == line.bu for line in lines)


@pytest.mark.parametrize(
    ("site", "started", "wanted"),
    [
        # 1.5 h x 8.40 = 12.6 and 1.5 h x 0.2 = 0.3: 12.90; begun hours: 2 x 8.6 = 17.2
        (ROIHU, False, "12.90"),
        (ROIHU, True, "17.20"),
        # 1.5 x (8.00 + 0.2) = 12.3; 2 x 8.2 = 16.4
        (MAHTI, False, "12.30"),
        (MAHTI, True, "16.40"),
    ],
)
def test_the_vm_and_its_address_are_billed_as_fractions_and_as_started_hours(site, started, wanted):
    assert sums(rates.cloud_lines(site, Decimal(5400), started)) == {"Cloud BU": wanted}


def test_files_on_the_site_have_a_rate_of_their_own():
    """https://docs.csc.fi/computing/hpc-billing/: 10 Storage BU for a TiB and hour in /projappl."""
    line = rates.storage_line(ROIHU, 2**30, Decimal(30 * 86400), rates.PROJECT_STORAGE, "")
    assert (line.kind, line.source) == ("Storage BU", "https://docs.csc.fi/computing/hpc-billing/")
    assert line.bu == Decimal(720 * 10) / 1024


def test_storage_is_billed_by_tebibyte_and_hour():
    # 0.5 TiB x 2 h x 1.05 = 1.05
    line = rates.storage_line(ROIHU, 2**39, Decimal(7200))
    assert (line.kind, line.quantity, line.bu) == ("Storage BU", 1, Decimal("1.05"))


@pytest.mark.parametrize(
    ("target", "slurm", "cloud", "together"),
    [
        ("cloud", "0.00", "2.98", "2.98"),
        ("cloud-hpc-1", "23.17", "3.07", "26.24"),
        ("cloud-hpc-2", "22.56", "3.26", "25.82"),
    ],
)
def test_the_published_billing_units_come_out_to_the_last_digit(target, slurm, cloud, together):
    figures = article_figures()[target]
    lines = rates.cloud_lines(MAHTI, Decimal(str(figures["pipeline_s"])))
    if "job_s" in figures:
        lines += rates.job_lines(
            MAHTI, held_resources("medium", figures["job_s"], figures["job_nodes"])
        )
    found = rates.totals(lines)
    cpu, vm = found.get("CPU BU", Decimal(0)), found["Cloud BU"]
    assert (str(rates.money(cpu)), str(rates.money(vm))) == (slurm, cloud)
    assert str(rates.money(cpu) + rates.money(vm)) == together
    assert (figures.get("slurm_bu", 0), figures["cloud_bu"]) == (float(slurm), float(cloud))
    assert figures["total_bu"] == float(together)


def test_the_published_bill_comes_out_of_the_published_sacct_file_as_it_is():
    published = json.loads(captured.read("slurm-mahti-2024/sacct-1.json"))
    rows = [account_row({k: v or "" for k, v in row.items()}) for row in published.values()]
    (job,) = [usage_of(life) for life in job_starts(rows)]
    # Elapsed 00:06:57 = 417 s on AllocNodes 2: 2 x 100 x 417 / 3600
    assert (job.elapsed_seconds, job.core_seconds, job.nodes) == (417, 213_504, 2)
    assert sums(rates.actual(MAHTI, [job])) == {"CPU BU": "23.17"}


# figure -> the published file below the article's folder and the keys to it (contract of the files)
RAW = {
    ("local", "training_s"): ("local/artifacts/local_metrics.json", "time", "total-seconds"),
    ("local", "accuracy"): ("local/artifacts/local_metrics.json", "performance", "accuracy"),
    ("cloud", "training_s"): ("cloud/artifacts/cloud-metrics.json", "time", "total-seconds"),
    ("cloud", "accuracy"): ("cloud/artifacts/cloud-metrics.json", "performance", "accuracy"),
    ("cloud", "train_component_s"): ("cloud/times/pipeline_data.json", "1", "total-seconds"),
    ("cloud", "pipeline_s"): ("cloud/times/pipeline_data.json", "3", "total-seconds"),
    ("cloud-hpc-1", "training_s"): ("cloud-hpc/times/training-1.json", "1", "total-seconds"),
    ("cloud-hpc-1", "ray_job_s"): ("cloud-hpc/times/training-1.json", "2", "total-seconds"),
    ("cloud-hpc-1", "train_component_s"): (
        *("cloud-hpc/times/components-1.json", "2", "total-seconds"),
    ),
    ("cloud-hpc-1", "pipeline_s"): ("cloud-hpc/times/components-1.json", "4", "total-seconds"),
    ("cloud-hpc-1", "accuracy"): ("cloud-hpc/artifacts/cloud-hpc-metrics-1.json", "accuracy"),
    ("cloud-hpc-1", "slurm_bu"): ("cloud-hpc/artifacts/seff-1.json", "Non-Interactive BUs"),
}


@pytest.mark.parametrize(("target", "figure"), list(RAW))
def test_every_figure_of_the_article_is_that_of_its_published_file(target, figure):
    file, *keys = RAW[target, figure]
    ours = article_figures()[target][figure]
    folder = os.environ.get("KIT_TEST_DATA")
    if folder is None:  # the published files are not at hand
        assert ours > 0
        return
    value = json.loads((Path(folder) / "article" / file).read_text())
    for key in keys:
        value = value[key]
    assert round(float(value), 4 if figure == "accuracy" else 5) == ours


def test_kinds_are_never_added_up():
    lines = [
        *rates.job_lines(ROIHU, held_resources("small")),
        *rates.cloud_lines(ROIHU, Decimal(3600)),
    ]
    lines.append(rates.storage_line(ROIHU, 2**40, Decimal(3600)))
    assert sums(lines) == {"CPU BU": "0.75", "Cloud BU": "8.60", "Storage BU": "1.05"}
    shown = rates.Bill(tuple(lines)).as_json()
    assert list(shown) == ["lines", "started_hours", "totals", "seff"]
    assert dumps(shown)


# -- what goes wrong


@pytest.mark.parametrize("seconds", ["-1", "Infinity", "NaN"])
def test_a_time_that_cannot_be_is_refused(seconds):
    with pytest.raises(DataError, match="it ran"):
        rates.job_lines(ROIHU, held_resources("small", seconds))


def test_a_huge_time_is_priced_without_loss():
    # 10,000 years of 8760 h x 0.75 = 65,700,000
    held = held_resources("small", 10_000 * 8760 * 3600)
    assert sums(rates.job_lines(ROIHU, held)) == {"CPU BU": "65700000.00"}


def test_an_unknown_partition_is_named_with_its_file_and_what_there_is():
    with pytest.raises(UsageError) as caught:
        rates.job_lines(ROIHU, held_resources("mars"))
    assert "env/sites/roihu.toml: [rates.mars] is missing" in str(caught.value)
    assert "small" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": ""}, "rate = '' is not a number"),
        ({"rate": "-1"}, "rate = '-1' is not a price"),
        ({"rate": "1,5"}, "rate = '1,5' is not a number"),
        ({"rate": "NaN"}, "is not a price"),
        ({"per": "day"}, "per = 'day' is not known"),
        ({"max": {"cores": "much"}}, "max.cores = 'much' is not a number"),
        ({"max": {"cores": "/x"}}, "max.cores = 'x' is not a number"),
    ],
)
def test_a_rate_that_cannot_be_used_is_named_by_key_and_file(change, message):
    rate = Rate("h", "BU", "CPU", "https://x", "2026", rate="1")
    site = dataclasses.replace(ROIHU, rates={"odd": dataclasses.replace(rate, **change)})
    with pytest.raises(UsageError) as caught:
        rates.job_lines(site, held_resources("odd"))
    assert "env/sites/roihu.toml: [rates.odd]" in str(caught.value)
    assert message in str(caught.value)


def test_rate_in_a_profile_of_ones_own_is_named_with_the_file_that_was_read(tmp_path):
    """Otherwise the person edits the wrong file."""
    own = tmp_path / "own.toml"
    text = (ROOT / "env" / "sites" / "roihu.toml").read_text()
    own.write_text(text.replace('name = "roihu"', 'name = "own"'))
    site = load("own", {"KIT_SITES_DIR": str(tmp_path)})
    odd = dataclasses.replace(site.rates["small"], rate="1,5", max={})
    site = dataclasses.replace(site, rates={"small": odd})
    for partition, key in (("small", "[rates.small]"), ("mars", "[rates.mars] is missing")):
        with pytest.raises(UsageError) as caught:
            rates.job_lines(site, held_resources(partition))
        assert f"{own}: {key}" in str(caught.value)
        assert "env/sites" not in str(caught.value)


def test_memory_that_decides_the_price_but_is_not_known_is_an_error():
    held = dataclasses.replace(held_resources("small"), memory_gib=None)
    with pytest.raises(DataError, match="how much gib it held is not known"):
        rates.job_lines(ROIHU, held)
    held = dataclasses.replace(held_resources("medium"), memory_gib=None)
    assert sums(rates.job_lines(ROIHU, held)) == {"CPU BU": "288.00"}


@pytest.mark.parametrize("name", ["roihu", "lumi", "mahti-2024"])
def test_every_rate_of_a_site_has_its_source_and_the_date_it_was_checked(name):
    site = load(name, {})
    assert site.hpc.partition in site.rates
    assert set(site.partitions) <= set(site.rates)
    for rate in site.rates.values():
        assert rate.source.startswith("https://")
        assert rate.checked[:2] == "20"


def test_the_closed_site_says_where_to_go_and_answers_to_its_old_name():
    old = load("mahti", {})
    assert old.profile == "mahti-2024"
    assert "roihu" in old.site.closed


# -- estimates


def test_an_estimate_is_the_request_times_its_time_limit():
    spec = JobSpec(
        "x",
        (),
        partition="small",
        nodes=2,
        tasks_per_node=2,
        cpus=4,
        memory="8G",
        gres="nvme:100",
        time="1-00:30:00",
    )
    held = requested_resources(spec)
    assert held == Resources("small", Decimal(88200), 2, 16, Decimal(16), 0, Decimal(200))


@pytest.mark.parametrize(
    ("gres", "count"), [("gpu:gh200:4", 4), ("gpu:2", 2), ("gpu", 1), ("", 0), ("nvme:9", 0)]
)
def test_gpus_are_counted_in_every_form_of_gres(gres, count):
    assert requested_resources(JobSpec("x", (), gres=gres)).gpus == count


def test_a_job_without_an_end_cannot_be_estimated():
    with pytest.raises(UsageError, match="it has no end"):
        requested_resources(JobSpec("x", (), time="UNLIMITED"))


# -- what sacct says


def lines_of(text, site=ROIHU):
    return rates.actual(site, [usage_of(one) for one in job_starts(read_account(text))])


HEADER = "JobID|Partition|State|AllocCPUS|AllocNodes|Start|End|ElapsedRaw|ReqMem|AllocTRES|JobName"
TRES = "billing=1,cpu=4,mem=16G,node=1"
# 4 cores x 0.75 = 3, 16 GiB x 0.375 = 6; one hour of it is 6 BU
ROWS = {
    "array": (
        f"7_1|small|COMPLETED|4|1|1000|4600|3600||{TRES}|a\n"
        f"7_2|small|FAILED|4|1|1000|2800|1800||{TRES}|a",
        ["6.00", "3.00"],
        ["", ""],
    ),
    "heterogeneous": (
        f"8+0|small|COMPLETED|4|1|1000|4600|3600||{TRES}|h\n"
        "8+1|medium|COMPLETED|768|2|1000|4600|3600||cpu=768,node=2|h",
        ["6.00", "576.00"],
        ["", ""],
    ),
    "requeued": (
        f"9|small|NODE_FAIL|4|1|1000|4600|3600||{TRES}|r\n9.batch|||4|1||||||batch\n"
        f"9|small|COMPLETED|4|1|9000|10800|1800||{TRES}|r",
        ["6.00", "3.00"],
        ["", ""],
    ),
    "running": (f"10|small|RUNNING|4|1|1000|Unknown|3600||{TRES}|r", ["6.00"], ["RUNNING: so far"]),
    "pending": (
        "11|small,medium|PENDING|0|1|Unknown|Unknown|0|16G||p",
        ["0.00"],
        ["PENDING: so far"],
    ),
    "cancelled before its start": (
        "12|small|CANCELLED by 1000|0|0|None|2000|0|16G||c",
        ["0.00"],
        ["never started"],
    ),
    "zero seconds": (
        f"13|small|COMPLETED|4|1|1000|1000|0||{TRES}|z",
        ["0.00"],
        ["ended within its first second"],
    ),
    "no AllocTRES": ("14|small|COMPLETED|4|1|1000|4600|3600|16G||n", ["6.00"], [""]),
    "no AllocTRES, by core": ("15|small|COMPLETED|4|1|1000|4600|3600|4Gc||n", ["6.00"], [""]),
    "a limit without an end": (
        f"17|small|TIMEOUT|4|1|1000|4600|3600||{TRES}|UNLIMITED",
        ["6.00"],
        [""],
    ),
    "started, its end not known": (
        f"18|small|UNKNOWN|4|1|1000|Unknown|3600||{TRES}|u",
        ["6.00"],
        ["UNKNOWN: so far"],
    ),
    "negative time": (
        f"16|small|COMPLETED|4|1|1000|900|-100||{TRES}|n",
        ["0.00"],
        ["sacct says -100 s: not billed"],
    ),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_every_kind_of_row_that_sacct_prints_has_its_bill(name):
    rows, wanted, notes = ROWS[name]
    lines = lines_of(f"{HEADER}\n{rows}\n")
    assert [str(rates.money(line.bu)) for line in lines] == wanted
    assert [line.note for line in lines] == notes


def test_a_job_that_never_ran_is_of_its_partitions_kind():
    text = f"{HEADER}\n12|gputest|CANCELLED|0|0|None|2000|0|16G||c\n"
    assert [line.kind for line in lines_of(text)] == ["GPU BU"]
    assert [line.kind for line in lines_of(text.replace("gputest", "small"), LUMI)] == [
        "CPU core-h"
    ]


def test_each_start_of_a_requeued_job_is_named():
    lines = lines_of(f"{HEADER}\n{ROWS['requeued'][0]}\n")
    assert [line.what for line in lines] == ["job 9: small", "job 9, start 2: small"]


def test_a_job_whose_memory_sacct_does_not_know_is_an_error_and_no_smaller_bill():
    with pytest.raises(DataError, match="gib it held is not known"):
        lines_of(f"{HEADER}\n14|small|COMPLETED|4|1|1000|4600|3600|||n\n")


def test_a_real_listing_of_slurm_is_priced():
    # job 31: 2 nodes of 128 cores, 19 s; on Mahti 2 x 100 x 19 / 3600 = 1.0555…
    rows = read_account(captured.read("slurm-22.05/sacct-clean-end.txt"))
    held = dataclasses.replace(allocated_resources(read_usage(rows, "31")), partition="medium")
    assert sums(rates.job_lines(MAHTI, held)) == {"CPU BU": "1.06"}


# -- budgets


def test_a_plan_over_its_budget_is_refused_with_what_it_costs_and_what_is_allowed():
    lines = rates.job_lines(ROIHU, held_resources("medium"))
    for limits in ({"CPU": "287.99"}, {"any": "1"}, {"CPU BU": "0"}):
        with pytest.raises(UsageError, match=r"may cost 288.00 CPU BU, and"):
            rates.check_budget(ROIHU, lines, limits)
    for limits in ({}, {"CPU": "288"}, {"GPU": "0"}, {"Cloud": "1"}):
        rates.check_budget(ROIHU, lines, limits)


def test_a_budget_that_is_not_a_number_names_its_section():
    with pytest.raises(UsageError, match=r"\[budget\]: any = 'lots' is not a number"):
        rates.check_budget(ROIHU, rates.job_lines(ROIHU, held_resources("small")), {"any": "lots"})


TODAY = """\
-----------------------------------------------------------------
Project: project_2012345        Owner: Kalle Käyttäjä
Start: 2019-08-20 End: 2029-10-23 Status: open
Billing units      Budget        Used      Remain
-------------      ------        ----      ------
CPU BU:             60000          20       59980
GPU BU:              1000        1030         -30
Latest resource grant: 2025-01-31
"""


def test_what_is_left_of_a_project_is_read_in_both_forms():
    assert rates.parse_remaining_units(TODAY) == {"CPU": "59980", "GPU": "0"}
    assert rates.parse_remaining_units(
        "Budget:   1174188  Used   1115284 Remain:      58904\n"
    ) == {"any": "58904"}
    assert rates.parse_remaining_units("bash: csc-projects: command not found") == {}
