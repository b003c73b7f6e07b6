"""The wait for a sandbox that starts: what is asked, what is reported, what is said at its end."""

import socket

import pytest
from kit_sandbox import services

from kit.base import KitError


@pytest.fixture
def folder(tmp_path):
    """A sandbox of three services, of which one listens nowhere and one only later."""
    (tmp_path / "etc").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        there, gone = server.getsockname()[1], free_port()
        places = {place.upper().replace("-", "_") for place in services.PLACES.values()}
        ports = dict.fromkeys(places, gone) | {"REDIS": there}
        lines = [f"ADDR_{name}=127.0.0.1\nPORT_{name}={port}\n" for name, port in ports.items()]
        (tmp_path / "etc" / "sandbox.env").write_text("".join(lines))
        names = ("munged", "redis", "mlflow")
        text = "".join(f"[program:{name}]\n" for name in names)
        (tmp_path / "etc" / "supervisord.conf").write_text(text)
        yield tmp_path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_only_what_listens_is_asked_for_its_health(folder, monkeypatch):
    rounds, listening, lines = [], services._listening, []

    def check(_, *names):
        rounds.append(names)
        return {name: services.HealthAnswer(True, 0.1, "yes") for name in names}

    def later(places):
        return listening(places) | ({"mlflow"} if rounds else set())

    monkeypatch.setattr(services, "check_health", check)
    monkeypatch.setattr(services, "_listening", later)
    services.wait_until_healthy(folder, lines.append)
    assert rounds == [("munged", "redis"), ("mlflow",)]
    assert [line.split()[-1] for line in lines] == ["munged", "redis", "mlflow"]


def test_what_never_listens_is_named_with_its_address(folder, monkeypatch):
    def check(_, *names):
        return {name: services.HealthAnswer(name != "munged", 0.1, "no key") for name in names}

    monkeypatch.setattr(services, "check_health", check)
    monkeypatch.setattr(services, "READY_S", 0.5)
    with pytest.raises(KitError, match="2 services are not healthy") as caught:
        services.wait_until_healthy(folder, lambda _: None)
    assert "munged: no key" in caught.value.got
    assert "mlflow: nothing listens at 127.0.0.1:" in caught.value.got
