"""Tunnels of live runs, and on a cluster a service for each: how the platform reaches Ray's pages.

A service is a Service without selector and an EndpointSlice, in a namespace of their own; the
rights needed are those of `env/platform/forwarder/access.yaml`. Where a run says its tunnel is
counts for the port alone: the address is the profile's, so that nobody can have another one
published. Tried with kubernetes 30.1 and a stub of the API server, not with a cluster.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kit.base import DataError, Json, KitError, Unreachable
from kit.base.ports import TUNNEL_PORTS
from kit.base.settings import Settings
from kit.runs.requests import RunRequests, RunState, RunStatus

NAMESPACE, PORT = "forwarder-imports", 8280
OURS = {"app.kubernetes.io/managed-by": "cloud-hpc-kit"}
ANSWER_S, CHECK_AGAIN_S = 10, 60.0  # kubernetes 30.1 ignores a limit that is not an int
SERVICES = "/api/v1/namespaces/{}/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tunnel:
    """The address of a live run's dashboard; `attempt_id` is its attempt."""

    user: str
    run: str
    attempt_id: str
    address: str
    port: int
    service: str = ""

    @property
    def url(self) -> str:
        """The address of the page, inside the cluster where there is one."""
        if self.service:
            return f"http://{self.service}.{NAMESPACE}:{PORT}"
        return f"http://{self.address}:{self.port}"


def live_tunnels(
    loaded: Settings, user: str, requests: RunRequests, statuses: Iterable[RunStatus]
) -> list[Tunnel]:
    """Return the tunnels of a user's live runs. Raises KitError if the store does not answer."""
    cloud, tunnels = loaded.cloud, []
    for status in statuses if cloud and cloud.tunnel_address else ():
        if status.state is not RunState.SUBMITTED:
            continue
        try:
            reported = (requests.read(status.run, "progress") or {}).get("tunnel")
        except DataError as err:  # costs this run's page alone
            log.warning("the tunnel of %s is not known: %s", status.run, err)
            continue
        port = reported.get("port") if isinstance(reported, dict) else None
        if cloud is None or type(port) is not int or port not in TUNNEL_PORTS:
            continue
        name = status.attempt_id
        service = f"{user}-{name}-ray" if cloud.runner == "cluster" else ""
        tunnels.append(Tunnel(user, status.run, name, cloud.tunnel_address, port, service))
    return tunnels


class TunnelServices:
    """The API server, seen with the rights of this pod; `api` is kubernetes' ApiClient."""

    def __init__(self, api: Any, clock: Callable[[], float] = time.monotonic):
        self.api, self.clock = api, clock
        self._published: set[Tunnel] = set()
        self._check_at = 0.0

    def publish(self, wanted: Iterable[Tunnel]) -> None:
        """Publish a service for each tunnel and no other; send nothing if nothing has changed.

        Raises KitError if the cluster refused some of them; the others are published.
        """
        tunnels = set(wanted)
        if tunnels == self._published and self.clock() < self._check_at:
            return
        self._check_at = 0.0
        # The slice first: a client that finds the Service finds its endpoint too.
        wrong = self._agree(SLICES, [_slice(tunnel) for tunnel in tunnels])
        wrong += self._agree(SERVICES, [_service(tunnel) for tunnel in tunnels])
        if wrong:
            got = "; ".join(wrong)[:500]
            step = "compare the Role forwarder-imports with access.yaml"
            raise KitError("publish tunnels in the cluster", got, step)
        self._published, self._check_at = tunnels, self.clock() + CHECK_AGAIN_S

    def _agree(self, path: str, wanted: list[Json]) -> list[str]:
        """Apply objects of one kind, remove our others; return what the cluster refused."""
        refused: list[str] = []
        answer = self._call(refused, "GET", path, labelSelector="=".join(*OURS.items()))
        if answer is None:
            return refused
        names = {body["metadata"]["name"] for body in wanted}
        for name in {item["metadata"]["name"] for item in answer["items"]} - names:
            self._call(refused, "DELETE", f"{path}/{name}")
        for body in wanted:
            place = f"{path}/{body['metadata']['name']}"
            self._call(refused, "PATCH", place, body, fieldManager="kit", force="true")
        return refused

    def _call(
        self, refused: list[str], verb: str, path: str, body: Json | None = None, **query: str
    ) -> Any:
        """Return the API server's answer; add to `refused` what it refused."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        # Server-side apply creates an object, changes it, or leaves it as it is.
        patch = {"Content-Type": "application/apply-patch+yaml"} if body else {}
        try:
            return self.api.call_api(
                path.format(NAMESPACE),
                verb,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", **patch},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=ANSWER_S,
            )
        except ApiException as err:
            if (verb, err.status) != ("DELETE", 404):  # another forwarder removed it
                refused.append(f"{verb} {path.format(NAMESPACE)}: {err.status} {err.reason}")
        except HTTPError as err:
            raise Unreachable("ask the cluster's API server", str(err)[:300]) from err
        return None


def _object(tunnel: Tunnel, version: str, kind: str, labels: Json, **parts: object) -> Json:
    about = {"name": tunnel.service, "namespace": NAMESPACE, "labels": {**OURS, **labels}}
    about["annotations"] = {"kit.run": tunnel.run}
    return {"apiVersion": version, "kind": kind, "metadata": about, **parts}


def _slice(tunnel: Tunnel) -> Json:
    manager = {"endpointslice.kubernetes.io/managed-by": "cloud-hpc-kit"}
    return _object(
        tunnel,
        "discovery.k8s.io/v1",
        "EndpointSlice",
        {"kubernetes.io/service-name": tunnel.service, **manager},
        addressType="IPv4",
        endpoints=[{"addresses": [tunnel.address], "conditions": {"ready": True}}],
        ports=[{"name": "http", "port": tunnel.port, "protocol": "TCP"}],
    )


def _service(tunnel: Tunnel) -> Json:
    port = {"name": "http", "port": PORT, "targetPort": tunnel.port, "protocol": "TCP"}
    return _object(tunnel, "v1", "Service", {}, spec={"ports": [port]})


def tunnel_services(loaded: Settings) -> TunnelServices | None:
    """Return the cluster that this process is a pod of, where the profile has one."""
    inside = os.environ.get("KUBERNETES_SERVICE_HOST")
    if loaded.cloud is None or loaded.cloud.runner != "cluster" or not inside:
        return None
    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException as err:  # the gauges work without
        log.warning("no tunnels are published: %s", err)
        return None
    return TunnelServices(client.ApiClient())
