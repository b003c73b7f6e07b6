"""What Keystone is filled with at a start, and when a start has nothing to fill in."""

import importlib.util

import pytest
from kit_sandbox.files import SOURCE


@pytest.fixture
def seed(tmp_path, monkeypatch):
    """seed_allas.py for a Keystone that counts how often it is filled and holds the key "k"."""
    spec = importlib.util.spec_from_file_location("seed_allas", SOURCE / "seed_allas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.filled, module.held = 0, "k"

    class Keystone:
        def __init__(self, *_):
            pass

        def has_ec2_key(self, text):
            return f'"{module.held}"' in text

    def fill(_, etc):
        module.filled += 1
        for name in module.FILES:
            module.write(etc / name, {"AWS_ACCESS_KEY_ID": module.held})

    monkeypatch.setattr(module, "Keystone", Keystone)
    monkeypatch.setattr(module, "fill", fill)
    for name in module.SETTINGS:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SBX", str(tmp_path))
    (tmp_path / "etc").mkdir()
    return module


def test_second_start_with_the_same_settings_fills_nothing_in(seed, tmp_path):
    seed.main(tmp_path / "mark")
    seed.main(tmp_path / "mark")
    assert seed.filled == 1


@pytest.mark.parametrize("change", ["password", "file changed", "file gone", "key gone", "killed"])
def test_whatever_is_not_as_it_was_left_is_filled_in_again(seed, tmp_path, monkeypatch, change):
    seed.main(tmp_path / "mark")
    if change == "password":
        monkeypatch.setenv("CSC_PASSWORD", "y")
    elif change == "file changed":
        (tmp_path / "etc" / ".env").write_text("CSC_USERNAME=x\n")
    elif change == "file gone":
        (tmp_path / "etc" / "mlflow-swift.env").unlink()
    elif change == "key gone":
        seed.held = "another"
    else:  # before the end of the first start
        (tmp_path / "mark").unlink()
    seed.main(tmp_path / "mark")
    assert seed.filled == 2
