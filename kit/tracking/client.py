"""MLflow's client: quiet, its errors as the kit's, and delivery that may be repeated.

Sending is idempotent: the MLflow run is found again by its tag `kit.run_id`; MLflow's SQL
store keeps a point only once by key, time, step and value (tried with 3.17); an artifact is
overwritten by itself; a model version is found by its tag.
"""

import contextlib
import logging
import os
import sqlite3
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.base import CredentialRefused, DataError, Unreachable, ca_bundle_step, read_env
from kit.tracking.log import RunLog

RUN_TAG = "kit.run_id"
HEALTH_TIMEOUT_S = 3.0
_BATCH = 100  # MLflow takes at most 100 parameters, 100 tags and 1000 metrics in one call
# Without the two limits a call to a server that is away blocks for 247 s (MLflow 3.17).
_MLFLOW_ENV = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
HOST_REFUSED = "Invalid Host header"  # MLflow 3.17 with --allowed-hosts
_WHEN_BACK = "try `kit sync` when it is back"
_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")


@contextlib.contextmanager
def connect(uri: str, env_file: Path | None = None) -> Iterator[Any]:
    """Open a quiet MlflowClient; what MLflow raises inside comes out as a KitError.

    A server is asked first whether it is there at all. Its credential (the MLFLOW_TRACKING_*
    lines of `env_file`) is in the environment, where MLflow looks for it, only meanwhile: one
    thread at a time. Raises Unreachable, CredentialRefused, DataError (MLflow said no).
    """
    environment: dict[str, str | None] = dict(credential(env_file))
    if env_file is not None:  # a login meant for another server is not sent to this one
        foreign = {name for name in os.environ if name.startswith("MLFLOW_TRACKING_")}
        environment = {**dict.fromkeys(foreign), **environment}
    if uri.startswith("http"):
        _check_health(uri, environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True)
    with _environment({**_MLFLOW_ENV, **environment}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm 4.70 misses ipywidgets, not needed here
            from mlflow import MlflowClient  # here: it takes a second

        # its store logs the traceback of what it raises, and the kit reports that in a sentence
        silent = _quiet("mlflow.store.db.utils", level=logging.CRITICAL)
        with _quiet("mlflow", "alembic"), silent, kit_errors(uri, env_file):
            yield MlflowClient(uri, uri)


@contextlib.contextmanager
def kit_errors(uri: str, env_file: Path | None = None) -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into the kit's errors."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as err:
        if HOST_REFUSED in str(err):
            raise _host_refused(uri, _short(err)) from err
        if err.error_code in _REFUSALS:
            raise CredentialRefused(
                f"MLflow at {uri} refused the credential",
                _short(err),
                f"fix {env_file or 'cloud.mlflow_env_file of the profile'}, then `kit sync`",
            ) from err
        if err.get_http_status_code() < 500:
            raise DataError(f"MLflow at {uri} refused the request", _short(err)) from err
        raise _away(uri, _short(err)) from err
    except (SQLAlchemyError, OSError) as err:
        if uri.startswith("http") and not isinstance(err, requests.RequestException):
            raise DataError(
                f"MLflow at {uri} does not store artifacts itself; its folder is not writable here",
                _short(err),
                "start that server with --serve-artifacts, then `kit sync`",
            ) from err
        raise _away(uri, _short(err)) from err


def _host_refused(uri: str, got: str) -> DataError:
    return DataError(
        f"MLflow at {uri} refuses requests under this host name",
        got,
        "add the name to the server's --allowed-hosts, then `kit sync`",
    )


def prepare_embedded(database: Path, artifacts: Path) -> str:
    """Return the URI of SQLite in a results folder, whose stored paths follow a moved folder."""
    database = database.absolute()
    if database.exists():
        _relocate(database, artifacts.absolute().as_uri())
    path = str(database)
    for sign in "%?#":  # SQLAlchemy reads them as a quote, the options and a fragment
        path = path.replace(sign, f"%{ord(sign):02X}")
    return f"sqlite:///{path}"


def remove_quoted_folder(uri: str, home: Path) -> None:
    """Remove the empty folder that MLflow makes beside one with `%`, `?` or `#` in its path."""
    quoted = Path(uri.removeprefix("sqlite:///")).parent
    while not quoted.exists() or not quoted.samefile(home):
        try:
            quoted.rmdir()
        except OSError:
            return
        quoted = quoted.parent


def _relocate(database: Path, root: str) -> None:
    """Replace the folder of artifacts in the database by `root`: MLflow stores absolute paths."""
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "model_versions": "storage_location",
    }
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as db:
        known = db.execute("SELECT name, artifact_location FROM experiments").fetchall()
        for name, location in known:
            before = str(location).removesuffix("/" + urllib.parse.quote(str(name)))
            if before in (location, root) or not before.endswith("/mlflow-artifacts"):
                continue
            for table, column in columns.items():
                db.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - names above
                    f" WHERE substr({column}, 1, ?) = ?",
                    (root, len(before) + 1, len(before) + 1, before + "/"),
                )
        db.commit()


def link(uri: str, info: Any) -> str:
    """Return where a person finds a run: an address, or the database."""
    if uri.startswith("http"):
        return f"{uri}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
    return f"run {info.run_id} in {uri}"


