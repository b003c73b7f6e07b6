"""What a job used: from sacct, from seff of both kinds, or computed."""

import json
from zoneinfo import ZoneInfo

import captured
import pytest

from kit.base import DataError
from kit.slurm.text import account_row, read_account
from kit.slurm.usage import PUBLISHED, computed_seff, published_rows, read_seff, read_usage
from kit.slurm.values import JobState

SITE = "slurm-22.05/"


def test_the_figures_of_a_job_come_from_its_row_and_its_largest_step():
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


def test_each_life_of_a_requeued_job_has_its_own_figures():
    rows = read_account(captured.read("made/sacct.txt"))
    first, second = read_usage(rows, "95", 0), read_usage(rows, "95", 1)
    assert (first.state.name, second.state.name) == ("NODE_FAIL", "FAILED")
    assert (first.exit_code, second.exit_code) == (0, 99)
    assert [row.step for row in second.rows] == ["", "batch"]


@pytest.mark.parametrize(("job_id", "life"), [("94", 0), ("95", 2), ("", 0), ("95.batch", 0)])
def test_a_life_that_is_not_listed_has_no_usage(job_id, life):
    with pytest.raises(DataError):
        read_usage(read_account(captured.read("made/sacct.txt")), job_id, life)


def test_the_published_columns_keep_their_names_and_empty_ones_are_null():
    table = json.loads(captured.read("slurm-mahti-2024/sacct-1.json"))
    assert list(table["1"]) == list(PUBLISHED)
    usage = read_usage(read_account(captured.read("made/sacct.txt")), "97")
    rows = published_rows(usage, ZoneInfo("UTC"))
    assert list(rows) == ["1"]
    assert list(rows["1"]) == list(PUBLISHED)
    assert (rows["1"]["JobID"], rows["1"]["AveCPU"]) == ("97", None)


def test_the_published_row_of_mahti_is_made_again_from_its_times():
    published = json.loads(captured.read("slurm-mahti-2024/sacct-1.json"))["1"]
    asked = {k: v or "" for k, v in published.items() if k not in ("Planned", "PlannedCPU")}
    zone = ZoneInfo("Europe/Helsinki")
    row = account_row(asked, zone)
    asked |= {"Submit": f"{row.submit:.0f}", "Start": f"{row.start:.0f}", "End": f"{row.end:.0f}"}
    listing = "|".join(asked) + "\n" + "|".join(asked.values()) + "\n"
    usage = read_usage(read_account(listing), "3659617")
    assert published_rows(usage, zone)["1"] == published


def test_a_record_that_is_not_whole_yet_has_no_usage():
    rows = read_account(captured.read(SITE + "sacct-just-ended.txt"))
    with pytest.raises(DataError, match="not in the accounting"):
        read_usage(rows, "12")


def test_the_published_seff_of_mahti_is_read_back():
    published = json.loads(captured.read("slurm-mahti-2024/seff-1.json"))
    text = "".join(f"{key}: {value}\n" for key, value in published.items())
    assert read_seff("Last login: never\n" + text) == published


def test_todays_billing_lines_are_read_and_kept_under_the_old_key_too():
    found = read_seff(captured.read("made/seff-roihu.txt"))
    assert found["Non-Interactive BUs"] == "46.32"
    assert found["CPU usage"] == "46.32 CPU BU"
    assert found["Mem usage"] == "0.00 CPU BU"


def test_decimal_commas_in_the_billing_line_are_read_and_a_cut_off_text_keeps_what_it_has():
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
def test_what_are_no_figures_of_seff_is_an_error(text):
    with pytest.raises(DataError):
        read_seff(text)


def test_seff_computed_from_sacct_says_so_and_has_the_same_keys():
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


def test_seff_computed_for_a_job_that_never_ran_divides_by_nothing():
    listing = "JobID|State\n5|CANCELLED by 1\n"
    assert computed_seff(read_usage(read_account(listing), "5"))["CPU Efficiency"].startswith(
        "0.00%"
    )
