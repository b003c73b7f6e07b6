"""The platform's overlays: built over a skeleton always, over the pinned source where it is."""

import base64
import datetime
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
import warnings
from pathlib import Path

import pytest
import upstream_skeleton
import yaml
from tools_venv import tools
from upstream_skeleton import LOGIN

from kit.base import ROOT, CommandFailed, DataError, UsageError
from kit.deploy import images, manifests
from kit.forwarder.people import new_token

DEFAULTS = ("minio123", "minioadmin", "KFSg", "pUBnB", "4K/Vkm")
REMOVED = (
    *("apps/katib", "jupyter-web-app", "notebook-controller", "pvcviewer", "volumes-web-app"),
    *("tensorboard-controller", "tensorboards-web-app", "training-operator"),
)
KSERVE_PROXY = "quay.io/brancz/kube-rbac-proxy:v0.21.2"
OURS = ("mlflow", "monitoring", "forwarder")
ARTICLE = ("RELEASE.2024-05-10T01-41-38Z", "2.12.2", "16.3", "v2.52.0", "10.4.2")


def named(objects, kind, name):
    form = re.compile(rf"{name}(-[a-z0-9]{{10}})?")
    same = [each for each in objects if each["kind"] == kind]
    (found,) = [each for each in same if form.fullmatch(each["metadata"]["name"])]
    return found


def main_images(objects):
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]
    return {pod["containers"][0]["name"]: pod["containers"][0]["image"] for pod in pods}


def test_there_are_six_environments():
    bases = {"kubeflow", "standalone-kfp", "standalone-kfp-kserve"}
    assert set(manifests.ENVIRONMENTS) == bases | {f"{base}-monitoring" for base in bases}


def test_the_eight_components_are_left_out(built):
    text = (manifests.FOLDER / "kubeflow" / "kustomization.yaml").read_text()
    resources = yaml.safe_load(text)["resources"]
    assert [name for name in resources for gone in REMOVED if gone in name] == []
    names = {each["metadata"]["name"] for each in built["kubeflow"][1]}
    gone = {
        "katib-controller",
        "jupyter-web-app-deployment",
        "notebook-controller-deployment",
        "pvcviewer-controller-manager",
        "volumes-web-app-deployment",
        "training-operator",
        "tensorboard-controller-deployment",
        "tensorboards-web-app-deployment",
    }
    assert names & gone == set()


def test_the_cache_deployer_gives_way_to_cert_manager(built):
    objects = built["kubeflow"][1]
    left = [o["metadata"]["name"] for o in objects if "cache-deployer" in o["metadata"]["name"]]
    assert left == []
    server = named(objects, "Deployment", "cache-server")["spec"]["template"]["spec"]
    assert server["containers"][0]["args"][-2:] == [
        "--tls_cert_filename=tls.crt",
        "--tls_key_filename=tls.key",
    ]


def images_in(part):
    """Every value of a key `image` below a part of a manifest."""
    if isinstance(part, dict):
        own = part.get("image")
        found = {own} if isinstance(own, str) else set()
        return found.union(*map(images_in, part.values()))
    return set().union(*map(images_in, part)) if isinstance(part, list) else set()


def test_every_image_is_in_the_list_of_checked_images(built):
    """A new image, or one that upstream changed, has to be looked at and written down."""
    table = tomllib.loads((manifests.FOLDER / "images.toml").read_text())
    found = set()
    for _, objects in built.values():
        found |= images_in([o for o in objects if o["kind"] != "CustomResourceDefinition"])
    own = {name for name in found if name.startswith("localhost:")}
    assert {name.rpartition(":")[2] for name in own} == {images.tag_of(images.context())}
    ours = {name for name in found if name.split("@")[0] in table["ours"]}
    names = {name.split("@")[0] for name in ours} | {name.rpartition(":")[0] for name in own}
    assert names | {KSERVE_PROXY} == set(table["ours"])
    unpinned = {name for name in ours if "@sha256:" not in name}
    assert unpinned <= {KSERVE_PROXY}
    if "docker.io/istio/pilot:1.17.5" in found:  # the real source
        assert {name.split("@")[0] for name in found - ours - own} == set(
            table["upstream"]["images"]
        )


def test_list_of_images_was_checked_in_the_last_90_days():
    checked = tomllib.loads((manifests.FOLDER / "images.toml").read_text())["checked"]
    age = datetime.date.today() - checked
    if age > datetime.timedelta(days=90):
        warnings.warn(f"env/platform/images.toml was checked {age.days} days ago", stacklevel=1)
    assert age >= datetime.timedelta(days=-1)