def deliver(client: Any, run: RunLog, artifact_root: Path | None = None) -> Any:
    """Make MLflow have all of the run; return the MLflow run's info.

    `artifact_root` is where a store without a server keeps files.
    """
    from mlflow.entities import Metric, Param, RunTag

    info = _find_or_create(client, run, artifact_root)
    metrics = [Metric(key, value, when, step) for key, value, step, when in run.metrics]
    params = [Param(key, value) for key, value in run.params.items()]
    tags = [RunTag(key, value) for key, value in run.tags.items()]
    if run.parent:
        tags.append(RunTag("mlflow.parentRunId", _parent(client, info.experiment_id, run)))
    for kind, rows in (("metrics", metrics), ("params", params), ("tags", tags)):
        for first in range(0, len(rows), _BATCH):
            client.log_batch(info.run_id, **{kind: rows[first : first + _BATCH]})
    for path, folder in run.artifacts:
        client.log_artifact(info.run_id, path, folder or None)
    if run.model:
        client.log_artifact(info.run_id, run.model[1], "model")
        _register(client, run.model[0], run.run_id, info.run_id)
    client.set_terminated(info.run_id, run.status, run.end_ms)
    return info


def _parent(client: Any, experiment_id: str, run: RunLog) -> str:
    """Return MLflow's id of the run above. Raises DataError before that one is delivered."""
    above = _runs_of(client, experiment_id, run.parent)
    if not above:
        got = f"MLflow has no run {run.parent} yet, to which it belongs"
        raise DataError(f"log {run.run_id}", got, "`kit sync` sends both")
    return str(above[0].info.run_id)


def _find_or_create(client: Any, run: RunLog, artifact_root: Path | None) -> Any:
    """Return the info of the one MLflow run with this run id.

    A resent request can have made a second one (the client repeats a POST whose answer was
    lost): the first by id is kept, the others, still empty, are deleted.
    """
    experiment_id = _experiment_id(client, run.experiment, artifact_root)
    if not _runs_of(client, experiment_id, run.run_id):
        client.create_run(experiment_id, run.start_ms, {RUN_TAG: run.run_id}, run.run_name)
    first, *doubles = _runs_of(client, experiment_id, run.run_id)
    for double in doubles:
        client.delete_run(double.info.run_id)
    return first.info


def _experiment_id(client: Any, name: str, artifact_root: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        folder = (artifact_root / name).absolute().as_uri() if artifact_root else None
        try:
            return str(client.create_experiment(name, folder))
        except MlflowException as err:
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    return str(found.experiment_id)


def _runs_of(client: Any, experiment_id: str, run_id: str) -> list[Any]:
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'")
    return sorted(found, key=lambda run: str(run.info.run_id))


def _register(client: Any, name: str, run_id: str, mlflow_run_id: str) -> None:
    """Make the registered model and this run's version of it, unless they are there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not client.search_model_versions(f"name = '{name}' and tags.`{RUN_TAG}` = '{run_id}'"):
        source = f"runs:/{mlflow_run_id}/model"
        client.create_model_version(
            name, source, mlflow_run_id, {RUN_TAG: run_id}, await_creation_for=0
        )


def read_run(client: Any, experiment: str, run_id: str) -> tuple[Any, list[str]]:
    """Return a run's MLflow entity and artifact paths. Raises DataError if there is none."""
    found = client.get_experiment_by_name(experiment)
    runs = _runs_of(client, found.experiment_id, run_id) if found else []
    if not runs:
        raise DataError(f"MLflow has no run {run_id} in {experiment}", next_step="try `kit sync`")
    return runs[0], _artifact_paths(client, runs[0].info.run_id)


def _artifact_paths(client: Any, mlflow_run_id: str, folder: str = "") -> list[str]:
    """List the artifacts of a run, folders opened."""
    paths: list[str] = []
    for item in client.list_artifacts(mlflow_run_id, folder or None):
        inside = _artifact_paths(client, mlflow_run_id, item.path) if item.is_dir else [item.path]
        paths.extend(inside)
    return paths


def credential(env_file: Path | None) -> dict[str, str]:
    """Read the MLFLOW_TRACKING_* lines of a server's env file."""
    if env_file is None:
        return {}
    if not env_file.is_file():
        raise CredentialRefused(
            f"MLflow's credential file {env_file} is missing",
            next_step="make it (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD), mode 600",
        )
    next_step = "write MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into it, mode 600"
    values = read_env(env_file, f"cannot read MLflow's credential in {env_file}", next_step)
    return {k: v for k, v in values.items() if k.startswith("MLFLOW_TRACKING_") and v}


def _check_health(uri: str, verify: str | bool) -> None:
    """Check within seconds that the server answers. Raises Unreachable."""
    import requests

    try:
        answer = requests.get(f"{uri}/health", timeout=HEALTH_TIMEOUT_S, verify=verify)
    except OSError as err:  # requests' own errors among them
        raise _away(uri, _short(err), ca_bundle_step(err, _WHEN_BACK)) from err
    if answer.status_code == 403 and HOST_REFUSED in answer.text:
        raise _host_refused(uri, f"HTTP 403 {HOST_REFUSED}")
    if answer.status_code >= 500:
        raise _away(uri, f"HTTP {answer.status_code}")


def _away(uri: str, got: str, step: str = _WHEN_BACK) -> Unreachable:
    if not uri.startswith("http"):
        step = "close what has it open, make room, make it and its folder writable, then `kit sync`"
        return Unreachable(f"MLflow's database {uri} cannot be used", got, step)
    return Unreachable(f"MLflow at {uri} does not answer", got, step)


def _short(err: BaseException) -> str:
    """Return the class of an error and the beginning of its first line."""
    lines = str(err).strip().splitlines() or [""]
    return f"{type(err).__name__}: {lines[0][:300]}"


@contextlib.contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables (None: remove) for the block, then restore the old ones."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _quiet(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Limit the named loggers to a level (a first start logs every migration)."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
