"""What the services are made from: environments that are made once, and never by others."""

import hashlib
import zipfile
from types import SimpleNamespace

import pytest
from kit_sandbox import install

from kit.base import CommandFailed, UsageError


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


def wheel(folder, text=""):
    """Write a package of one module; return the SHA-256 of its file."""
    path = folder / "one-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.py", text)
        info = "one-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["", "a package of somebody else", "no hash"])
def test_package_of_keystone_with_another_hash_than_the_lock_is_refused(
    tmp_path, monkeypatch, change
):
    """The index returns another file under the same name and version."""
    source, cache, wheels = (tmp_path / name for name in ("source", "cache", "wheels"))
    for folder in (source, cache / "sandbox", wheels):
        folder.mkdir(parents=True)
    digest = wheel(wheels)
    pin = "one==1.0" if change == "no hash" else f"one==1.0 --hash=sha256:{digest}"
    (source / "keystone.lock").write_text(f"{pin}\n")
    (source / "pytorch.txt").touch()
    wheel(wheels, change)
    root = cache / "sandbox" / "bookworm"
    pytorch = root.with_name("bookworm.pytorch")
    pytorch.mkdir()
    install._complete(pytorch, source / "pytorch.txt")
    monkeypatch.setattr(install, "SOURCE", source)
    monkeypatch.setattr(install.roots, "make", lambda *_: root)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    settings = SimpleNamespace(cache_dir=cache)
    if change:
        with pytest.raises(CommandFailed, match="(?i)hash"):
            install.install(settings, print)
        assert not (cache / "sandbox" / "keystone" / ".complete").exists()
    else:
        install.install(settings, print)
    installed = list((cache / "sandbox" / "keystone").glob("lib/*/site-packages/one.py"))
    assert len(installed) == (0 if change else 1)


def test_pytorch_of_the_usual_index_comes_with_what_it_needs(listed):
    """Its build there cannot be imported without NVIDIA's packages."""
    assert install._torch_calls(listed, "") == [["-r", str(listed)]]


def test_nothing_but_pytorch_is_taken_from_its_own_index(listed):
    listed.write_text("# a comment\nnumpy\ntorch\nsympy\n")
    torch, rest = install._torch_calls(listed, "https://example.org/cpu")
    assert torch == ["--no-deps", "--index-url", "https://example.org/cpu", "torch"]
    assert rest == ["--no-deps", "numpy", "sympy"]


def test_tests_and_headers_of_pytorch_are_removed_and_what_jobs_need_stays(tmp_path):
    stay = ["torch/__init__.py", "torch/bin/torch_shm_manager", "torch/testing/__init__.py"]
    go = ["torch/test/a", "torch/include/ATen/a.h", "torch/bin/test_api", "torch/bin/protoc"]
    go += ["numpy/_core/tests/a.py", "torch/bin/TCPStoreTest"]
    for name in (*stay, *go):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    install._remove_unused(tmp_path)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(stay)
