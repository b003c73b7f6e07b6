"""The main program of the batch job: starts Ray, runs the driver, leaves a manifest, ends Ray.

Runs on the HPC side, on the job's first node, with the environment's Python; reads `KIT_TASK`.
What fails is told in `failure.json` and by an exit code below 128 (Slurm shows larger ones minus
128).
"""

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
from kit.onsite import tunnel as ray_tunnel
from kit.onsite.names import KILLED, MANIFEST, NODE_LOST, NOT_WRITABLE
from kit.onsite.names import RAY_NOT_STARTED as NOT_STARTED
from kit.onsite.names import RESULTS as FILES
from kit.onsite.names import WRONG_RAY_VERSION as WRONG_VERSION
from kit.onsite.ray_cluster import (
    Cluster,
    RayFailed,
    node_names,
    say,
    tail,
)

DRIVER_FAILED = "the driver failed"


def drive(cluster: Cluster, token: str) -> Json:
    """Run the driver through the Jobs API under the name `token`; give its times.

    Raises RayFailed with the driver's exit code, or with the lost node's.
    """
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(cluster.dashboard)
    entrypoint = shlex.join([sys.executable, "-m", "kit.onsite.driver"])
    client.submit_job(entrypoint=entrypoint, submission_id=token)
    say("the driver is submitted")
    info, misses = client.get_job_info(token), 0
    while not info.status.is_terminal():
        cluster.check()
        time.sleep(0.3)
        try:
            info, misses = client.get_job_info(token), 0
        except (OSError, RuntimeError) as err:
            misses += 1
            if misses > 20:
                raise RayFailed(NODE_LOST, "Ray's head does not answer", str(err)) from err
    (cluster.folder / "driver.log").write_text(client.get_job_logs(token), encoding="utf-8")
    code = info.driver_exit_code
    say(f"the driver ended: {info.status}, exit code {code}")
    if info.status != "SUCCEEDED":
        got = tail(cluster.folder / "driver.log")
        if isinstance(code, int) and 0 < code < KILLED:
            raise RayFailed(code, DRIVER_FAILED, got)
        raise RayFailed(KILLED, f"the driver was killed: its exit code is {code}", got)
    start, end = info.start_time / 1000, info.end_time / 1000
    return time_record("train-fmnist-cnn", start, end)


def run(task: Json, folder: Path, began: float) -> None:
    """Do the job's work and leave `manifest.json`. Raises RayFailed."""
    import ray

    if ray.__version__ != task["ray"]:
        got = f"the environment has Ray {ray.__version__}, this kit needs {task['ray']}"
        raise RayFailed(WRONG_VERSION, "start Ray", got, "run with configured = False")
    nodes = node_names(os.environ["SLURM_JOB_NODELIST"])
    cluster = Cluster(
        nodes, Path(sys.executable).with_name("ray"), folder, os.environ["SLURM_JOB_ID"]
    )
    signal.signal(signal.SIGTERM, lambda *_: setattr(cluster, "told_to_end", True))
    try:
        with ray_tunnel.opened(task["tunnel"], cluster):
            cluster.start()
            ready = time.time()
            job = drive(cluster, task["token"])
    finally:
        cluster.stop()
    times = read_json(folder / "times.json")
    spans = {
        "starting Ray": ready - began,
        **times["spans"],
        "ending Ray": time.time() - job["end-time"],
    }
    times |= {"job": job, "spans": spans, "nodes": nodes}
    write_json(folder / "times.json", times)
    hashes = {name: sha256_of((folder / name).read_bytes()) for name in FILES}
    facts = {"schema": SCHEMA, "run": task["run"], "number": task["number"]}
    write_json(folder / MANIFEST, {**facts, "files": hashes})


def main() -> int:
    """Run; leave `failure.json` where that fails. Gives the exit code, below 128."""
    folder, began = Path.cwd(), time.time()
    failure = folder / "failure.json"
    try:
        run(json.loads(os.environ["KIT_TASK"]), folder, began)
    except RayFailed as err:
        say(str(err))
        if err.tried == DRIVER_FAILED and failure.exists():  # the driver's own is better
            return err.code
        known = {"cause": err.tried, "got": err.got, "next": err.next_step, "traceback": ""}
        return leave(failure, known, err.code)
    except (KitError, OSError, RuntimeError, subprocess.CalledProcessError) as err:
        known = {"cause": "the job's main program failed", "got": str(err), "next": ""}
        return leave(failure, {**known, "traceback": traceback.format_exc()}, NOT_STARTED)
    return 0


def leave(failure: Path, known: Json, code: int) -> int:
    """Write why the job failed; give its exit code, NOT_WRITABLE when even that cannot be kept."""
    try:
        write_json(failure, {**known, "code": code})
    except KitError as err:
        say(f"{err}\n{known['cause']}: {known['got']}")
        return NOT_WRITABLE
    return code


if __name__ == "__main__":
    sys.exit(main())
