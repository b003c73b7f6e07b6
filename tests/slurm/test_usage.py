"""What a job used: from sacct, from seff of both kinds, or computed."""

import json
import re
from zoneinfo import ZoneInfo

import captured
import pytest

from kit.base import Completed, DataError, UsageError
from kit.base.settings import Hpc
from kit.slurm import (
    PUBLISHED,
    JobSpec,
    JobState,
    Slurm,
    account_row,
    allocated_resources,
    computed_seff,
    count_gres,
    planned_resources,
    published_rows,
    read_account,
    read_seff,
    read_usage,
    requested_resources,
)

SITE = "slurm-22.05/"


def test_figures_come_from_the_jobs_row_and_its_largest_step():
    rows = read_account(captured.read(SITE + "sacct-clean-end.txt"))
    usage = read_usage(rows, "31")
    assert (usage.state, usage.elapsed_seconds, usage.core_seconds) == (
        JobState.COMPLETED,
        19,
        4864,
    )
    assert usage.cpu_seconds == 12.363
    assert usage.max_rss_bytes == 2013736 * 1024
    assert usage.queued_seconds == 0
    assert usage.tres["billing"] == "200"
    assert [row.step for row in usage.rows] == ["", "batch", "0", "1"]


def test_each_start_of_a_requeued_job_has_its_own_figures():
    rows = read_account(captured.read("made/sacct.txt"))
    first, second = read_usage(rows, "95", 0), read_usage(rows, "95", 1)
    assert (first.state.name, second.state.name) == ("NODE_FAIL", "FAILED")
    assert (first.exit_code, second.exit_code) == (0, 99)
    assert [row.step for row in second.rows] == ["", "batch"]


@pytest.mark.parametrize(
    ("job_id", "restart_count"), [("94", 0), ("95", 2), ("", 0), ("95.batch", 0)]
)
def test_start_that_is_not_listed_has_no_usage(job_id, restart_count):
    with pytest.raises(DataError):
        read_usage(read_account(captured.read("made/sacct.txt")), job_id, restart_count)


def test_published_columns_keep_their_names_and_empty_ones_are_null():
    table = json.loads(captured.read("slurm-mahti-2024/sacct-1.json"))
    assert list(table["1"]) == list(PUBLISHED)
    usage = read_usage(read_account(captured.read("made/sacct.txt")), "97")
    rows = published_rows(usage, ZoneInfo("UTC"))
    assert list(rows) == ["1"]
    assert list(rows["1"]) == list(PUBLISHED)
    assert (rows["1"]["JobID"], rows["1"]["AveCPU"]) == ("97", None)


def test_published_row_of_mahti_is_reproduced_from_its_times():
    published = json.loads(captured.read("slurm-mahti-2024/sacct-1.json"))["1"]
    asked = {k: v or "" for k, v in published.items() if k not in ("Planned", "PlannedCPU")}
    zone = ZoneInfo("Europe/Helsinki")
    row = account_row(asked, zone)
    asked |= {"Submit": f"{row.submit:.0f}", "Start": f"{row.start:.0f}", "End": f"{row.end:.0f}"}
    listing = "|".join(asked) + "\n" + "|".join(asked.values()) + "\n"
    usage = read_usage(read_account(listing), "3659617")
    assert published_rows(usage, zone)["1"] == published


def test_incomplete_record_has_no_usage():
    rows = read_account(captured.read(SITE + "sacct-just-ended.txt"))
    with pytest.raises(DataError, match="not in the accounting"):
        read_usage(rows, "12")


def test_published_seff_of_mahti_is_read_back():
    published = json.loads(captured.read("slurm-mahti-2024/seff-1.json"))
    text = "".join(f"{key}: {value}\n" for key, value in published.items())
    assert read_seff("Last login: never\n" + text) == published


def test_todays_billing_lines_are_kept_under_the_old_key_too():
    found = read_seff(captured.read("made/seff-roihu.txt"))
    assert found["Non-Interactive BUs"] == "46.32"
    assert found["CPU usage"] == "46.32 CPU BU"
    assert found["Mem usage"] == "0.00 CPU BU"


def test_decimal_commas_and_cut_off_texts_of_seff_are_read():
    text = captured.read("made/seff-roihu.txt").replace("46.32 CSC", "46,32 CSC")
    assert read_seff(text)["Non-Interactive BUs"] == "46.32"
    cut = text[: text.index("Job consumed")]
    assert "Non-Interactive BUs" not in read_seff(cut)
    assert read_seff(cut)["State"] == read_seff(text)["State"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Job not found.",
        captured.read(SITE + "seff-database-down.txt"),
        "Job ID: 5\n",
        "State: COMPLETED\n",
        "Job ID:\nState:\n",
        "bash: seff: command not found",
    ],
)
def test_rejects_text_that_is_not_seff_output(text):
    with pytest.raises(DataError):
        read_seff(text)


