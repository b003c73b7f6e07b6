"""A tiny stand-in for the upstream platform: made by hand, only what our overlays touch."""

import re
import subprocess

import yaml

from kit.deploy import manifests

LOGIN = "CSC_USERNAME='anna'\nCSC_PASSWORD='planted-store-password'\n"  # at the object store
KFP = "deployment/kubeflow/manifests/apps/pipeline/upstream/env"
APPS = "deployment/kubeflow/manifests/apps"
COMMON = "deployment/kubeflow/manifests/common"
DEPLOYER = "kubeflow-pipelines-cache-deployer"
RBAC = "rbac.authorization.k8s.io/v1"


def thing(kind, name, namespace=None, version="v1", **more):
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


def deployment(name, image, container=None, env=(), args=()):
    container = {"name": container or name, "image": image, "env": list(env), "args": list(args)}
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    return thing("Deployment", name, version="apps/v1", spec=spec)


def reference(name, kind, source, key):
    return {"name": name, "valueFrom": {f"{kind}KeyRef": {"name": source, "key": key}}}


def service(name, kind, *ports):
    """`ports` are (port, target, port of the node)."""
    rows = [{"name": f"p{p}", "port": p, "targetPort": t, "nodePort": n} for p, t, n in ports]
    return thing("Service", name, spec={"type": kind, "selector": {"app": name}, "ports": rows})


