"""The checks on the supercomputer: every fault is seeded, and each has its own diagnosis."""

import subprocess
import sys

import pytest
from doctor_faults import SANDBOX, assert_diagnosed, by_name, faults_of
from kit_sandbox.sites import PROFILES

from kit.doctor import hpc, link_race


@pytest.mark.parametrize("fault", [*faults_of(hpc), *faults_of(link_race)])
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, bench)


OF_SLURM = ("partition-unknown", "account-missing", "slurm-away", "module-missing", "seff-missing")


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize("fault", [row for row in SANDBOX if row.diagnosis in OF_SLURM], ids=str)
def test_fault_of_slurm_is_diagnosed_on_the_second_site_too(second_site, bench, fault):
    bench.base = PROFILES[1]
    assert_diagnosed(fault, bench)


def test_site_with_a_default_partition_needs_none_in_the_profile(bench):
    sinfo, accounts = "echo 'small* up 1:00:00 2'", "echo project_1"
    server = bench.bare(sinfo=sinfo, sacctmgr=accounts)
    found = by_name(bench.login_node(server, partition=""))["Slurm"]
    assert (found.state, found.answer) == ("ok", "no account; small* up 1:00:00 2")


def test_site_without_accounting_has_no_accounts_to_check(bench):
    """As sacctmgr of Slurm 22.05 answers on a site without slurmdbd."""
    refused = "You are not running a supported accounting_storage plugin"
    sacctmgr = f"echo '{refused}' >&2; exit 1"
    server = bench.bare(sinfo="echo 'small* up 1:00:00 2'", sacctmgr=sacctmgr)
    found = by_name(bench.login_node(server, partition="small", account="project_1"))["Slurm"]
    assert (found.state, found.diagnosis) == ("ok", "")
    assert "no accounting" in found.answer


def test_module_that_fails_with_exit_code_zero_is_found(bench, tmp_path):
    """Tcl Modules 3.2 prints an error for a missing module and returns 0."""
    init = tmp_path / "init.sh"
    text = 'module() { [ "$1" != load ] || echo "ERROR:105: Unable to locate $2" >&2; return 0; }'
    init.write_text(f"{text}\n")
    server = bench.bare()
    found = by_name(bench.login_node(server, modules=("nosuch",), module_init=str(init)))
    assert found["modules"].diagnosis == "module-missing"
    assert "ERROR:105" in found["modules"].answer


@pytest.fixture
def module_of(tmp_path):
    """Return a function: the keys of a profile whose module is a folder of Python packages."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        init = tmp_path / "init.sh"
        init.write_text(f"export PYTHONPATH={tmp_path}\n")  # as a loaded module would
        return {"module_init": str(init)}

    return write


# without PyTorch in the base Python, whatever this machine has
NO_TORCH = "import sys\nif sys.prefix == sys.base_prefix:\n    sys.modules['torch'] = None\n"


def test_python_without_pytorch_is_found_before_the_first_run(bench, module_of):
    module = module_of("sitecustomize", NO_TORCH)
    found = by_name(bench.login_node(bench.bare(), **module))["environment"]
    assert found.diagnosis == "environment-missing"
    assert "has no PyTorch" in found.answer
    assert "name a Python with PyTorch" in found.next_step


def test_module_that_brings_pytorch_is_enough(bench, module_of):
    module = module_of("torch", "")
    found = by_name(bench.login_node(bench.bare(), **module))["environment"]
    assert found.diagnosis == "environment-missing"
    assert found.answer.endswith("can create it")


def test_venv_with_pytorch_is_named_as_the_cause(bench, module_of, tmp_path):
    """An environment made from a venv sees the packages of the venv's base, not the venv's."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    next(venv.glob("lib/python3*/site-packages")).joinpath("torch.py").touch()
    module = module_of("sitecustomize", NO_TORCH)
    profile = {**module, "python": f"{venv}/bin/python"}
    found = by_name(bench.login_node(bench.bare(), **profile))["environment"]
    assert f"PyTorch is in the venv {venv}" in found.answer
