"""Start, stop and memory of the sandbox, and its shortest job, each beside its target.

A sandbox that is up is stopped for the measurement, which uses a folder of its own, and started
again afterwards. Usage: python tests/benchmarks/bench_sandbox.py
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KIT = [sys.executable, "-m", "kit", "sandbox"]


def kit(*words: str, environ: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run([*KIT, *words], capture_output=True, text=True, env=environ)
    if check and done.returncode:
        sys.exit(f"kit sandbox {' '.join(words)}: {done.stderr}")
    return done.stdout


def seconds(*words: str, environ: dict[str, str]) -> float:
    begin = time.monotonic()
    kit(*words, environ=environ)
    return time.monotonic() - begin


def job_seconds(ssh_config: str) -> float:
    """From sbatch to COMPLETED in sacct, for `sleep 0`."""

    def ssh(script: str) -> str:
        argv = ["ssh", "-F", ssh_config, "hpc", script]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    begin = time.monotonic()
    job = ssh("sbatch --parsable --wrap 'sleep 0' -o /dev/null")
    while ssh(f"sacct -nXP -j {job} -o State") != "COMPLETED":
        time.sleep(0.05)
    return time.monotonic() - begin


def measure(environ: dict[str, str]) -> list[tuple[str, float, float, str]]:
    """Rows of (what, value, target, unit)."""
    rows = [("cold up", seconds("up", environ=environ), 45, "s")]
    status = json.loads(kit("status", "--json", environ=environ))
    resident = sum(one["rss"] for one in status["services"]) / 1e9
    rows.append(("resident after start", resident, 1.4, "GB"))
    rows.append(("up again", seconds("up", environ=environ), 2, "s"))
    jobs = [job_seconds(status["files"]["ssh_config"]) for _ in range(5)]
    rows.append(("sleep 0, sbatch to sacct", statistics.median(jobs), 5, "s"))
    rows.append(("down", seconds("down", environ=environ), 10, "s"))
    rows.append(("warm up", seconds("up", environ=environ), 15, "s"))
    rows.append(("down --wipe", seconds("down", "--wipe", environ=environ), 10, "s"))
    return rows


def main() -> None:
    was_up = any(one["pid"] for one in json.loads(kit("status", "--json", check=False))["services"])
    kit("down")
    with tempfile.TemporaryDirectory(prefix="kit-", dir="/tmp") as parent:
        Path(parent).chmod(0o755)
        rows = measure({**os.environ, "KIT_SANDBOX_DIR": f"{parent}/s"})
    if was_up:
        kit("up")
    print(f"{'sandbox':26}{'measured':>10}{'target':>9}{'ratio':>8}")
    for what, value, target, unit in rows:
        print(f"{what:26}{value:8.2f} {unit:2}{target:6.1f} {unit:2}{value / target:7.2f}")


if __name__ == "__main__":
    main()
