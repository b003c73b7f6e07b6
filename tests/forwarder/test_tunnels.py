"""Tunnels of live runs as services of a cluster: against a stub of its API server."""

import dataclasses
import socket
import time

import pytest
from api_server import TOKEN, ApiServer, serving
from forwarder_buckets import ForwarderBuckets
from kubernetes import client
from memory_store import MemoryStore

from kit.base import KitError, Unreachable
from kit.base.settings import load
from kit.forwarder import tunnels
from kit.forwarder.tunnels import NAMESPACE, Tunnel, TunnelServices
from kit.runs.requests import RunRequests, attempt_id

RUN = "cloud-hpc-0123456789ab-1"
KEY = attempt_id(RUN, 1)
NAME = f"anna-{KEY}-ray"


@pytest.fixture
def server():
    return ApiServer()


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def cluster(server, now):
    with serving(server) as url:
        yield cluster_at(url, lambda: now[0])


def cluster_at(url, clock=lambda: 0.0, bearer=TOKEN):
    config = client.Configuration(host=url, api_key={"authorization": f"Bearer {bearer}"})
    config.retries = 0
    return TunnelServices(client.ApiClient(config), clock)


def a_tunnel(port=8280, user="anna", run=RUN):
    key = attempt_id(run, 1)
    return Tunnel(user, run, key, "10.1.2.3", port, f"{user}-{key}-ray")


def test_tunnel_is_a_service_without_selector_to_the_vm(server, cluster):
    cluster.publish([a_tunnel(8281)])
    (service,), (piece,) = (list(found.values()) for found in server.objects.values())
    assert service["metadata"]["name"] == piece["metadata"]["name"] == NAME
    assert service["metadata"]["namespace"] == piece["metadata"]["namespace"] == NAMESPACE
    assert "selector" not in service["spec"]
    assert service["spec"]["ports"] == [
        {"name": "http", "port": 8280, "targetPort": 8281, "protocol": "TCP"}
    ]
    assert piece["metadata"]["labels"]["kubernetes.io/service-name"] == NAME
    assert piece["addressType"] == "IPv4"
    assert piece["endpoints"] == [{"addresses": ["10.1.2.3"], "conditions": {"ready": True}}]
    assert piece["ports"] == [{"name": "http", "port": 8281, "protocol": "TCP"}]
    assert a_tunnel().url == f"http://{NAME}.forwarder-imports:8280"


def test_cluster_is_checked_after_a_change_or_a_minute(server, cluster, now):
    cluster.publish([a_tunnel()])
    before = len(server.calls)
    cluster.publish([a_tunnel()])
    assert len(server.calls) == before
    del server.objects["services"][NAME]  # somebody else's doing
    now[0] += tunnels.CHECK_AGAIN_S + 1
    cluster.publish([a_tunnel()])
    assert [call[0] for call in server.calls[before:]] == ["list", "patch", "list", "patch"]


def test_objects_follow_a_changed_port_and_the_end_of_a_run(server, cluster):
    theirs = {"kind": "Service", "metadata": {"name": "theirs", "labels": {"app": "x"}}}
    server.objects["services"]["theirs"] = theirs
    other = a_tunnel(8282, run="cloud-hpc-ba9876543210-1")
    cluster.publish([a_tunnel(), other])
    cluster.publish([a_tunnel(8285), other])
    assert server.objects["services"][NAME]["spec"]["ports"][0]["targetPort"] == 8285
    assert server.objects["services"][NAME]["spec"]["clusterIP"], "what it got stays"
    assert server.objects["endpointslices"][NAME]["ports"][0]["port"] == 8285
    assert server.calls.index(("patch", "endpointslices", NAME)) < server.calls.index(
        ("patch", "services", NAME)
    )
    cluster.publish([other])
    assert set(server.objects["services"]) == {other.service, "theirs"}
    assert set(server.objects["endpointslices"]) == {other.service}
    cluster.publish([])
    assert set(server.objects["services"]) == {"theirs"}


def test_objects_of_an_earlier_forwarder_are_removed(server, cluster, now):
    cluster.publish([a_tunnel()])
    TunnelServices(cluster.api, lambda: now[0]).publish([])
    assert server.objects == {"services": {}, "endpointslices": {}}


def test_refused_service_affects_no_other_and_is_retried(server, cluster):
    bad, good = a_tunnel(user="1anna"), a_tunnel(8281)
    with pytest.raises(KitError, match="PATCH .*services/1anna-.* 422") as error:
        cluster.publish([bad, good])
    assert "access.yaml" in error.value.next_step
    assert list(server.objects["services"]) == [NAME]
    before = len(server.calls)
    with pytest.raises(KitError):
        cluster.publish([bad, good])
    assert len(server.calls) > before
    cluster.publish([good])


def test_two_forwarders_do_not_conflict(server, cluster):
    for _ in range(2):  # the second applies what is there
        TunnelServices(cluster.api).publish([a_tunnel()])
    assert list(server.objects["services"]) == [NAME]
    server.refuses["delete", NAME] = 404  # another one removed it a moment ago
    TunnelServices(cluster.api).publish([])
    assert ("delete", "services", NAME) in server.calls


