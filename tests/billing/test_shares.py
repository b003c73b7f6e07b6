"""The share of each trial: all of them and the rest add up to the bill to the last digit."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.billing.shares import shares

SECONDS = st.lists(st.floats(0, 1e6, allow_nan=False), max_size=50)


@given(st.decimals(0, 10**6, places=4), SECONDS, st.floats(0, 1e8, allow_nan=False))
def test_shares_and_rest_add_up_exactly_and_none_is_negative(units, seconds, slots):
    parts, rest = shares(units, seconds, slots)
    assert sum(parts, rest) == units
    assert all(part >= 0 for part in parts)
    assert rest >= 0


@pytest.mark.parametrize(
    ("units", "seconds", "slots", "wanted", "rest"),
    [
        ("10", [5, 5], 20, ["2.5", "2.5"], "5"),  # half of the job was start, end and idle slots
        ("1", [1, 1, 1], 3, ["0.333333"] * 3, "0.000001"),
        ("4", [30, 10], 20, ["3", "1"], "0"),  # clocks that say more than the job's
        ("4", [], 20, [], "4"),
        ("4", [0, 0], 0, ["0", "0"], "4"),
        ("4", [-1, 2], 4, ["0", "2"], "2"),
        ("0", [1], 2, ["0"], "0"),
    ],
)
def test_shares(units, seconds, slots, wanted, rest):
    parts, left = shares(Decimal(units), seconds, slots)
    assert parts == list(map(Decimal, wanted))
    assert left == Decimal(rest)
