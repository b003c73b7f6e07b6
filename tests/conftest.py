"""What several test files share: the sandbox, started at most once for the whole run."""

import json

import pytest
from sandbox_command import kit_sandbox


@pytest.fixture(scope="session")
def sandbox():
    """The sandbox with every service healthy: what `kit sandbox status --json` says.

    One that was up already is used and left up; one that this starts is stopped at the end.
    """
    was_up = kit_sandbox("status").returncode == 0
    started = kit_sandbox("up")
    assert started.returncode == 0, started.stderr[-3000:]
    yield json.loads(kit_sandbox("status", "--json").stdout)
    if not was_up:
        kit_sandbox("down")
