"""Which ports of a profile are forwarded, and the commands that show their passwords."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from kit.base import ROOT, UsageError
from kit.base.settings import SITES, Port, load
from kit.deploy.forwards import list_forwards

KIT = [sys.executable, "-m", "kit", "port-forward"]


CONTRACT = {
    "Kubeflow dashboard": ("istio-ingressgateway", "istio-system", 8080, 80),
    "Kubeflow MinIO": ("minio-service", "kubeflow", 9000, 9000),
    "MLflow": ("mlflow", "mlflow", 5000, 5000),
    "MLflow MinIO": ("mlflow-minio-service", "mlflow", 9001, 9001),
    "Prometheus": ("prometheus-service", "monitoring", 8090, 8080),
    "Grafana": ("grafana", "monitoring", 5050, 3000),
    "forwarder API": ("fastapi-service", "forwarder", 6500, 6500),
    "forwarder monitor": ("flower-service", "forwarder", 6501, 6501),
    "forwarder backend": ("celery-service", "forwarder", 6502, 6502),
    "Ray dashboard": ("", "", 8280, 8280),
}


@pytest.mark.parametrize("name", ["roihu", "lumi"])
def test_site_forwards_the_ten_ports_of_the_article(name):
    rows = list_forwards(load(name, {}))
    assert {r.title: (r.to.svc, r.to.namespace, r.to.port, r.target) for r in rows} == CONTRACT


def test_commands_show_the_passwords_that_were_written(tmp_path):
    from kit.deploy import manifests as platform

    (tmp_path / "secrets").mkdir()
    platform.write_secrets(tmp_path / "secrets", "x='y'\n", "me")
    made = (tmp_path / "secrets" / "platform.env").read_text().splitlines()
    shown = [row.to.password for row in list_forwards(load("roihu", {})) if row.to.user]
    assert len(shown) == 5
    for command in shown:
        argv = shlex.split(command)
        assert argv.pop() == str(ROOT / "env/platform/secrets/platform.env")
        done = subprocess.run(
            [*argv, tmp_path / "secrets" / "platform.env"], capture_output=True, text=True
        )
        (line,) = done.stdout.splitlines()
        assert line in made
        assert "_PASSWORD=" in line


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        ({"grafana": Port(5050, svc="grafana")}, "[ports] grafana has one of svc and namespace"),
        ({"grafana": Port(5050, namespace="x")}, "[ports] grafana has one of svc and namespace"),
        ({"mlflow": Port(1, "a", "b", "127.0.0.1")}, "[ports] mlflow has a svc and an address"),
        ({"mlflow": Port(0)}, "[ports] mlflow: 0 is not a valid port"),
        ({"mlflow": Port(65536)}, "65536 is not a valid port"),
        ({"mlflow": Port(5000, target=-1)}, "-1 is not a valid port"),
        ({"mlflow": Port(5000), "grafana": Port(5000)}, "grafana and mlflow: port 5000"),
    ],
)
def test_entry_that_cannot_be_forwarded_is_named(ports, words):
    with pytest.raises(UsageError) as caught:
        list_forwards(replace(load("roihu", {}), ports=ports))
    assert words in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize("name", ["mahti-2024", "slurm"])
def test_profile_without_ports_is_refused(name, tmp_path):
    text = (SITES / f"{name}.toml").read_text()
    (tmp_path / f"{name}.toml").write_text(re.sub('"<.*>"', '"x"', text))
    argv = [*KIT, "--profile", name]
    environ = os.environ | {"KIT_SITES_DIR": str(tmp_path)}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no [cloud] ssh_host, or no [ports]" in done.stderr