STORAGE = [
    deployment("minio", "minio/minio:RELEASE.2019-08-14T20-37-41Z"),
    deployment(
        "mysql",
        "gcr.io/ml-pipeline/mysql:8.0.26",
        env=[{"name": "MYSQL_ALLOW_EMPTY_PASSWORD", "value": "true"}],
    ),
    thing("Secret", "mysql-secret", stringData={"username": "root", "password": ""}),
    thing(
        "Secret",
        "mlpipeline-minio-artifact",
        stringData={"accesskey": "minio", "secretkey": "minio123"},
    ),
]
POINTER = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "x"}
CACHE = [
    deployment("cache-server", "cache:1", args=["--x"]),
    deployment("cache-deployer-deployment", "cache:1"),
    thing("ServiceAccount", f"{DEPLOYER}-sa"),
    thing("Role", f"{DEPLOYER}-role", version=RBAC, rules=[]),
    thing("RoleBinding", f"{DEPLOYER}-rolebinding", version=RBAC, roleRef=POINTER),
    thing("ClusterRole", f"{DEPLOYER}-clusterrole", version=RBAC, rules=[]),
    thing("ClusterRoleBinding", f"{DEPLOYER}-clusterrolebinding", version=RBAC, roleRef=POINTER),
]
WEAK = {"AWS_ACCESS_KEY_ID": "bWluaW9hZG1pbg==", "AWS_SECRET_ACCESS_KEY": "bWluaW9hZG1pbg=="}
MLFLOW = [
    thing("Namespace", "mlflow"),
    deployment(
        "mlflow",
        "ghcr.io/oss-mlops-platform/mlflow_v2:0.0.2",
        env=[
            reference("AWS_ACCESS_KEY_ID", "configMap", "mlflow-configmap", "MINIO_ACCESS_KEY"),
            {"name": "BACKEND_STORE_URI", "value": "$(DB_PASSWORD)"},
        ],
    ),
    deployment(
        "mlflow-minio",
        "minio/minio:RELEASE.2023-02-10T18-48-39Z",
        env=[
            {"name": "MINIO_PROMETHEUS_AUTH_TYPE", "value": "public"},
            reference("MINIO_ROOT_USER", "configMap", "mlflow-configmap", "MINIO_ROOT_USER"),
        ],
    ),
    deployment("postgres", "postgres:13"),
    service("mlflow", "NodePort", (5000, 5000, 30500)),
    service("postgres", "NodePort", (5432, 5432, 30432)),
    service("mlflow-minio-service", "LoadBalancer", (9000, 9000, 30900), (9001, 9001, 30901)),
]
MLFLOW[2]["spec"]["template"]["spec"]["containers"][0]["ports"] = [
    {"containerPort": 9000, "hostPort": 9000},
    {"containerPort": 9001, "hostPort": 9001},
]
BROAD = {"apiGroups": [""], "resources": ["nodes", "nodes/proxy"], "verbs": ["get"]}
PROMETHEUS = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "prometheus"}
DEFAULT = [{"kind": "ServiceAccount", "name": "default", "namespace": "monitoring"}]
KSERVE = deployment(
    "kserve-controller-manager",
    "gcr.io/kubebuilder/kube-rbac-proxy:v0.13.1",
    "kube-rbac-proxy",
    args=["--secure-listen-address=0.0.0.0:8443", "--logtostderr=true"],
)
ALERTING = 'alerting: {targets: ["alertmanager.monitoring.svc:9093"]}\n'
SPECIAL = {
    f"{KFP}/platform-agnostic-multi-user": ([*STORAGE, *CACHE], {"namespace": "kubeflow"}),
    f"{APPS}/centraldashboard/upstream/overlays/kserve": (
        [thing("ConfigMap", "centraldashboard-config", data={"links": '["/jupyter/"]'})],
        {"namespace": "kubeflow"},
    ),
    f"{COMMON}/dex/overlays/istio": (
        [
            thing("ConfigMap", "dex", data={"config.yaml": "hash: $2y$12$4K/VkmDd1q1"}),
            thing("Secret", "dex-oidc-client", data={"OIDC_CLIENT_SECRET": "cFVCbkI="}),
        ],
        {"namespace": "auth"},
    ),
    f"{COMMON}/oidc-client/oidc-authservice/base": (
        [thing("Secret", "oidc-authservice-client", data={"CLIENT_SECRET": "cFVCbkI="})],
        {"namespace": "istio-system"},
    ),
    "deployment/mlflow/env/local": (
        MLFLOW,
        {
            "namespace": "mlflow",
            "configMapGenerator": [
                {"name": "mlflow-configmap", "literals": ["MINIO_ROOT_USER=minioadmin"]}
            ],
            "secretGenerator": [
                {"name": "mlflow-secret", "literals": ["DB_PASSWORD=KFSg"]},
                {
                    "name": "mlflow-secrets",
                    "literals": [
                        "DB_PASSWORD=KFSg",
                        "AWS_SECRET_ACCESS_KEY=minioadmin",
                        "MINIO_ROOT_PASSWORD=minioadmin",
                    ],
                },
            ],
        },
    ),
    "deployment/monitoring/prometheus": (
        [
            deployment("prometheus-deployment", "prom/prometheus:v2.33.4", "prometheus"),
            thing("ConfigMap", "prometheus-server-conf", data={"prometheus.yml": ALERTING}),
            service("prometheus-service", "NodePort", (8080, 9090, 30000)),
            thing("ClusterRole", "prometheus", version=RBAC, rules=[BROAD]),
            thing(
                "ClusterRoleBinding",
                "prometheus",
                version=RBAC,
                roleRef=PROMETHEUS,
                subjects=DEFAULT,
            ),
        ],
        {"namespace": "monitoring"},
    ),
    "deployment/monitoring/grafana": (
        [
            deployment("grafana", "grafana/grafana:8.4.3"),
            thing("ConfigMap", "dashboards-json-conf", data={"other.json": "{}"}),
            thing("ConfigMap", "datasources-conf", data={"prometheus.yaml": "{}"}),
            service("grafana", "NodePort", (3000, 3000, 32000)),
        ],
        {"namespace": "monitoring"},
    ),
}
for _env in ("kubeflow", "standalone-kfp", "standalone-kfp-kserve"):
    _space = "kubeflow-user-example-com" if _env == "kubeflow" else "kubeflow"
    SPECIAL[f"deployment/custom/kubeflow-custom/env/{_env}"] = (
        [thing("Secret", "aws-secret", data=WEAK)],
        {"namespace": _space},
    )
    SPECIAL[f"deployment/kubeflow/manifests/in-cluster-setup/{_env}"] = (
        STORAGE,
        {"namespace": "kubeflow"},
    )
for _env, _space in (("kubeflow", "kubeflow-user-example-com"), ("standalone-kfp", "inference")):
    SPECIAL[f"deployment/custom/kserve-custom/env/{_env}"] = (
        [thing("Secret", "mysecret", data=WEAK), KSERVE],
        {"namespace": _space},
    )


def make(root):
    """Write the skeleton as a git checkout; give its commit."""
    names = set(SPECIAL)
    for path in manifests.FOLDER.rglob("kustomization.yaml"):
        if "upstream" not in path.relative_to(manifests.FOLDER).parts:
            names |= set(re.findall(r"\.\./upstream/([^\s,\]]+)", path.read_text()))
    for name in sorted(names):
        things, more = SPECIAL.get(name) or (
            [thing("ConfigMap", name.replace("/", ".").lower(), "kubeflow", data={"part": name})],
            {},
        )
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "all.yaml").write_text(yaml.safe_dump_all(things))
        (folder / "kustomization.yaml").write_text(
            yaml.safe_dump({"resources": ["all.yaml"], **more})
        )
    (root / ".gitignore").write_text("")
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "made for a test"]):
        subprocess.run([*git, *words], check=True)
    said = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return said.stdout.strip()
