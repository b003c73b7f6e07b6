"""The main program of the batch job: starts Ray, runs the driver, leaves a manifest, ends Ray.

Runs on the job's first node with the environment's Python; reads `KIT_TASK`. A failure is
described in `failure.json` and by an exit code of `names`.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from kit.base import SCHEMA, Json, KitError, read_json, sha256_of, time_record, write_json
from kit.experiments.running import OUT, out_files
from kit.onsite import tunnel
from kit.onsite.names import (
    DRIVER_LOG,
    FAILURE,
    KILLED,
    MANIFEST,
    NODE_LOST,
    NOT_WRITABLE,
    PROGRESS,
    RAY_NOT_STARTED,
    RESULTS,
    TIMES,
    WRONG_RAY_VERSION,
)
from kit.onsite.ray_cluster import Cluster, RayFailed, node_names, say, tail
from kit.sweeps import TRIALS
from kit.sweeps.live import ended_lines

DRIVER_FAILED = "the driver failed"
POLL_INTERVAL_S = 0.3
MAX_MISSES = 20


def submit(cluster: Cluster, attempt_id: str) -> bool:
    """Submit the driver through the Jobs API as `attempt_id`, once however often it is called.

    Returns True. The driver prepares the training while the other nodes start, and trains when all
    are there. Raises OSError or RuntimeError while Ray's head cannot take it.
    """
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(cluster.dashboard)
    if not any(job.submission_id == attempt_id for job in client.list_jobs()):
        argv = [sys.executable, "-m", "kit.onsite.driver", str(len(cluster.nodes))]
        client.submit_job(entrypoint=shlex.join(argv), submission_id=attempt_id)
    return True


def drive(cluster: Cluster, attempt_id: str, name: str) -> Json:
    """Follow the driver to its end; return its times, under the name.

    Raises RayFailed with the driver's exit code, or with the lost node's.
    """
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(cluster.dashboard)
    info, misses, reported = client.get_job_info(attempt_id), 0, set[str]()
    while not info.status.is_terminal():
        cluster.check()
        time.sleep(POLL_INTERVAL_S)
        try:
            info, misses = client.get_job_info(attempt_id), 0
        except (OSError, RuntimeError) as err:
            misses += 1
            if misses > MAX_MISSES:
                raise RayFailed(NODE_LOST, "Ray's head does not answer", str(err)) from err
        report_trials(cluster.folder / PROGRESS, reported)
    (cluster.folder / DRIVER_LOG).write_text(client.get_job_logs(attempt_id), encoding="utf-8")
    code = info.driver_exit_code
    say(f"the driver ended: {info.status}, exit code {code}")
    if info.status != "SUCCEEDED":
        got = tail(cluster.folder / DRIVER_LOG)
        if isinstance(code, int) and 0 < code < KILLED:
            raise RayFailed(code, DRIVER_FAILED, got)
        raise RayFailed(KILLED, f"the driver was killed: its exit code is {code}", got)
    return time_record(name, info.start_time / 1000, info.end_time / 1000)


def report_trials(progress: Path, reported: set[str]) -> None:
    """Write a line to the job's log for each of a sweep's last trials that is not `reported` yet.

    A training has none, and a progress of another shape is left out: it is for display only.
    """
    with contextlib.suppress(KitError, AttributeError, KeyError, TypeError, ValueError):
        for line in ended_lines(read_json(progress)):
            if line not in reported:
                say(line)
                reported.add(line)


def run_job(task: Json, folder: Path, start: float) -> None:
    """Do the job's work and leave the manifest. Raises RayFailed."""
    import ray

    if ray.__version__ != task["ray"]:
        got = f"the environment has Ray {ray.__version__}, this kit needs {task['ray']}"
        raise RayFailed(WRONG_RAY_VERSION, "start Ray", got, "run with configured = False")
    nodes = node_names(os.environ["SLURM_JOB_NODELIST"])
    cluster = Cluster(nodes, Path(sys.executable), folder, os.environ["SLURM_JOB_ID"])
    signal.signal(signal.SIGTERM, lambda *_: setattr(cluster, "end_requested", True))
    try:
        with tunnel.opened(task["tunnel"], cluster):
            cluster.start(lambda: submit(cluster, task["attempt_id"]))
            ready = time.time()
            job = drive(cluster, task["attempt_id"], f"train-{task['model'].lower()}")
    finally:
        cluster.stop()
    times = read_json(folder / TIMES)
    spans = job_spans(times["spans"], job, start, ready, time.time())
    write_json(folder / TIMES, {**times, "job": job, "spans": spans, "nodes": nodes})
    files = {name: folder / name for name in RESULTS}
    if (folder / TRIALS).exists():
        files[TRIALS] = folder / TRIALS
    files |= {OUT + name: path for name, path in out_files(folder / "out").items()}
    hashes = {name: sha256_of(path) for name, path in files.items()}
    facts = {"schema": SCHEMA, "run": task["run"], "number": task["number"]}
    write_json(folder / MANIFEST, {**facts, "files": hashes})


def job_spans(
    driver: dict[str, float], job: Json, start: float, ready: float, end: float
) -> dict[str, float]:
    """Return what the seconds of the job's main program went to, with those of its driver.

    `start`, `ready` (Ray is, on all nodes) and `end` are seconds since 1970, `job` is the time of
    the Ray job, which includes the start of the driver and of its worker; these begin while Ray
    starts on the other nodes.
    """
    rest = job["end-time"] - max(ready, job["start-time"]) - sum(driver.values())
    return {
        "starting Ray": ready - start,
        "starting the driver": max(0.0, rest),
        **driver,
        "ending Ray": end - job["end-time"],
    }


def main() -> int:
    """Run the job; leave a failure file if that fails. Return the exit code, below 128."""
    folder, start = Path.cwd(), time.time()
    failure = folder / FAILURE
    try:
        run_job(json.loads(os.environ["KIT_TASK"]), folder, start)
    except RayFailed as err:
        say(str(err))
        if err.tried == DRIVER_FAILED and failure.exists():  # the driver's own has the cause
            return err.code
        known = {"cause": err.tried, "got": err.got, "next": err.next_step, "traceback": ""}
        return leave(failure, known, err.code)
    except (KitError, OSError, RuntimeError, subprocess.CalledProcessError) as err:
        known = {"cause": "the job's main program failed", "got": str(err), "next": ""}
        known["traceback"] = traceback.format_exc()
        return leave(failure, known, RAY_NOT_STARTED)
    return 0


def leave(failure: Path, known: Json, code: int) -> int:
    """Write why the job failed; return its exit code, NOT_WRITABLE if that cannot be written."""
    try:
        write_json(failure, {**known, "code": code})
    except KitError as err:
        say(f"{err}\n{known['cause']}: {known['got']}")
        return NOT_WRITABLE
    return code


if __name__ == "__main__":
    sys.exit(main())
