"""Puts on the site what an attempt needs: code, data, list of packages, environment, tunnel.

Each is copied unless it is there already; doing it twice, or by two submitters, does no harm.
"""

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from kit.base import Busy, CommandFailed, DataError, Json, KitError, sha256_of, temporary_folder
from kit.base.settings import Hpc
from kit.experiments import Experiment, experiment_with_code
from kit.onsite import TUNNEL_STATE
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunRequests, RunState, attempt_id
from kit.slurm import Room, Slurm, parse_duration, planned_resources, read_room, room_argv
from kit.store import ObjectStore
from kit.submitter import env as hpc_env
from kit.submitter.job import Task, build_task, code_archive, data_archive
from kit.submitter.tunnel_key import TunnelKeys

Continued = tuple[tuple[str, str], ...]  # run and folder of attempts whose trials are taken over

log = logging.getLogger(__name__)
# Measured: an environment with its wheels for Python 3.11 and Ray 2.60; files of an attempt.
ENVIRONMENT_MIB, ENVIRONMENT_FILES, ATTEMPT_FILES = 430, 8200, 100
ALL_TRIALS = "start the sweep with --fresh: all its trials are run"
NO_ROOM = (
    "remove what is old (`kit tidy --remove`, `kit envs rm`), or ask the centre for more quota"
)


@dataclass(frozen=True)
class Staging:
    """Puts the inputs of one run on the site; `show` publishes how far it is."""

    slurm: Slurm
    data: ObjectStore
    tunnel_keys: TunnelKeys | None
    show: Callable[[Json], None]

    def task(
        self, request: RunRequest, number: int, attempt_id: str, continued: Continued = ()
    ) -> Task:
        """Stage everything that an attempt needs. Raises KitError."""
        host, hpc = self.slurm.host, self.slurm.hpc
        experiment = own_experiment(request)
        code = code_archive(experiment)
        task = build_task(hpc, request, experiment, number, sha256_of(code), continued=continued)
        sums = f"{task.data}.sha256"  # of the file, which is named by the hash of the data set
        used = [task.code, task.data, sums, hpc_env.pins_file(hpc, task.requirements)]
        self._check_room(request, task)
        host.run(["touch", "-c", "--", *used], check=False, repeat=True)  # `kit tidy` keeps them
        if hpc_env.sha256_on(host, task.code) != task.code_hash:
            host.put(code, task.code)
        check = ["sha256sum", "--check", "--status", "--", sums]
        if host.run(check, check=False, repeat=True).code:
            with temporary_folder() as folder:
                StageStore(self.data, request.run).get_data(request.data_hash, folder)
                data = data_archive(folder)
            host.put(data, task.data)
            host.put(f"{sha256_of(data)}  {task.data}\n".encode(), sums)
        hpc_env.stage_pins(host, hpc, task.requirements)
        if hpc.build_env_on == "login":
            why = "its Python environment is found or built on the login node, a minute or more"
            self.show({"state": "STAGING", "why": why})
            given = (host, hpc, attempt_id, request.configured, log.info, task.requirements)
            venv, private = hpc_env.make_environment(*given)
            task = replace(task, environment=venv, private=private)
        if request.wants_tunnel(hpc.tunnel):
            task = replace(task, tunnel=self._tunnel(attempt_id))
        return task

    def _check_room(self, request: RunRequest, task: Task) -> None:
        """Raise DataError before anything is copied if the attempt will not fit into its folder."""
        host, hpc = self.slurm.host, self.slurm.hpc
        key = hpc_env.environment_key(hpc, hpc_env.pins(task.requirements))
        argv = room_argv(hpc.project_dir, f"{self.slurm.paths.venvs}/{key}")
        answer = host.run(argv, check=False, repeat=True).out
        found = answer.startswith("@there") and request.configured
        size = StageStore(self.data, request.run).data_bytes(request.data_hash)
        needed, left = needed_room(hpc, size, builds=not found), read_room(answer)
        if not left.holds(needed):
            tried = f"copy the inputs of {request.run} to {host.name}"
            got = f"{hpc.project_dir} has room for {left}, and the run needs about {needed}"
            raise DataError(tried, got, NO_ROOM)

    def _tunnel(self, attempt_id: str) -> Json | None:
        """Prepare the tunnel of an attempt; without one the run continues and reports why."""
        host, folder = self.slurm.host, self.slurm.folder(attempt_id)
        why = "the profile names no VM ([cloud] ssh_host and tunnel_address)"
        if self.tunnel_keys is not None:
            try:
                limit_s = parse_duration(self.slurm.hpc.time) or 0
                return self.tunnel_keys.open(host, folder, attempt_id, limit_s)
            except KitError as err:
                log.warning("no tunnel: %s", err)
                why = f"the VM cannot be prepared: {err.got or err.tried}"
        with contextlib.suppress(CommandFailed):  # the submission reports a wrong folder
            host.put(json.dumps({"barred": why}).encode(), f"{folder}/{TUNNEL_STATE}")
        return None


