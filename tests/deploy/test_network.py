"""Which pod reaches which, computed from the built NetworkPolicies as Kubernetes does.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

import pytest

LOOSE = {"app": "stray"}
# Kubeflow's Profile controller labels the namespace of each of its users, whatever its name.
OF_A_USER = {"kubernetes.io/metadata.name": "anna", "app.kubernetes.io/part-of": "kubeflow-profile"}
PORTS = {
    ("forwarder", "forwarder-redis"): 6379,
    ("forwarder", "forwarder-face"): 6500,
    ("forwarder", "forwarder-worker"): 6502,
    ("forwarder", "forwarder-flower"): 6501,
    ("mlflow", "mlflow"): 5000,
    ("mlflow", "postgres"): 5432,
    ("mlflow", "mlflow-minio"): 9000,
    ("monitoring", "prometheus-server"): 9090,
    ("monitoring", "grafana"): 3000,
}


def namespace(name):
    return {"kubernetes.io/metadata.name": name}


def selects(selector, labels):
    """Return whether a label selector matches; an empty one matches everything."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    rows = selector.get("matchExpressions", [])
    assert all(row["operator"] == "In" for row in rows)
    wanted = selector.get("matchLabels", {}).items()
    return wanted <= labels.items() and all(labels.get(r["key"]) in r["values"] for r in rows)


def admits(policies, source, target, port):
    """Return whether a pod (its namespace's labels, its own) reaches a pod (namespace, label app).

    Every policy that selects the target counts; without one, everybody reaches it.
    """
    space, app = target
    inside = [p["spec"] for p in policies if p["metadata"]["namespace"] == space]
    chosen = [spec for spec in inside if selects(spec["podSelector"], {"app": app})]
    assert all(spec.get("policyTypes", ["Ingress"]) == ["Ingress"] for spec in chosen)
    rules = [rule for spec in chosen for rule in spec.get("ingress", [])]
    spaces, labels = source
    return not chosen or any(
        any(row["port"] == port for row in rule["ports"])
        and any(
            selects(peer.get("podSelector", {}), labels)
            and selects(peer.get("namespaceSelector", {"matchLabels": namespace(space)}), spaces)
            for peer in rule["from"]
        )
        for rule in rules
    )


def policies_of(built):
    for name, (_, objects) in built.items():
        kinds = [o for o in objects if o["kind"] == "NetworkPolicy"]
        yield name, kinds, {o["metadata"]["name"] for o in objects if o["kind"] == "Namespace"}


@pytest.mark.parametrize("target", PORTS, ids=lambda target: target[1])
def test_pod_of_another_namespace_reaches_none_of_ours(built, target):
    """Redis and the gauges have a password as well; MLflow and Prometheus have none."""
    for name, policies, spaces in policies_of(built):
        if target[0] in spaces:
            stray = (namespace("default"), LOOSE)
            assert not admits(policies, stray, target, PORTS[target]), name
            for port in (22, 80, 8080):
                pipeline = (namespace("kubeflow"), LOOSE)
                assert not admits(policies, pipeline, target, port), name


@pytest.mark.parametrize(
    ("source", "app", "target"),
    [
        (namespace("kubeflow"), "ml-pipeline", ("mlflow", "mlflow")),
        (namespace("kubeflow"), "ml-pipeline", ("forwarder", "forwarder-face")),
        (OF_A_USER, "a-pipeline", ("mlflow", "mlflow")),
        (OF_A_USER, "a-model", ("mlflow", "mlflow-minio")),
        (OF_A_USER, "a-pipeline", ("forwarder", "forwarder-face")),
        (namespace("istio-system"), "gateway", ("mlflow", "mlflow")),
        (namespace("kserve-inference"), "a-model", ("mlflow", "mlflow-minio")),
        (namespace("mlflow"), "mlflow", ("mlflow", "postgres")),
        (namespace("mlflow"), "mlflow", ("mlflow", "mlflow-minio")),
        (namespace("forwarder"), "forwarder-worker", ("forwarder", "forwarder-redis")),
        (namespace("forwarder"), "forwarder-flower", ("forwarder", "forwarder-redis")),
        (namespace("monitoring"), "prometheus-server", ("forwarder", "forwarder-worker")),
        (namespace("monitoring"), "grafana", ("monitoring", "prometheus-server")),
    ],
)
def test_pod_that_needs_another_one_reaches_it(built, source, app, target):
    used = [row for row in policies_of(built) if target[0] in row[2]]
    assert used
    for name, policies, _ in used:
        assert admits(policies, (source, {"app": app}), target, PORTS[target]), name


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (OF_A_USER, ("forwarder", "forwarder-redis")),
        (OF_A_USER, ("forwarder", "forwarder-worker")),
        (OF_A_USER, ("mlflow", "postgres")),
        (OF_A_USER, ("monitoring", "prometheus-server")),
        (namespace("monitoring"), ("forwarder", "forwarder-redis")),
        (namespace("mlflow"), ("forwarder", "forwarder-face")),
    ],
)
def test_pod_reaches_nothing_that_it_does_not_need(built, source, target):
    for name, policies, spaces in policies_of(built):
        if target[0] in spaces:
            assert not admits(policies, (source, LOOSE), target, PORTS[target]), name


def test_policy_that_would_admit_everybody_is_noticed():
    everybody = {
        "podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 1}]}],
    }
    policies = [{"metadata": {"namespace": "mlflow"}, "spec": everybody}]
    assert admits(policies, (namespace("default"), LOOSE), ("mlflow", "mlflow"), 1)
    assert not admits(policies, (namespace("default"), LOOSE), ("mlflow", "mlflow"), 2)
    assert admits([], (namespace("default"), LOOSE), ("mlflow", "mlflow"), 2)
