"""The status of an attempt as a pure function of symlinks, squeue and sacct."""

import captured
import pytest

from kit.slurm import Attempt, JobState, read_account
from kit.slurm.status import (
    EXIT_MEANINGS,
    NO_LOG,
    after_submit,
    from_account,
    from_links,
    from_queue,
)
from kit.slurm.text import QueueRow, SubmitReply

A = "0123456789ab"
NOW = 1_700_000_200.0
MANIFEST = "manifest-" + "0" * 64
SUBMITTED = Attempt(A, submit="x", reply=SubmitReply("101", False, "101"), replied_at=NOW - 100)
STARTED = Attempt(A, submit="x", owner="101.0", reply=SUBMITTED.reply, replied_at=NOW - 100)


def queue_row(state, job_id="101", name=f"kit-{A}", reason="None"):
    return QueueRow(job_id, JobState[state], state, "c[1-2]", name, reason)


def account(*rows):
    """Rows of (job id, name, state, exit code, end)."""
    lines = [f"{job}|small|{state}|{code}|{end}|{name}" for job, name, state, code, end in rows]
    return read_account("\n".join(["JobID|Partition|State|ExitCode|End|JobName", *lines]))


@pytest.mark.parametrize(
    ("attempt", "state", "why"),
    [
        (Attempt(A, commit=MANIFEST), "COMPLETED", "committed"),
        (Attempt(A, owner="101.0", commit=MANIFEST), "COMPLETED", "committed"),
        (Attempt(A, owner="fenced", commit="closed"), "CANCELLED", "fenced before"),
        (Attempt(A, owner="cancelled", commit="cancelled"), "CANCELLED", "cancelled before"),
    ],
)
def test_symlinks_alone_prove_an_end(attempt, state, why):
    status = from_links(attempt)
    assert (status.state.name, status.done, status.observed) == (state, True, True)
    assert why in status.why


def test_closed_attempt_keeps_what_sbatch_answered():
    reply = SubmitReply("", True, "sbatch: error: User's group not permitted")
    status = from_links(Attempt(A, submit="x", owner="fenced", commit="closed", reply=reply))
    assert "User's group not permitted" in status.why


@pytest.mark.parametrize("attempt", [Attempt(A), SUBMITTED, STARTED, Attempt(A, owner="9.1")])
def test_symlinks_of_a_live_attempt_prove_no_end(attempt):
    assert from_links(attempt) is None


def test_only_a_new_submission_needs_no_further_query():
    assert after_submit(SUBMITTED).state is JobState.PENDING
    assert after_submit(STARTED) is None
    assert after_submit(Attempt(A, submit="x")) is None
    assert after_submit(Attempt(A, owner="101.0", commit="closed")) is None


@pytest.mark.parametrize(
    ("attempt", "rows", "job_id", "state"),
    [
        (SUBMITTED, [queue_row("PENDING")], "101", "PENDING"),
        (STARTED, [queue_row("RUNNING")], "101", "RUNNING"),
        (STARTED, [queue_row("COMPLETING")], "101", "COMPLETING"),
        (STARTED, [queue_row("PENDING")], "101", None),
        (STARTED, [queue_row("REQUEUE_HOLD")], "101", None),
        (STARTED, [queue_row("COMPLETED")], "101", None),
        (STARTED, [], "101", None),
        (SUBMITTED, [queue_row("RUNNING", name="kit-ffffffffffff")], "101", None),
        (Attempt(A, submit="x"), [queue_row("PENDING", "102")], "102", "PENDING"),
        (Attempt(A), [], "", "UNKNOWN"),
        (STARTED, "slurm_load_jobs error: Unable to contact", "101", "UNKNOWN"),
    ],
)
def test_squeue_gives_live_states_only(attempt, rows, job_id, state):
    found, status = from_queue(attempt, rows)
    assert (found, status and status.state.name) == (job_id, state)
    assert status is None or not status.done


def test_nodes_are_shown_as_squeue_writes_them():
    assert from_queue(STARTED, [queue_row("RUNNING")])[1].nodes == "c[1-2]"


@pytest.mark.parametrize(
    ("rows", "state", "done"),
    [
        (account(("101", f"kit-{A}", "FAILED", "3:0", "1700000070")), "FAILED", True),
        (account(("101", f"kit-{A}", "FAILED", "3:0", "Unknown")), "UNKNOWN", False),
        (account(("101", f"kit-{A}", "RUNNING", "0:0", "Unknown")), "UNKNOWN", False),
        (account(("101", "someone-else", "FAILED", "3:0", "1507052400")), "UNKNOWN", False),
        (account(("101", "kit-ffffffffffff", "FAILED", "3:0", "1507052400")), "UNKNOWN", False),
        (account(), "UNKNOWN", False),
        ("sacct: error: Problem talking to the database", "UNKNOWN", False),
    ],
)
def test_sacct_ends_an_attempt_with_the_jobs_own_row_only(rows, state, done):
    status = from_account(STARTED, "101", rows, NOW)
    assert (status.state.name, status.done, status.started) == (state, done, True)


def test_job_id_used_before_is_distinguished_by_the_jobs_name():
    rows = read_account(captured.read("made/sacct-job-id-reused.txt"))
    status = from_account(STARTED, "101", rows, NOW)
    assert (status.state.name, status.exit_code, status.done) == ("COMPLETED", 0, True)
    others = [row for row in rows if row.columns["JobName"] == "somebody-else"]
    assert not from_account(STARTED, "101", others, NOW).done


@pytest.mark.parametrize(
    ("code", "why"),
    [("0:53", NO_LOG), ("98:0", EXIT_MEANINGS[98]), ("9:0", "signal 9"), ("0:9", "signal 9")],
)
def test_ends_have_their_cause(code, why):
    rows = account(("101", f"kit-{A}", "FAILED", code, "1700000070"))
    assert why in from_account(STARTED, "101", rows, NOW).why


def test_site_without_accounting_ends_a_job_that_left_the_queue():
    error = "Slurm accounting storage is disabled"
    assert from_account(STARTED, "101", error, NOW).done
    assert not from_account(SUBMITTED, "101", error, NOW).done  # 100 s ago: not listed yet
    assert from_account(SUBMITTED, "101", error, NOW + 100).done
    lost = from_account(Attempt(A, submit="x", submitted_at=NOW - 130), "", error, NOW)
    assert (lost.done, lost.missing_s) == (False, 130)
