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
ANSWER_S, CHECK_AGAIN_S = 10.0, 60.0

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
    """The API server, seen with the rights of this pod."""

    def __init__(self, core: Any, discovery: Any, clock: Callable[[], float] = time.monotonic):
        self.core, self.discovery, self.clock = core, discovery, clock
        self._published: set[Tunnel] = set()
        self._check_at = 0.0

    def publish(self, wanted: Iterable[Tunnel]) -> None:
        """Publish a service for each tunnel and no other; send nothing if nothing has changed.

        Raises KitError if the cluster refused some of them; the others are published.
        """
        tunnels = {tunnel.service: tunnel for tunnel in wanted}
        if set(tunnels.values()) == self._published and self.clock() < self._check_at:
            return
        self._check_at, wrong = 0.0, list[str]()
        # The slice first: a client that finds the Service finds its endpoint too.
        for api, kind, make in (
            (self.discovery, "endpoint_slice", _slice),
            (self.core, "service", _service),
        ):
            objects = {name: make(tunnel) for name, tunnel in tunnels.items()}
            wrong += _agree(api, kind, objects)
        if wrong:
            raise KitError(
                "publish tunnels in the cluster",
                "; ".join(wrong)[:500],
                "compare the Role forwarder-imports with access.yaml",
            )
        self._published, self._check_at = set(tunnels.values()), self.clock() + CHECK_AGAIN_S


def _agree(api: Any, kind: str, wanted: dict[str, Json]) -> list[str]:
    """Create, change and remove objects of one kind; return what the cluster refused."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    def _call(verb: str, *words: object, **more: object) -> Any:
        method = getattr(api, f"{verb}_namespaced_{kind}")
        return method(*words, _request_timeout=ANSWER_S, **more)

    selector = ",".join("=".join(pair) for pair in OURS.items())
    wrong = []
    try:
        present = {
            item.metadata.name: item
            for item in _call("list", NAMESPACE, label_selector=selector).items
        }
        steps: list[tuple[str, str, Json | None]]
        steps = [("delete", name, None) for name in present.keys() - wanted.keys()]
        for name, want in wanted.items():
            if name not in present:
                steps.append(("create", name, want))
            elif _differs(api.api_client.sanitize_for_serialization(present[name]), want):
                steps.append(("patch", name, want))
        for verb, name, body in steps:
            words = [name] * (verb != "create") + [NAMESPACE] + [body] * (body is not None)
            try:
                _call(verb, *words)
            except ApiException as err:
                if (verb, err.status) not in (("delete", 404), ("create", 409)):
                    wrong.append(f"{verb} {kind} {name}: {err.status} {err.reason}")
    except ApiException as err:
        return [f"list {kind}: {err.status} {err.reason}"]
    except HTTPError as err:
        raise Unreachable("ask the cluster's API server", str(err)[:300]) from err
    return wrong


def _differs(present: Any, body: Any) -> bool:
    """Return whether a field of `body` differs in `present`, which may have more fields."""
    if isinstance(body, dict):
        return not isinstance(present, dict) or any(_differs(present.get(k), body[k]) for k in body)
    if isinstance(body, list):
        return (
            not isinstance(present, list)
            or len(present) != len(body)
            or any(map(_differs, present, body))
        )
    return bool(present != body)


def _slice(tunnel: Tunnel) -> Json:
    name = tunnel.service
    labels = {
        **OURS,
        "kubernetes.io/service-name": name,
        "endpointslice.kubernetes.io/managed-by": "cloud-hpc-kit",
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [tunnel.address], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": tunnel.port, "protocol": "TCP"}],
    }


def _service(tunnel: Tunnel) -> Json:
    port = {"name": "http", "port": PORT, "targetPort": tunnel.port, "protocol": "TCP"}
    marks = {"kit.run": tunnel.run}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": tunnel.service,
            "namespace": NAMESPACE,
            "labels": OURS,
            "annotations": marks,
        },
        "spec": {"ports": [port]},
    }


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
    return TunnelServices(client.CoreV1Api(), client.DiscoveryV1Api())
