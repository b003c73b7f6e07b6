"""Run a Kubeflow pipeline on a cluster, or follow one that is running there.

Stateless: the KFP run is found again by its name, which is the run id of the kit. Loss of
contact changes nothing but the time of the last answer.
"""

import json
import pkgutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.base import CredentialRefused, KitError, Unreachable, UsageError, ca_bundle_step, read_env
from kit.runs.kfp_here import (
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    ComponentState,
    OnChange,
    PipelineFailed,
    States,
)

_CHECK = "check that it runs, then start the run again"
_LOG_IN = "log in with the browser and put KUBEFLOW_COOKIES (authservice_session=...) into .env"
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_STATES = {
    "RUNNING": RUNNING,
    "CANCELING": RUNNING,
    "SUCCEEDED": DONE,
    "SKIPPED": DONE,
    "CACHED": DONE,
    "FAILED": FAILED,
    "CANCELED": FAILED,
}


@dataclass(frozen=True)
class Access:
    """How to reach Kubeflow: its address and, behind a log-in page, a session of the browser.

    `cookies` is what the browser sends after the log-in (`authservice_session=...`); `namespace`
    is the user's own, on a platform with several users.
    """

    url: str
    cookies: str = field(default="", repr=False)
    namespace: str = ""


def access_of(url: str, env_file: Path | None) -> Access:
    """Read KUBEFLOW_COOKIES and KUBEFLOW_NAMESPACE from the env file, if it has them."""
    values: dict[str, str] = {}
    if env_file is not None and env_file.is_file():
        next_step = "write KUBEFLOW_COOKIES and KUBEFLOW_NAMESPACE into it, mode 600"
        values = read_env(env_file, f"cannot read the login of KFP in {env_file}", next_step)
    cookies, namespace = (values.get(f"KUBEFLOW_{name}") or "" for name in ("COOKIES", "NAMESPACE"))
    return Access(url.rstrip("/"), cookies, namespace)


def run_on_cluster(
    access: Access,
    pipeline: str,
    names: Sequence[str],
    arguments: Mapping[str, Any],
    run_name: str,
    on_change: OnChange = lambda states: None,
    poll_s: float = 5.0,
    patience_s: float = 600.0,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> States:
    """Submit the pipeline unless a run of that name is active, and follow it to its end.

    Raises PipelineFailed, CredentialRefused, or Unreachable when the cluster does not answer
    (once at the start, for `patience_s` later); the run continues there and can be followed again.
    """
    url = access.url
    check_access(access)
    client = _ask(url, lambda: _client(access))
    run_id = _ask(url, lambda: _active_run(client, access, run_name)) or _ask(
        url, lambda: _submit(client, access, pipeline, arguments, run_name)
    )
    where = f"{url}/#/runs/details/{run_id}"
    last_answer = clock()
    while True:
        try:
            run = _ask(url, lambda: client.get_run(run_id))
        except Unreachable as err:
            if clock() - last_answer > patience_s:
                raise Unreachable(
                    err.tried,
                    err.got,
                    f"the pipeline is still running there, {where}: run again to follow it",
                ) from err
        else:
            last_answer = clock()
            states = states_of(names, run)
            on_change(states)
            if run.state in _ENDED:
                return _result(run, states, where)
        sleep(poll_s)


def states_of(names: Sequence[str], run: Any) -> States:
    """Return the components' states of a KFP run; a component without an entry is pending."""
    details = (run.run_details and run.run_details.task_details) or []
    tasks = {task.display_name: _state(task.display_name, task) for task in details}
    return tuple(tasks.get(name, ComponentState(name)) for name in names)


def _state(name: str, task: Any) -> ComponentState:
    state = _STATES.get(task.state or "", PENDING)
    start = task.start_time.timestamp() if task.start_time and state != PENDING else None
    over = state in (DONE, FAILED) and task.end_time
    end = task.end_time.timestamp() if over else None
    message = task.error.message if task.error and task.error.message else ""
    return ComponentState(name, state, start, end, message, 1 if start else 0)


def _result(run: Any, states: States, where: str) -> States:
    if run.state == "SUCCEEDED":
        return states
    failed = next((state for state in states if state.state == FAILED), ComponentState(""))
    text = failed.message or (run.error.message if run.error else "")
    text = text or f"the run ended as {run.state}"
    raise PipelineFailed(failed.name, "", text, states, where)


def check_access(access: Access) -> None:
    """Check that Kubeflow answers and accepts the login. Raises KitError.

    Its client would try for half a minute and give no reason.
    """
    import requests

    headers = {"Cookie": access.cookies} if access.cookies else {}
    health = f"{access.url}/apis/v2beta1/healthz"
    try:
        answer = requests.get(health, headers=headers, timeout=10, allow_redirects=False)
    except OSError as err:  # requests' own errors among them
        got = f"{type(err).__name__}: {str(err)[:300]}"
        raise _unreachable(access.url, got, ca_bundle_step(err, _CHECK)) from err
    got = f"HTTP {answer.status_code} for {health}"
    if answer.status_code in (301, 302, 303, 307, 401, 403):  # a redirect leads to the log-in page
        raise CredentialRefused(f"Kubeflow at {access.url} refused", got, _LOG_IN)
    if answer.status_code >= 500:
        raise _unreachable(access.url, got)
    if answer.status_code != 200:
        raise UsageError(
            f"Kubeflow Pipelines does not answer at {access.url}", got, "correct cloud.kfp_url"
        )


def _unreachable(url: str, got: str, step: str = _CHECK) -> Unreachable:
    return Unreachable(f"Kubeflow at {url} does not answer", got, step)


def _client(access: Access) -> Any:
    import kfp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # "works with Pipelines 2.0 and later"
        return kfp.Client(host=access.url, cookies=access.cookies or None)


def _active_run(client: Any, access: Access, run_name: str) -> str | None:
    """Return the id of a KFP run of that name that has not ended."""
    same_name = {"operation": "EQUALS", "key": "display_name", "stringValue": run_name}
    answer = client.list_runs(
        page_size=100,
        sort_by="created_at desc",
        namespace=access.namespace or None,
        filter=json.dumps({"predicates": [same_name]}),
    )
    active = [run.run_id for run in answer.runs or [] if run.state not in _ENDED]
    return str(active[0]) if active else None


def _submit(
    client: Any, access: Access, pipeline: str, arguments: Mapping[str, Any], run_name: str
) -> str:
    made = client.create_run_from_pipeline_func(
        pkgutil.resolve_name(pipeline),
        arguments=dict(arguments),
        run_name=run_name,
        experiment_name=pipeline.partition(":")[2].replace("__", "-").replace("_", "-"),
        namespace=access.namespace or None,
        enable_caching=False,
    )
    return str(made.run_id)


def _ask(url: str, call: Callable[[], Any]) -> Any:
    """Call Kubeflow; raise the errors of its client as a KitError."""
    from kfp.client.client import kfp_server_api
    from urllib3.exceptions import HTTPError

    try:
        return call()
    except kfp_server_api.ApiException as err:
        got = f"HTTP {err.status}: {str(err.body or err.reason)[:300]}"
        if err.status in (401, 403):
            raise CredentialRefused(f"Kubeflow at {url} refused", got, _LOG_IN) from err
        if err.status and 400 <= err.status < 500:
            raise KitError(
                f"Kubeflow at {url} refused", got, "correct what it names, then run again"
            ) from err
        raise _unreachable(url, got) from err
    except (HTTPError, OSError) as err:
        raise _unreachable(url, f"{type(err).__name__}: {str(err)[:300]}") from err
