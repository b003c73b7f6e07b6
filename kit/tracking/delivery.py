"""Delivery to MLflow that loses nothing: the folder of a run is where its log waits.

`runs/<id>/mlflow.json` says `{"state": "waiting", "destination": …}` beside `record.json`, with
what is logged and the SHA-256 of each file, until MLflow has all of it; then the state is
`logged`. A file from elsewhere waits in `mlflow-files/`. A crash between sending and noting it
does no harm, because sending may be repeated (`client`).
"""

import contextlib
import dataclasses
import json
import os
import shutil
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.base import (
    Busy,
    DataError,
    Json,
    KitError,
    UsageError,
    file_lock,
    read_json,
    sha256_of,
    write_json,
)
from kit.tracking import client
from kit.tracking.ahead import deliver_ahead
from kit.tracking.log import RunLog, target_of

if TYPE_CHECKING:
    from kit.base.settings import Settings

LOCK_TIMEOUT_S = 30.0
EMBEDDED = "embedded"  # SQLite in the results folder: no path, the folder may be moved
STATE_FILE, FILES_FOLDER = "mlflow.json", "mlflow-files"


@dataclass(frozen=True)
class Logged:
    """The outcome of a delivery: `state` is logged, waiting or damaged; `reason` is why."""

    run_id: str
    state: str
    link: str = ""
    mlflow_run_id: str | None = None
    reason: str = ""

    def sentence(self) -> str:
        """Return what a person should know at the end of a run; "" if all is in MLflow."""
        if self.state == "logged":
            return ""
        why = "; ".join(line.strip() for line in self.reason.splitlines()[:2])
        return f"MLflow does not have run {self.run_id} yet ({why}): send it with `kit sync`"


def destination_of(settings: "Settings", target: str) -> str:
    """Return where a target's runs are logged: the address of a server, or EMBEDDED.

    The platform's server if the profile has one; for `local` what MLFLOW_TRACKING_URI names, if
    anything. Raises UsageError if the address has a password or is not one that MLflow knows.
    """
    cloud = settings.cloud
    address = os.environ.get("MLFLOW_TRACKING_URI", "") if target == "local" else ""
    source = "MLFLOW_TRACKING_URI"
    if target != "local" and cloud is not None and cloud.mlflow_url:
        address, source = cloud.mlflow_url, "[cloud] mlflow_url"
    if not address:
        return EMBEDDED
    url = urllib.parse.urlsplit(address)
    if url.password:
        raise UsageError(
            "the MLflow address contains a password",
            next_step="put MLFLOW_TRACKING_USERNAME and _PASSWORD into cloud.mlflow_env_file",
        )
    if url.scheme not in ("http", "https", "sqlite"):
        raise UsageError(
            f"{source} is not an address of MLflow: {address}",
            "its file store was removed in MLflow 3" if url.scheme == "file" else "",
            "write http://HOST:PORT of a server, or sqlite:///FOLDER/mlflow.db",
        )
    return address.rstrip("/")


def log_run(settings: "Settings", run: RunLog) -> Logged:
    """Write the run's log to its folder, then try to deliver it; see `log_runs`."""
    return log_runs(settings, [run])[0]


def log_runs(settings: "Settings", runs: Sequence[RunLog]) -> list[Logged]:
    """Write the logs of runs to their folders, then try to deliver all.

    All parts of a run's log go where its first part goes. If the server is away or refuses, or its
    address cannot be one, the state is `waiting` and `reason` says why. Raises DataError if a file
    cannot be read or written.
    """
    folders = [settings.profile_dir / "runs" / run.run_id for run in runs]
    for folder, run in zip(folders, runs, strict=True):
        try:
            destination = _noted(folder, "destination") or destination_of(settings, run.target)
        except UsageError:  # the training is done: delivery explains it, and the log waits
            destination = ""
        write_waiting(folder, destination, run)
    rows = deliver_ahead(settings, folders)
    return _deliver(settings, folders) if rows is None else [Logged(**row) for row in rows]


def deliver_folders(settings: "Settings", folders: list[Path]) -> list[Json]:
    """Deliver the logs that wait in folders of runs; return the fields of each `Logged`."""
    return [dataclasses.asdict(logged) for logged in _deliver(settings, folders)]


def with_server(settings: "Settings", url: str) -> "Settings":
    """Return settings with another address of MLflow, as inside a cluster; "" changes nothing."""
    if not url:
        return settings
    from kit.base.settings import Cloud

    cloud = dataclasses.replace(settings.cloud or Cloud(), mlflow_url=url)
    return dataclasses.replace(settings, cloud=cloud)


