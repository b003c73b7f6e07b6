"""A machine without a network after one set-up: the kept packages are enough, for both sites."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from kit_sandbox import roots

from kit.base import ROOT
from kit.base.settings import load

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]
# processes of its own: the sandbox of the other tests may run beside it
OFFLINE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
ORDINARY = ["--user", "--map-current-user", "--keep-caps"]
SCRIPT = """\
set -eu
ip link set lo up
kit() { "$PYTHON" -m kit sandbox "$@"; }
kit install
kit up --site both
kit status >/dev/null
kit status --profile sandbox-trixie >/dev/null
for folder in "$KIT_SANDBOX_DIR" "$KIT_SANDBOX_DIR/trixie"; do
    ssh -F "$folder/etc/ssh_config" hpc sbatch -QW -t1 -A project_2001234 --wrap true
done
kit down --wipe
echo both sites
"""


@pytest.fixture
def cache():
    """A cache with kept packages and Python software, but without any Debian root."""
    have = load("sandbox").cache_dir / "sandbox"
    wanted = {file for name in roots.NAMES for file in roots._lock(name)}
    missing = [file for file in wanted if not (have / "packages" / file).exists()]
    if missing or not (have / "roots" / "bookworm.pytorch" / ".complete").exists():
        pytest.skip(f"{len(missing)} packages are not kept: kit sandbox up --site both")
    with tempfile.TemporaryDirectory(prefix="offline-", dir=have.parent) as folder:
        new = Path(folder) / "sandbox"
        for name in ("packages", "keystone", "roots/bookworm.pytorch"):
            shutil.copytree(have / name, new / name, symlinks=True, copy_function=os.link)
        (new / "roots").chmod(0o700)
        yield new.parent


def test_set_up_from_kept_packages_without_a_network_starts_both_sites(cache):
    own = [*OFFLINE, *(ORDINARY if os.getuid() else [])]
    with tempfile.TemporaryDirectory(prefix="kit-", dir="/tmp") as state:
        places = {"KIT_CACHE_DIR": str(cache), "KIT_SANDBOX_DIR": f"{state}/s"}
        environ = os.environ | places | {"PYTHON": sys.executable}
        argv = [*own, "sh", "-c", SCRIPT]
        done = subprocess.run(argv, capture_output=True, text=True, env=environ, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.endswith("both sites\n")
        assert done.stderr.count("unpacking ") == 2, "a root was made more than once"
        assert "downloading" not in done.stderr
        assert not list(Path(state).iterdir())
