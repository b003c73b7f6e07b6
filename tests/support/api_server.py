"""A stub of the Kubernetes API server, for tests: it is none, and no cluster is behind it.

It keeps Services and EndpointSlices of one namespace in memory and lets a caller do what the Role
in `env/platform/forwarder/access.yaml` allows, answering 403 for all else as the real one does.
"""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

ACCESS = Path(__file__).parents[2] / "env" / "platform" / "forwarder" / "access.yaml"
GROUPS = {"/api/v1": "", "/apis/discovery.k8s.io/v1": "discovery.k8s.io"}
PATH = re.compile(
    r"(?P<group>/api/v1|/apis/discovery\.k8s\.io/v1)/namespaces/(?P<space>[^/]+)"
    r"/(?P<kind>services|endpointslices)(?:/(?P<name>[^/]+))?"
)
TOKEN = "the-pods-token"


def allowed():
    """What the Role grants: {(namespace, group, resource): verbs}."""
    (role,) = [each for each in yaml.safe_load_all(ACCESS.read_text()) if each["kind"] == "Role"]
    space = role["metadata"]["namespace"]
    return {
        (space, group, kind): rule["verbs"]
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for kind in rule["resources"]
    }


class ApiServer:
    """What the stub holds and was asked: `objects[kind][name]`, `calls` as (verb, kind, name)."""

    def __init__(self):
        self.objects = {"services": {}, "endpointslices": {}}
        self.calls, self.refuses = [], {}  # {(verb, name): HTTP status}
        self.rights = allowed()

    def answer(self, method, path, query, body, bearer):
        match = PATH.fullmatch(path)
        if bearer != f"Bearer {TOKEN}":
            return 401, status(401, "Unauthorized")
        if match is None:
            return 403, status(403, "Forbidden")
        kind, name = match["kind"], match["name"] or (body or {}).get("metadata", {}).get("name")
        verb = {
            "GET": "get" if match["name"] else "list",
            "PATCH": "patch",
            "DELETE": "delete",
        }[method]
        self.calls.append((verb, kind, name))
        if verb not in self.rights.get((match["space"], GROUPS[match["group"]], kind), ()):
            return 403, status(403, "Forbidden")
        if code := self.refuses.get((verb, name)):
            return code, status(code, "Refused")
        return getattr(self, f"_{verb}")(kind, name, query, body)

    def _list(self, kind, name, query, body):
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        items = [
            each
            for each in self.objects[kind].values()
            if wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        return 200, {"kind": "List", "items": items}

    def _patch(self, kind, name, query, body):
        """Server-side apply, which creates what is not there."""
        if query.get("fieldManager") is None or query.get("force") is None:
            return 400, status(400, "Bad Request")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
            return 422, status(422, "Unprocessable Entity")
        more = {"spec": {"clusterIP": "10.96.0.9"}} if "spec" in body else {}
        old = self.objects[kind].get(name, more)
        self.objects[kind][name] = merged(old, body)
        return 200, self.objects[kind][name]

    def _delete(self, kind, name, query, body):
        if self.objects[kind].pop(name, None) is None:
            return 404, status(404, "Not Found")
        return 200, status(200, "Success")


def merged(old, new):
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


def status(code, reason):
    return {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": reason}


@contextmanager
def serving(server):
    """The stub at a free port of loopback: gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self):
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            length = int(self.headers.get("Content-Length", 0))
            text = self.rfile.read(length)
            if self.command == "PATCH":
                assert self.headers["Content-Type"] == "application/apply-patch+yaml"
            body = json.loads(text) if text else None
            bearer = self.headers.get("Authorization")
            code, content = server.answer(self.command, parts.path, query, body, bearer)
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_DELETE = _do

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
