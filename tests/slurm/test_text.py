"""Listings, words and quantities of real Slurm sites, and texts that are none of these."""

import json
import math
from zoneinfo import ZoneInfo

import captured
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.base import DataError
from kit.slurm.text import (
    ACCOUNT_COLUMNS,
    STATUS_COLUMNS,
    JobState,
    account_row,
    explain_reason,
    parse_count,
    parse_duration,
    parse_memory,
    parse_size,
    parse_state,
    parse_time,
    read_account,
    read_queue,
    read_reply,
)

SITE = "slurm-22.05/"
NEWER = "slurm-24.11/"  # of a site whose job_submit plugin speaks at each submission


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{site}sbatch-{what}.txt"
            for site in (SITE, NEWER)
            for what in ("bad-partition", "bad-account", "too-long", "too-many-nodes")
        ),
        *(f"{site}sbatch-too-much-memory.txt" for site in (SITE, NEWER)),
        *(f"{site}sbatch-no-such-gres.txt" for site in (SITE, NEWER)),
        *(NEWER + "sbatch-too-many-cores.txt", NEWER + "sbatch-refused-by-plugin.txt"),
    ],
)
def test_refusals_of_a_real_slurm_are_recognised(name):
    reply = read_reply(1, "", captured.read(name))
    assert (reply.refused, reply.message) == (True, "")


@pytest.mark.parametrize(
    "words",
    [
        "Socket timed out on send/recv operation",
        "Unable to contact slurm controller (connect failure)",
        "Zero Bytes were transmitted or received",
    ],
)
def test_lost_connection_before_the_last_sentence_is_no_refusal(words):
    err = f"sbatch: error: {words}\nsbatch: error: Batch job submission failed: Unspecified error\n"
    assert not read_reply(1, "", err).refused


def test_message_of_the_site_beside_an_accepted_job_is_kept():
    err = captured.read(NEWER + "sbatch-message.txt")
    reply = read_reply(0, captured.read(NEWER + "sbatch-parsable.txt"), err)
    assert (reply.job_id, reply.refused) == ("10", False)
    assert reply.message == "Your project has 12 BU left"
    assert read_reply(0, "10\n", "").message == ""
    assert read_reply(0, "10\n", "x" * 5000).message == "x" * 300


@pytest.mark.parametrize(
    ("code", "out", "err", "job_id", "refused"),
    [
        (0, "123\n", "", "123", False),
        (0, captured.read(SITE + "sbatch-parsable.txt"), "", "1371", False),
        (0, "123;mahti\n", "", "123", False),
        (0, "Welcome!\n123\nhave a nice day 4\n", "sbatch: note", "123", False),
        (1, "123\n", "slurm: something odd", "123", False),  # an id is an id
        (0, "123\n123\n", "", "123", False),
        (0, "123\n124\n", "", "", False),  # two jobs: only the link says which may work
        (0, "", "", "", False),
        (0, "  123 \t\n", "", "123", False),
        (0, "\r\n123;mahti\r\n", "", "123", False),
        (0, "Submitted batch job 5\n", "", "", False),
        (0, "Submitted batch job 5 on cluster mahti\n", "", "", False),
        (124, "", "", "", False),
        (1, "", captured.read(SITE + "sbatch-bad-partition.txt"), "", True),
        (1, "", captured.read(SITE + "sbatch-controller-down.txt"), "", False),
        (1, "", captured.read(NEWER + "sbatch-controller-down.txt"), "", False),
        (1, "", captured.read(SITE + "sbatch-munge-down.txt"), "", False),
        (1, "", "sbatch: error: Requested time limit is invalid", "", True),
        (1, "", "sbatch: error: Zero Bytes were transmitted or received", "", False),
        (1, "", "sbatch: error: Slurm controller is in standby mode", "", False),
        (127, "", "timeout: failed to run command 'sbatch': No such file", "", True),
        (137, "", "Killed", "", False),
        (1, "", "", "", False),
        (1, "", "sbatch: error: Job violates accounting/QOS policy", "", True),
        (1, "", "Socket timed out on send/recv operation", "", False),  # it landed and ran
        (0, "", "sbatch: error: Invalid feature", "", False),  # exit code 0 does not mean a refusal
        (1, "12x\n", "", "", False),
    ],
)
def test_sbatch_answers_an_id_a_refusal_or_neither(code, out, err, job_id, refused):
    reply = read_reply(code, out, err)
    assert (reply.job_id, reply.refused) == (job_id, refused)
    assert reply.text


