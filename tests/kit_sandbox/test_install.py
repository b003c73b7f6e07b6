"""What the services are made from: environments that are made once, and never by others."""

import pytest
from kit_sandbox import install

from kit.base import UsageError


@pytest.fixture
def listed(tmp_path):
    """A list of packages."""
    path = tmp_path / "list.txt"
    path.write_text("torch\n")
    return path


def test_unfinished_environment_is_made_again(tmp_path, listed):
    target = tmp_path / "app"
    assert install._is_stale(target, listed), "it is missing"
    target.mkdir()
    (target / "half").touch()
    assert install._is_stale(target, listed)
    assert not target.exists(), "what was left would be mixed with the new one"


def test_environment_is_made_again_when_its_list_has_changed(tmp_path, listed):
    target = tmp_path / "app"
    target.mkdir()
    install._complete(target, listed)
    assert not install._is_stale(target, listed)
    listed.write_text("torch\nnumpy\n")
    assert install._is_stale(target, listed)


def test_environment_that_others_could_have_written_is_refused(tmp_path, listed):
    target = tmp_path / "app"
    target.mkdir()
    install._complete(target, listed)
    target.chmod(0o777)
    with pytest.raises(UsageError, match="other users can write to it"):
        install._is_stale(target, listed)
