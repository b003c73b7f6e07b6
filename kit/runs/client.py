"""A person's runs through the forwarder's API, requested and followed as by `RunRequests`."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.base import (
    Busy,
    CredentialRefused,
    Json,
    KitError,
    NoSuchObject,
    Secret,
    Unreachable,
    UsageError,
    ca_bundle_step,
    read_private,
)
from kit.base.settings import Settings
from kit.runs.requests import RunRequest, RunRequests, RunState, RunStatus, as_json
from kit.store import bucket_name, open_store

WAIT_S = 5.0  # the API answers at once when the state changes, else after this time
ANSWER_S = 20.0  # beyond that wait
ERRORS = {404: NoSuchObject, 409: Busy, 422: UsageError}

log = logging.getLogger(__name__)


@dataclass
class ForwarderClient:
    """The methods of `RunRequests` that requesting and following need; keeps the last answer.

    They raise Unreachable without contact, CredentialRefused for a wrong token.
    """

    url: str
    token: Secret
    wait_s: float = WAIT_S
    _last: Json = field(default_factory=dict)

    def ask(self, request: RunRequest) -> RunStatus:
        """Request a run; again changes nothing. Raises Busy for a run with other settings."""
        return _status(self._call("POST", "/runs", json=as_json(request)))

    def status(self, run: str) -> RunStatus:
        """Return the status of a run, at once if it has changed or is final."""
        query: Json = {}
        if self._last.get("run") == run and not self._last["finished"]:
            query = {"state": self._last["state"], "wait_s": self.wait_s}
        self._last = self._call("GET", f"/runs/{run}", params=query)
        return _status(self._last)

    def read(self, run: str, name: str) -> Json | None:
        """Read the progress of a run, or what it ended with."""
        if self._last.get("run") != run:
            self.status(run)
        content: Json | None = self._last["progress" if name == "progress" else "ended"]
        return content

    def _call(self, method: str, path: str, **more: Any) -> Json:
        import requests

        tried = f"ask the forwarder at {self.url}"
        headers = {"Authorization": f"Bearer {self.token.reveal()}"}
        timeout = self.wait_s + ANSWER_S
        try:
            answer = requests.request(
                method,
                self.url + path,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                **more,
            )
            content: Json = answer.json()
        except OSError as err:  # requests' own errors: no contact, or not a JSON document
            got = f"{type(err).__name__}: {str(err)[:300]}"
            raise Unreachable(tried, got, ca_bundle_step(err, "")) from err
        code = answer.status_code
        if not isinstance(content, dict):
            raise Unreachable(tried, f"HTTP {code}, and not a JSON object")
        if code in (200, 202):
            return content
        got = f"HTTP {code}: {str(content.get('got') or content.get('detail', ''))[:300]}"
        if code in (401, 403):
            next_step = "put your token into the file KIT_FORWARDER_TOKEN; run again to resume"
            raise CredentialRefused(tried, got, next_step)
        if code >= 500:
            raise Unreachable(tried, got)
        raise ERRORS.get(code, KitError)(tried, got, str(content.get("next", "")))


def _status(answer: Json) -> RunStatus:
    try:
        return RunStatus(str(answer["run"]), RunState[answer["state"]], int(answer["number"]))
    except (KeyError, TypeError, ValueError) as err:
        raise Unreachable("ask the forwarder", f"not a status of a run: {err!r}") from err


def forwarder_client(settings: Settings) -> ForwarderClient | None:
    """Return the client of the profile's forwarder; None if the profile has no forwarder.

    Raises UsageError for a token that is missing or readable by others.
    """
    cloud, inside = settings.cloud, settings.ports.get("forwarder")
    if cloud is None or not cloud.forwarder_url:
        return None
    url = cloud.forwarder_url.rstrip("/")
    if cloud.runner == "cluster" and inside and inside.svc:  # a component has it by this name
        url = f"http://{inside.svc}.{inside.namespace}:{inside.port}"
    path = os.environ.get("KIT_FORWARDER_TOKEN") or cloud.forwarder_token_file
    next_step = (
        "write your token for the forwarder into a file of mode 600 and name the file with "
        "KIT_FORWARDER_TOKEN; or take forwarder_url out of the profile"
    )
    if not path:
        raise UsageError(f"a token for the forwarder at {url} is missing", next_step=next_step)
    token = read_private(Path(path), "read the forwarder's token", next_step)
    return ForwarderClient(url, Secret(token.strip()))


def requests_at(settings: Settings, bucket: str) -> RunRequests | ForwarderClient:
    """Return the forwarder's API, if the profile has one for this bucket, else the store."""
    client = forwarder_client(settings) if bucket == bucket_name(settings, "submitter") else None
    log.info("requested by %s", f"the forwarder at {client.url}" if client else "the object store")
    return client or RunRequests(open_store(settings, bucket))
