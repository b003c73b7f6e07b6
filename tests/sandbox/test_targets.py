"""`kit reproduce` on the sandbox's real services: one run of each target and the table."""

import os
from pathlib import Path

import pytest
from idx_files import small_data_dir
from notebook_runs import history, kit

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.slow,
    pytest.mark.core,
    pytest.mark.timeout(900),
]
RUNS = (("local", None), ("cloud", None), ("cloud-hpc", False), ("cloud-hpc", True))


@pytest.fixture(scope="module")
def reproduced(sandbox, tmp_path_factory):
    """What `kit reproduce` printed, and the lines of the history."""
    folder = tmp_path_factory.mktemp("targets")
    environ = {
        **os.environ,
        "CI": "true",  # nothing may be left out
        "KIT_DATA_DIR": str(small_data_dir(folder / "data")),
        "KIT_RESULTS_DIR": str(folder / "results"),
    }
    ended = kit(environ, "reproduce")
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout, history(environ)


def test_each_target_runs_and_leaves_its_line_in_the_history(reproduced):
    _, lines = reproduced
    assert [(line["target"], line["parameters"].get("configured")) for line in lines] == [*RUNS]
    assert all(line["profile"] == "sandbox" for line in lines)
    assert [line["slurm"]["job"]["state"] for line in lines[2:]] == ["COMPLETED"] * 2


def test_all_targets_have_the_same_figures_to_the_last_digit(reproduced):
    local, *others = reproduced[1]
    assert [line["metrics"] for line in others] == [local["metrics"]] * 3


def test_table_fits_the_terminal_and_the_report_is_written(reproduced):
    shown, lines = reproduced
    table = [row for row in shown.splitlines() if "  " in row]
    assert any("training s" in row for row in table)
    assert all(line["run"] in shown for line in lines)
    page = Path(shown.rpartition("as a page: ")[2].splitlines()[0])
    assert page.stat().st_size > 0
