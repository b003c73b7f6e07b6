"""The checks of `kit doctor` on the object store and on the services of the platform."""

import importlib.util
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import (
    BucketTaken,
    CredentialRefused,
    KitError,
    StoreUnavailable,
    Unreachable,
    UsageError,
)
from kit.base.settings import Settings
from kit.doctor.context import Check, CheckContext
from kit.doctor.diagnosis import Diagnosis, DiagnosisError, Known
from kit.doctor.local import ENV_FILE

if TYPE_CHECKING:
    from requests import Response

PROBE = "doctor/probe"
STORE_LIMIT_S = 8.0
ANSWER_S = 5.0

LOGIN_REFUSED = Diagnosis(
    "login-refused",
    "token",
    "Keystone refuses the login: user, password, domain or project is wrong",
    "fix .env; look in MyCSC whether account and project are active",
)
KEYSTONE_AWAY = Diagnosis(
    "keystone-away", "token", "Keystone does not answer", "check network and [store] auth_url"
)
KEYSTONE_FAILS = Diagnosis(
    "keystone-fails",
    "token",
    "Keystone has a fault of its own; the login is not the cause",
    "try again later; if it stays, tell its operator",
)
STORE_SETTINGS = Diagnosis(
    "store-settings",
    "store",
    "[store] of the profile cannot be used",
    "fix the key that it names",
)
STORE_REFUSED = Diagnosis(
    "store-refused", "store", "the store refuses these keys", "`kit credentials`"
)
STORE_AWAY = Diagnosis(
    "store-away", "store", "the store does not answer", "check network and [store] url"
)
STORE_CLOCK = Diagnosis(
    "store-clock",
    "store",
    "this machine's clock and the store's differ too much",
    "set the clock: `timedatectl set-ntp true`",
)
BUCKET_TAKEN = Diagnosis(
    "bucket-taken",
    "store",
    "the bucket belongs to another project",
    "change [store] bucket_prefix or collector_id",
)
STORE_DAMAGED = Diagnosis(
    "store-damaged", "store", "the store returns other bytes than were put", "tell its operator"
)
MLFLOW_AWAY = Diagnosis(
    "mlflow-away",
    "MLflow",
    "MLflow does not answer",
    "start it, or `kit port-forward`; runs wait on disk for `kit sync`",
)
MLFLOW_REFUSED = Diagnosis(
    "mlflow-refused",
    "MLflow",
    "MLflow refuses the password, or there is none",
    "fix [cloud] mlflow_env_file",
)
MLFLOW_HOST = Diagnosis(
    "mlflow-host",
    "MLflow",
    "MLflow refuses the host name of its own address",
    "start it with --allowed-hosts and the name in [cloud] mlflow_url",
)
MLFLOW_ARTIFACTS = Diagnosis(
    "mlflow-artifacts",
    "MLflow",
    "MLflow does not store artifacts itself, so this machine would have to",
    "start it with --serve-artifacts",
)
RUNNER_MISSING = Diagnosis(
    "runner-missing", "pipelines", "kfp is not installed here", "`make setup`"
)
KFP_AWAY = Diagnosis(
    "kfp-away", "pipelines", "Kubeflow Pipelines does not answer", "`kit port-forward`"
)
KFP_REFUSED = Diagnosis(
    "kfp-refused",
    "pipelines",
    "Kubeflow wants a login",
    "log in with the browser, put KUBEFLOW_COOKIES into .env",
)
FORWARDER_AWAY = Diagnosis(
    "forwarder-away",
    "forwarder",
    "the forwarder's API does not answer",
    "start it, or `kit port-forward`",
)
KEYSTONE: Known = {
    **ENV_FILE,
    CredentialRefused: LOGIN_REFUSED,
    StoreUnavailable: KEYSTONE_FAILS,
    Unreachable: KEYSTONE_AWAY,
}
STORE: Known = {
    UsageError: STORE_SETTINGS,
    BucketTaken: BUCKET_TAKEN,
    CredentialRefused: STORE_REFUSED,
    Unreachable: STORE_AWAY,
    KitError: STORE_AWAY,
}
PIPELINES: Known = {UsageError: KFP_AWAY, CredentialRefused: KFP_REFUSED}