def open_once(settings: "Settings", target: str) -> None:
    """Open the destination of a target, which imports MLflow and makes a missing database."""
    with _lock(settings), connection(settings, destination_of(settings, target)) as (mlflow, *_):
        mlflow.search_experiments(max_results=1)


def _noted(folder: Path, key: str) -> str:
    """Return a text of a run's state; "" if nothing was logged or the file cannot be read."""
    try:
        return str(json.loads((folder / STATE_FILE).read_bytes())[key])
    except (ValueError, KeyError, TypeError, OSError):
        return ""


def sync(settings: "Settings") -> tuple[list[Logged], list[KitError]]:
    """Deliver all that waits, oldest first: one result a run, one error a destination.

    A run goes to the destination that it was logged for, whatever the profile and the
    environment name now.
    """
    from kit.tracking.old_spool import adopt

    errors: list[KitError] = []
    results = adopt(settings)
    results += _deliver(settings, waiting(settings), errors)
    return results, errors


def waiting(settings: "Settings") -> list[Path]:
    """Return the folders of the runs that wait, oldest first."""
    patterns = f"runs/*/{STATE_FILE}", f"runs/*/trials/*/{STATE_FILE}"
    found = [path for pattern in patterns for path in settings.profile_dir.glob(pattern)]
    files = [path for path in found if path.is_file()]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path))
    # one whose state cannot be read is explained by delivery
    return [path.parent for path in files if _noted(path.parent, "state") in ("waiting", "")]


def write_waiting(folder: Path, destination: str, run: RunLog) -> None:
    """Note in a run's folder that its log waits for a destination, with what waits there already.

    An empty destination is found when the log is delivered.
    Raises DataError if a file of the run cannot be read or the folder cannot be written.
    """
    path = folder / STATE_FILE
    if _noted(folder, "state") == "waiting":
        before, known = read_waiting(folder)
        if known in ("", destination):
            run = before.merged(run)
    try:
        table = dataclasses.asdict(run)
        table["artifacts"] = [[_inside(folder, file), name] for file, name in run.artifacts]
        if run.model:
            table["model"] = [run.model[0], _inside(folder, run.model[1])]
        names = [name for name, _ in table["artifacts"]] + (table["model"] or [""])[1:]
        hashes = {name: sha256_of(folder / name) for name in names if name}
    except (OSError, DataError) as err:
        raise DataError(
            f"the log of run {run.run_id} could not be kept in {folder}",
            err.sentence if isinstance(err, DataError) else f"{type(err).__name__}: {err}",
            "make the named path usable (rights, space), then log again",
        ) from err
    content = {"state": "waiting", "destination": destination, "run": table, "sha256": hashes}
    write_json(path, {"schema": 1, **content})


def _inside(folder: Path, file: str) -> str:
    """Return a file's path below the run's folder; a file from elsewhere is copied there."""
    path = Path(file)
    if path.is_relative_to(folder):
        return str(path.relative_to(folder))
    target = folder / FILES_FOLDER / sha256_of(path)[:12] / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return str(target.relative_to(folder))


def read_waiting(folder: Path) -> tuple[RunLog, str]:
    """Return a run's waiting log, its files by absolute paths, and its destination.

    Raises DataError if it is not whole: not valid JSON, a key missing, a file missing or changed.
    """
    path = folder / STATE_FILE
    content = read_json(path)
    try:
        run, hashes = RunLog(**content["run"]), dict(content["sha256"])
        destination = str(content["destination"])
    except (ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} is not a log for MLflow", f"{type(err).__name__}: {err}") from err
    for name, expected in hashes.items():
        file = folder / name
        if not file.is_file() or sha256_of(file) != expected:
            raise DataError(f"{file} is missing or changed since the run was logged")
    absolute = tuple((str(folder / file), name) for file, name in run.artifacts)
    model = (run.model[0], str(folder / run.model[1])) if run.model else None
    return dataclasses.replace(run, artifacts=absolute, model=model), destination


def _deliver(
    settings: "Settings", folders: list[Path], errors: list[KitError] | None = None
) -> list[Logged]:
    """Deliver the logs of some runs, a connection for each destination."""
    results: dict[Path, Logged] = {}
    by_destination: dict[str, list[tuple[Path, RunLog]]] = {}
    for folder in folders:
        try:
            run, destination = read_waiting(folder)
        except DataError as err:
            results[folder] = _set_aside(folder, str(err))
            continue
        try:
            destination = destination or destination_of(settings, run.target)
        except UsageError as err:
            results[folder] = _note_waiting(folder, run.run_id, err)
            continue
        by_destination.setdefault(destination, []).append((folder, run))
    for destination, rows in by_destination.items():
        try:
            with _lock(settings), connection(settings, destination) as (mlflow, uri, artifacts):
                for folder, run in rows:
                    _note(folder, {"destination": destination})
                    results[folder] = _deliver_one(mlflow, uri, artifacts, folder, run)
        except KitError as err:
            if errors is not None:
                errors.append(err)
            for folder, run in rows:
                results.setdefault(folder, _note_waiting(folder, run.run_id, err))
    return [results[folder] for folder in folders]


