"""A stand-in for kubectl with a cluster behind it, made by hand: no pod runs anywhere.

It refuses what an API server refuses: a kind that is not served yet, a namespace that nobody made,
an object whose webhook does not answer yet. Pods of namespaces with injection that come before
Istio's injector have no sidecar. A deployment is ready two calls after it was applied.
As a program it keeps its state in the file that STAND_IN_CLUSTER names.
"""

import json
import os
import pickle
import sys
from pathlib import Path

import yaml

from kit.base.host import Output, as_completed

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OWN_GROUPS = ("", "apps", "batch", "rbac.authorization.k8s.io", "networking.k8s.io", "policy")
OWN_GROUPS += ("apiextensions.k8s.io", "admissionregistration.k8s.io", "autoscaling")
OWN_GROUPS += ("scheduling.k8s.io", "discovery.k8s.io")

# A platform in little: definitions, a webhook, Istio, a person's namespace.
OBJECTS = 13
SMALL = """\
apiVersion: v1
kind: Namespace
metadata:
  name: cert-manager
---
apiVersion: v1
kind: Namespace
metadata:
  name: istio-system
---
apiVersion: v1
kind: Namespace
metadata:
  labels:
    istio-injection: enabled
  name: kubeflow
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: issuers.cert-manager.io
spec:
  group: cert-manager.io
  names:
    kind: Issuer
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: profiles.kubeflow.org
spec:
  group: kubeflow.org
  names:
    kind: Profile
---
apiVersion: v1
kind: Secret
metadata:
  name: kit-pipeline
  namespace: anna
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: cert-manager-webhook
  namespace: cert-manager
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: istiod
  namespace: istio-system
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: profiles
  namespace: kubeflow
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata:
  name: own
  namespace: kubeflow
---
apiVersion: kubeflow.org/v1
kind: Profile
metadata:
  name: anna
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: cert-manager-webhook
webhooks:
- clientConfig:
    service:
      name: cert-manager-webhook
      namespace: cert-manager
  failurePolicy: Fail
  name: webhook.cert-manager.io
  rules:
  - apiGroups: [cert-manager.io]
    resources: ["*/*"]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata:
  name: istio-sidecar-injector
webhooks:
- clientConfig:
    service:
      name: istiod
      namespace: istio-system
      path: /inject
  failurePolicy: Fail
  name: namespace.sidecar-injector.istio.io
  rules: []
"""


class Cluster:
    """Its objects by (group, kind, namespace, name), and the call at which each was applied."""

    name = "vm"

    def __init__(self):
        self.objects, self.since, self.calls = {}, {}, []
        self.served, self.bare = set(), []
        self.spaces = {"default", "kube-system"}

    def run(self, argv, input=b"", timeout=60, check=True, repeat=False):
        """As a host: run kubectl."""
        code, out, err = self.kubectl(argv[1:], input.decode())
        return as_completed(argv, Output(code, out.encode(), err.encode(), 0.0), check)

    def kubectl(self, words, text):
        self.calls.append(words)
        for group, kind, _, name in list(self.objects):
            if kind == "Profile" and self.age(group, kind, "", name) > 0:
                self.spaces.add(name)
        if words[0] == "apply":
            errors = [self.put(each) for each in yaml.load_all(text, LOADER) if each]
            found = "\n".join(error for error in errors if error)
            return bool(found), "", found
        if words[0] == "wait":
            return self.wait(words)
        return 0, json.dumps({"items": self.items(words)}), ""

    def age(self, *key):
        return len(self.calls) - self.since[key]

    def ready(self, space):
        rows = [key for key in self.objects if key[1:3] == ("Deployment", space)]
        return bool(rows) and all(self.age(*key) >= 2 for key in rows)

    def put(self, each):
        group, kind = each["apiVersion"].rpartition("/")[0], each["kind"]
        name, space = each["metadata"]["name"], each["metadata"].get("namespace", "")
        if group not in OWN_GROUPS and (group, kind) not in self.served:
            return f'error: resource mapping not found for "{name}": no matches for kind "{kind}"'
        if space and space not in self.spaces:
            return f'Error from server (NotFound): namespaces "{space}" not found'
        for webhook in self.webhooks(group, kind):
            return f'Error from server (InternalError): failed calling webhook "{webhook}"'
        if kind == "Namespace":
            self.spaces.add(name)
        if kind == "CustomResourceDefinition" and (group, kind, "", name) in self.objects:
            self.served.add((each["spec"]["group"], each["spec"]["names"]["kind"]))
        key = (group, kind, space, name)
        is_new = kind == "Deployment" and key not in self.objects
        if is_new and self.injected(space) and not (self.ready("istio-system") and self.injector()):
            self.bare.append((space, name))
        self.objects[key] = each
        self.since.setdefault(key, len(self.calls))
        return None

    def webhooks(self, group, kind):
        """The webhooks that judge a kind, fail closed, and have no ready pod behind them."""
        for (_, its_kind, _, _), each in self.objects.items():
            for row in each["webhooks"] if its_kind.endswith("WebhookConfiguration") else ():
                judged = [
                    rule
                    for rule in row.get("rules", [])
                    if group in rule["apiGroups"]
                    and {part.split("/")[0] for part in rule["resources"]}
                    & {"*", f"{kind.lower()}s"}
                ]
                place = row["clientConfig"]["service"]["namespace"]
                if judged and row.get("failurePolicy") == "Fail" and not self.ready(place):
                    yield row["name"]

    def injected(self, space):
        found = self.objects.get(("", "Namespace", "", space), {"metadata": {}})
        return (found["metadata"].get("labels") or {}).get("istio-injection") == "enabled"

    def injector(self):
        return any(key[3] == "istio-sidecar-injector" for key in self.objects)

    def wait(self, words):
        if "crd" in words:
            for (_, kind, _, _), each in self.objects.items():
                if kind == "CustomResourceDefinition":
                    self.served.add((each["spec"]["group"], each["spec"]["names"]["kind"]))
            return 0, "", ""
        space = words[words.index("-n") + 1]
        rows = [key for key in self.objects if key[1:3] == ("Deployment", space)]
        for key in rows:
            self.since[key] -= 2
        return (0, "", "") if rows else (1, "", "error: no matching resources found")

    def items(self, words):
        if "namespaces" in words:
            return [
                {"metadata": {"name": name}} for name in sorted(self.spaces) if self.injected(name)
            ]
        space = words[words.index("--namespace") + 1]
        return [
            {
                "metadata": {"name": name},
                "spec": {
                    "containers": [{"name": "main"}]
                    + [{"name": "istio-proxy"}] * ((space, name) not in self.bare)
                },
            }
            for _, kind, where, name in self.objects
            if kind == "Deployment" and where == space
        ]


if __name__ == "__main__":
    from stand_in_cluster import Cluster  # so that pickle finds it

    path = Path(os.environ["STAND_IN_CLUSTER"])
    cluster = pickle.loads(path.read_bytes()) if path.exists() else Cluster()
    code, out, err = cluster.kubectl(
        sys.argv[1:], "" if "apply" not in sys.argv else sys.stdin.read()
    )
    path.write_bytes(pickle.dumps(cluster))
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(code)
