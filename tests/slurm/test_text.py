"""Listings of real Slurm sites, and what is done with texts that are none."""

import json
from zoneinfo import ZoneInfo

import captured
import pytest

from kit.base import DataError
from kit.slurm.text import (
    ACCOUNT_COLUMNS,
    account_row,
    read_account,
    read_queue,
    read_reply,
)
from kit.slurm.values import JobState

SITE = "slurm-22.05/"


@pytest.mark.parametrize(
    "name",
    [
        *("sbatch-bad-partition.txt", "sbatch-bad-account.txt", "sbatch-too-long.txt"),
        *("sbatch-too-many-nodes.txt", "sbatch-too-much-memory.txt", "sbatch-no-such-gres.txt"),
    ],
)
def test_what_slurm_refuses_is_known_as_a_refusal(name):
    assert read_reply(1, "", captured.read(SITE + name)).refused


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
        (0, "Submitted batch job 5\n", "", "", False),
        (124, "", "", "", False),
        (1, "", captured.read(SITE + "sbatch-bad-partition.txt"), "", True),
        (1, "", captured.read(SITE + "sbatch-controller-down.txt"), "", False),
        (1, "", captured.read(SITE + "sbatch-munge-down.txt"), "", False),
        (1, "", "sbatch: error: Requested time limit is invalid", "", True),
        (1, "", "sbatch: error: Job violates accounting/QOS policy", "", True),
        (1, "", "Socket timed out on send/recv operation", "", False),  # it landed and ran
        (0, "", "sbatch: error: Invalid feature", "", False),  # exit code 0 is no refusal
        (1, "12x\n", "", "", False),
    ],
)
def test_only_an_id_or_a_known_refusal_is_an_answer_of_sbatch(code, out, err, job_id, refused):
    reply = read_reply(code, out, err)
    assert (reply.job_id, reply.refused) == (job_id, refused)
    assert reply.text


def test_a_listing_with_odd_rows_keeps_every_row():
    rows = read_queue(captured.read("made/squeue.txt"))
    assert [row.state.name for row in rows] == [
        *("PENDING", "RUNNING", "UNKNOWN", "REQUEUE_HOLD", "CANCELLED"),
    ]
    assert rows[0].reason == "ReqNodeNotAvail, UnavailableNodes:c[1-2]"
    assert rows[1].name == "a name | with a bar"
    assert rows[1].nodes == ("c1", "c2", "g1")
    assert (rows[0].start, rows[1].start) == (None, 1795453399.0)
    assert rows[2].word == "FROZEN_SOLID"
    assert rows[4].submit == 1795453398.0


def test_what_squeue_and_sacct_print_when_asked_as_the_kit_asks():
    failed, waiting = read_queue(captured.read(SITE + "squeue-asked.txt"))
    assert (failed.state, failed.nodes, failed.submit) == (
        *(JobState.COMPLETING, ("c2",), 1795474111.0),
    )
    assert (waiting.state, waiting.nodes, waiting.reason) == (JobState.PENDING, (), "BeginTime")
    job, *steps = read_account(captured.read(SITE + "sacct-asked.txt"))
    assert tuple(job.columns) == ACCOUNT_COLUMNS
    assert (job.state, job.exit_code, job.signal) == (JobState.FAILED, 0, 9)
    assert (job.end, job.whole) == (1795474113.0, True)
    assert [step.step for step in steps] == ["batch", "0"]


def test_an_empty_queue_is_an_empty_list():
    assert read_queue("") == []


GOOD = "1|RUNNING|1795453398|1795453399|c1|name|None\n"


@pytest.mark.parametrize(
    "text",
    [
        captured.read(SITE + "squeue-default-running.txt"),
        captured.read(SITE + "squeue-controller-down.txt"),
        captured.read(SITE + "squeue-controller-hung.txt"),
        "Welcome to the cluster\n" + GOOD,
        GOOD + "2|RUNN",
        GOOD.replace("1795453399", "soon"),
        GOOD.replace("c1", "c[1-"),
        GOOD.replace("|name|None", "|name"),
        "\n" + GOOD,
    ],
)
def test_what_is_no_queue_listing_is_an_error(text):
    with pytest.raises(DataError):
        read_queue(text)


def test_steps_and_earlier_lives_are_told_apart():
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
def test_the_accounting_of_real_jobs(name, expected):
    rows = [row for row in read_account(captured.read(SITE + name)) if not row.step]
    got = [(r.job_id, r.state.name, r.exit_code, r.signal, r.end is not None) for r in rows]
    assert got == expected


def test_an_unknown_job_is_an_empty_accounting():
    assert read_account(captured.read(SITE + "sacct-unknown-job.txt")) == []


def test_noise_before_the_header_is_passed_over():
    text = "Welcome|to|us\n" + captured.read(SITE + "sacct-completed.txt")
    assert len(read_account(text)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1|COMPLETED\n",
        captured.read(SITE + "sacct-database-down.txt"),
        captured.read(SITE + "sacct-completed.txt")[:-30],
        "JobID|State\n1|COMPLETED|extra\n",
        "JobID|State|JobName\n1|COMPLETED\n",
        "JobID|End\n1|yesterday\n",
        "JobID|State\nsacct: error: something\n",
        "JobID|State\n\n1|COMPLETED\n",
    ],
)
def test_what_is_no_accounting_is_an_error(text):
    with pytest.raises(DataError):
        read_account(text)


def test_the_published_accounting_of_mahti_is_read_in_its_time_zone():
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


def test_the_columns_asked_for_begin_with_the_id_and_end_with_the_name():
    assert ACCOUNT_COLUMNS[0] == "JobID"
    assert ACCOUNT_COLUMNS[-1] == "JobName"
    assert len(set(ACCOUNT_COLUMNS)) == len(ACCOUNT_COLUMNS)
