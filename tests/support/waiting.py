"""Waiting for a condition, as long as a busy machine may need."""

import time

PATIENCE = 4  # times the seconds that a test names; only a test that fails waits that long


def until(what, seconds=30.0, every=0.1):
    """Wait for a condition and give its value; a test fails by name when it does not come."""
    deadline = time.monotonic() + PATIENCE * seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {PATIENCE * seconds:g} s: {what.__name__}"
        time.sleep(every)
    return value
