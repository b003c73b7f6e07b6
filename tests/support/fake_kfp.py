"""A Kubeflow Pipelines API for tests: small, in memory, refuses what it does not know."""

import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUN = {"run_id": "r-1", "display_name": "cloud-0-1", "created_at": "2026-01-01T00:00:00Z"}
EXPERIMENT = {"experiment_id": "e-1", "display_name": "cloud-fmnist"}


class FakeKfp:
    """`answers` are the states that the run shows one after the other; an int is an HTTP error."""

    def __init__(self, answers: list[Any], going_on: bool = False, cookie: str = "") -> None:
        self.answers, self.cookie, self.health = answers, cookie, 200
        self.runs = [{**RUN, "state": "RUNNING"}] if going_on else []
        self.submitted: list[dict[str, Any]] = []
        self.filters: list[Any] = []

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON for a call of the client."""
        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        path = parts.path.removeprefix("/apis/v2beta1/")
        if (method, path) == ("GET", "healthz"):
            return self.health, {"multi_user": False}
        if (method, path) == ("GET", "experiments"):
            return 200, {"experiments": [EXPERIMENT]}
        if (method, path) == ("GET", "runs"):
            self.filters.append(json.loads(query["filter"]))
            return 200, {"runs": self.runs}
        if (method, path) == ("POST", "runs"):
            self.submitted.append(body)
            return 200, {**RUN, "state": "PENDING"}
        if method == "GET" and re.fullmatch(r"runs/r-1", path):
            now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            return (now, {"error": "broken"}) if isinstance(now, int) else (200, {**RUN, **now})
        return 404, {"error": f"the fake does not know {method} {path}"}


@contextmanager
def serving(fake: FakeKfp) -> Iterator[str]:
    """Serve the fake on a loopback port; give its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null")
            if fake.cookie and self.headers.get("Cookie") != fake.cookie:
                status, content = 401, {"error": "log in first"}
            else:
                status, content = fake.answer(self.command, self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:  # also after an exception: a thread on a closed socket spins for ever
            server.shutdown()


def task(name: str, state: str, start: str = "", end: str = "", error: str = "") -> dict[str, Any]:
    """One component in a run's answer."""
    found = {"display_name": name, "state": state}
    found |= {"start_time": start} if start else {}
    found |= {"end_time": end} if end else {}
    return found | ({"error": {"message": error}} if error else {})


def run(state: str, *tasks: dict[str, Any]) -> dict[str, Any]:
    """A run's answer."""
    return {"state": state, "run_details": {"task_details": list(tasks)}}
