"""The batch job that trains with Ray on the nodes it was given. Pure: builds a JobSpec.

The script finds or builds the environment, starts `kit.onsite.main` (which starts Ray, checks it,
runs the driver and ends Ray), and commits what that left, last of all. The kit's own code
travels as one zip file named by its hash.
"""

import io
import json
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import Json
from kit.base.settings import Hpc
from kit.experiments.fashion_mnist.images import Dataset
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite.names import ENVIRONMENT_FAILED
from kit.runs.requests import RunRequest, attempt_id
from kit.slurm import JobSpec, SitePaths, job_for, job_name
from kit.submitter import env as hpc_env
from kit.submitter.scripts import script

WARNING_S = 60  # how long before its time limit the job is asked to end
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

SHIPPED_ROOMS = ("base", "experiments", "onsite")
SHIPPED = (".py", ".sh", ".toml")


@dataclass(frozen=True)
class Task:
    """The work of one attempt; all paths are on the site.

    `data` is the data set's file, `code` the zip file of the shipped rooms (its SHA-256 is
    `code_hash`), `previous` the folder of an earlier attempt whose checkpoint may be resumed,
    `tunnel` what `TunnelKeys.open` returned. `environment` is a folder that was built before
    (`private`: the job removes it); without one the job finds or builds its own.
    """

    run: str
    number: int
    attempt_id: str
    data_hash: str
    data: str
    code: str
    code_hash: str
    configured: bool
    hyperparameters: Parameters
    workers: int = 1
    previous: str = ""
    environment: str = ""
    private: bool = False
    tunnel: Json | None = None


def build_task(hpc: Hpc, request: RunRequest, number: int, code_hash: str, **more: Any) -> Task:
    """Build the task of attempt `number` of a request; `more` is what depends on the site."""
    paths = SitePaths(hpc)
    previous = paths.attempt(attempt_id(request.run, number - 1)) if number > 1 else ""
    return Task(
        run=request.run,
        number=number,
        attempt_id=attempt_id(request.run, number),
        data_hash=request.data_hash,
        data=f"{paths.inputs}/{request.data_hash}.safetensors",
        code=f"{paths.inputs}/{code_hash}.zip",
        code_hash=code_hash,
        configured=request.configured,
        hyperparameters=request.hyperparameters,
        workers=request.workers,
        previous=previous,
        **more,
    )


def job_spec(hpc: Hpc, task: Task) -> JobSpec:
    """Build the batch job of one attempt from the profile's section and the task."""
    if task.environment:
        private = shlex.quote(task.environment) if task.private else ""
        environment = f"venv={shlex.quote(task.environment)} private={private}"
    else:
        wanted = hpc_env.environment_call(hpc, task.attempt_id, task.configured)
        environment = f"{hpc_env.FUNCTION}\n{wanted} || exit {ENVIRONMENT_FAILED}"
    variables = {
        "KIT_TASK": task_text(task),
        "KIT_CODE": task.code,
        "KIT_CODE_HASH": task.code_hash,
    }
    commands = (script("job_begin"), environment, script("job_run"))
    name = job_name(task.attempt_id)
    return job_for(hpc, name, commands, warning_s=WARNING_S, environment=variables)


def task_text(task: Task) -> str:
    """Return what the job's programs read: one line of JSON, with the version of Ray they need."""
    of_the_script = {"code", "code_hash", "configured", "environment", "private"}
    table = {name: value for name, value in vars(task).items() if name not in of_the_script}
    table["hyperparameters"] = task.hyperparameters.model_dump()
    return json.dumps({**table, "ray": hpc_env.locked()["ray"]}, sort_keys=True)


def data_file(data: Dataset) -> bytes:
    """Return the data set as the one file that `kit.onsite.driver` reads."""
    from safetensors.numpy import save

    return bytes(save({name: getattr(data, name) for name in ARRAYS}))


def code_archive() -> bytes:
    """Build the zip file of the rooms that run on the site: same bytes for the same sources."""
    package = Path(__file__).parents[1]
    paths = [package / "__init__.py"]
    for room in SHIPPED_ROOMS:
        paths += sorted(path for path in (package / room).rglob("*") if path.suffix in SHIPPED)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            name = path.relative_to(package.parent).as_posix()
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            file.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