def test_versions_of_the_article_are_named_beside_ours():
    texts = "".join(p.read_text() for p in manifests.FOLDER.glob("*/kustomization.yaml"))
    assert all(version in texts for version in ARTICLE)


def test_the_forwarder_is_in_the_monitoring_environments_and_in_no_other(built):
    for name, (_, objects) in built.items():
        ours = [o for o in objects if o["metadata"].get("namespace") == "forwarder"]
        assert bool(ours) == name.endswith("-monitoring"), name
        assert any("prometheus" in image for image in main_images(objects).values()) == bool(ours)
        if ours:
            ports = {
                o["metadata"]["name"]: o["spec"]["ports"][0]["port"]
                for o in ours
                if o["kind"] == "Service"
            }
            assert ports == {
                "redis-service": 6379,
                "fastapi-service": 6500,
                "flower-service": 6501,
                "celery-service": 6502,
            }


def test_the_forwarder_s_pods_are_confined(built):
    objects = built["standalone-kfp-monitoring"][1]
    ours = [o for o in objects if o["metadata"].get("namespace") == "forwarder"]
    pods = {
        o["metadata"]["name"]: o["spec"]["template"]["spec"]
        for o in ours
        if o["kind"] == "Deployment"
    }
    assert len(pods) == 4
    for name, pod in pods.items():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert container["resources"]["limits"]["memory"]
        assert pod["automountServiceAccountToken"] == (name == "forwarder-worker")
        assert "latest" not in container["image"]
    selected = {json.dumps(o["spec"]["podSelector"]) for o in ours if o["kind"] == "NetworkPolicy"}
    assert "{}" in selected
    assert len(selected) == 4


def test_the_worker_may_change_services_and_endpoint_slices_of_one_namespace_only(built):
    objects = built["kubeflow-monitoring"][1]
    found = [each for each in objects if each["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    (binding,) = [
        each
        for each in found
        if any(subject.get("namespace") == "forwarder" for subject in each.get("subjects") or [])
    ]
    assert binding["kind"] == "RoleBinding"
    assert binding["metadata"]["namespace"] == "forwarder-imports"
    assert [s["name"] for s in binding["subjects"]] == ["forwarder-worker"]
    rules = named(objects, "Role", "forwarder-imports")["rules"]
    assert [(r["apiGroups"], r["resources"]) for r in rules] == [
        ([""], ["services"]),
        (["discovery.k8s.io"], ["endpointslices"]),
    ]
    assert all("*" not in rule["verbs"] for rule in rules)


def test_prometheus_scrapes_the_forwarder_with_its_token_and_knows_no_alert_manager(built):
    for name, (text, objects) in built.items():
        if not name.endswith("-monitoring"):
            continue
        assert "alertmanager.monitoring" not in text
        assert not any("pushgateway" in o["metadata"]["name"] for o in objects)
        (config,) = named(objects, "ConfigMap", "prometheus-server-conf")["data"].values()
        jobs = {job["job_name"]: job for job in yaml.safe_load(config)["scrape_configs"]}
        token = jobs["forwarder"]["authorization"]["credentials_file"]
        pod = named(objects, "Deployment", "prometheus-deployment")["spec"]["template"]["spec"]
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if "gauges" in m["name"]]
        assert token == f"{mount['mountPath']}/token"
        annotations = named(objects, "Service", "celery-service")["metadata"]["annotations"]
        assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": "6502"}
        spaces = [o for o in objects if o["metadata"]["name"] == "forwarder-gauges"]
        assert len({o["data"]["token"] for o in spaces}) == 1
        assert len(spaces) == 2


def test_the_dashboard_and_its_data_source_are_provisioned(built):
    objects = built["kubeflow-monitoring"][1]
    data = named(objects, "ConfigMap", "dashboards-json-conf")["data"]
    dashboard = json.loads(data["integration-dashboard.json"])
    assert dashboard["uid"] == "fdmzvjxt50ni8f"
    assert len(data) > 1, "upstream's own dashboards are kept"
    (source,) = yaml.safe_load(
        named(objects, "ConfigMap", "datasources-conf")["data"]["prometheus.yaml"]
    )["datasources"]
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert used == {source["uid"]}