def test_queue_with_odd_rows_keeps_every_row():
    rows = read_queue(captured.read("made/squeue.txt"))
    assert [row.state.name for row in rows] == [
        *("PENDING", "RUNNING", "UNKNOWN", "REQUEUE_HOLD", "CANCELLED"),
    ]
    assert rows[0].reason == "ReqNodeNotAvail, UnavailableNodes:c[1-2]"
    assert rows[1].name == "a name | with a bar"
    assert rows[1].nodes == "c[1-2],g1"
    assert rows[2].word == "FROZEN_SOLID"


def test_reads_squeue_and_sacct_as_the_kit_calls_them():
    failed, waiting = read_queue(captured.read(SITE + "squeue-asked.txt"))
    assert (failed.state, failed.nodes) == (JobState.COMPLETING, "c2")
    assert (waiting.state, waiting.nodes, waiting.reason) == (JobState.PENDING, "", "BeginTime")
    job, *steps = read_account(captured.read(SITE + "sacct-asked.txt"))
    assert tuple(job.columns) == ACCOUNT_COLUMNS
    assert (job.state, job.exit_code, job.signal) == (JobState.FAILED, 0, 9)
    assert (job.end, job.complete) == (1795474113.0, True)
    assert [step.step for step in steps] == ["batch", "0"]


def test_reads_squeue_and_sacct_of_a_newer_slurm():
    running, ended, waiting = read_queue(captured.read(NEWER + "squeue-asked.txt"))
    assert (running.state, running.nodes) == (JobState.RUNNING, "g1")
    assert (ended.state, ended.nodes) == (JobState.COMPLETED, "c[1-2]")
    assert (waiting.state, waiting.nodes, waiting.reason) == (JobState.PENDING, "", "BeginTime")
    (drained,) = read_queue(captured.read(NEWER + "squeue-drained.txt"))
    assert (drained.state, explain_reason(drained.reason)) == (JobState.PENDING, drained.reason)
    assert drained.reason.startswith("Nodes required for job are DOWN, DRAINED or reserved")
    rows = read_account(captured.read(NEWER + "sacct-asked.txt"))
    assert tuple(rows[0].columns) == ACCOUNT_COLUMNS
    assert all(row.complete for row in rows)
    (job, *steps) = read_account(captured.read(NEWER + "sacct-running.txt"))
    assert (job.state, job.end) == (JobState.RUNNING, None)
    assert [step.step for step in steps] == ["batch"]


def test_empty_queue_is_an_empty_list():
    assert read_queue("") == []


GOOD = "1|RUNNING|1795453398|1795453399|c1|name|None\n"


@pytest.mark.parametrize(
    "text",
    [
        captured.read(SITE + "squeue-default-running.txt"),
        captured.read(SITE + "squeue-controller-down.txt"),
        captured.read(NEWER + "squeue-controller-down.txt"),
        captured.read(SITE + "squeue-controller-hung.txt"),
        "CLUSTER: lx",
        "squeue: warning: rate limited",
        "Welcome to the cluster",
        "2|RUNN",
        "2|RUNNING|1795453398|1795453399|c1|name",
        "",
        "   ",
    ],
)
def test_line_of_squeue_that_is_not_a_row_costs_that_line_only(text):
    rows = read_queue(f"{text}\n{GOOD}{text}\n")
    assert [(row.job_id, row.state, row.name) for row in rows] == [("1", JobState.RUNNING, "name")]


