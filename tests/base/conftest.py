"""An ssh server of the tests' own, shared by a module's tests."""

import pytest
from private_sshd import PrivateSshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    sshd = PrivateSshd(tmp_path_factory.mktemp("sshd")).start()
    yield sshd
    sshd.stop()
