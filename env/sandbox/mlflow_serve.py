"""MLflow's own server in one process, behind a user name and a password.

    mlflow_serve.py ADDRESS PORT BACKEND_URI ARTIFACTS_URI [COMMAND WORD…]

The credential is MLFLOW_USER and MLFLOW_PASSWORD; /health is open. The command waits for the
object store and prints its variables, a NAME=VALUE a line: imports and database, which take
seconds, do not wait for it. `mlflow server` (3.17.2) would keep a second process of 260 MB, whose
worker survives it when it is killed, and its own basic authentication hashes a password at every
request: a run takes 1.2 s instead of 0.05 s.
"""

import base64
import hmac
import os
import subprocess
import sys
from pathlib import Path

import uvicorn


def set_up(backend: str, artifacts: str) -> None:
    """Set the variables that `mlflow server` would, before mlflow.server is imported."""
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": backend,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts,
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


class NoSuchStore:
    """No artifact store is one of these, so none is announced to take direct transfers."""


class PasswordWall:
    """An ASGI application that lets a request through to `inner` when it has the credential."""

    def __init__(self, inner, user: str, password: str):
        self.inner = inner
        self.wanted = b"Basic " + base64.b64encode(f"{user}:{password}".encode())

    async def __call__(self, scope, receive, send):
        """Answer one connection (the ASGI interface)."""
        if scope["type"] == "lifespan" or scope["path"] == "/health":
            return await self.inner(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self.wanted):
            return await self.inner(scope, receive, send)
        headers = [(b"www-authenticate", b'Basic realm="mlflow"'), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"a user name and a password, please\n"})


def variables(command: list[str]) -> dict[str, str]:
    """Return the variables that a command prints; end with its exit code if that is not 0."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def main() -> None:
    """Serve until TERM."""
    address, port, backend, artifacts, *store = sys.argv[1:]
    set_up(backend, artifacts)
    from mlflow.server import handlers
    from mlflow.server.fastapi_app import app

    sys.path.append(str(Path(__file__).parents[1] / "images" / "mlflow"))
    from mlflow_own_store import refuse_other_locations

    refuse_other_locations()
    # Otherwise clients are sent to the object store itself, whose CA they do not know.
    handlers.MultipartUploadMixin = handlers.MultipartDownloadMixin = NoSuchStore
    handlers.initialize_backend_stores(backend, backend, "mlflow-artifacts:/")
    if store:
        os.environ |= variables(store)
    wall = PasswordWall(app, os.environ.pop("MLFLOW_USER"), os.environ.pop("MLFLOW_PASSWORD"))
    uvicorn.run(wall, host=address, port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
