"""`kit platform apply`: the manifests of an environment, sent to the cluster in stages.

In one stream a custom resource comes before its definition is served, an object before the webhook
that judges it answers, and a pod of Kubeflow before Istio can give it its sidecar. A stage is sent
again until the cluster accepts it, so the command may be stopped and repeated at any time.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from kit.base import CommandFailed, Host, UsageError
from kit.deploy.manifests import PLACEHOLDER_BASE64

APPLY = ["kubectl", "apply", "--server-side", "--force-conflicts", "--filename", "-"]
ACCEPT_TIMEOUT_S, RETRY_PAUSE_S, CALL_TIMEOUT_S = 600.0, 5.0, 300.0
# What the API server answers while a part that was sent before is still starting.
STARTING = re.compile(
    r"no matches for kind|failed calling webhook|namespaces \"[^\"]+\" not found|InternalError"
    r"|connection refused|was refused|i/o timeout|TLS handshake timeout|object has been modified"
)
NAMESPACES, CERT_MANAGER, CERTIFICATES, ISTIO, ROUTES, SERVICES, RESOURCES, PEOPLE = STAGES = (
    "namespaces, definitions and rights",
    "cert-manager",
    "certificates",
    "Istio",
    "Istio's rules",
    "services",
    "custom resources",
    "the people's namespaces",
)
WAITS = {
    NAMESPACES: ["--for=condition=Established", "crd", "--all"],
    CERT_MANAGER: ["--for=condition=Available", "deployment", "--all", "-n", "cert-manager"],
    ISTIO: ["--for=condition=Available", "deployment/istiod", "-n", "istio-system"],
}
FIRST = (
    *("Namespace", "CustomResourceDefinition", "PriorityClass"),
    *("ClusterRole", "ClusterRoleBinding"),
)
BUILT_IN_NAMESPACES = ("", "default", "kube-system")


@dataclass(frozen=True)
class Manifest:
    """One object of the stream that kustomize prints: its text, and what decides its stage."""

    text: str
    group: str
    kind: str
    name: str
    namespace: str

    @property
    def served_from(self) -> str:
        """The namespace of its service, for a webhook configuration."""
        match = re.search(r"^    service:\n(?:      .*\n)*?      namespace: (\S+)", self.text, re.M)
        return match[1] if match and self.kind.endswith("WebhookConfiguration") else ""


def parse_manifests(text: str) -> list[Manifest]:
    """Split what kustomize prints (keys in order, two blanks a level) into objects."""
    return [_manifest(part) for part in re.split(r"^---\n", text, flags=re.M) if part.strip()]


def _manifest(text: str) -> Manifest:
    block = re.search(r"^metadata:\n((?:  .*\n?)+)", text, re.M)

    def field(pattern: str, where: str) -> str:
        """Return a value without quotes, or an empty text."""
        match = re.search(pattern, where, re.M)
        return match[1].strip("\"'") if match else ""

    metadata = block[1] if block else ""
    return Manifest(
        text,
        field(r"^apiVersion: (\S+)/", text),
        field(r"^kind: (\S+)", text),
        field(r"^  name: (\S+)", metadata),
        field(r"^  namespace: (\S+)", metadata),
    )


def stages(manifests: list[Manifest]) -> dict[str, list[Manifest]]:
    """Sort objects into stages, in each of which their order stays."""
    defined = {
        (group[1], kind[1])
        for row in manifests
        if row.kind == "CustomResourceDefinition"
        and (group := re.search(r"^  group: (\S+)", row.text, re.M))
        and (kind := re.search(r"^  names:\n(?:    .*\n)*?    kind: (\S+)", row.text, re.M))
    }
    made = {row.name for row in manifests if row.kind == "Namespace"}
    sorted_rows: dict[str, list[Manifest]] = {name: [] for name in STAGES}
    for row in manifests:
        sorted_rows[_stage(row, (row.group, row.kind) in defined, made)].append(row)
    return {name: rows for name, rows in sorted_rows.items() if rows}


def _stage(row: Manifest, custom: bool, made: set[str]) -> str:
    if row.namespace not in (*BUILT_IN_NAMESPACES, *made):
        return PEOPLE  # the Profile controller makes it
    if custom:
        issued = row.group.endswith("cert-manager.io")
        routed = row.group.endswith("istio.io")
        return CERTIFICATES if issued else ROUTES if routed else RESOURCES
    if row.kind in FIRST or row.namespace == "kube-system":
        return NAMESPACES
    where = row.served_from or row.namespace
    return {"cert-manager": CERT_MANAGER, "istio-system": ISTIO}.get(where, SERVICES)


def apply(
    host: Host,
    text: str,
    report: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Send manifests to the cluster that kubectl on `host` reaches, stage by stage.

    Raises UsageError for manifests with placeholders, CommandFailed with what the API server
    answers if it does not accept a stage in time.
    """
    if PLACEHOLDER_BASE64 in text:
        step = "run `kit platform secrets`, then build without --placeholders"
        raise UsageError("apply the manifests", "they have placeholders for passwords", step)
    for name, rows in stages(parse_manifests(text)).items():
        report(f"{name}: {len(rows)} objects")
        content = "---\n".join(row.text for row in rows).encode()
        _until_accepted(host, content, report, clock, sleep)
        if name in WAITS:
            timeout = f"--timeout={CALL_TIMEOUT_S:.0f}s"
            host.run(["kubectl", "wait", *WAITS[name], timeout], timeout=CALL_TIMEOUT_S + 30)


def _until_accepted(
    host: Host,
    content: bytes,
    report: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    end, reported = clock() + ACCEPT_TIMEOUT_S, ""
    while (done := host.run(APPLY, content, timeout=CALL_TIMEOUT_S, check=False)).code:
        reason = (done.err.strip().splitlines() or ["no answer"])[-1][-300:]
        if not STARTING.search(done.err) or clock() > end:
            step = "look at the pods it names: `kit doctor`; then run the command again"
            raise CommandFailed(APPLY, done.code, "", done.err, step)
        if reason != reported:
            report(f"  not accepted yet: {reason}")
        reported = reason
        sleep(RETRY_PAUSE_S)


def without_sidecar(host: Host) -> list[str]:
    """List the pods that Istio was to give a sidecar and that have none.

    They were started before the injector; the rules of Istio let nobody reach them.
    """
    get = ["kubectl", "get", "--output", "json"]
    spaces = json.loads(host.run([*get, "namespaces", "-l", "istio-injection=enabled"]).out)
    pods: list[str] = []
    for space in (item["metadata"]["name"] for item in spaces["items"]):
        for pod in json.loads(host.run([*get, "pods", "--namespace", space]).out)["items"]:
            about, spec = pod["metadata"], pod["spec"]
            marks = {**about.get("annotations", {}), **about.get("labels", {})}
            barred = marks.get("sidecar.istio.io/inject") == "false" or spec.get("hostNetwork")
            rows = [*spec["containers"], *spec.get("initContainers", [])]
            if not barred and not any(row["name"] == "istio-proxy" for row in rows):
                pods.append(f"{space}/{about['name']}")
    return pods
