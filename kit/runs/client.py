"""A person's runs by way of the forwarder's face: asked for and followed as `Jobs` does it."""

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
    read_private,
)
from kit.base.settings import Settings
from kit.runs.requests import RunRequest, RunState, RunStatus, as_json

WAIT_S = 5.0  # the face answers at once when the state changes, else after so long
ANSWER_S = 20.0  # beyond that wait
STEPS = {404: NoSuchObject, 409: Busy, 422: UsageError}


@dataclass
class ForwarderClient:
    """Has the methods of `Jobs` that asking and following need; keeps only the last answer.

    They raise Unreachable when there is no contact, CredentialRefused for the token.
    """

    url: str
    token: Secret
    wait_s: float = WAIT_S
    _last: Json = field(default_factory=dict)

    def ask(self, request: RunRequest) -> RunStatus:
        """Ask for a run; once more changes nothing. Raises Busy for one with other settings."""
        return _standing(self._call("POST", "/runs", json=as_json(request)))

    def status(self, run: str) -> RunStatus:
        """Say how a run stands, at once when that has changed or is final."""
        query: Json = {}
        if self._last.get("run") == run and not self._last["finished"]:
            query = {"state": self._last["state"], "wait_s": self.wait_s}
        self._last = self._call("GET", f"/runs/{run}", params=query)
        return _standing(self._last)

    def read(self, run: str, name: str) -> Json | None:
        """Give what is shown of the run (`progress`), or what it ended with."""
        if self._last.get("run") != run:
            self.status(run)
        found: Json | None = self._last["progress" if name == "progress" else "ended"]
        return found

    def _call(self, method: str, path: str, **more: Any) -> Json:
        import requests

        tried = f"ask the forwarder at {self.url}"
        headers = {"Authorization": f"Bearer {self.token.reveal()}"}
        timeout = self.wait_s + ANSWER_S
        try:
            answer = requests.request(
                method, self.url + path, headers=headers, timeout=timeout,
                allow_redirects=False, **more,
            )  # fmt: skip
            found: Json = answer.json()
        except requests.RequestException as err:  # no contact, or an answer that is no JSON
            raise Unreachable(tried, f"{type(err).__name__}: {str(err)[:300]}") from err
        code = answer.status_code
        if not isinstance(found, dict):
            raise Unreachable(tried, f"HTTP {code}, and no table")
        if code in (200, 202):
            return found
        got = f"HTTP {code}: {str(found.get('got') or found.get('detail', ''))[:300]}"
        if code in (401, 403):
            step = "put your token into the file KIT_FORWARDER_TOKEN, then run again to go on"
            raise CredentialRefused(tried, got, step)
        if code >= 500:
            raise Unreachable(tried, got)
        raise STEPS.get(code, KitError)(tried, got, str(found.get("next", "")))


def _standing(answer: Json) -> RunStatus:
    try:
        return RunStatus(str(answer["run"]), RunState[answer["state"]], int(answer["number"]))
    except (KeyError, TypeError, ValueError) as err:
        raise Unreachable("ask the forwarder", f"no status of a run: {err!r}") from err


def forwarder_client(settings: Settings) -> ForwarderClient | None:
    """Give the face of the profile's forwarder; None where the profile has none.

    Raises UsageError for a token that is missing or that others may read.
    """
    cloud, inside = settings.cloud, settings.ports.get("forwarder")
    if cloud is None or not cloud.forwarder_url:
        return None
    url = cloud.forwarder_url.rstrip("/")
    if cloud.runner == "cluster" and inside and inside.svc:  # a component has it by this name
        url = f"http://{inside.svc}.{inside.namespace}:{inside.port}"
    path = os.environ.get("KIT_FORWARDER_TOKEN") or cloud.forwarder_token_file
    step = "write your token for the forwarder into a file of mode 600, name it with "
    step += "KIT_FORWARDER_TOKEN; or take forwarder_url out of the profile"
    if not path:
        raise UsageError(f"there is no token for the forwarder at {url}", next_step=step)
    return ForwarderClient(
        url, Secret(read_private(Path(path).expanduser(), "read it", step).strip())
    )