def test_no_published_password_is_left_and_ours_arrive(built, made):
    given = manifests._read(made[0] / "secrets" / "platform.env")
    for name, (text, objects) in built.items():
        values = [text]
        for each in objects:
            if each["kind"] == "Secret":
                found = (each.get("data") or {}).values()
                values += [base64.b64decode(value or "").decode() for value in found]
        assert [word for word in DEFAULTS if word in "\n".join(values)] == [], name
        secrets = named(objects, "Secret", "mlflow-secrets")["data"]
        assert base64.b64decode(secrets["DB_PASSWORD"]).decode() == given["MLFLOW_DB_PASSWORD"]
        aws = named(objects, "Secret", "aws-secret")["data"]
        assert aws["AWS_SECRET_ACCESS_KEY"] == secrets["MINIO_ROOT_PASSWORD"]
        mysql = named(objects, "Deployment", "mysql")["spec"]["template"]["spec"]["containers"][0]
        assert [each["name"] for each in mysql["env"]] == ["MYSQL_ROOT_PASSWORD"]
        pipeline = named(objects, "Secret", "kit-pipeline")
        assert base64.b64decode(pipeline["data"][".env"]).decode() == LOGIN
        assert "planted-store-password" not in text, "secrets are base64 and nowhere else"
        assert not any(o["metadata"]["name"] == "platform" for o in objects)


def pods_of(objects, *namespaces):
    """Name and specification of each pod that objects of these namespaces (or of all) start."""
    for each in objects:
        if namespaces and each["metadata"].get("namespace") not in namespaces:
            continue
        spec = each.get("spec") or {}
        pod = spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec", {})
        if "containers" in pod:
            yield each["metadata"]["name"], pod


def containers_of(pod):
    return [*pod["containers"], *pod.get("initContainers", [])]


def test_no_service_is_open_outside_the_cluster(built):
    """Upstream opens MLflow, Prometheus, Grafana and two databases on the node."""
    for name, (_, objects) in built.items():
        for each in (o for o in objects if o["kind"] == "Service"):
            spec, label = each["spec"], f"{name}: {each['metadata']['name']}"
            assert spec.get("type", "ClusterIP") in ("ClusterIP", "ExternalName"), label
            assert not any("nodePort" in port for port in spec.get("ports", [])), label
        for pod_name, pod in pods_of(objects):
            label = f"{name}: {pod_name}"
            ports = [port for row in containers_of(pod) for port in row.get("ports") or []]
            assert not any("hostPort" in port for port in ports), label
            assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), label
            assert not any("hostPath" in volume for volume in pod.get("volumes") or []), label


def test_each_pod_of_ours_is_reached_by_those_named_only(built):
    """Every namespace of ours refuses by default; MLflow and Prometheus have no password."""
    for name, (_, objects) in built.items():
        policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
        spaces = {o["metadata"]["name"] for o in objects if o["kind"] == "Namespace"}
        for space in spaces & set(OURS):
            own = [o["spec"] for o in policies if o["metadata"]["namespace"] == space]
            assert {"podSelector": {}, "policyTypes": ["Ingress"]} in own, f"{name}: {space}"
        for spec in (o["spec"] for o in policies if o["spec"]["podSelector"]):
            for rule in spec["ingress"]:
                assert rule["from"], "an empty list would admit everybody"
                assert all(peer for peer in rule["from"])
                assert rule["ports"]


