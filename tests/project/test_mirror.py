"""Every module of the kit has its tests in the file of its name."""

import pytest

from kit.base import ROOT

# Modules without a test file of their own -> the file that has their tests.
ELSEWHERE = {
    "base/record.py": "base/test_history.py",
    "billing/tables.py": "billing/test_run.py",
    "cli/leftovers.py": "submitter/test_env.py",
    "doctor/context.py": "doctor/test_checks.py",
    "doctor/diagnosis.py": "doctor/test_checks.py",
    "experiments/parameters.py": "experiments/fashion_mnist/test_parameters.py",
    "runs/objects.py": "runs/test_stages.py",
    "store/s3.py": "store/test_contract.py",  # one suite over every kind of store
    "store/swift.py": "store/test_contract.py",
    "tracking/client.py": "tracking/test_delivery.py",
    "tracking/old_spool.py": "tracking/test_delivery.py",
}
MODULES = [
    path.relative_to(ROOT / "kit").as_posix()
    for path in sorted((ROOT / "kit").rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
]


def own_tests(module):
    folder, _, name = module.rpartition("/")
    return f"{folder}/test_{name}"


@pytest.mark.parametrize("module", MODULES)
def test_module_has_its_tests_in_the_file_of_its_name(module):
    file = ROOT / "tests" / ELSEWHERE.get(module, own_tests(module))
    assert file.exists(), f"write {own_tests(module)}"


def test_every_exception_is_needed():
    assert set(ELSEWHERE) <= set(MODULES)
    assert [m for m in ELSEWHERE if (ROOT / "tests" / own_tests(m)).exists()] == []