def _deliver_one(
    mlflow: Any, uri: str, artifacts: Path | None, folder: Path, run: RunLog
) -> Logged:
    try:
        with client.kit_errors(uri):
            info = client.deliver(mlflow, run, artifacts)
    except KitError as err:
        return _note_waiting(folder, run.run_id, err)
    logged = Logged(run.run_id, "logged", client.link(uri, info), info.run_id)
    _note(folder, {"state": "logged", "link": logged.link, "mlflow_run_id": info.run_id})
    shutil.rmtree(folder / FILES_FOLDER, ignore_errors=True)
    return logged


def _note_waiting(folder: Path, run_id: str, err: KitError) -> Logged:
    _note(folder, {"reason": str(err)})
    return Logged(run_id, "waiting", reason=str(err))


def _note(folder: Path, more: Json) -> None:
    content = {key: value for key, value in read_json(folder / STATE_FILE).items()}
    content.pop("reason", None)
    write_json(folder / STATE_FILE, {**content, **more})


def _set_aside(folder: Path, reason: str) -> Logged:
    """Rename a log that cannot be read, so that it is reported once and kept."""
    aside = folder / "mlflow-damaged.json"
    (folder / STATE_FILE).replace(aside)
    return Logged(folder.name, "damaged", reason=f"{reason}\n  kept as {aside}")


def _lock(settings: "Settings") -> contextlib.AbstractContextManager[None]:
    busy = Busy(
        f"another process is sending the runs of {settings.profile} to MLflow",
        next_step="run `kit sync` when it has ended",
    )
    setting = "set KIT_RESULTS_DIR to a folder on a file system with locks, then `kit sync`"
    return file_lock(settings.profile_dir / ".mlflow.lock", LOCK_TIMEOUT_S, busy, setting)


@contextlib.contextmanager
def connection(settings: "Settings", destination: str) -> Iterator[tuple[Any, str, Path | None]]:
    """Open a destination; yield the MLflow client, the URI, and where files are kept without one.

    Only the server that the profile names gets the profile's credential.
    """
    home, cloud = settings.profile_dir, settings.cloud
    artifacts, env_file = None, None
    if destination == EMBEDDED:
        artifacts = home / "mlflow-artifacts"
        destination = client.prepare_embedded(home / "mlflow.db", artifacts)
    elif cloud is not None and cloud.mlflow_url.rstrip("/") == destination:
        env_file = Path(cloud.mlflow_env_file) if cloud.mlflow_env_file else None
    try:
        with client.connect(destination, env_file) as mlflow:
            yield mlflow, destination, artifacts
    finally:
        if artifacts is not None:
            client.remove_quoted_folder(destination, home)


def read_logged_run(settings: "Settings", experiment: str, run_id: str) -> Json:
    """Read back what MLflow has of a run: link, status, params, metrics, tags, artifacts.

    Asks where the run's folder says that it was logged, else where its target is logged. Raises
    Unreachable if MLflow is away, DataError if it has no such run.
    """
    noted = _noted(settings.profile_dir / "runs" / run_id, "destination")
    destination = noted or destination_of(settings, target_of(run_id))
    with connection(settings, destination) as (mlflow, uri, _):
        run, artifacts = client.read_run(mlflow, experiment, run_id)
    return {
        "mlflow_run_id": run.info.run_id,
        "link": client.link(uri, run.info),
        "status": run.info.status,
        "params": dict(run.data.params),
        "metrics": dict(run.data.metrics),
        "tags": dict(run.data.tags),
        "artifacts": artifacts,
    }


def rows(found: Json) -> list[dict[str, str]]:
    """Return what was read back as a table, less the figures of parts and by row of sacct."""
    parts = tuple(f"-{name}" for name in found["metrics"] if "-" not in name)
    table = [
        {"kind": kind, "name": name, "value": str(value)}
        for kind in ("params", "metrics", "tags")
        for name, value in sorted(found[kind].items())
        if not (name.endswith(parts) or name[0].isdigit())
    ]
    return table + [{"kind": "artifact", "name": name, "value": ""} for name in found["artifacts"]]
