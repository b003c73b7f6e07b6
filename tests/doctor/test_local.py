"""The checks on this machine: every fault is seeded, and each has its own diagnosis."""

import pytest
from doctor_faults import assert_diagnosed, faults_of

from kit.doctor import local


@pytest.mark.filterwarnings("ignore:.*can be read by others")
@pytest.mark.parametrize("fault", faults_of(local))
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, bench)
