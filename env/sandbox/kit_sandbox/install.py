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
    if name != "bookworm":
        return root
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    lock, torch = SOURCE / "keystone.lock", SOURCE / "pytorch.txt"
    if _is_stale(cache / "keystone", lock):
        report("installing the Python packages of Keystone …")
        _call([sys.executable, "-m", "venv", "--without-pip", str(cache / "keystone")])
        python = str(cache / "keystone" / "bin" / "python")
        _call([*pip[:3], "--python", python, *pip[3:], "--require-hashes", "-r", str(lock)])
        _complete(cache / "keystone", lock)
    target = root.with_name(f"{root.name}.pytorch")
    if _is_stale(target, torch):
        report("installing PyTorch for the jobs …")
        words = ["--target", str(target), "--python-version", "3.11", "--only-binary", ":all:"]
        _call([*pip, *words, "-r", str(torch), "-c", str(ROOT / "requirements.lock")])
        target.chmod(0o755)
        _complete(target, torch)
    return root


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
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stdout, done.stderr)
