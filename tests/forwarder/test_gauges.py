"""The five gauges: from the texts of a run to Prometheus text, and the effect of damaged texts."""

import copy
import math

import pytest
from gauge_samples import BUCKET, RUN, kept, scraped, values

from kit.base import DataError
from kit.forwarder import gauges


def test_the_articles_job_gives_its_published_figures():
    rows = scraped(gauges.exposition(gauges.run_samples(kept())))
    job = values(rows, gauges.SACCT, row="1", jobid="3659617", user="anna", jobkey=RUN)
    assert job == {
        **{"RqCPUS": 2, "AcCPUS": 512, "RqNod": 2, "AcNod": 2, "TiLiSec": 1200, "ElaSec": 417},
        **{"PlaSec": 11, "PlaCPUSec": 22, "CPUTiSec": 213504, "ToCPUSec": 310.966},
        **{"SuTi": 1723473797, "StTi": 1723473808, "EnTi": 1723474225},
    }
    step = values(rows, gauges.SACCT, row="2", jobname="batch", partition="", state="CANCELLED")
    assert step["AvCPUSec"] == 1
    assert step["AvCPUFreqkhz"] == pytest.approx(351_330)
    assert step["AvDiReByte"] == round(14.44 * 2**20)
    assert step["AvDiWrByte"] == round(0.08 * 2**20)
    assert "TiLiSec" not in step, "a text that is not there became a figure"
    seff = values(rows, gauges.SEFF, state="CANCELLED-0", cluster="mahti", project="project_()")
    assert seff == {
        **{"Nod": 2, "CoPeNod": 256, "CPUUSec": 311, "CPUEffPe": 0.15, "CPUEffSec": 213504},
        **{"JoWaClTISec": 417, "MemUtiByte": round(2.21 * 2**30), "MemEffPe": 11.04},
        **{"MemEffByte": 20 * 2**30, "BiUn": 23.17},
    }


def test_the_times_are_of_the_job_the_pipeline_and_the_tasks():
    rows = scraped(gauges.exposition(gauges.run_samples(kept())))
    assert values(rows, gauges.JOB, collector=BUCKET, jobkey=RUN) == (
        {"ToStaSec": 4, "ToConSec": 12.5, "ToRunSec": 417, "ToStoSec": 8}
    )
    parts = {
        (labels["group"], labels["name"]): value
        for name, labels, value in rows
        if name == gauges.PIPELINE
    }
    assert parts == {
        ("components", "cloud-hpc-preprocess"): 5,
        ("components", "cloud-hpc-train"): 884,
        ("components", "cloud-hpc-evaluate"): 10,
        ("components", "cloud-hpc-pipeline"): 910,
        ("ray-jobs", "remote-model-training"): 271.85157,
        ("ray-jobs", "train-fmnist-cnn"): 278.46777,
    }
    assert values(rows, gauges.TASK, sampleid=RUN, group="training-job") == (
        {"ToWaiSec": 23, "ToRunSec": 417, "ToTasSec": 440}
    )


def test_labels_are_exactly_those_that_dashboards_query():
    rows = scraped(gauges.exposition(gauges.run_samples(kept())))
    assert {name: set(labels) for name, labels, _ in rows} == {
        "cloud_hpc_job_sacct_metrics": set(
            ["user", "jobkey", "jobid", "row", "jobname", "partition", "state", "metric"]
        ),
        "cloud_hpc_job_seff_metrics": set(
            ["user", "jobkey", "jobid", "project", "cluster", "state", "metric"]
        ),
        "cloud_hpc_job_time_metrics": {"collector", "jobkey", "metric"},
        "cloud_hpc_pipeline_time_metrics": {"collector", "sampleid", "group", "name", "metric"},
        "cloud_hpc_task_time_metrics": {"collector", "sampleid", "group", "metric"},
    }


def test_a_cancelled_run_shows_how_long_the_cancel_took_and_an_open_one_only_its_submission():
    at = {"request": 10.0, "submitted": 12.0, "cancel": 50.0, "ended": 53.5}
    rows = scraped(gauges.exposition(gauges.run_samples(kept(moments=at, result=None, stages={}))))
    assert values(rows, gauges.JOB) == {"ToStaSec": 2, "ToCanSec": 3.5}
    assert {name for name, _, _ in rows} == {gauges.JOB}


def test_units_come_from_the_rates_if_seff_has_none():
    result = kept().result
    del result["seff"]["Non-Interactive BUs"]
    rows = scraped(gauges.exposition(gauges.run_samples(kept(result=result, units=1.25))))
    assert values(rows, gauges.SEFF)["BiUn"] == 1.25
    rows = scraped(gauges.exposition(gauges.run_samples(kept(result=result))))
    assert "BiUn" not in values(rows, gauges.SEFF)


