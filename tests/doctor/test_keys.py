"""The checks of ssh keys: every fault is seeded, and each has its own diagnosis."""

import pytest
from doctor_faults import assert_diagnosed, faults_of

from kit.doctor import keys


@pytest.mark.parametrize("fault", faults_of(keys))
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, bench)