def test_steps_and_earlier_starts_are_kept_apart():
    rows = read_account(captured.read("made/sacct.txt"))
    assert [(r.job_id, r.step, r.state.name) for r in rows] == [
        ("95", "", "NODE_FAIL"),
        ("95", "batch", "CANCELLED"),
        ("96", "", "UNKNOWN"),
        ("95", "", "FAILED"),
        ("95", "batch", "FAILED"),
        ("97", "", "CANCELLED"),
    ]
    assert (rows[3].exit_code, rows[1].exit_code) == (99, None)
    assert rows[2].columns["JobName"] == "a|b"
    assert rows[2].end is None
    assert rows[5].word == "CANCELLED by 12345"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NEWER + "sacct-timeout.txt", [("3", "TIMEOUT", 0, 0, True)]),
        (
            NEWER + "sacct-asked.txt",
            [
                ("4", "COMPLETED", 0, 0, True),
                ("5", "FAILED", 3, 0, True),
                ("6", "FAILED", 0, 9, True),
                ("7", "CANCELLED", 0, 0, True),
            ],
        ),
        ("sacct-completed.txt", [("1", "COMPLETED", 0, 0, True)]),
        ("sacct-cancelled.txt", [("18", "CANCELLED", 0, 0, True)]),
        ("sacct-clean-end.txt", [("31", "COMPLETED", 0, 0, True)]),
        ("sacct-running.txt", [("18", "RUNNING", 0, 0, False)]),
        ("sacct-timeout.txt", [("19", "TIMEOUT", 0, 0, True), ("20", "TIMEOUT", 0, 0, True)]),
        ("sacct-out-of-memory.txt", [("21", "FAILED", 9, 0, True), ("22", "FAILED", 0, 9, True)]),
        ("sacct-database-just-back.txt", [("30", "COMPLETED", 0, 0, False)]),
        ("sacct-database-back.txt", [("30", "COMPLETED", 0, 0, True)]),
        (
            "sacct-preempted.txt",
            [
                ("23", "PREEMPTED", 0, 0, True),
                ("24", "PREEMPTED", 0, 0, True),
                ("23", "PENDING", 0, 0, False),
                ("25", "COMPLETED", 0, 0, True),
            ],
        ),
        (
            "sacct-node-fail-requeued.txt",
            [
                ("27", "NODE_FAIL", 0, 0, True),
                ("28", "NODE_FAIL", 0, 0, True),
                ("27", "PENDING", 0, 0, False),
            ],
        ),
    ],
)
def test_reads_the_accounting_of_real_jobs(name, expected):
    text = captured.read(name if name.startswith(NEWER) else SITE + name)
    rows = [row for row in read_account(text) if not row.step]
    got = [(r.job_id, r.state.name, r.exit_code, r.signal, r.end is not None) for r in rows]
    assert got == expected


def test_unknown_job_is_an_empty_accounting():
    assert read_account(captured.read(SITE + "sacct-unknown-job.txt")) == []
    assert read_account(captured.read(NEWER + "sacct-unknown-job.txt")) == []


def test_lines_that_end_as_on_windows_are_the_same_listing():
    text = captured.read(SITE + "sacct-completed.txt")
    assert read_account(text.replace("\n", "\r\n")) == read_account(text)


@pytest.mark.parametrize("name", ["työ-ä", "作业", r"AD\user", "émoji 🚀", "a|b"])
def test_names_in_any_alphabet_are_kept(name):
    (row,) = read_account(f"JobID|State|JobName\n7|COMPLETED|{name}\n")
    assert (row.job_id, row.state.name, row.columns["JobName"]) == ("7", "COMPLETED", name)


