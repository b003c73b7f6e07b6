"""What a job sees, by a short job on the profile's partition: `kit doctor --job`.

The checks by ssh try modules, container and Python on the login node. A compute node may be
another machine with another prolog, and only there are the GPUs.
"""

import contextlib
import re
import secrets
import shlex
import time

from kit.base import DataError, KitError
from kit.base.settings import Hpc
from kit.doctor.context import shell_file
from kit.doctor.diagnosis import DiagnosisError, Known
from kit.slurm import JobSpec, JobStatus, Slurm, count_gpus

COST = "one node of the profile's job for some seconds, at most five minutes"
TIME = "00:05:00"
WAIT_S = 150
POLL_S = 1.0
# what the batch script sets, whatever the site's prologs say
EXPECTED = {"umask": "0077", "locale": "C.UTF-8"}

KNOWN: Known = {KitError: "job-not-run"}


def report_lines(hpc: Hpc) -> tuple[str, ...]:
    """Return the commands of the job, after the fence and the modules: report, then commit."""
    from kit.submitter import env
    from kit.submitter.container import python_lines

    link = env.published_link(hpc)
    return (
        *python_lines(hpc),
        f"python={shlex.quote(hpc.python)} link={shlex.quote(link)}",
        shell_file("in_job").decode(),
        "report_job | tee seen",
        'code=${PIPESTATUS[0]}; [ "$code" = 0 ] || exit "$code"',
        "commit seen",
    )


def read_report(text: str) -> dict[str, str]:
    """Parse what `report_job` printed; other lines of the log are left out."""
    return dict(re.findall(r"^@([a-z]+) (.*)$", text, re.MULTILINE))


def check_with_job(slurm: Slurm) -> str:
    """Run the job and compare what it sees with what a run needs; it costs COST.

    Raises DiagnosisError for a job that fails or lacks something, DataError for one that did not
    end within WAIT_S, and what `Slurm.submit` raises.
    """
    attempt_id = secrets.token_hex(6)
    spec = slurm.job("see", report_lines(slurm.hpc), time=TIME)
    try:
        slurm.submit(spec, attempt_id)
        status = _ended(slurm, attempt_id)
    except KitError:
        with contextlib.suppress(KitError):
            slurm.cancel(attempt_id)
        raise
    log = slurm.log_end(attempt_id).decode(errors="replace").strip()
    if not status.succeeded:
        raise DiagnosisError("job-fails", f"{status.why}: {log[-300:] or 'its log is empty'}")
    return check_report(read_report(log), spec)


def _ended(slurm: Slurm, attempt_id: str) -> JobStatus:
    deadline = time.monotonic() + WAIT_S
    while not (status := slurm.settle(attempt_id)).done:
        if time.monotonic() > deadline:
            got = f"after {WAIT_S} s it is {status.state.name}: {status.why}"
            raise DataError("run a job that reports what it sees", got)
        slurm.sleep(POLL_S)
    return status


def check_report(seen: dict[str, str], spec: JobSpec) -> str:
    """Compare a report with what a run needs. Raises DiagnosisError for what differs."""
    node = seen.get("node", "an unknown node")
    for name, value in EXPECTED.items():
        if seen.get(name) != value:
            got = f"{name} is {seen.get(name, 'not known')!r} on {node}, not {value!r}"
            raise DiagnosisError("job-environment", got)
    if not seen.get("srun"):
        raise DiagnosisError("job-environment", f"srun is not in PATH on {node}")
    python = f"Python {seen.get('python', 'unknown')}"
    if "missing" in seen or "torch" not in seen:
        got = f"{python} on {node}: {seen.get('missing', 'no PyTorch')}"
        raise DiagnosisError("job-packages", got)
    wanted, gpus = count_gpus(spec), int(seen.get("gpus", 0))
    if wanted > gpus:
        got = f"{wanted} for the job on {node}, PyTorch {seen['torch']} sees {gpus}"
        raise DiagnosisError("gpu-unseen", got)
    on = f", {gpus} GPU(s)" if gpus else ""
    return f"{python}, PyTorch {seen['torch']}{on} on {node}"
