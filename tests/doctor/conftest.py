"""The machines and files that the doctor's faults are seeded in."""

import pytest
from doctor_bench import Bench


@pytest.fixture
def bench(request, tmp_path, monkeypatch):
    if request.node.get_closest_marker("sandbox"):
        request.getfixturevalue("sandbox")
    monkeypatch.delenv("KIT_ENV_FILE", raising=False)
    bench = Bench(tmp_path, monkeypatch)
    yield bench
    bench.close()
