"""What several test files share: the sandbox, started at most once for the whole run."""

import contextlib
import json
import tempfile
from pathlib import Path

import debian_programs
import pytest
from kit_sandbox import services as sandbox_services
from kit_sandbox.sites import PROFILES
from kit_sandbox.supervisor import control
from sandbox_command import kit_sandbox

from kit.base.settings import load


def pytest_configure(config):
    """Lend the programs that this machine lacks; every worker of pytest-xdist does so itself."""
    folder = tempfile.TemporaryDirectory(prefix="kit-programs-", dir="/tmp")
    config.add_cleanup(folder.cleanup)
    debian_programs.lend(Path(folder.name))


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


@pytest.fixture(scope="session")
def second_site_ends(sandbox):
    """Stop the second Slurm site after all tests, before the sandbox."""
    yield
    assert kit_sandbox("down", "--site", "second").returncode == 0


@pytest.fixture(scope="module")
def second_site(second_site_ends):
    """The second Slurm site beside the sandbox, as `sandbox`.

    Every module starts it if needed: tests of another one may have stopped the whole sandbox.
    """
    started = kit_sandbox("up", "--site", "both")
    assert started.returncode == 0, started.stderr[-3000:]
    return json.loads(kit_sandbox("status", "--profile", PROFILES[1], "--json").stdout)


@contextlib.contextmanager
def stopped(*names):
    """Have programs of the sandbox stopped by its supervisor for the time of a block."""
    folder = load("sandbox").sandbox_dir
    for name in names:
        control(folder).stopProcess(name)
    try:
        yield
    finally:
        for name in names:
            control(folder).startProcess(name)
        sandbox_services.wait_until_healthy(folder, lambda _: None)


@pytest.fixture
def no_submitter(sandbox):
    """Without the sandbox's own submitter: only those that the test starts are at work."""
    with stopped("submitter"):
        yield
