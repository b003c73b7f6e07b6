"""The batch job that trains with Ray on the nodes it was given. Pure: makes a JobSpec.

The script finds or makes the environment, starts `kit.onsite.main` (which starts Ray, checks it,
runs the driver and ends Ray), and publishes what that left, last of all. The kit's own code
travels as one zip file named by its hash.
"""

import io
import json
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kit.base import Json
from kit.base.settings import Hpc
from kit.experiments.fashion_mnist.data import Dataset
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite.names import ENVIRONMENT_FAILED, KILLED, MANIFEST
from kit.slurm import JobSpec, job_for, job_name
from kit.submitter import env as hpc_env

WARNING_S = 60  # so long before the time limit the job is told to end
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

SHIPPED_ROOMS = ("base", "experiments", "onsite")
SHIPPED = (".py", ".sh", ".toml")


BEGIN = """\
private=
trap '[ -z "$private" ] || rm -rf "$private"' EXIT"""

RUN = f"""
unset PYTHONPATH
export KIT_TRY=$try PYTHONPATH=$KIT_CODE PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$try/ray.token RAY_USAGE_STATS_ENABLED=0
od -An -N32 -tx1 /dev/urandom | tr -d ' \\n' >ray.token
"$venv/bin/python" -m kit.onsite.main & main=$!
trap 'kill -TERM "$main"' TERM
while wait "$main"; code=$?; kill -0 "$main" 2>/dev/null; do :; done
rm -f ray.token tunnel.key
[ "$code" -lt 128 ] || exit {KILLED}
[ "$code" = 0 ] || exit "$code"
commit {MANIFEST}"""


@dataclass(frozen=True)
class Task:
    """What one try shall do, all paths on the site.

    `data` is the data set's file, `code` the zip with this package, `previous` the folder of an
    earlier try whose checkpoint may be gone on from, `tunnel` what `tunnel.TunnelKeys.open` gave.
    `environment` is a folder that was made before (`private`: the job removes it); without one
    the job finds or makes its own.
    """

    run: str
    number: int
    token: str
    data_hash: str
    data: str
    code: str
    configured: bool
    hyperparameters: Parameters
    workers: int = 1
    previous: str = ""
    environment: str = ""
    private: bool = False
    tunnel: Json | None = None


def job_spec(hpc: Hpc, task: Task) -> JobSpec:
    """Make the batch job of one try from the profile's section and the task."""
    if task.environment:
        given = f"venv={shlex.quote(task.environment)} private="
        environment = given + (shlex.quote(task.environment) if task.private else "")
    else:
        wanted = hpc_env.environment_call(hpc, task.token, task.configured)
        environment = f"{hpc_env.FUNCTION}\n{wanted} || exit {ENVIRONMENT_FAILED}"
    return job_for(
        hpc,
        job_name(task.token),
        (BEGIN, environment, RUN),
        warning_s=WARNING_S,
        environment={"KIT_TASK": task_text(task), "KIT_CODE": task.code},
    )


def task_text(task: Task) -> str:
    """Give what the job's programs read: one line of JSON, with the version of Ray they need."""
    of_the_script = {"code", "configured", "environment", "private"}
    table = {name: value for name, value in vars(task).items() if name not in of_the_script}
    table["hyperparameters"] = task.hyperparameters.model_dump()
    return json.dumps({**table, "ray": hpc_env.locked()["ray"]}, sort_keys=True)


def data_file(data: Dataset) -> bytes:
    """Give the data set as the one file that `kit.onsite.driver` reads."""
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
