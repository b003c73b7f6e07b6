"""The checks of `kit doctor` on this machine: budget, secrets, folders, ports, submitter."""

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kit.base import SecretReadable, SecretTracked, UsageError
from kit.base.ports import SUBMITTER_PORT, port_holders
from kit.base.settings import Port, Settings
from kit.doctor.context import Check, CheckContext
from kit.doctor.diagnosis import DiagnosisError, Known

CONNECT_S = 5.0
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

ENV_FILE: Known = {
    SecretTracked: "secrets-tracked",
    SecretReadable: "env-readable",
    UsageError: "env-missing",
}


def checks(settings: Settings) -> Iterable[Check]:
    """Yield the checks that this profile has something for."""
    if settings.budget:
        yield Check("budget", _budget, {UsageError: "over-budget"})
    if os.environ.get("KIT_COMPOSE_SECRETS"):
        known = {SecretTracked: "secrets-tracked", UsageError: "secrets-wrong"}
        yield Check("compose-secrets", _compose_secrets, known)
    if settings.store is not None and settings.store.auth_url:
        yield Check(".env", _env_file, ENV_FILE)
    yield Check("results folder", _results, {})
    if settings.data_dir is not None:
        yield Check("data folder", _data, {})
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield Check("MLflow setting", _tracking_uri, {})
    if settings.hpc is not None:
        yield Check("submitter", _submitter, {})
    if settings.ports:
        yield Check("ports", _ports, {})


def _budget(context: CheckContext) -> str:
    from kit.billing import refuse_over, totals

    bill = refuse_over(context.settings, "cloud-hpc")
    sums = [f"{units:.2f} {kind}" for kind, units in totals(bill.lines).items()]
    return f"a run costs at most {', '.join(sums) or 'nothing'}"


def _compose_secrets(context: CheckContext) -> str:
    from kit.submitter import compose_secrets

    path = Path(os.environ["KIT_COMPOSE_SECRETS"])
    names = [row.text("ENVIROMENT") for row in compose_secrets.read_platforms(path)["HPC"]]
    return f"{path}: {', '.join(names) or 'no site'}"


def _env_file(context: CheckContext) -> str:
    login = context.login.get()
    return f"{login.username} in {login.project}, from {login.source}"


def _results(context: CheckContext) -> str:
    """Write and lock a file in the nearest folder that exists: nothing is created for good."""
    wanted = context.settings.results_dir
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".kit-doctor.") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        kind = "results-without-locks" if err.errno in NO_LOCKS else "results-not-writable"
        raise DiagnosisError(kind, f"{wanted}: {err}") from err
    return f"{wanted} can be written and locked"


def _data(context: CheckContext) -> str:
    folder = context.settings.data_dir
    if folder is None or not folder.is_dir():
        got = "it is a file" if folder and folder.exists() else "the folder does not exist"
        raise DiagnosisError("data-dir-missing", f"{folder}: {got}")
    return f"{folder} has {len(list(folder.iterdir()))} files"


def _tracking_uri(context: CheckContext) -> str:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if not uri.startswith(("http://", "https://", "sqlite:///", "postgresql", "mysql")):
        raise DiagnosisError("tracking-uri-wrong", repr(uri))
    return f"MLFLOW_TRACKING_URI is {uri.split('@')[-1]}"


def _submitter(context: CheckContext) -> str:
    port = context.settings.ports.get("submitter")
    address = (port.address or "127.0.0.1", port.port) if port else ("127.0.0.1", SUBMITTER_PORT)
    if not _listens(*address):
        raise DiagnosisError("submitter-away", f"{address[0]}:{address[1]}")
    return f"{address[0]}:{address[1]} answers"


def _listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), CONNECT_S):
        return True
    return False


def _ports(context: CheckContext) -> str:
    """Check each port: one with an address must listen, the others must be forwarded to here.

    Ray's dashboard is only there while a job runs.
    """
    settings = context.settings
    dead = [
        f"{name} {port.address}:{port.port}"
        for name, port in settings.ports.items()
        if port.address and name != "ray" and not _listens(port.address, port.port)
    ]
    if dead:
        raise DiagnosisError("port-dead", ", ".join(dead))
    _check_forwards(settings)
    return f"{len(settings.ports)} services listen"


def _check_forwards(settings: Settings) -> None:
    wanted: dict[str, Port] = {}
    if settings.cloud is not None:
        wanted = {name: port for name, port in settings.ports.items() if port.svc}
    bind = settings.cloud.forward_address if settings.cloud else ""
    holders = port_holders((bind, port.port) for port in wanted.values())
    taken, missing = [], []
    for name, port in wanted.items():
        holder = holders.get((bind, port.port), "")
        if holder and "ssh" not in holder:
            taken.append(f"{port.port} ({name}) by {holder}")
        elif not holder:
            missing.append(f"{name} {port.port}")
    if taken:
        raise DiagnosisError("port-taken", ", ".join(taken))
    if missing:
        raise DiagnosisError("not-forwarded", ", ".join(missing))
