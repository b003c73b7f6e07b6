"""`kit export`: a finished run as a Workflow Run RO-Crate, a folder that describes itself.

It conforms to Workflow Run Crate 0.5 (https://w3id.org/ro/wfrun/workflow/0.5): the notebook is the
workflow, the run the action, with parameters and data as its inputs and files as its results.
"""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

from kit.base import DataError, Json, UsageError, refuse_secrets, sha256_of
from kit.base.settings import Settings
from kit.experiments import DEFAULT
from kit.report.table import experiment_of_run

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
# terms of https://w3id.org/ro/terms/workflow-run that RO-Crate 1.1 does not have
TERMS = {
    name: f"https://w3id.org/ro/terms/workflow-run#{name}" for name in ("sha256", "environment")
}
SOURCE = "source"  # folder of a run: the notebook and the lock as they were at its start
LOCK = "requirements.lock"
ARTICLE = "https://doi.org/10.1145/3672608.3707866"
# files of a run's folder and what they are; a missing one is left out
ABOUT = {
    "record.json": "the run's line of the history: parameters, versions, git commit, figures",
    "bill.json": "what the run cost, each line with its rate and the rate's source",
    "sacct.txt": "the accounting's own text",
    "sacct-tries.txt": "the accounting's own text of every attempt of the run",
    "seff.txt": "the text of seff, or the same figures computed from sacct",
    "job.sh": "the batch script",
    "job.log": "the log of the batch job",
    "stages.json": "the records of the pipeline's components",
    "losses.json": "training loss by step",
}
OWN = {"out": "a result that the experiment wrote", SOURCE: "the experiment's source file"}


