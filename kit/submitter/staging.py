"""What a try finds on the site when it starts: code, data, list of packages, environment, tunnel.

Each is put there unless it is there already; doing it twice, or by two submitters, does no harm.
"""

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kit.base import CommandFailed, DataError, Json, KitError, sha256_of
from kit.base.settings import Hpc
from kit.onsite import TUNNEL_STATE
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, attempt_id
from kit.slurm import Slurm, parse_duration, planned_resources
from kit.store import ObjectStore
from kit.submitter import env as hpc_env
from kit.submitter import job as ray_job
from kit.submitter.tunnel_key import TunnelKeys

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staging:
    """Puts the inputs of one run on the site; `show` publishes how far it is."""

    slurm: Slurm
    data: ObjectStore
    vm: TunnelKeys | None
    show: Callable[[Json], None]

    def task(self, request: RunRequest, number: int, name: str) -> ray_job.Task:
        """Stage everything that try `number` (its token is `name`) needs. Raises KitError."""
        host, hpc = self.slurm.host, self.slurm.hpc
        code = ray_job.code_archive()
        inputs = f"{hpc.project_dir}/kit/inputs"
        code_file = f"{inputs}/{sha256_of(code)}.zip"
        data_file = f"{inputs}/{request.data_hash}.safetensors"
        if not self._is_there(code_file):
            host.put(code, code_file)
        if not self._is_there(data_file):
            content = StageStore(self.data, request.run).get_data(request.data_hash)[0]
            host.put(ray_job.data_file(content), data_file)
        environment, private = "", False
        hpc_env.stage_pins(host, hpc)
        if hpc.build_env_on == "login":
            why = "its Python environment is found or made on the login node, a minute or more"
            self.show({"state": "STAGING", "why": why})
            made = hpc_env.make_environment(host, hpc, name, request.configured, log.info)
            environment, private = made
        return ray_job.Task(
            run=request.run,
            number=number,
            token=name,
            data_hash=request.data_hash,
            data=data_file,
            code=code_file,
            configured=request.configured,
            hyperparameters=request.hyperparameters,
            workers=request.workers,
            previous=self.slurm.folder(attempt_id(request.run, number - 1)) if number > 1 else "",
            environment=environment,
            private=private,
            tunnel=self._tunnel(name) if request.wants_tunnel(hpc.tunnel) else None,
        )

    def _is_there(self, path: str) -> bool:
        return self.slurm.host.run(["test", "-e", path], check=False, repeat=True).code == 0

    def _tunnel(self, name: str) -> Json | None:
        """Prepare the tunnel of a try; without one the run goes on and says why."""
        host, folder = self.slurm.host, self.slurm.folder(name)
        why = "the profile names no VM ([cloud] ssh_host and tunnel_address)"
        if self.vm is not None:
            try:
                return self.vm.open(host, folder, name, parse_duration(self.slurm.hpc.time) or 0)
            except KitError as err:
                log.warning("no tunnel: %s", err)
                why = f"the VM cannot be prepared: {err.got or err.tried}"
        with contextlib.suppress(CommandFailed):  # the fence says what is wrong with it
            host.put(json.dumps({"barred": why}).encode(), f"{folder}/{TUNNEL_STATE}")
        return None


def refuse_too_many(hpc: Hpc, request: RunRequest) -> None:
    """Raise DataError for more workers than CPUs or GPUs: Ray would wait for ever."""
    held, device = planned_resources(hpc), request.hyperparameters.device
    most, unit = (held.gpus, "GPUs") if device == "cuda" else (held.cores, "CPUs")
    if request.workers > most:
        got = f"the profile asks for {most} {unit}, and each needs one"
        step = "give fewer workers or device = cpu, or change [hpc] nodes, cpus, gres"
        raise DataError(f"train with workers = {request.workers} on {device}", got, step)