def test_prometheus_alone_has_rights_and_not_to_the_nodes_proxy(built):
    for name, (_, objects) in built.items():
        if not name.endswith("-monitoring"):
            continue
        rules = named(objects, "ClusterRole", "prometheus")["rules"]
        assert "nodes/proxy" not in json.dumps(rules)
        (subject,) = named(objects, "ClusterRoleBinding", "prometheus")["subjects"]
        assert subject["name"] == "prometheus"
        pod = named(objects, "Deployment", "prometheus-deployment")["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == "prometheus"
        named(objects, "ServiceAccount", "prometheus")
        grafana = named(objects, "Deployment", "grafana")["spec"]["template"]["spec"]
        assert grafana["automountServiceAccountToken"] is False


def test_rights_in_our_namespaces_are_named_one_by_one_and_read_no_secrets(built):
    """No right is given to the account that every pod has, none to everything, none to secrets."""
    for name, (_, objects) in built.items():
        roles = {o["metadata"]["name"]: o for o in objects if o["kind"] in ("Role", "ClusterRole")}
        ours = [
            roles[binding["roleRef"]["name"]]["rules"]
            for binding in objects
            if binding["kind"] in ("RoleBinding", "ClusterRoleBinding")
            for subject in binding["subjects"]
            if subject.get("namespace") in OURS and subject["name"] != "default"
        ]
        assert len(ours) >= name.endswith("-monitoring")
        for rule in itertools.chain(*ours):
            assert "*" not in (
                *rule["verbs"],
                *rule.get("resources", ()),
                *rule.get("apiGroups", ()),
            )
            assert "secrets" not in rule.get("resources", ())
        bindings = [o for o in objects if o["kind"] in ("RoleBinding", "ClusterRoleBinding")]
        subjects = [s for o in bindings for s in o["subjects"] if s.get("namespace") in OURS]
        assert "default" not in [subject["name"] for subject in subjects]


def test_our_pods_meet_the_restricted_standard(built):
    """The namespaces enforce it, so a pod that breaks it is not even started."""
    for name, (_, objects) in built.items():
        spaces = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Namespace"}
        for space in spaces.keys() & set(OURS):
            labels = spaces[space]["metadata"]["labels"]
            assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        found = dict(pods_of(objects, *OURS))
        assert len(found) >= (9 if name.endswith("-monitoring") else 3)
        for pod_name, pod in found.items():
            own = pod["securityContext"]
            assert own["seccompProfile"] == {"type": "RuntimeDefault"}, pod_name
            assert own["runAsNonRoot"] is True, pod_name
            uses_api = pod_name in ("forwarder-worker", "prometheus-deployment")
            assert pod.get("automountServiceAccountToken", True) == uses_api, pod_name
            for container in containers_of(pod):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, pod_name
                assert container["resources"]["limits"]["memory"], pod_name


def test_menu_of_the_dashboard_leads_to_parts_that_are_there(built):
    objects = built["kubeflow-monitoring"][1]
    links = named(objects, "ConfigMap", "centraldashboard-config")["data"]["links"]
    paths = [path for path in re.findall(r'"link": *"([^"]+)"', links) if path.startswith("/")]
    assert paths
    assert not [path for path in paths for gone in GONE_PAGES if path.startswith(gone)]
    rows = [o["spec"]["http"] for o in objects if o["kind"] == "VirtualService"]
    if rows:  # the real source
        prefixes = [m["uri"]["prefix"] for http in rows for row in http for m in row["match"]]
        served = tuple(prefix for prefix in prefixes if prefix != "/")
        assert [path for path in paths if not path.startswith(served)] == []


def test_each_secret_that_a_pod_reads_has_the_key_with_a_value(built):
    for name, (_, objects) in built.items():
        secrets = {
            (o["metadata"].get("namespace"), o["metadata"]["name"]): o.get("data") or {}
            for o in objects
            if o["kind"] == "Secret"
        }
        seen = 0
        for space in OURS:
            for pod_name, pod in pods_of(objects, space):
                sources = {v["name"]: v["secret"] for v in pod.get("volumes", []) if "secret" in v}
                for container in containers_of(pod):
                    mounts = {
                        m["mountPath"]: sources[m["name"]]["secretName"]
                        for m in container.get("volumeMounts", [])
                        if m["name"] in sources
                    }
                    wanted = {
                        (mounts[folder], file)
                        for row in container.get("env", [])
                        for folder, _, file in [row.get("value", "").rpartition("/")]
                        if folder in mounts
                    }
                    for row in container.get("env", []):
                        reference = row.get("valueFrom", {}).get("secretKeyRef")
                        wanted |= {(reference["name"], reference["key"])} if reference else set()
                    for secret, key in wanted:
                        assert secrets[space, secret][key], f"{name}: {pod_name}: {secret}/{key}"
                    seen += len(wanted)
        assert seen >= (10 if name.endswith("-monitoring") else 2), name


def test_each_secret_that_the_submitter_reads_is_in_its_stack():
    service = yaml.safe_load((ROOT / "env/submitter/stack.yaml").read_text())["services"][
        "submitter"
    ]
    named_files = re.findall(r"/run/secrets/([\w-]+)", json.dumps(service["environment"]))
    assert named_files
    assert set(named_files) <= set(service["secrets"])


def test_pipelines_get_the_token_whose_hash_the_forwarder_knows(built, made):
    token = manifests._read(made[0] / "secrets" / "platform.env")["FORWARDER_TOKEN"]
    for name, (_, objects) in built.items():
        data = named(objects, "Secret", "kit-pipeline")["data"]
        assert base64.b64decode(data["forwarder-token"]).decode() == token, name
    image = (ROOT / "env/images/pipeline/Dockerfile").read_text()
    mounted = set(re.findall(r"/run/secrets/kit/([\w.-]+)", image))
    assert mounted <= set(data), "each file that the image names is a key of the Secret"


GONE = ("gcr.io/kubebuilder/kube-rbac-proxy", ": minio/minio:", "gcr.io/ml-pipeline/")
GONE_PAGES = ("/jupyter", "/tensorboards", "/volumes", "/katib")


def test_no_image_is_used_that_its_registry_deleted(built):
    for name, (text, objects) in built.items():
        assert [image for image in GONE if image in text] == [], name
        if "standalone-kfp-kserve" in name or name.startswith("kubeflow"):
            pod = named(objects, "Deployment", "kserve-controller-manager")
            rows = pod["spec"]["template"]["spec"]["containers"]
            (proxy,) = [row for row in rows if row["name"] == "kube-rbac-proxy"]
            assert not any("logtostderr" in word for word in proxy["args"])


def settings_of(text):
    """The forwarder's settings and its pods' volume of profiles, in a built environment."""
    objects = [each for each in yaml.safe_load_all(text) if each]
    pod = named(objects, "Deployment", "forwarder-worker")["spec"]["template"]["spec"]
    (name,) = [v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "sites"]
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    return named(objects, "ConfigMap", "forwarder-settings"), maps.get(name)


def test_the_forwarders_profile_is_chosen_at_build_time(made, tmp_path):
    folder, commit = made
    name = "standalone-kfp-monitoring"
    one = manifests.build(name, folder, commit)
    two = manifests.build(name, folder, commit, profile="lumi")
    first, second = settings_of(one)[0], settings_of(two)[0]
    assert (first["data"], second["data"]) == ({"KIT_PROFILE": "roihu"}, {"KIT_PROFILE": "lumi"})
    assert first["metadata"]["name"] != second["metadata"]["name"], "else no pod starts again"
    names = (first["metadata"]["name"], second["metadata"]["name"])
    pairs = zip(one.splitlines(), two.splitlines(), strict=True)
    changed = {pair for pair in pairs if pair[0] != pair[1]}
    assert {one.replace(names[0], names[1]).replace("roihu", "lumi") for one, _ in changed} == {
        two for _, two in changed
    }


def test_profile_of_ones_own_travels_with_the_manifests(made, tmp_path):
    """The images have the kit's profiles only."""
    folder, commit = made
    site = tmp_path / "ours.toml"
    site.write_text('[site]\nname = "ours"\n')
    base = tmp_path / "theirs.toml"
    base.write_text('[site]\nname = "theirs"\n')
    sites = [site, base]
    text = manifests.build("kubeflow-monitoring", folder, commit, profile="ours", sites=sites)
    settings, sites = settings_of(text)
    assert settings["data"] == {"KIT_PROFILE": "ours", "KIT_SITES_DIR": manifests.SITES_FOLDER}
    assert sites == {"ours.toml": site.read_text(), "theirs.toml": base.read_text()}
    _, sites = settings_of(manifests.build("kubeflow-monitoring", folder, commit))
    assert sites is None


def test_changed_secrets_start_the_forwarder_again(made, tmp_path):
    """Its pods read them once; the Secret's name does not change."""
    folder, commit = made
    place = tmp_path / "platform"
    shutil.copytree(folder, place, symlinks=True)
    before = manifests.build("standalone-kfp-monitoring", place, commit)
    new_token(place / "secrets" / "people", "bea")
    after = manifests.build("standalone-kfp-monitoring", place, commit)

    def marks(text):
        return set(re.findall(r"kit/secrets: \"?(\w+)", text))

    assert len(marks(before) | marks(after)) == 2


def test_bare_clone_builds_with_placeholders_and_else_names_the_step(made, tmp_path):
    folder, commit = made
    place = tmp_path / "platform"
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns(*manifests.FILES), symlinks=True)
    for name in manifests.ENVIRONMENTS:
        with pytest.raises(UsageError) as caught:
            manifests.build(name, place, commit)
        assert caught.value.next_step == "run `kit platform secrets`"
        text = manifests.build(name, place, commit, placeholders=True)
        assert manifests.PLACEHOLDER_BASE64 in text
    assert not [name for name in manifests.FILES if (place / "secrets" / name).exists()]