def test_computed_seff_has_the_same_keys_and_its_source():
    columns = {
        **{"JobID": "3659617", "Cluster": "mahti", "Account": "project_1", "User": "me"},
        **{"Group": "us", "State": "CANCELLED by 1", "ExitCode": "0:0", "AllocNodes": "2"},
        **{"AllocCPUS": "512", "CPUTimeRAW": "213504", "TotalCPU": "05:10.966"},
        **{"ElapsedRaw": "417", "AllocTRES": "cpu=512,mem=20G,node=2", "MaxRSS": ""},
    }
    step = {**columns, "JobID": "3659617.1", "MaxRSS": "2315255K"}
    listing = "\n".join("|".join(row) for row in (columns, columns.values(), step.values()))
    seff = computed_seff(read_usage(read_account(listing), "3659617"))
    published = json.loads(captured.read("slurm-mahti-2024/seff-1.json"))
    same = (
        "Job ID",
        "Cluster",
        "State",
        "Nodes",
        "Cores per node",
        "CPU Utilized",
        "CPU Efficiency",
        "Job Wall-clock time",
        "Memory Utilized",
        "Memory Efficiency",
    )
    assert {key: seff[key] for key in same} == {key: published[key] for key in same}
    assert seff["Source"] == "computed from sacct"


def test_computed_seff_of_a_job_that_never_ran():
    listing = "JobID|State|ElapsedRaw|CPUTimeRAW|TotalCPU\n5|CANCELLED by 1|0|0|00:00:00\n"
    seff = computed_seff(read_usage(read_account(listing), "5"))
    assert seff["CPU Efficiency"] == "0.00% of 00:00:00 core-walltime"
    assert seff["Job Wall-clock time"] == "00:00:00"


def test_computed_seff_has_no_figure_for_what_the_accounting_does_not_know():
    """Memory without a MaxRSS is unknown; it is not 0 bytes, nor 0 per cent."""
    header = "JobID|State|AllocNodes|AllocCPUS|ElapsedRaw|CPUTimeRAW|AllocTRES"
    seff = computed_seff(
        read_usage(read_account(f"{header}\n5|COMPLETED|1|2|60|120|cpu=2,mem=3G"), "5")
    )
    unknown = {"CPU Utilized", "CPU Efficiency", "Memory Utilized", "Memory Efficiency"}
    assert {key for key, value in seff.items() if value == "N/A"} == unknown
    bare = computed_seff(read_usage(read_account("JobID|State\n5|COMPLETED"), "5"))
    assert {key for key, value in bare.items() if value == "N/A"} == unknown | {
        "Nodes",
        "Cores per node",
        "Job Wall-clock time",
    }


def reused():
    return captured.read("made/sacct-job-id-reused.txt")


def test_usage_is_that_of_the_job_with_the_expected_name():
    rows = read_account(reused())
    usage = read_usage(rows, "101", name="kit-0123456789ab")
    assert (usage.state.name, usage.elapsed_seconds, usage.cores) == ("COMPLETED", 60, 2)
    with pytest.raises(DataError):
        read_usage(rows, "101", name="kit-ffffffffffff")


class Site:
    """A login node that answers sacct and seff with texts."""

    def __init__(self, sacct="", seff="", code=0):
        self.texts = {"env": (code, sacct), "seff": (0, seff)}

    def run(self, argv, check=True, repeat=False):
        code, text = self.texts[argv[0]]
        return Completed(tuple(argv), code, "" if code else text, text if code else "", 0.0)


def usage_from(site, job_id="101", has_seff=True):
    hpc = Hpc(ssh_host="x", project_dir="/p", has_seff=has_seff)
    return Slurm(site, hpc).usage("0123456789ab", job_id)


SEFF = """\
Job ID: 101
Cluster: lx
State: {state} (exit code 0)
Job Wall-clock time: {time}
Memory Utilized: 4.00 GB (estimated maximum)
"""


@pytest.mark.parametrize(
    ("state", "time", "source"),
    [
        ("COMPLETED", "00:01:00", None),
        ("FAILED", "00:01:00", "computed from sacct"),
        ("COMPLETED", "00:00:20", "computed from sacct"),
        ("COMPLETED", "soon", "computed from sacct"),
    ],
)
def test_seff_of_another_job_with_the_same_id_is_not_used(state, time, source):
    found = usage_from(Site(reused(), SEFF.format(state=state, time=time)))
    assert found.usage.elapsed_seconds == 60
    assert found.seff.get("Source") == source
    assert found.missing == ()