def test_quotes_newlines_and_backslashes_in_labels_arrive_as_they_are():
    name = 'a "name"\nwith\\n} 1\ncloud_hpc_job_seff_metrics{metric="BiUn"} 7'
    result = kept().result
    result["sacct"]["1"]["JobName"] = name
    rows = scraped(gauges.exposition(gauges.run_samples(kept(result=result))))
    assert values(rows, gauges.SACCT, jobname=name, row="1")["AcNod"] == 2
    assert values(rows, gauges.SEFF)["BiUn"] == 23.17


def test_duplicate_run_is_exported_once():
    once = gauges.run_samples(kept())
    keys = [
        (name, tuple(sorted(labels.items())))
        for name, labels, _ in scraped(gauges.exposition([*once, *once]))
    ]
    assert len(keys) == len(set(keys)) == len(once)


def changed(path, text):
    result = copy.deepcopy(kept().result)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = text
    return result


@pytest.mark.parametrize(
    ("path", "text", "lost"),
    [
        (("sacct", "1", "Elapsed"), "banana", {"ElaSec"}),
        (("sacct", "1", "Elapsed"), "9" * 400, {"ElaSec"}),
        (("sacct", "1", "Submit"), "yesterday", {"SuTi"}),
        (("sacct", "2", "AveDiskRead"), "14.44 elephants", {"AvDiReByte"}),
        (("sacct", "2", "AveDiskRead"), "9" * 400 + "M", {"AvDiReByte"}),
        (("sacct", "2", "AveCPUFreq"), "fast", {"AvCPUFreqkhz"}),
        (("sacct", "1", "AllocCPUS"), "-2", {"AcCPUS"}),
        (("seff", "CPU Efficiency"), "most of it", {"CPUEffPe", "CPUEffSec"}),
        (("seff", "Memory Utilized"), "a lot", {"MemUtiByte"}),
        (("seff", "Non-Interactive BUs"), "many", {"BiUn"}),
    ],
)
def test_value_that_cannot_be_read_costs_that_value_only(path, text, lost):
    """A form of Slurm that nobody has seen must not take all gauges of a run away."""
    unread = []
    whole = {(name, labels) for name, labels, _ in gauges.run_samples(kept())}
    rest = {
        (name, labels)
        for name, labels, _ in gauges.run_samples(kept(result=changed(path, text)), unread)
    }
    assert {labels[-1] for _, labels in whole - rest} == lost
    assert rest < whole
    assert len(unread) == 1
    assert path[-1] in unread[0] or next(iter(lost)) in unread[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("sacct", "1"), "a text"),
        (("sacct",), ["a", "list"]),
        (("sacct",), None),
        (("seff", "State"), "\x00"),
        (("seff",), None),
        (("job",), "3659617"),
        (("elapsed_s",), "long"),
        (("elapsed_s",), 10**400),
    ],
)
def test_damaged_text_is_reported(path, text):
    with pytest.raises(DataError):
        gauges.run_samples(kept(result=changed(path, text)))


@pytest.mark.parametrize("key", ["sacct", "seff", "job", "elapsed_s"])
def test_incomplete_result_is_reported_as_damaged(key):
    result = kept().result
    del result[key]
    with pytest.raises(DataError, match="its gauges are left out"):
        gauges.run_samples(kept(result=result))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("351.33M", 351_330), ("2.60G", 2.6e6), ("7K", 7), ("", None), ("Unknown", None)],
)
def test_frequencies_are_in_khz(text, value):
    assert gauges.khz(text) == (None if value is None else pytest.approx(value))


def test_a_time_limit_without_end_and_2k_cpus_are_read():
    result = kept().result
    result["sacct"]["1"] |= {"Timelimit": "UNLIMITED", "AllocCPUS": "2K"}
    rows = values(
        scraped(gauges.exposition(gauges.run_samples(kept(result=result)))), gauges.SACCT, row="1"
    )
    assert math.isinf(rows["TiLiSec"])
    assert rows["AcCPUS"] == 2048


def test_a_thousand_runs_are_a_thousand_different_ones():
    samples = []
    for number in range(1, 1001):
        samples += gauges.run_samples(kept(f"cloud-hpc-0123456789ab-{number}"))
    text = gauges.exposition(samples)
    lines = [line for line in text.splitlines() if not line.startswith(b"#")]
    assert len(lines) == len(samples) == len(set(lines))