def test_lost_password_file_gives_pipelines_a_token_that_is_known(tmp_path):
    manifests.write_secrets(tmp_path, LOGIN, "anna")
    (tmp_path / "platform.env").unlink()
    manifests.write_secrets(tmp_path, LOGIN, "anna")
    assert len((tmp_path / "people").read_text().splitlines()) == 2
    (tmp_path / "people").write_text(f"bea {'0' * 64}\n")
    with pytest.raises(UsageError, match="no hash of FORWARDER_TOKEN"):
        manifests.check_secrets(tmp_path)


def test_mlflow_sees_its_database_before_it_is_named(built):
    objects = built["standalone-kfp"][1]
    env = named(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["env"]
    names = [each["name"] for each in env]
    assert names.index("BACKEND_STORE_URI") < names.index("MLFLOW_BACKEND_STORE_URI")


@pytest.mark.slow
def test_every_manifest_of_ours_is_valid(built, tmp_path):
    python = tools("kubernetes-validate==1.37.0")
    ours = ("forwarder", "forwarder-imports", "monitoring", "mlflow")
    chosen = [
        o
        for o in built["kubeflow-monitoring"][1]
        if o["metadata"].get("namespace") in ours and o["kind"] != "VirtualService"
    ]
    assert len(chosen) > 25
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump_all(chosen))
    argv = [str(python.parent / "kubernetes-validate"), "--strict", str(tmp_path / "ours.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    chosen[0]["spoilt"] = 1
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump_all(chosen))
    assert subprocess.run(argv, capture_output=True).returncode == 1


# Secrets


def test_secrets_are_private_kept_and_never_the_same_twice(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in manifests.write_secrets(one, LOGIN, "anna"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    manifests.write_secrets(two, LOGIN, "anna")
    first, second = (manifests._read(each / "platform.env") for each in (one, two))
    assert [key for key in manifests.PASSWORDS if first[key] == second[key]] == []
    assert len({first[key] for key in manifests.PASSWORDS}) == len(manifests.PASSWORDS)
    manifests.write_secrets(one, LOGIN, "anna")
    assert manifests._read(one / "platform.env") == first
    assert first["DEX_USER_HASH"].startswith("$2b$12$")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (r"(GRAFANA_PASSWORD)=.*", r"\1=admin", "GRAFANA_PASSWORD is not a password"),
        (r"(KFP_MINIO_PASSWORD)=.*", r"\1=minio123", "KFP_MINIO_PASSWORD is not a password"),
        (r"(MLFLOW_DB_PASSWORD)=.*", rf"\1={manifests.PUBLISHED[0]}", "it is published"),
        (r"(MLFLOW_MINIO_USER)=.*", r"\1=minioadmin", "a default"),
        (r"REDIS_PASSWORD=.*\n", "", "REDIS_PASSWORD is missing"),
        (r"(REDIS_PASSWORD=.*)", r"\g<1>a", "REDIS_URL does not match"),
    ],
)
def test_a_weak_or_missing_password_is_refused_by_name(tmp_path, old, new, words):
    manifests.write_secrets(tmp_path, LOGIN, "anna")
    path = tmp_path / "platform.env"
    path.write_text(re.sub(old, new, path.read_text()))
    with pytest.raises(UsageError, match=words):
        manifests.check_secrets(tmp_path)


def test_secrets_that_are_missing_open_to_others_or_in_git_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"platform\.env is missing"):
        manifests.check_secrets(tmp_path)
    manifests.write_secrets(tmp_path, LOGIN, "anna")
    (tmp_path / "people").chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        manifests.check_secrets(tmp_path)
    (tmp_path / "people").chmod(0o600)
    for words in (["init", "-q"], ["add", "store.env"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    with pytest.raises(UsageError, match=r"store\.env has secrets and is tracked by git"):
        manifests.check_secrets(tmp_path)


def test_git_ignores_the_secrets_and_the_source():
    names = [f"env/platform/secrets/{name}" for name in manifests.FILES] + ["env/platform/upstream"]
    argv = ["git", "-C", str(manifests.ROOT), "check-ignore", *names]
    said = subprocess.run(argv, capture_output=True, text=True).stdout.split()
    assert said == names


# The source and kubectl


def test_a_source_that_is_missing_or_at_another_commit_is_named(tmp_path, made):
    with pytest.raises(UsageError, match="make platform-source"):
        manifests.check_source(tmp_path)
    (tmp_path / "deployment").mkdir()
    with pytest.raises(UsageError, match="commit is not known"):
        manifests.check_source(tmp_path)
    folder, commit = made
    with pytest.raises(UsageError, match=f"it is at {commit[:12]}") as caught:
        manifests.check_source(folder / "upstream")
    assert f"checkout {manifests.COMMIT}" in caught.value.next_step


def test_a_moved_file_and_a_changed_one_are_named(tmp_path):
    commit = upstream_skeleton.make(tmp_path / "up")
    changed = tmp_path / "up/deployment/mlflow/env/local/all.yaml"
    text = changed.read_text()
    changed.write_text(text + "#")
    with pytest.raises(UsageError, match=r"mlflow/env/local/all\.yaml"):
        manifests.check_source(tmp_path / "up", commit)
    changed.write_text(text)
    git = ["git", "-C", str(tmp_path / "up"), "-c", "user.name=t", "-c", "user.email=t@t.org"]
    subprocess.run([*git, "mv", "deployment/monitoring/grafana", "deployment/moved"], check=True)
    subprocess.run([*git, "commit", "-qam", "move"], check=True)
    said = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    with pytest.raises(DataError, match="no deployment/monitoring/grafana") as caught:
        manifests.check_source(tmp_path / "up", said.stdout.strip())
    assert "grafana/kustomization.yaml refers to it" in caught.value.got


def test_kit_platform_source_is_linked_and_not_over_something_else(tmp_path, monkeypatch):
    commit = upstream_skeleton.make(tmp_path / "theirs")
    monkeypatch.setattr(manifests.check_source, "__defaults__", (commit, manifests.FOLDER))
    ours = tmp_path / "platform"
    ours.mkdir()
    assert manifests.get_source(str(tmp_path / "theirs"), ours).is_symlink()
    assert manifests.get_source(str(tmp_path / "theirs"), ours).resolve() == tmp_path / "theirs"
    (ours / "upstream").unlink()
    (ours / "upstream").mkdir()
    with pytest.raises(UsageError, match="is not KIT_PLATFORM_SOURCE"):
        manifests.get_source(str(tmp_path / "theirs"), ours)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('{"clientVersion": {"gitVersion": "v1.20.2"}}', r"older than 1\.21"),
        ("Client Version: v1.32", "ask kubectl for its version"),
        (None, "kubectl is not installed"),
    ],
)
def test_an_old_or_missing_kubectl_is_reported(tmp_path, monkeypatch, said, words):
    if said is not None:
        path = tmp_path / "kubectl"
        path.write_text(f"#!/bin/sh\ncat <<'E'\n{said}\nE\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}" + (f":{os.environ['PATH']}" if said else ""))
    with pytest.raises(UsageError, match=words):
        manifests.check_kubectl()


