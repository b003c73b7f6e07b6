"""The table of faults: each test says what was seen, and it is printed at the end."""

import pytest

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


@pytest.fixture(scope="module")
def site(sandbox):
    """The sandbox's Slurm; the module fails when one of its jobs is left over."""
    from slurm_site import SlurmSite

    site = SlurmSite()
    yield site
    site.close()
