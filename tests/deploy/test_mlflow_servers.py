"""The MLflow servers of the sandbox and of the platform keep artifacts in their own store only."""

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mlflow_own_store import is_own
from private_sshd import free_port

from kit.base import ROOT

DOCKERFILE = (ROOT / "env" / "images" / "mlflow" / "Dockerfile").read_text()
LOGIN = {"MLFLOW_USER": "kit", "MLFLOW_PASSWORD": "secret-of-the-test"}
# {0} is a folder of this machine.
OTHERS = [
    "file://{0}",
    "FILE://{0}",
    "file:{0}",
    "{0}",
    "~/artifacts",
    "s3://another-bucket/x",
    "S3://mlflow/artifacts",
    "mlflow-artifacts://other.example/x",
    "mlflow-artifacts:/../{0}",
    "mlflow-artifacts:/a/%2e%2e/b",
    "http://127.0.0.1/x",
]


@pytest.mark.parametrize("location", ["", "/", "mlflow-artifacts:x", *OTHERS])
def test_location_outside_the_own_store_is_recognised(location):
    assert not is_own(location.format("/var/x"))


@pytest.mark.parametrize("location", ["mlflow-artifacts:/", "mlflow-artifacts:/kit/my runs-1.0"])
def test_location_in_the_own_store_is_recognised(location):
    assert is_own(location)


class Server:
    """An MLflow server of the test's own, asked by plain HTTP requests."""

    def __init__(self, kind: str, folder: Path):
        self.port, self.folder = free_port(), folder
        database, store = f"sqlite:///{folder}/mlflow.db", str(folder / "store")
        address, port = "127.0.0.1", str(self.port)
        environ = os.environ | {"MLFLOW_WORKERS": "1"}
        script = ROOT / "env" / "sandbox" / "mlflow_serve.py"
        if kind == "sandbox":
            argv, environ = (
                [sys.executable, str(script), address, port, database, store],
                environ | LOGIN,
            )
        else:  # what the image's Dockerfile starts, with the packages where it copies them
            program, *words = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])
            argv = [str(Path(sys.executable).with_name(program)), *words]
            environ |= {"MLFLOW_HOST": address, "MLFLOW_PORT": port}
            environ |= {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_ARTIFACTS_DESTINATION": store}
            environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
            copied = re.findall(
                r"^COPY (\S+)(?: \\\n)?\s+/usr/local/lib/python3.11/site-packages",
                DOCKERFILE,
                re.MULTILINE,
            )
            environ["PYTHONPATH"] = ":".join(str((ROOT / path).parent) for path in copied)
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            argv, env=environ, cwd=folder, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def wait(self) -> None:
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
            except OSError:
                time.sleep(0.2)
            else:
                return
        pytest.fail((self.folder / "log").read_text())

    def post(self, path: str, content: object) -> tuple[int, str]:
        words = f"{LOGIN['MLFLOW_USER']}:{LOGIN['MLFLOW_PASSWORD']}".encode()
        headers = {"Content-Type": "application/json"}
        headers["Authorization"] = "Basic " + base64.b64encode(words).decode()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as err:
            return err.code, err.read().decode()


@pytest.fixture(scope="module", params=["sandbox", "image"])
def server(request, tmp_path_factory):
    server = Server(request.param, tmp_path_factory.mktemp(request.param))
    try:
        server.wait()
        yield server
    finally:
        os.killpg(server.process.pid, 15)
        server.process.wait(30)
        server.log.close()


@pytest.mark.slow
@pytest.mark.parametrize("location", OTHERS)
def test_client_cannot_make_the_server_write_into_a_folder_of_its_choice(
    server, location, tmp_path
):
    """It would be written with the server's rights, in a sandbox of root with root's."""
    content = {"name": f"to {location}", "artifact_location": location.format(tmp_path)}
    for api in ("api", "ajax-api"):
        code, text = server.post(f"/{api}/2.0/mlflow/experiments/create", content)
        assert (code, "own store" in text) == (400, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_artifacts_go_into_the_store_of_the_server(server):
    for name, location in (
        ("usual", {}),
        ("named", {"artifact_location": "mlflow-artifacts:/named"}),
    ):
        code, text = server.post("/api/2.0/mlflow/experiments/create", {"name": name, **location})
        assert code == 200
        experiment = json.loads(text)["experiment_id"]
        code, text = server.post("/api/2.0/mlflow/runs/create", {"experiment_id": experiment})
        run = json.loads(text)["run"]["info"]
        assert run["artifact_uri"].startswith("mlflow-artifacts:/")
        path = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run['run_id']}&path=figures.txt"
        assert server.post(path, b"1")[0] == 200
        assert [
            file.read_text() for file in server.folder.rglob(f"{run['run_id']}/**/figures.txt")
        ] == ["1"]