def test_noise_before_the_header_is_skipped():
    text = "Welcome|to|us\n" + captured.read(SITE + "sacct-completed.txt")
    assert len(read_account(text)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1|COMPLETED\n",
        captured.read(SITE + "sacct-database-down.txt"),
        captured.read(NEWER + "sacct-database-down.txt"),
        captured.read(NEWER + "sacct-old-column.txt"),
        captured.read(SITE + "sacct-completed.txt")[:-30],
        "JobID|State\n1|COMPLETED|extra\n",
        "JobID|State|JobName\n1|COMPLETED\n",
        "JobID|End\n1|yesterday\n",
        "JobID|State\nsacct: error: something\n",
        "JobID|State\n\n1|COMPLETED\n",
    ],
)
def test_rejects_text_that_is_not_sacct_output(text):
    with pytest.raises(DataError):
        read_account(text)


def test_published_accounting_of_mahti_is_read_in_its_zone():
    table = json.loads(captured.read("slurm-mahti-2024/sacct-1.json"))
    rows = [
        account_row({key: value or "" for key, value in row.items()}, ZoneInfo("Europe/Helsinki"))
        for row in table.values()
    ]
    job = rows[0]
    assert (job.job_id, job.step, job.state) == ("3659617", "", JobState.CANCELLED)
    assert job.start == 1723473808.0
    assert job.end - job.start == 417
    assert rows[1].step == "bat+"
    assert job.exit_code is None


@pytest.mark.parametrize("columns", [ACCOUNT_COLUMNS, STATUS_COLUMNS])
def test_columns_begin_with_the_id_and_end_with_the_name(columns):
    assert columns[0] == "JobID"
    assert columns[-1] == "JobName"
    assert len(set(columns)) == len(columns)
    assert set(columns) <= set(ACCOUNT_COLUMNS)


REFUSALS = captured.read("made/sbatch-refusals.txt").splitlines()


@pytest.mark.parametrize("text", REFUSALS)
def test_any_other_text_of_a_failed_sbatch_is_a_refusal(text):
    reply = read_reply(1, "", f"sbatch: error: Batch job submission failed: {text}\n")
    assert (reply.refused, reply.limited) == (True, False)
    assert text in reply.text


@pytest.mark.parametrize(
    "limit",
    [
        "AssocMaxSubmitJobLimit",
        "AssocGrpSubmitJobsLimit",
        "QOSMaxSubmitJobPerUserLimit",
        "QOSGrpSubmitJobsLimit",
    ],
)
def test_limit_on_the_number_of_jobs_is_recognised(limit):
    assert read_reply(1, "", f"sbatch: error: {limit}\nsbatch: error: Batch …\n").limited


HELSINKI = ZoneInfo("Europe/Helsinki")


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("COMPLETED", JobState.COMPLETED),
        ("CANCELLED by 12345", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("OUT_OF_ME+", JobState.OUT_OF_MEMORY),
        ("  RUNNING ", JobState.RUNNING),
        ("RE+", JobState.UNKNOWN),  # cut too early: six states begin so
        ("FROZEN_SOLID", JobState.UNKNOWN),
        ("COMPLETININVALID", JobState.UNKNOWN),
        ("", JobState.UNKNOWN),
        ("completed", JobState.UNKNOWN),
        ("COMPLETED FAILED", JobState.UNKNOWN),
        ("Welcome to the cluster", JobState.UNKNOWN),
        ("CANCELLED by", JobState.UNKNOWN),
        ("COMPLET", JobState.UNKNOWN),
    ],
)
def test_state_word_is_read_or_unknown(word, state):
    assert parse_state(word) is state