def test_what_kustomize_says_reaches_the_person(made, tmp_path):
    folder, _ = made
    place = tmp_path / "platform"
    shutil.copytree(folder, place, symlinks=True)
    broken = place / "mlflow" / "kustomization.yaml"
    broken.write_text(broken.read_text().replace("behavior: replace", "behaviour: replace"))
    commit = manifests._git(place / "upstream", "rev-parse", "HEAD").strip()
    with pytest.raises(CommandFailed, match="behaviour"):
        manifests.build("standalone-kfp", place, commit)
    with pytest.raises(UsageError, match="use one of: kubeflow"):
        manifests.build("katib", Path(place), commit)


@pytest.mark.sandbox
def test_prometheus_takes_the_configuration(sandbox, tmp_path):
    """Debian's build knows no clusters: what finds the targets is put aside for its checker."""
    text = (manifests.FOLDER / "monitoring" / "prometheus.yml").read_text()
    config = json.loads(json.dumps(yaml.safe_load(text)))
    (tmp_path / "token").write_text("x")
    for job in config["scrape_configs"]:
        job.pop("tls_config", None)
        if "kubernetes_sd_configs" in job:
            del job["kubernetes_sd_configs"]
            job["static_configs"] = [{"targets": ["x:1"]}]
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(tmp_path / "token")
    (tmp_path / "p.yml").write_text(yaml.safe_dump(config))
    argv = ["promtool", "check", "config", tmp_path / "p.yml"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
