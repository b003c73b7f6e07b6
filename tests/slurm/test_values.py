"""Words and quantities of Slurm: each good form, and at least seven bad ones."""

import math
from zoneinfo import ZoneInfo

import captured
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.base import DataError
from kit.slurm.values import JobState, expand_hosts, seconds, size, state_of, when, why

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
        ("", JobState.UNKNOWN),
        ("completed", JobState.UNKNOWN),
        ("COMPLETED FAILED", JobState.UNKNOWN),
        ("Welcome to the cluster", JobState.UNKNOWN),
        ("CANCELLED by", JobState.UNKNOWN),
        ("COMPLET", JobState.UNKNOWN),
    ],
)
def test_a_state_word_is_read_or_is_unknown(word, state):
    assert state_of(word) is state


def test_every_state_says_when_it_occurs_and_only_ends_are_finished():
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
    ],
)
def test_durations_are_read_as_slurm_defines_them(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["soon", "1:2:3:4", "-5", "1-", "00:06:5x", "1.2.3", "RUNNING", "2-11:18:24 extra"]
)
def test_what_is_no_duration_is_an_error_and_never_zero(text):
    with pytest.raises(DataError):
        seconds(text)


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_every_duration_is_read_back(days, hours, minutes, secs):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + secs
    assert seconds(f"{days}-{hours:02}:{minutes:02}:{secs:02}") == total


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("125292K", 128299008),
        ("3G", 3 * 2**30),
        ("14.44M", round(14.44 * 2**20)),
        ("2.21 GB", round(2.21 * 2**30)),
        ("4Gc", 4 * 2**30),
        ("1000Mn", 1000 * 2**20),
        ("0", 0),
        ("", None),
        ("Unknown", None),
    ],
)
def test_sizes_are_bytes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["much", "1.2.3G", "3X", "-1K", "3 G B", "G", "1e9", "3G 4G"])
def test_what_is_no_size_is_an_error(text):
    with pytest.raises(DataError):
        size(text)


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
def test_times_are_seconds_whatever_the_sites_zone(text, zone, expected):
    assert when(text, zone) == expected


@pytest.mark.parametrize(
    "text",
    ["now", "2024-08-12", "17:43:17", "2024-13-12T17:43:17", "12.8.2024", "-5", "2024-08-12T17:43"],
)
def test_what_is_no_time_is_an_error(text):
    with pytest.raises(DataError):
        when(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("c1", ["c1"]),
        ("c[1-2]", ["c1", "c2"]),
        ("n[1-3,5],login", ["n1", "n2", "n3", "n5", "login"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[1-2]x", ["r1n1x", "r1n2x", "r2n1x", "r2n2x"]),
        ("", []),
        ("None assigned", []),
        ("(null)", []),
    ],
)
def test_host_lists_are_expanded(text, names):
    assert expand_hosts(text) == names


def test_host_lists_are_expanded_as_slurm_does_it():
    names = captured.read("slurm-22.05/scontrol-hostnames.txt").split()
    assert expand_hosts("c[1-2],g1,n[08-11,20]x[1-2]") == names


@pytest.mark.parametrize(
    "text",
    ["n[1-3", "n1-3]", "n[3-1]", "n[a-b]", "n[]", "n1,", ",n1", "n[1,,2]", "n[0-999999]",
     "a[0-999]b[0-999]"],
)  # fmt: skip
def test_what_is_no_host_list_is_an_error(text):
    with pytest.raises(DataError):
        expand_hosts(text)


def test_a_reason_becomes_a_sentence_and_keeps_its_details():
    assert why("ReqNodeNotAvail, UnavailableNodes:c1") == (
        "ReqNodeNotAvail, UnavailableNodes:c1: nodes that it needs are not available"
    )
    assert why("SomethingNew") == "SomethingNew"
