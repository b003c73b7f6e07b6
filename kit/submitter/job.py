"""The batch job that trains with Ray on the nodes it was given. Pure: builds a JobSpec.

The script finds or builds the environment, starts `kit.onsite.main` (which starts Ray, checks it,
runs the driver and ends Ray), and commits what that left, last of all. The kit's own code
travels as one zip file named by its hash.
"""

import io
import json
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base import Json
from kit.base.settings import Hpc
from kit.experiments import Experiment
from kit.experiments.contract import files_below
from kit.onsite.names import ENVIRONMENT_FAILED
from kit.runs.requests import RunRequest, attempt_id
from kit.slurm import JobSpec, SitePaths, job_for, job_name
from kit.submitter import env as hpc_env
from kit.submitter.container import image_lines
from kit.submitter.scripts import script

WARNING_S = 60  # how long before its time limit the job is asked to end
SHIPPED_ROOMS = ("base", "experiments", "onsite", "sweeps")
SHIPPED = (".py", ".sh", ".toml")


@dataclass(frozen=True)
class Task:
    """The work of one attempt; all paths are on the site.

    `module` is the experiment's, as it is imported there, `requirements` the packages that it
    needs beside the kit's own, `data` the zip file of its data set, `code` the zip file of the
    shipped rooms and of the experiment (its SHA-256 is `code_hash`), `earlier` the folders of
    the attempts before, the last one first, whose checkpoints may be resumed, `sweep` the trials
    in place of one training, `continued` run and folder of each attempt of cancelled runs whose
    trials it takes over, `tunnel` what `TunnelKeys.open` returned.
    `environment` is a folder that was built before (`private`: the job removes it); without one
    the job finds or builds its own.
    """

    run: str
    number: int
    attempt_id: str
    data_hash: str
    data: str
    code: str
    code_hash: str
    configured: bool
    hyperparameters: Json
    module: str
    model: str
    requirements: tuple[str, ...] = ()
    workers: int = 1
    earlier: tuple[str, ...] = ()
    sweep: Json | None = None
    continued: tuple[tuple[str, str], ...] = ()
    environment: str = ""
    private: bool = False
    tunnel: Json | None = None


def build_task(
    hpc: Hpc,
    request: RunRequest,
    experiment: Experiment,
    number: int,
    code_hash: str,
    **more: Any,
) -> Task:
    """Build the task of attempt `number` of a request; `more` is what depends on the site."""
    paths = SitePaths(hpc)
    before = [attempt_id(request.run, earlier) for earlier in range(number - 1, 0, -1)]
    return Task(
        run=request.run,
        number=number,
        attempt_id=attempt_id(request.run, number),
        data_hash=request.data_hash,
        data=f"{paths.inputs}/{request.data_hash}.zip",
        code=f"{paths.inputs}/{code_hash}.zip",
        code_hash=code_hash,
        configured=request.configured,
        hyperparameters=experiment.parameters(**request.hyperparameters).model_dump(),
        module=experiment.module.__name__,
        model=experiment.model_name,
        requirements=experiment.requirements,
        workers=request.workers,
        earlier=tuple(map(paths.attempt, before)),
        sweep=request.sweep.model_dump() if request.sweep.trials else None,
        **more,
    )


def job_spec(hpc: Hpc, task: Task) -> JobSpec:
    """Build the batch job of one attempt from the profile's section and the task."""
    if task.environment:
        private = shlex.quote(task.environment) if task.private else ""
        venv = f"venv={shlex.quote(task.environment)} private={private}"
        environment = f"{script('container')}{venv}"
    else:
        wanted = hpc_env.environment_call(hpc, task.attempt_id, task.configured, task.requirements)
        environment = f"{hpc_env.FUNCTION}\n{wanted} || exit {ENVIRONMENT_FAILED}"
    variables = {
        "KIT_TASK": task_text(task),
        "KIT_CODE": task.code,
        "KIT_CODE_HASH": task.code_hash,
    }
    image = "\n".join(image_lines(hpc))
    outside = (script("outside"),) if hpc.container else ()
    commands = (script("job_begin"), image, environment, *outside, script("job_run"))
    name = job_name(task.attempt_id)
    return job_for(hpc, name, commands, warning_s=WARNING_S, environment=variables)


def task_text(task: Task) -> str:
    """Return what the job's programs read: one line of JSON, with the version of Ray they need."""
    of_the_script = {"code", "code_hash", "configured", "environment", "private", "requirements"}
    table = {name: value for name, value in vars(task).items() if name not in of_the_script}
    return json.dumps({**table, "ray": hpc_env.locked()["ray"]}, sort_keys=True)


def data_archive(folder: Path) -> bytes:
    """Return the files of a data set as the one file that `kit.onsite.driver` unpacks."""
    files = {name: path.read_bytes() for name, path in files_below(folder).items()}
    return _archive(files, zipfile.ZIP_STORED)


def code_archive(experiment: Experiment) -> bytes:
    """Build the zip file of what runs on the site: same bytes for the same sources."""
    package = Path(__file__).parents[1]
    paths = [package / "__init__.py"]
    for room in SHIPPED_ROOMS:
        paths += sorted(path for path in (package / room).rglob("*") if path.suffix in SHIPPED)
    files = {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in paths}
    return _archive({**files, **_own_files(experiment)}, zipfile.ZIP_DEFLATED)


def _own_files(experiment: Experiment) -> dict[str, bytes]:
    """Return the files of an experiment that is not one of the kit's, by their place there.

    Raises DataError if they were changed since they were checked.
    """
    module = experiment.module
    place = module.__name__.replace(".", "/")
    if module.__name__.startswith("kit."):
        return {}
    sources = experiment.read_sources()
    if not hasattr(module, "__path__"):
        return {f"{place}.py": content for content in sources.values()}
    return {f"{place}/{name}": content for name, content in sources.items()}


def _archive(files: Mapping[str, bytes], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            file.writestr(entry, content, compression)
    return buffer.getvalue()
