"""Settings of another program that reach the kit's libraries are named, with the next step."""

import dataclasses

import pytest

from kit.base import DataError, KitError, Login, Secret
from kit.base.settings import load
from kit.experiments.fashion_mnist import download
from kit.report import dashboard
from kit.runs.client import ForwarderClient
from kit.runs.kfp_cluster import Access, check_access
from kit.store import Keystone
from kit.store.errors import connection_error
from kit.tracking import client

AWAY = "https://127.0.0.1:1"
NAMES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
LOGIN = Login("anna", Secret("planted"), "Default", "project_2001234", "a file")


def ask_mlflow():
    with client.connect(AWAY) as mlflow:
        mlflow.search_experiments()


def ask_prometheus():
    profile = load("sandbox")
    cloud = dataclasses.replace(profile.cloud, prometheus_url=AWAY)
    dashboard._ask(dataclasses.replace(profile, cloud=cloud), "up", "job")


ASKED = {
    "MLflow": ask_mlflow,
    "Prometheus": ask_prometheus,
    "Keystone": lambda: Keystone(LOGIN, AWAY).token(),
    "forwarder": lambda: ForwarderClient(AWAY, Secret("planted")).status("cloud-hpc-0-1"),
    "Kubeflow": lambda: check_access(Access(AWAY)),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED.keys())
@pytest.mark.parametrize("name", NAMES)
def test_a_ca_bundle_that_is_not_there_is_named(monkeypatch, tmp_path, ask, name):
    for other in NAMES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "gone.pem"))
    with pytest.raises(KitError, match="gone.pem") as caught:
        ask()
    assert "correct or unset REQUESTS_CA_BUNDLE" in caught.value.next_step


def test_a_mirror_that_cannot_be_asked_for_want_of_a_ca_bundle_is_passed_over(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    with pytest.raises(DataError, match=r"gone\.pem: correct or unset .*; https://b") as caught:
        download.from_mirrors([AWAY, "https://b.invalid"], tmp_path / "data")
    assert caught.value.got.count("gone.pem") == 2


def test_a_store_whose_ca_bundle_is_not_there_names_it():
    requests_words = "Could not find a suitable TLS CA certificate bundle, invalid path: /gone"
    error = connection_error("get a", OSError(requests_words))
    assert "/gone" in error.got
    assert "correct or unset REQUESTS_CA_BUNDLE" in error.next_step
    other = connection_error("get a", OSError("reset"))
    assert "CA_BUNDLE" not in other.next_step