def needed_room(hpc: Hpc, data_bytes: int, builds: bool) -> Room:
    """Estimate what an attempt adds to the project's folder, data as a zip file and unpacked."""
    kib = 2 * data_bytes / 1024 + hpc.attempt_gib * 2**20
    files = ATTEMPT_FILES
    if builds:
        kib, files = kib + ENVIRONMENT_MIB * 1024, files + ENVIRONMENT_FILES
    return Room(kib, files)


def refuse_too_many(hpc: Hpc, workers: int, device: str) -> None:
    """Raise DataError for more workers than CPUs or GPUs: Ray would wait for ever."""
    held = planned_resources(hpc)
    most, unit = (held.gpus, "GPUs") if device == "cuda" else (held.cores, "CPUs")
    if workers > most:
        got = f"the profile asks for {most} {unit}, and each needs one"
        step = "give fewer workers or device = cpu, or change [hpc] nodes, cpus, gres"
        raise DataError(f"train with workers = {workers} on {device}", got, step)


def check_request(hpc: Hpc, request: RunRequest) -> None:
    """Raise UsageError or DataError for a request that cannot be run here."""
    own_experiment(request)
    refuse_too_many(hpc, request.workers, str(request.hyperparameters.get("device", "cpu")))


def continued_attempts(slurm: Slurm, requests: RunRequests, request: RunRequest) -> Continued:
    """Return the attempts of the cancelled runs that a sweep continues, newest first.

    Raises Busy while the job of one may still run a trial, DataError where its trials are gone:
    no trial is run twice.
    """
    found: list[tuple[str, str]] = []
    for run in request.sweep.continues:
        status = requests.status(run)
        if status.state not in (RunState.DONE, RunState.CANCELLED):
            waits = status.state in (RunState.REQUESTED, RunState.SUBMITTED, RunState.CANCELLING)
            step = "wait for its end" if waits else ALL_TRIALS
            error = Busy if waits else DataError
            raise error(f"continue the sweep {run}", status.state.when, step)
        attempts = range(status.number, 0, -1)
        folders = [slurm.folder(attempt_id(run, number)) for number in attempts]
        answer = slurm.host.run(["ls", "-d", "--", *folders], check=False, repeat=True)
        there = answer.out.splitlines()
        if status.state is RunState.DONE and folders[0] not in there:
            got = f"{folders[0]} is gone from the site, with its finished trials"
            raise DataError(f"continue the sweep {run}", got, ALL_TRIALS)
        found += [(run, folder) for folder in folders if folder in there]
    return tuple(found)


def own_experiment(request: RunRequest) -> Experiment:
    """Return this submitter's copy of the requested experiment.

    Raises UsageError where it has none of that name or the parameters are not its own, DataError
    for another version of its source files: code never comes out of a bucket.
    """
    experiment = experiment_with_code(request.experiment, request.code)
    experiment.parameters(**request.hyperparameters)
    return experiment
