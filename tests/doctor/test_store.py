"""The checks of the store and the services: every fault is seeded and has its own diagnosis."""

import pytest
from doctor_faults import assert_diagnosed, by_name, faults_of

from kit.base.settings import Cloud
from kit.doctor import store


@pytest.mark.filterwarnings("ignore:.*can be read by others")
@pytest.mark.parametrize("fault", faults_of(store))
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, bench)


def test_reports_a_runner_that_is_away(bench):
    cloud = Cloud(runner="cluster", kfp_url="http://127.0.0.1:9")
    found = by_name(bench.look(cloud=cloud))["pipelines"]
    assert found.diagnosis == "kfp-away"
    assert "127.0.0.1:9" in found.answer
