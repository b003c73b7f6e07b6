"""The checks of `kit doctor` on this machine, the object store and the services of the platform."""

import contextlib
import importlib.util
import os
import re
import socket
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from kit.base import (
    BucketTaken,
    CredentialRefused,
    KitError,
    SecretTracked,
    StoreUnavailable,
    Unreachable,
    UsageError,
)
from kit.base.ports import port_holders
from kit.base.settings import Settings
from kit.billing import run as run_bill
from kit.deploy import port_forward as forward
from kit.doctor.context import Check, Ground
from kit.doctor.findings import Found, Known
from kit.store import opening as store
from kit.store.errors import Patience
from kit.submitter import compose_secrets
from kit.tracking.mlflow_client import credential

PROBE = "doctor/probe"
PATIENCE_S = 8.0
ANSWER_S = 5.0


def checks(loaded: Settings) -> Iterable[Check]:
    """Name the checks that this profile has something for."""
    if loaded.budget:
        yield Check("budget", _budget, {UsageError: "over-budget"})
    if os.environ.get("KIT_COMPOSE_SECRETS"):
        yield Check("compose-secrets", _compose_secrets, {**ENV, UsageError: "secrets-wrong"})
    if loaded.store is not None:
        if loaded.store.auth_url:
            yield Check(".env", _env_file, ENV)
            yield Check("token", _token, KEYSTONE)
        yield Check("store", _store, STORE)
    if loaded.cloud is not None:
        if loaded.cloud.mlflow_url:
            yield Check("MLflow", _mlflow, {CredentialRefused: "mlflow-refused"})
        yield Check("pipelines", _pipelines, PIPELINES)
        if loaded.cloud.forwarder_url:
            yield Check("forwarder", _forwarder, {})
    if loaded.hpc is not None:
        yield Check("submitter", _submitter, {})
    if loaded.ports:
        yield Check("ports", _ports, {})


ENV: Known = {SecretTracked: "secrets-tracked", UsageError: "env-missing"}
KEYSTONE: Known = {
    **ENV,
    CredentialRefused: "login-refused",
    StoreUnavailable: "keystone-fails",
    Unreachable: "keystone-away",
}
STORE: Known = {
    UsageError: "store-settings",
    BucketTaken: "bucket-taken",
    CredentialRefused: "store-refused",
    Unreachable: "store-away",
    KitError: "store-away",
}
PIPELINES: Known = {UsageError: "kfp-away", CredentialRefused: "kfp-refused"}


def _budget(ground: Ground) -> str:
    bill = run_bill.refuse_over(ground.settings, "cloud-hpc")
    return f"a run costs at most {sum(line.bu for line in bill.lines):.2f} BU, all kinds together"


def _compose_secrets(ground: Ground) -> str:
    path = Path(os.environ["KIT_COMPOSE_SECRETS"])
    named = [each.text("ENVIROMENT") for each in compose_secrets.read(path)["HPC"]]
    return f"{path}: {', '.join(named) or 'no site'}"


def _env_file(ground: Ground) -> str:
    login = ground.login.get()
    file = Path(login.source)  # not a file where the environment has the names
    if file.exists():
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise Found("env-readable", f"{file} has mode {mode:o}", f"chmod 600 {file}")
    return f"{login.username} in {login.project}, from {login.source}"


def _token(ground: Ground) -> str:
    left = ground.keystone.get().valid_until() - ground.clock()
    return f"obtained, good for {left / 3600:.1f} h"


def _store(ground: Ground) -> str:
    loaded, patience = ground.settings, Patience(timeout_s=PATIENCE_S, patience_s=PATIENCE_S)
    keystone = ground.keystone.needed() if loaded.store and loaded.store.auth_url else None
    name = store.bucket_name(loaded, "pipeline")
    bucket = store.open_store(loaded, name, patience=patience, keystone=keystone)
    bucket.ensure_bucket()
    content = str(time.time_ns()).encode()
    bucket.put(PROBE, content)
    got = bucket.get(PROBE)
    bucket.delete(PROBE)
    if got != content:
        raise Found("store-damaged", name)
    return f"put, read and removed an object in {name}"