def checks(settings: Settings) -> Iterable[Check]:
    """Yield the checks that this profile has something for."""
    if settings.store is not None:
        if settings.store.auth_url:
            yield Check("token", _token, KEYSTONE)
        yield Check("store", _store, STORE)
    if settings.cloud is not None:
        if settings.cloud.mlflow_url:
            yield Check("MLflow", _mlflow, {CredentialRefused: MLFLOW_REFUSED})
        yield Check("pipelines", _pipelines, PIPELINES)
        if settings.cloud.forwarder_url:
            yield Check("forwarder", _forwarder, {})


def _token(context: CheckContext) -> str:
    left = context.keystone.get().valid_until() - context.clock()
    return f"obtained, valid for {left / 3600:.1f} h"


def _store(context: CheckContext) -> str:
    from kit import store

    settings = context.settings
    retry = store.RetryPolicy(timeout_s=STORE_LIMIT_S, attempts=2)
    keystone = context.keystone.needed() if settings.store and settings.store.auth_url else None
    name = store.bucket_name(settings, "pipeline")
    content = str(time.time_ns()).encode()
    try:
        bucket = store.open_store(settings, name, retry=retry, keystone=keystone)
        bucket.ensure_bucket()
        bucket.put(PROBE, content)
        answer = bucket.get(PROBE)
        bucket.delete(PROBE)
    except KitError as err:
        if "RequestTimeTooSkewed" in err.got:
            raise DiagnosisError(STORE_CLOCK, f"{err.tried}: {err.got}"[-300:]) from err
        raise
    if answer != content:
        raise DiagnosisError(STORE_DAMAGED, name)
    return f"put, read and removed an object in {name}"


def _short(err: Exception) -> str:
    """Return why an HTTP request got no answer; requests wraps the reason many times."""
    text = getattr(err, "got", "") or str(err)
    reason = re.search(r"\[Errno -?\d+\] [^'\")]+|timed out", text)
    return reason[0] if reason else text[-200:]


def _get(url: str, auth: tuple[str, str] | None = None) -> "Response":
    """Send a GET. Raises OSError if nothing answers."""
    import requests

    return requests.get(url, auth=auth, timeout=ANSWER_S)


def _mlflow(context: CheckContext) -> str:
    """Ask MLflow's REST API: its client takes seconds to import."""
    from kit.tracking import credential

    url, file = context.cloud.mlflow_url.rstrip("/"), context.cloud.mlflow_env_file
    try:
        values = credential(Path(file) if file else None)
        user = values.get("MLFLOW_TRACKING_USERNAME")
        auth = (user, values.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
        answer = _get(f"{url}/api/2.0/mlflow/experiments/search?max_results=1", auth)
        artifacts = _get(f"{url}/api/2.0/mlflow-artifacts/artifacts", auth)
    except OSError as err:
        raise DiagnosisError(MLFLOW_AWAY, f"{url}: {_short(err)}") from err
    got = f"{url} answers {answer.status_code}"
    if answer.status_code == 403 and "host header" in answer.text.lower():
        raise DiagnosisError(MLFLOW_HOST, f"{got} {answer.text[:100].strip()}")
    if answer.status_code in (401, 403):
        raise DiagnosisError(MLFLOW_REFUSED, got)
    if answer.status_code != 200:
        raise DiagnosisError(MLFLOW_AWAY, got)
    if artifacts.status_code == 503 and "serve-artifacts" in artifacts.text:
        raise DiagnosisError(MLFLOW_ARTIFACTS, url)
    return f"{url} lists its experiments"


def _pipelines(context: CheckContext) -> str:
    cloud = context.cloud
    if cloud.runner == "cluster":
        from kit.runs import kfp_cluster

        try:
            kfp_cluster.check_access(cloud.kfp_url, context.settings.env_file)
        except Unreachable as err:
            raise DiagnosisError(KFP_AWAY, f"{cloud.kfp_url}: {_short(err)}") from err
        return f"the pipeline service at {cloud.kfp_url} answers"
    if importlib.util.find_spec("kfp") is None:
        raise DiagnosisError(RUNNER_MISSING)
    return "kfp.local on this machine"


def _forwarder(context: CheckContext) -> str:
    url = context.cloud.forwarder_url.rstrip("/")
    try:
        status = _get(f"{url}/openapi.json").status_code
    except OSError as err:
        raise DiagnosisError(FORWARDER_AWAY, f"{url}: {_short(err)}") from err
    if status >= 500 or status == 404:
        raise DiagnosisError(FORWARDER_AWAY, f"{url} answers {status}")
    return f"{url} answers"
