"""The second site of the sandbox: Debian 13 with Slurm 24.11, beside the first one."""

import json
import subprocess
import time

import pytest
from sandbox_command import kit_sandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(300)]
SECOND = ("--profile", "sandbox-trixie")


@pytest.fixture(scope="module")
def second(sandbox):
    """Start the second site; it is stopped at the end, the first one keeps running."""
    started = kit_sandbox("up", "--site", "both")
    assert started.returncode == 0, started.stderr[-3000:]
    yield json.loads(kit_sandbox("status", *SECOND, "--json").stdout)
    assert kit_sandbox("down", "--site", "second").returncode == 0


@pytest.fixture(scope="module")
def hpc(second):
    def run(script, stdin=None):
        argv = ["ssh", "-F", second["files"]["ssh_config"], "hpc", script]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_both_sites_are_healthy_each_with_its_own_slurm(second, hpc):
    assert all(row["up"] for row in second["services"])
    assert kit_sandbox("status").returncode == 0
    assert hpc("sinfo --version") == "slurm-wlm 24.11.5"
    assert kit_sandbox("exec", "sinfo", "--version").stdout.strip() == "slurm-wlm 22.05.8"
    for profile, cluster in (("sandbox", "sandbox"), ("sandbox-trixie", "trixie")):
        done = kit_sandbox("exec", "--profile", profile, "squeue", "-h", "-M", cluster)
        assert (done.returncode, done.stderr) == (0, "")


def test_job_of_two_nodes_is_completed_in_the_accounting(hpc):
    script = "#!/bin/bash\nexport PATH\nsrun hostname\n"
    job = hpc("sbatch --parsable -p small -N 2 -t 1 -o job.out", script)
    deadline = time.monotonic() + 60
    while hpc(f"sacct -nXP -j {job} -o State") != "COMPLETED":
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert sorted(hpc("cat job.out").split()) == ["c1", "c2"]


def test_jobs_have_the_same_python_and_torch_as_on_the_first_site(hpc):
    setup = ". /usr/share/lmod/lmod/init/bash; module use $(dirname $SLURM_CONF)/modules; set -e; "
    python = "import sys, ssl, sqlite3, torch; print(*sys.version_info[:2], torch.__version__)"
    out = hpc(f"{setup} module load pytorch; /opt/debian12/bin/python3 -c '{python}'")
    assert out.startswith("3 11 2.13.0")
    assert hpc("/usr/bin/python3 -V") == "Python 3.13.5"