def test_other_namespaces_and_kinds_are_forbidden(server, cluster, monkeypatch):
    monkeypatch.setattr(tunnels, "NAMESPACE", "kubeflow")
    with pytest.raises(KitError, match="GET .*services: 403"):
        cluster.publish([a_tunnel()])
    with pytest.raises(client.exceptions.ApiException) as error:
        client.CoreV1Api(cluster.api).list_namespaced_secret("forwarder-imports")
    assert error.value.status == 403


def test_missing_token_and_unreachable_server_are_reported(server):
    with serving(server) as url, pytest.raises(KitError, match="401"):
        cluster_at(url, bearer="another").publish([a_tunnel()])
    with pytest.raises(Unreachable):
        cluster_at(url).publish([a_tunnel()])


@pytest.mark.slow
def test_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(tunnels, "ANSWER_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            cluster_at(f"http://127.0.0.1:{silent.getsockname()[1]}").publish([a_tunnel()])
    assert time.monotonic() - begun < 5


# Which are live.


@pytest.fixture
def requests():
    return RunRequests(MemoryStore())


def profile(runner="local", **cloud):
    loaded = load("sandbox")
    return dataclasses.replace(
        loaded, cloud=dataclasses.replace(loaded.cloud, runner=runner, **cloud)
    )


def submitted(requests, window, run=RUN):
    requests.write(run, "request", {})
    requests.write(run, "try-1/submitted", {})
    requests.write(run, "progress", {"state": "RUNNING", "tunnel": window})


def live_tunnels(requests, loaded):
    return tunnels.live_tunnels(loaded, "anna", requests, requests.statuses().values())


def test_in_the_sandbox_a_live_tunnel_is_a_local_address(requests):
    submitted(requests, {"address": "127.0.0.13", "port": 8283})
    (found,) = live_tunnels(requests, profile())
    assert (found.run, found.attempt_id, found.url) == (RUN, KEY, "http://127.0.0.13:8283")
    assert live_tunnels(requests, profile("cluster"))[0].service == NAME


def test_address_comes_from_the_profile_only(requests):
    submitted(requests, {"address": "169.254.169.254", "port": 8280})
    assert (
        live_tunnels(requests, profile("cluster", tunnel_address="10.1.2.3"))[0].address
        == "10.1.2.3"
    )


@pytest.mark.parametrize(
    "window",
    [
        None,
        {"barred": "no"},
        "8280",
        [8280],
        {"port": "8280"},
        {"port": 22},
        {"port": True},
        {"port": 8290},
        {"port": 8280.0},
        {},
    ],
)
def test_invalid_tunnel_is_not_published(requests, window):
    submitted(requests, window)
    assert live_tunnels(requests, profile()) == []


@pytest.mark.parametrize("name", ["result", "try-1/ended", "cancel", "refused"])
def test_ended_run_has_no_tunnel(requests, name):
    submitted(requests, {"address": "127.0.0.13", "port": 8280})
    requests.write(RUN, name, {})
    assert live_tunnels(requests, profile()) == []


def test_a_profile_without_a_vm_has_no_tunnels(requests):
    submitted(requests, {"address": "127.0.0.13", "port": 8280})
    assert live_tunnels(requests, profile(tunnel_address="")) == []
    assert live_tunnels(requests, dataclasses.replace(profile(), cloud=None)) == []


@pytest.mark.parametrize("content", [b"no JSON", b'{"schema": 2}'])
def test_damaged_progress_hides_the_tunnel_of_its_own_run_only(requests, content):
    submitted(requests, {"port": 8281})
    submitted(requests, {"port": 8282}, "cloud-hpc-ba9876543210-1")
    requests.store.put(f"runs/{RUN}/progress.json", content)
    assert [tunnel.port for tunnel in live_tunnels(requests, profile())] == [8282]


# The forwarder's pass.


def test_pass_publishes_live_tunnels_and_reports_refusals(tmp_path, server, cluster):
    world = ForwarderBuckets(tmp_path)
    world.settings = profile("cluster", tunnel_address="10.1.2.3")
    ours = world.forwarder()
    ours.cluster = cluster
    for name in ("request", "try-1/submitted"):
        world.write(world.request_store, RUN, f"{name}.json", {})
    world.write(world.request_store, RUN, "progress.json", {"tunnel": {"port": 8281}})
    assert ours.once() == []
    assert list(server.objects["services"]) == [NAME]
    world.write(world.request_store, RUN, "try-1/ended.json", {})
    server.refuses["delete", NAME] = 500
    (problem,) = ours.once()
    assert "DELETE" in problem
    server.refuses.clear()
    assert ours.once() == []
    assert server.objects == {"services": {}, "endpointslices": {}}


def test_only_a_pod_of_a_cluster_publishes(monkeypatch, caplog):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert tunnels.tunnel_services(profile("cluster")) is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert tunnels.tunnel_services(profile("local")) is None
    assert tunnels.tunnel_services(profile("cluster")) is None, "this machine has no pod's token"
    assert "no tunnels are published" in caplog.text
