"""Start, stop, memory and disk of the sandbox, and its shortest job, each beside its target.

A sandbox that is up is stopped for the measurement, which uses a folder of its own, and started
again afterwards. Usage: make bench NAMES=sandbox
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measured

from kit.base.settings import load

KIT = [sys.executable, "-m", "kit", "sandbox"]
JOBS = """
for _ in 1 2 3 4 5; do
    begin=$(date +%s%N)
    job=$(sbatch --parsable --wrap 'sleep 0' -o /dev/null)
    until [ "$(sacct -nXP -j "$job" -o State)" = COMPLETED ]; do sleep 0.05; done
    echo $(($(date +%s%N) - begin))
done
"""


def kit(*words: str, environ: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run([*KIT, *words], capture_output=True, text=True, env=environ)
    if check and done.returncode:
        sys.exit(f"kit sandbox {' '.join(words)}: {done.stderr}")
    return done.stdout


def seconds(*words: str, environ: dict[str, str]) -> float:
    begin = time.monotonic()
    kit(*words, environ=environ)
    return time.monotonic() - begin


def job_seconds(ssh_config: str) -> list[float]:
    """Return the seconds from sbatch to COMPLETED in sacct of several jobs, on the login node."""
    argv = ["ssh", "-F", ssh_config, "hpc", "bash", "-s"]
    done = subprocess.run(argv, input=JOBS, capture_output=True, text=True, check=True)
    return [float(line) / 1e9 for line in done.stdout.split()]


def gigabytes(folder: Path) -> float:
    done = subprocess.run(["du", "-sk", folder], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) * 1024 / 1e9


def site(profile: str, environ: dict[str, str]) -> tuple[float, list[float]]:
    """Return what the services of a site hold in memory (GB), and the seconds of its jobs."""
    status = json.loads(kit("status", "--json", "--profile", profile, environ=environ))
    resident = sum(row["rss"] for row in status["services"]) / 1e9
    return resident, job_seconds(status["files"]["ssh_config"])


def measure(environ: dict[str, str]) -> list[tuple[str, float | list[float], float, str]]:
    """Rows of (what, values, target, unit)."""
    rows = [("cold up", seconds("up", environ=environ), 15, "s")]
    first, job = site("sandbox", environ)
    rows.append(("resident, one site", first, 1.3, "GB"))
    rows.append(("sleep 0, sbatch to sacct", job, 2, "s"))
    rows.append(("up again", seconds("up", environ=environ), 2, "s"))
    rows.append(("cold up, second site", seconds("up", "--site", "both", environ=environ), 15, "s"))
    second, job = site("sandbox-trixie", environ)
    rows.append(("resident, two sites", site("sandbox", environ)[0] + second, 1.45, "GB"))
    rows.append(("the same job, second site", job, 2, "s"))
    rows.append(("down", seconds("down", environ=environ), 10, "s"))
    rows.append(("warm up", seconds("up", environ=environ), 10, "s"))
    rows.append(("down --wipe", seconds("down", "--wipe", environ=environ), 10, "s"))
    rows.append(
        ("on disk, both roots", gigabytes(load("sandbox").cache_dir / "sandbox"), 2.5, "GB")
    )
    return rows


def main() -> None:
    was_up = any(one["pid"] for one in json.loads(kit("status", "--json", check=False))["services"])
    kit("down")
    with tempfile.TemporaryDirectory(prefix="kit-", dir="/tmp") as parent:
        Path(parent).chmod(0o755)
        rows = measure({**os.environ, "KIT_SANDBOX_DIR": f"{parent}/s"})
    if was_up:
        kit("up")
    for what, values, target, unit in rows:
        measured.show(what, values, unit, target)


if __name__ == "__main__":
    main()
