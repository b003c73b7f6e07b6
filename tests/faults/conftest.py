"""The table of faults: each test says what was seen, and it is printed at the end."""

import os

import pytest
from kit_sandbox.sites import PROFILES

TABLE = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[TABLE] = []


@pytest.fixture
def seen(request):
    """Write a row of the table: `seen("fault", "what happened")`."""
    rows = request.config.stash[TABLE]
    return lambda fault, outcome: rows.append((fault, outcome))


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(TABLE, [])
    if not rows:
        return
    width = max(len(fault) for fault, _ in rows)
    terminalreporter.section("faults and what was seen")
    for fault, outcome in rows:
        terminalreporter.write_line(f"{fault:<{width}}  {outcome}")


def pytest_generate_tests(metafunc):
    """Run what is marked `both_sites`, or all (KIT_TEST_ALL=both), on the second site as well."""
    name = "site" if "site" in metafunc.fixturenames else "bench"
    wanted = os.environ.get("KIT_TEST_ALL") == "both" and name in metafunc.fixturenames
    if wanted or metafunc.definition.get_closest_marker("both_sites"):
        metafunc.parametrize(name, PROFILES, indirect=True)


@pytest.fixture(scope="module")
def site(sandbox, request):
    """The Slurm of a site; the module fails when one of its jobs is left over."""
    from slurm_site import SlurmSite

    profile = getattr(request, "param", PROFILES[0])
    if profile != PROFILES[0]:
        request.getfixturevalue("second_site")
    site = SlurmSite(profile)
    yield site
    site.close()
