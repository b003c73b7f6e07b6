"""The share of each trial in the bill of a sweep's jobs. Pure.

A job is paid for all its slots, from its start to its end. A trial's share is that of its seconds
in a slot; start, end and idle slots are what is left. The shares and the rest add up to the bill
to the last digit.
"""

from collections.abc import Sequence
from decimal import ROUND_DOWN, Decimal

DIGITS = Decimal("0.000001")


def shares(
    units: Decimal, seconds: Sequence[float], slot_seconds: float
) -> tuple[list[Decimal], Decimal]:
    """Return the units of each trial, and those of no trial.

    `slot_seconds` are the seconds of all slots of the jobs. Where the trials' clocks say more than
    that, the trials have all of it.
    """
    worked = [Decimal(str(max(0.0, value))) for value in seconds]
    whole = max(Decimal(str(slot_seconds)), sum(worked, Decimal(0)))
    if not whole:
        return [Decimal(0) for _ in worked], units
    parts = [(units * value / whole).quantize(DIGITS, ROUND_DOWN) for value in worked]
    return parts, units - sum(parts, Decimal(0))