def export(settings: Settings, run: Json, target: Path) -> Path:
    """Write a run of the history as a crate into the new folder `target`; return its metadata file.

    Raises UsageError when the folder exists, DataError when the run's own folder is damaged,
    SecretFound when a file holds a secret; then nothing is written.
    """
    folder = settings.profile_dir / "runs" / str(run["run"])
    if not (folder / "record.json").exists():
        raise DataError(f"export {run['run']}", f"{folder} has no record.json", "run it again")
    if target.exists():
        raise UsageError(f"export into {target}", "the folder exists already", "name a new folder")
    files = _files(folder)
    refuse_secrets(settings, files)
    making = target.with_name(f".{target.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    _crate(run, folder, files).write(making)
    making.rename(target)
    return target / "ro-crate-metadata.json"


def _files(folder: Path) -> list[Path]:
    """List the files that are exported: the run's own files, no checkpoints and no locks."""
    kept = (".json", ".ipynb", ".txt", ".log", ".sh", ".lock")
    paths = [*sorted(folder.iterdir()), *sorted((folder / SOURCE).glob("*.*"))]
    own = [path for path in paths if path.is_file() and path.suffix in kept]
    own = [path for path in own if not path.name.startswith(".")]
    for below in ("out", f"{SOURCE}/experiment"):
        own += [path for path in sorted((folder / below).rglob("*")) if path.is_file()]
    return own


def _crate(run: Json, folder: Path, files: list[Path]) -> Any:
    from rocrate.rocrate import ROCrate

    crate: Any = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(TERMS)
    target, name = run["target"], str(run["run"])
    experiment = experiment_of_run(run)
    crate.name = f"{name}: {experiment} on the target {target}"
    origin = f" of {ARTICLE}" if experiment == DEFAULT else ""
    crate.description = (
        f"One run of the experiment {experiment}{origin} on the target {target}, profile "
        f"{run.get('profile', '?')}: notebook, parameters, versions, data hashes, results and bill."
    )
    crate.license = "https://spdx.org/licenses/MIT"
    crate.datePublished = _moment(run["ended"])
    crate.root_dataset["conformsTo"] = [
        _thing(crate, uri, "CreativeWork", name, version=uri.rpartition("/")[2])
        for uri, name in PROFILES.items()
    ]
    workflow = _workflow(crate, target, run, folder)
    shown = [path for path in files if path.parent != folder / SOURCE]
    results = [_file(crate, path, path.relative_to(folder).as_posix()) for path in shown]
    inputs = [*_parameters(crate, workflow, run), *_data(crate, workflow, run)]
    action = crate.add_action(
        workflow,
        identifier=f"#{name}",
        object=inputs,
        result=results,
        properties={
            "name": f"run {name}",
            "description": f"kit run {target}, by papermill or by hand",
            "startTime": _moment(run["started"]),
            "endTime": _moment(run["ended"]),
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
    )
    action["agent"] = _thing(crate, "#person", "Person", "the person who ran it")
    action["environment"] = _environment(crate, run)
    crate.root_dataset["mentions"] = [action]
    lock = folder / SOURCE / LOCK
    if lock.exists():
        properties = {
            "name": LOCK,
            "description": "the versions of all packages of the environment",
            "encodingFormat": "text/plain",
            "sha256": sha256_of(lock.read_bytes()),
        }
        crate.add_file(str(lock), LOCK, properties=properties)
    return crate


def _workflow(crate: Any, target: str, run: Json, folder: Path) -> Any:
    """Add the notebook of the run's start as the main entity; of an old run the executed one."""
    from rocrate.model.computerlanguage import ComputerLanguage

    copies = [folder / SOURCE / f"{target}.ipynb", folder / f"{target}.ipynb"]
    path = next((copy for copy in copies if copy.exists()), None)
    if path is None:
        step = "run it again, then export the new run"
        raise DataError(f"export {run['run']}", f"{folder} has no copy of the notebook", step)
    commit = run.get("git", {}).get("commit") or "unknown"
    jupyter = ComputerLanguage(
        crate,
        "https://w3id.org/workflowhub/workflow-ro-crate#jupyter",
        properties={"name": "Jupyter Notebook", "url": "https://jupyter.org/"},
    )
    crate.add(jupyter)
    workflow = crate.add_workflow(
        str(path),
        f"workflow/{path.name}",
        main=True,
        lang=jupyter,
        properties={
            "name": f"notebook {path.stem}",
            "version": commit,
            "sha256": sha256_of(path.read_bytes()),
        },
    )
    workflow["license"] = {"@id": "https://spdx.org/licenses/MIT"}
    return workflow


def _parameters(crate: Any, workflow: Any, run: Json) -> list[Any]:
    inputs = []
    for name, value in run["parameters"].items():
        kind = {bool: "Boolean", int: "Integer", float: "Float"}.get(type(value), "Text")
        formal = crate.add_formal_parameter(name, kind, identifier=f"#parameter-{name}")
        workflow.append_to("input", formal)
        text = value if isinstance(value, str) else json.dumps(value)
        given = _thing(crate, f"#value-{name}", "PropertyValue", name, value=text)
        given["exampleOfWork"] = formal
        inputs.append(given)
    return inputs


def _data(crate: Any, workflow: Any, run: Json) -> list[Any]:
    """Add the data set and its files as hashes; the data itself is not exported."""
    data = run.get("data", {})
    formal = crate.add_formal_parameter("data set", "Dataset", identifier="#parameter-data")
    workflow.append_to("input", formal)
    files = [
        _thing(crate, f"#file-{name}", "PropertyValue", f"hash of {name}", value=str(value))
        for name, value in data.get("files", {}).items()
    ]
    given = _thing(
        crate,
        "#data",
        "PropertyValue",
        str(data.get("title", "data set")),
        value=str(data.get("hash", "unknown")),
    )
    given["exampleOfWork"] = formal
    return [given, *files]


def _file(crate: Any, path: Path, name: str) -> Any:
    kinds = {
        ".json": "application/json",
        ".ipynb": "application/x-ipynb+json",
    }
    about = ABOUT.get(name, "a published file, or the executed notebook with its outputs")
    about = OWN.get(name.partition("/")[0], about)
    other = "application/octet-stream" if name.startswith("out/") else "text/plain"
    return crate.add_file(
        str(path),
        f"run/{name}",
        properties={
            "name": name,
            "description": about,
            "encodingFormat": kinds.get(path.suffix, other),
            "contentSize": str(path.stat().st_size),
            "sha256": sha256_of(path.read_bytes()),
        },
    )


def _environment(crate: Any, run: Json) -> list[Any]:
    """Add where it ran: the versions of the packages, the machine, the git commit."""
    facts = {**run.get("versions", {}), **{f"host {k}": v for k, v in run.get("host", {}).items()}}
    facts["git commit"] = run.get("git", {}).get("commit") or "unknown"
    return [
        _thing(crate, f"#environment-{number}", "PropertyValue", name, value=str(value))
        for number, (name, value) in enumerate(facts.items(), start=1)
    ]


def _thing(crate: Any, identifier: str, kind: str, name: str, **more: str) -> Any:
    from rocrate.model.contextentity import ContextEntity

    properties = {"@type": kind, "name": name, **more}
    return crate.add(ContextEntity(crate, identifier.replace(" ", "-"), properties=properties))


def _moment(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="seconds")
