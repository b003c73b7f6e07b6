"""What one fenced submission costs beside plainer ways, and what asking and waiting cost.

Needs the sandbox (`kit sandbox up`). All figures are measured in one run on one machine; submitit
is put into a folder of its own and run on the login node, as its users do.
Usage: make bench NAMES=slurm
"""

import os
import secrets
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import measured
from slurm_follow import follow

from kit.base import SSHHost
from kit.base.settings import load
from kit.slurm import JobSpec, Slurm

ROUNDS = 30
OPTIONS = ["--partition=gputest", "--mem=1M", "--time=1", "--output=/dev/null"]
SMALL = {"partition": "gputest", "memory": "20M", "time": "00:05:00"}
ATTEMPT_IDS = []
FENCED = "kit, fenced, over an open connection"
BARE = "ssh hpc sbatch, over an open connection"
SUBMITIT = """
import submitit, sys, time
executor = submitit.SlurmExecutor(folder=sys.argv[2])
executor.update_parameters(partition="gputest", time=1, mem="100M", account=sys.argv[3])
for _ in range(int(sys.argv[1])):
    begun = time.perf_counter()
    executor.submit(abs, -1)
    print(time.perf_counter() - begun)
"""
MANY = """
cd "$1/kit/tries" || exit
shift
for token; do
    mkdir -m 700 "$token"; ln -sT bench "$token/submit"
    id=$(sbatch --parsable --hold -A "$ACCOUNT" -p gputest --mem=1M -J "kit-$token" --wrap true)
    printf 'exit 0\\nout %s\\n' "$id" >"$token/reply"
done
"""


class Counted(SSHHost):
    """A host that counts its remote commands."""

    calls = 0

    def run(self, *args, **kwargs):
        self.calls += 1
        return super().run(*args, **kwargs)


def new_attempt_id():
    """Return an attempt id of this benchmark; its folder is taken away at the end."""
    ATTEMPT_IDS.append(secrets.token_hex(6))
    return ATTEMPT_IDS[-1]


def timed(call, rounds=ROUNDS):
    """Give the seconds of every call, the first one (which warms up) left out."""
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return times[1:]


def submissions(slurm, host, account, folder):
    """Return the seconds of the ways to submit, by name."""
    spec = JobSpec("bench", ("true",), account=account, **SMALL)
    rows = {FENCED: timed(lambda: slurm.submit(spec, new_attempt_id()))}
    known = new_attempt_id()
    rows["kit, asked again for a known attempt"] = timed(lambda: slurm.submit(spec, known))
    plain = ["sbatch", "--parsable", f"--account={account}", *OPTIONS, "--wrap", "true"]
    ssh = ["ssh", "-F", host.config, "-o", f"ControlPath={host.socket}", host.name]
    rows[BARE] = timed(
        lambda: subprocess.run([*ssh, shlex.join(plain)], check=True, capture_output=True)
    )
    rows["ssh hpc true, over an open connection"] = timed(
        lambda: subprocess.run([*ssh, "true"], check=True)
    )
    cold = [*ssh[:3], "-o", "ControlPath=none", host.name, shlex.join(plain)]
    rows["ssh hpc sbatch, a connection each"] = timed(
        lambda: subprocess.run(cold, check=True, capture_output=True)
    )
    once = f"date +%s.%N; {shlex.join(plain)} >/dev/null"
    loop = f"for i in $(seq {ROUNDS + 1}); do {once}; done; date +%s.%N"
    stamps = [float(line) for line in host.run(["bash", "-c", loop], timeout=120).out.split()]
    rows["sbatch on the login node"] = [b - a for a, b in pairwise(stamps)][1:]
    rows["submitit on the login node"] = submitit(host, account, folder)
    return rows


def submitit(host, account, folder):
    """Install submitit where the jobs' user can read it, and time its submissions."""
    packages = Path(folder) / "submitit"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), "submitit"]
    subprocess.run(pip, check=True)
    (packages / "bench.py").write_text(SUBMITIT)
    subprocess.run(["chmod", "-R", "a+rX", str(packages)], check=True)
    logs = host.run(["mktemp", "-d"]).out.strip()
    command = ["env", f"PYTHONPATH={packages}", "/usr/bin/python3", f"{packages}/bench.py"]
    out = host.run([*command, str(ROUNDS + 1), logs, account], timeout=120).out
    return [float(line) for line in out.split()][1:]


def status_of_many(slurm, host, hpc, count=500):
    """One status pass over many attempts: waiting ones (squeue), then ended ones (sacct)."""
    attempt_ids = [new_attempt_id() for _ in range(count)]
    fill = ["env", f"ACCOUNT={hpc.account}", "bash", "-c", MANY, "-", hpc.project_dir]
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda part: host.run([*fill, *part], timeout=300),
                (attempt_ids[::2], attempt_ids[1::2]),
            )
        )
    for name in (f"status of {count} waiting attempts", f"status of {count} ended attempts"):
        begun, calls = time.perf_counter(), host.calls
        statuses = slurm.status(attempt_ids)
        seconds = time.perf_counter() - begun
        states = ", ".join(sorted({s.state.name for s in statuses.values()}))
        measured.show(name, seconds, "s", 0.3, note=f"{host.calls - calls} commands; {states}")
        ids = " ".join(status.job_id for status in statuses.values())
        host.run(["xargs", "scancel"], input=ids.encode(), timeout=120)
        time.sleep(8)  # slurmdbd gets the ends


def wait_for_60_seconds(hpc, host):
    """Follow a job of 60 s as on a real site: at most six commands, floor 15 s."""
    slurm = Slurm(host, replace(hpc, poll_floor_s=15.0))
    commands = ("sleep 60", "echo {} >m", "commit m")
    spec, attempt_id = JobSpec("bench", commands, account=hpc.account, **SMALL), new_attempt_id()
    slurm.submit(spec, attempt_id)
    begun, calls = time.perf_counter(), host.calls
    status = follow(slurm, attempt_id)
    assert status.state.name == "COMPLETED", status
    seconds = time.perf_counter() - begun
    measured.show("waiting for a job of 60 s", seconds, "s", note=f"{host.calls - calls} commands")


def main():
    hpc = load("sandbox").hpc
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir=hpc.project_dir) as seen,  # the site sees it as well
    ):
        os.chmod(seen, 0o755)
        host = Counted(hpc.ssh_host, config=hpc.ssh_config, folder=Path(folder) / "c")
        slurm = Slurm(host, hpc)
        print(host.run(["sbatch", "-V"]).out.strip())
        rows = submissions(slurm, host, hpc.account, seen)
        for name, times in rows.items():
            measured.show(name, [1000 * each for each in times], "ms")
        ratio = statistics.median(rows[FENCED]) / statistics.median(rows[BARE])
        measured.show("fenced beside bare ssh and sbatch", ratio, "", 1.5)
        status_of_many(slurm, host, hpc)
        wait_for_60_seconds(hpc, host)
        folders = [f"{hpc.project_dir}/kit/tries/{attempt_id}" for attempt_id in ATTEMPT_IDS]
        host.run(["xargs", "rm", "-rf"], input="\n".join(folders).encode())
        host.close()


if __name__ == "__main__":
    main()
