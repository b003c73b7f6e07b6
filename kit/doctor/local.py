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
from kit.base.ports import port_holders
from kit.base.settings import Port, Settings
from kit.doctor.context import Check, CheckContext
from kit.doctor.diagnosis import Diagnosis, DiagnosisError, Known

CONNECT_S = 5.0
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

OVER_BUDGET = Diagnosis(
    "over-budget",
    "budget",
    "a run may cost more than the profile's [budget] allows",
    "ask for less in [hpc], or raise [budget]",
)
ENV_MISSING = Diagnosis(
    "env-missing",
    ".env",
    "the login for the object store, or one of its names, is missing",
    "write the four CSC_ names into ~/.ssh/.env, mode 600",
)
ENV_READABLE = Diagnosis(
    "env-readable",
    ".env",
    "other users can read the file with the password",
    "`chmod 600` it",
    "warning",
)
SECRETS_TRACKED = Diagnosis(
    "secrets-tracked",
    ".env",
    "git tracks a file with secrets",
    "`git rm --cached` it, add it to .gitignore, and change the secrets in it",
)
SECRETS_WRONG = Diagnosis(
    "secrets-wrong",
    "compose-secrets",
    "the submitter's secrets file is missing, open to others or wrong",
    "fix the key that it names; `kit submitter template` explains each",
)
RESULTS_NOT_WRITABLE = Diagnosis(
    "results-not-writable",
    "results folder",
    "runs cannot be written to the results folder",
    "set KIT_RESULTS_DIR to a folder that you can write to",
)
RESULTS_WITHOUT_LOCKS = Diagnosis(
    "results-without-locks",
    "results folder",
    "the results folder is on a file system without file locks",
    "set KIT_RESULTS_DIR to a folder of another file system",
)
DATA_DIR_MISSING = Diagnosis(
    "data-dir-missing",
    "data folder",
    "KIT_DATA_DIR is not a folder",
    "set it to the folder with the data files, without quotes, or unset it",
)
TRACKING_URI_WRONG = Diagnosis(
    "tracking-uri-wrong",
    "MLflow setting",
    "MLFLOW_TRACKING_URI is not an address of a server or of a database",
    "write it as http://HOST:PORT or sqlite:///FILE",
)
SUBMITTER_AWAY = Diagnosis(
    "submitter-away",
    "submitter",
    "no submitter runs here",
    "nothing: a notebook starts its own; `kit submitter` is one for all",
    "warning",
)
PORT_DEAD = Diagnosis(
    "port-dead",
    "ports",
    "nothing listens where the profile has a service",
    "start it (sandbox: `kit sandbox status`)",
)
PORT_TAKEN = Diagnosis(
    "port-taken",
    "ports",
    "another program has a port that `kit port-forward` needs",
    "end that program, or `kit port-forward --bind 127.0.0.2`",
)
NOT_FORWARDED = Diagnosis(
    "not-forwarded",
    "ports",
    "services of the platform are not forwarded to this machine",
    "`kit port-forward`",
    "warning",
)
ENV_FILE: Known = {
    SecretTracked: SECRETS_TRACKED,
    SecretReadable: ENV_READABLE,
    UsageError: ENV_MISSING,
}


def checks(settings: Settings) -> Iterable[Check]:
    """Yield the checks that this profile has something for."""
    if settings.budget:
        yield Check("budget", _budget, {UsageError: OVER_BUDGET})
    if os.environ.get("KIT_COMPOSE_SECRETS"):
        known = {SecretTracked: SECRETS_TRACKED, UsageError: SECRETS_WRONG}
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
    names = [row.text("ENVIROMENT") for row in compose_secrets.read(path)["HPC"]]
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
        kind = RESULTS_WITHOUT_LOCKS if err.errno in NO_LOCKS else RESULTS_NOT_WRITABLE
        raise DiagnosisError(kind, f"{wanted}: {err}") from err
    return f"{wanted} can be written and locked"


def _data(context: CheckContext) -> str:
    folder = context.settings.data_dir
    if folder is None or not folder.is_dir():
        got = "it is a file" if folder and folder.exists() else "the folder does not exist"
        raise DiagnosisError(DATA_DIR_MISSING, f"{folder}: {got}")
    return f"{folder} has {len(list(folder.iterdir()))} files"


def _tracking_uri(context: CheckContext) -> str:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if not uri.startswith(("http://", "https://", "sqlite:///", "postgresql", "mysql")):
        raise DiagnosisError(TRACKING_URI_WRONG, repr(uri))
    return f"MLFLOW_TRACKING_URI is {uri.split('@')[-1]}"


def _submitter(context: CheckContext) -> str:
    port = context.settings.ports.get("submitter")
    address = (port.address or "127.0.0.1", port.port) if port else ("127.0.0.1", 6600)
    if not _listens(*address):
        raise DiagnosisError(SUBMITTER_AWAY, f"{address[0]}:{address[1]}")
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
        raise DiagnosisError(PORT_DEAD, ", ".join(dead))
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
        raise DiagnosisError(PORT_TAKEN, ", ".join(taken))
    if missing:
        raise DiagnosisError(NOT_FORWARDED, ", ".join(missing))