def test_every_state_has_its_text_and_only_ends_are_finished():
    assert len(JobState) == 30
    assert all(len(state.when) > 15 for state in JobState)
    finished = {state.name for state in JobState if state.finished}
    ends = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT"
    assert finished == set(ends.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2-11:18:24", 213504),
        ("1-00", 86400),
        ("1-02:30", 95400),
        ("00:06:57", 417),
        ("05:10.966", 310.966),
        ("0:02", 2),
        ("20", 1200),
        ("UNLIMITED", math.inf),
        ("Unknown", None),
        ("", None),
        ("Partition_Limit", None),
        ("INVALID", None),
    ],
)
def test_durations_are_read_as_slurm_defines_them(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    ["soon", "1:2:3:4", "-5", "1-", "00:06:5x", "1.2.3", "RUNNING", "2-11:18:24 extra", "9" * 400],
)
def test_rejects_text_that_is_not_a_duration(text):
    with pytest.raises(DataError):
        parse_duration(text)


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_every_duration_is_read_back(days, hours, minutes, secs):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + secs
    assert parse_duration(f"{days}-{hours:02}:{minutes:02}:{secs:02}") == total


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("125292K", 128299008),
        ("3G", 3 * 2**30),
        ("14.44M", round(14.44 * 2**20)),
        ("2.21 GB", round(2.21 * 2**30)),
        ("4.00 GB (estimated maximum)", 4 * 2**30),
        ("4Gc", 4 * 2**30),
        ("1000Mn", 1000 * 2**20),
        ("5000Mc", 5000 * 2**20),
        ("39503310K", 39503310 * 2**10),
        ("1.50T", 3 * 2**39),
        ("0n", 0),
        ("0c", 0),
        ("0", 0),
        ("", None),
        ("Unknown", None),
    ],
)
def test_sizes_are_bytes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["much", "1.2.3G", "3X", "-1K", "3 G B", "G", "1e9", "3G 4G", "9" * 400]
)
def test_rejects_text_that_is_not_a_size(text):
    with pytest.raises(DataError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("1723473797", HELSINKI, 1723473797.0),
        ("2024-08-12T17:43:17", HELSINKI, 1723473797.0),  # summer time, UTC+3
        ("2024-01-12T17:43:17", HELSINKI, 1705074197.0),  # winter time, UTC+2
        ("2024-08-12T14:43:17", ZoneInfo("UTC"), 1723473797.0),
        ("Unknown", HELSINKI, None),
        ("None", HELSINKI, None),
        ("N/A", HELSINKI, None),
    ],
)
def test_times_are_read_in_the_sites_zone(text, zone, expected):
    assert parse_time(text, zone) == expected


@pytest.mark.parametrize(
    "text",
    ["now", "2024-08-12", "17:43:17", "2024-13-12T17:43:17", "12.8.2024", "-5", "2024-08-12T17:43"],
)
def test_rejects_text_that_is_not_a_time(text):
    with pytest.raises(DataError):
        parse_time(text)


def test_pending_reason_becomes_a_sentence_and_keeps_its_details():
    assert explain_reason("ReqNodeNotAvail, UnavailableNodes:c1") == (
        "ReqNodeNotAvail, UnavailableNodes:c1: nodes that it needs are not available"
    )
    assert explain_reason("SomethingNew") == "SomethingNew"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("PartitionDown", "its partition is down"),
        ("AssocGrpCpuLimit", "a limit of the account"),
        ("QOSMaxJobsPerUserLimit", "a limit of the QOS"),
        ("Licenses", "waits for a license"),
    ],
)
def test_limits_and_partitions_as_pending_reasons_have_a_sentence(reason, words):
    assert words in explain_reason(reason)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3000", 3000 * 2**20),
        ("3000M", 3000 * 2**20),
        ("3G", 3 * 2**30),
        ("3gb", 3 * 2**30),
        ("1T", 2**40),
        ("100K", 102400),
        ("0", 0),
        ("", None),
    ],
)
def test_memory_requests_have_the_units_of_sbatch(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["lots", "-1", "3.5G", "3X", "3 G B", "G", "1e9"])
def test_rejects_text_that_is_not_a_memory_request(text):
    with pytest.raises(DataError):
        parse_memory(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1024", 1024),
        ("2K", 2048),
        ("1.50K", 1536),
        ("", None),
        (None, None),
        ("1.5", None),
        ("x", None),
    ],
)
def test_counts_are_read_in_full_and_in_short(text, expected):
    assert parse_count(text) == expected