def _why(err: Exception) -> str:
    """Say in short why an HTTP request got no answer: requests wraps that many times."""
    text = getattr(err, "got", "") or str(err)
    short = re.search(r"\[Errno -?\d+\] [^'\")]+|timed out", text)
    return short[0] if short else text[-200:]


def _ask(url: str, headers: dict[str, str] | None = None, auth: object = None) -> int:
    """Give the status of a GET. Raises OSError when nobody answers."""
    import requests

    return requests.get(url, headers=headers, auth=auth, timeout=ANSWER_S).status_code  # type: ignore[arg-type]


def _mlflow(ground: Ground) -> str:
    """Ask MLflow's REST API: its client takes seconds to import."""
    url, file = ground.cloud.mlflow_url.rstrip("/"), ground.cloud.mlflow_env_file
    try:
        said = credential(Path(file) if file else None)
        auth = said.get("MLFLOW_TRACKING_USERNAME"), said.get("MLFLOW_TRACKING_PASSWORD")
        path = "/api/2.0/mlflow/experiments/search?max_results=1"
        status = _ask(url + path, auth=auth if auth[0] else None)
    except OSError as err:
        raise Found("mlflow-away", f"{url}: {_why(err)}") from err
    if status in (401, 403):
        raise Found("mlflow-refused", f"{url} answers {status}")
    if status != 200:
        raise Found("mlflow-away", f"{url} answers {status}")
    return f"{url} lists its experiments"


def _pipelines(ground: Ground) -> str:
    cloud = ground.cloud
    if cloud.runner == "cluster":
        from kit.runs import kfp_cluster

        try:
            kfp_cluster.greet(cloud.kfp_url, ground.settings.env_file)
        except Unreachable as err:
            raise Found("kfp-away", f"{cloud.kfp_url}: {_why(err)}") from err
        return f"the pipeline service at {cloud.kfp_url} answers"
    if importlib.util.find_spec("kfp") is None:
        raise Found("runner-missing")
    return "kfp.local on this machine"


def _forwarder(ground: Ground) -> str:
    url = ground.cloud.forwarder_url.rstrip("/")
    try:
        status = _ask(f"{url}/openapi.json")
    except OSError as err:
        raise Found("forwarder-away", f"{url}: {_why(err)}") from err
    if status >= 500 or status == 404:
        raise Found("forwarder-away", f"{url} answers {status}")
    return f"{url} answers"


def _submitter(ground: Ground) -> str:
    port = ground.settings.ports.get("submitter")
    address = (port.address or "127.0.0.1", port.port) if port else ("127.0.0.1", 6600)
    where = f"{address[0]}:{address[1]}"
    if not _listens(*address):
        raise Found("submitter-away", where)
    return f"{where} answers"


def _listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), ANSWER_S):
        return True
    return False


def _ports(ground: Ground) -> str:
    """Look at each port: what has an address must listen, others are forwarded to here.

    Ray's dashboard is only there while a job runs.
    """
    ports = ground.settings.ports
    dead = [f"{name} {p.address}:{p.port}" for name, p in ports.items()
            if p.address and name != "ray" and not _listens(p.address, p.port)]  # fmt: skip
    wanted = [each for each in forward.forwards(ground.settings) if each.service]
    held = port_holders((each.bind, each.port) for each in wanted)
    who = {each: held.get((each.bind, each.port), "") for each in wanted}
    taken = [f"{each.port} ({each.name}) by {by}" for each, by in who.items()
             if by and "ssh" not in by]  # fmt: skip
    if dead:
        raise Found("port-dead", ", ".join(dead))
    if taken:
        raise Found("port-taken", ", ".join(taken))
    missing = [f"{each.name} {each.port}" for each, by in who.items() if not by]
    if missing:
        raise Found("not-forwarded", ", ".join(missing))
    return f"{len(ports)} services listen"
