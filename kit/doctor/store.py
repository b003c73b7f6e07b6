"""The checks of `kit doctor` on the object store and on the services of the platform."""

import importlib.util
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import (
    BucketTaken,
    ClockSkewed,
    CredentialRefused,
    KitError,
    StoreUnavailable,
    Unreachable,
    UsageError,
)
from kit.base.settings import Settings
from kit.doctor.context import Check, CheckContext
from kit.doctor.diagnosis import DiagnosisError, Known
from kit.doctor.local import ENV_FILE

if TYPE_CHECKING:
    from requests import Response

PROBE = "doctor/probe"
STORE_LIMIT_S = 8.0
ANSWER_S = 5.0

KEYSTONE: Known = {
    **ENV_FILE,
    CredentialRefused: "login-refused",
    StoreUnavailable: "keystone-fails",
    Unreachable: "keystone-away",
}
STORE: Known = {
    UsageError: "store-settings",
    BucketTaken: "bucket-taken",
    ClockSkewed: "store-clock",
    CredentialRefused: "store-refused",
    Unreachable: "store-away",
    KitError: "store-away",
}
PIPELINES: Known = {UsageError: "kfp-away", CredentialRefused: "kfp-refused"}


def checks(settings: Settings) -> Iterable[Check]:
    """Yield the checks that this profile has something for."""
    if settings.store is not None:
        if settings.store.auth_url:
            yield Check("token", _token, KEYSTONE)
        yield Check("store", _store, STORE)
    if settings.cloud is not None:
        if settings.cloud.mlflow_url:
            yield Check("MLflow", _mlflow, {CredentialRefused: "mlflow-refused"})
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
    bucket = store.open_store(settings, name, retry=retry, keystone=keystone)
    bucket.ensure_bucket()
    bucket.put(PROBE, content)
    answer = bucket.get(PROBE)
    bucket.delete(PROBE)
    if answer != content:
        raise DiagnosisError("store-damaged", name)
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
        raise DiagnosisError("mlflow-away", f"{url}: {_short(err)}") from err
    got = f"{url} answers {answer.status_code}"
    if answer.status_code == 403 and "host header" in answer.text.lower():
        raise DiagnosisError("mlflow-host", f"{got} {answer.text[:100].strip()}")
    if answer.status_code in (401, 403):
        raise DiagnosisError("mlflow-refused", got)
    if answer.status_code != 200:
        raise DiagnosisError("mlflow-away", got)
    if artifacts.status_code == 503 and "serve-artifacts" in artifacts.text:
        raise DiagnosisError("mlflow-artifacts", url)
    return f"{url} lists its experiments"


def _pipelines(context: CheckContext) -> str:
    cloud = context.cloud
    if cloud.runner == "cluster":
        from kit.runs import kfp_cluster

        try:
            kfp_cluster.check_access(
                kfp_cluster.access_of(cloud.kfp_url, context.settings.env_file)
            )
        except Unreachable as err:
            raise DiagnosisError("kfp-away", f"{cloud.kfp_url}: {_short(err)}") from err
        return f"the pipeline service at {cloud.kfp_url} answers"
    if importlib.util.find_spec("kfp") is None:
        raise DiagnosisError("runner-missing")
    return "kfp.local on this machine"


def _forwarder(context: CheckContext) -> str:
    url = context.cloud.forwarder_url.rstrip("/")
    try:
        status = _get(f"{url}/openapi.json").status_code
    except OSError as err:
        raise DiagnosisError("forwarder-away", f"{url}: {_short(err)}") from err
    if status >= 500 or status == 404:
        raise DiagnosisError("forwarder-away", f"{url} answers {status}")
    return f"{url} answers"