@pytest.mark.parametrize(
    ("text", "code", "available", "words"),
    [
        ("Slurm accounting storage is disabled", 1, False, "storage is disabled"),
        ("sacct: error: Problem talking to the database", 1, True, "Problem talking"),
        ("JobID|JobName\n", 0, True, "not in the accounting"),
        ("", 0, True, "no listing"),
        (reused().replace("kit-0123456789ab", "other"), 0, True, "not in the accounting"),
    ],
)
def test_figures_that_the_accounting_does_not_have_are_named(text, code, available, words):
    found = usage_from(Site(text, code=code))
    assert (found.usage, found.available) == (None, available)
    assert words in found.missing[0]


def test_step_without_an_end_is_named_and_the_rest_is_used():
    lines = reused().splitlines()
    lines[-1] = lines[-1].replace("|1700000070|", "|Unknown|")
    found = usage_from(Site("\n".join(lines)), has_seff=False)
    assert found.usage.elapsed_seconds == 60
    assert found.missing == ("sacct: step batch has no end",)


def test_seff_with_an_estimated_maximum_is_read():
    seff = read_seff(captured.read("made/seff-estimated-maximum.txt"))
    assert seff["Memory Utilized"] == "4.00 GB (estimated maximum)"


def test_counts_in_short_form_are_read():
    usage = read_usage(read_account(captured.read("made/sacct-count-1K.txt")), "101")
    assert usage.cores == 1024
    assert computed_seff(usage)["Cores per node"] == "128"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("gpu:gh200:1", 1),
        ("gpu:4", 4),
        ("gpu", 1),
        ("gpu:a100", 1),
        ("gpu:1g.5gb:1", 1),
        ("gpu:a100:2,gpu:v100:2", 4),
        ("nvme:100,gpu:mi250:8", 8),
        ("gres/gpu=4,gres/gpu:a100=4", 4),
        ("gres/gpu:1g.5gb=2", 2),
        ("gres/gpu:a100=2,gres/gpu:v100=2", 4),
        ("gres/gpumem=80G,gres/gpuutil=3", 0),
        ("", 0),
    ],
)
def test_gpus_of_all_types_are_counted(text, count):
    assert count_gres(text, "gpu") == count


@pytest.mark.parametrize(("name", "gpus"), [("sacct-gpus-mig", 2), ("sacct-gpus-two-types", 4)])
def test_allocated_gpus_of_all_types_are_counted(name, gpus):
    usage = read_usage(read_account(captured.read(f"made/{name}.txt")), "101")
    assert allocated_resources(usage).gpus == gpus


@pytest.mark.parametrize(
    ("memory", "gib"),
    [("200000", 195.3125), ("200000M", 195.3125), ("3G", 3), ("0", None), ("", None)],
)
def test_requested_memory_has_the_units_of_sbatch(memory, gib):
    hpc = Hpc(ssh_host="x", project_dir="/p", mem=memory, nodes=2)
    found = planned_resources(hpc).memory_gib
    assert found == (None if gib is None else gib * 2)


@pytest.mark.parametrize(
    ("field", "value"), [("time", "UNLIMITED"), ("time", "0"), ("time", "soon"), ("memory", "lots")]
)
def test_request_without_an_end_or_a_size_is_refused(field, value):
    with pytest.raises(UsageError, match=re.escape(value)):
        requested_resources(JobSpec("x", (), **{field: value}))


def test_memory_of_cores_and_gpus_and_disk_of_nodes_are_summed():
    job = JobSpec("x", (), nodes=2, cpus=4, tasks_per_node=3, mem_per_cpu="512M")
    held = requested_resources(job)
    assert (held.cores, held.memory_gib) == (24, 12)
    job = JobSpec("x", (), nodes=2, gpus_per_node="gh200:3", gres="nvme:10")
    held = requested_resources(job)
    assert (held.gpus, held.disk_gib) == (6, 20)


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("#BB_LUA SBF storagesize=100G path=/run/sbb/me", 200),
        ("#BB_LUA SBF storagesize=2TB path=/run/sbb/me", 4096),
        ("capacity=1TB access=striped", 0),
        ("", 0),
    ],
)
def test_disk_of_a_burst_buffer_is_counted_where_its_size_is_known(text, gib):
    job = JobSpec("x", (), nodes=2, burst_buffer=text)
    assert requested_resources(job).disk_gib == gib
