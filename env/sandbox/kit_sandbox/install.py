"""What the services are made from: a Debian root and Python software, below the cache folder.

Nothing is installed on the machine.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kit.base import ROOT, CommandFailed
from kit.base.settings import Settings
from kit_sandbox import roots
from kit_sandbox.folders import check_owner
from kit_sandbox.roots import SOURCE, Report


def install(settings: Settings, report: Report, name: str = "bookworm") -> Path:
    """Make what is missing; return the Debian root `name`. Raises what `roots.make` raises.

    Python software comes with the first root, which the others use as well.
    """
    cache = settings.cache_dir / "sandbox"
    root = roots.make(cache, name, report)
    if name == "bookworm":
        with roots.exclusive(cache / "python.busy", report):
            _install_python(cache, root, report)
    return root


def _install_python(cache: Path, root: Path, report: Report) -> None:
    """Make the Python environments that are missing: Keystone's and that of the jobs."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    lock, torch = SOURCE / "keystone.lock", SOURCE / "pytorch.txt"
    if _is_stale(cache / "keystone", lock):
        report("installing the Python packages of Keystone …")
        _call([sys.executable, "-m", "venv", "--without-pip", str(cache / "keystone")])
        python = str(cache / "keystone" / "bin" / "python")
        words = ["--no-deps", "--require-hashes", "-r", str(lock)]
        _call([*pip[:3], "--python", python, *pip[3:], *words])
        _complete(cache / "keystone", lock)
    target = root.with_name(f"{root.name}.pytorch")
    if _is_stale(target, torch):
        report("installing PyTorch for the jobs …")
        words = ["--target", str(target), "--python-version", "3.11", "--only-binary", ":all:"]
        words += ["-c", str(ROOT / "requirements.lock")]
        for more in _torch_calls(torch, os.environ.get("TORCH_INDEX", "")):
            _call([*pip, *words, *more])
        _remove_unused(target)
        target.chmod(0o755)
        _complete(target, torch)


def _torch_calls(packages: Path, index: str) -> list[list[str]]:
    """Return the arguments of the calls of pip that install PyTorch and what it needs.

    The usual index has a build that cannot be imported without NVIDIA's packages, which no list
    of ours has: there PyTorch's own dependencies are installed as well. `index` has another build
    of PyTorch, and nothing else is taken from it.
    """
    if not index:
        return [["-r", str(packages)]]
    lines = packages.read_text().splitlines()
    rest = [line for line in lines if line and line[0] != "#" and line != "torch"]
    return [["--no-deps", "--index-url", index, "torch"], ["--no-deps", *rest]]


def _remove_unused(target: Path) -> None:
    """Remove what jobs do not read, a third of PyTorch: its tests, headers and compilers."""
    tests = [path for name in ("test", "tests") for path in target.rglob(name) if path.is_dir()]
    for folder in (*tests, target / "torch" / "include"):
        shutil.rmtree(folder, ignore_errors=True)
    for pattern in ("test_*", "*Test", "protoc*"):
        for program in (target / "torch" / "bin").glob(pattern):
            program.unlink()


def _is_stale(target: Path, source: Path) -> bool:
    """Report whether an environment is not that of a list; an unfinished one is removed.

    Raises UsageError for one that somebody else could have written: it would be executed.
    """
    stamp = target / ".complete"
    if os.path.lexists(target):
        check_owner(target, os.getuid(), f"remove {target}, then start the sandbox again")
    if stamp.exists() and stamp.read_text() == hashlib.sha256(source.read_bytes()).hexdigest():
        return False
    shutil.rmtree(target, ignore_errors=True)
    return True


def _complete(target: Path, source: Path) -> None:
    (target / ".complete").write_text(hashlib.sha256(source.read_bytes()).hexdigest())


def _call(argv: list[str]) -> None:
    # close_fds: what is inherited are the locks of `roots.exclusive`, nothing else
    done = subprocess.run(argv, capture_output=True, text=True, close_fds=False)
    if done.returncode != 0:
        step = "fix what it names (network, package index, free space), then repeat the command"
        raise CommandFailed(argv, done.returncode, done.stdout, done.stderr, step)
