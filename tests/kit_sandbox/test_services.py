"""The wait for a sandbox that starts: what is asked, what is reported, what is said at its end."""

import socket
import threading

import pytest
from kit_sandbox import services

from kit.base import KitError

SVC = r"""
# a `svc check` whose services answer as a test wants it: "asked" has a line for each question
cd "$(dirname "$0")"
times() { grep -c "^$1\$" asked; }
while read -r name; do
    echo "$name" >>asked
    (%s) </dev/null &
done
wait
"""
HEALTHY = 'echo "$name 0 1000 yes"'


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


@pytest.fixture
def svc(tmp_path, monkeypatch):
    """Return a function: let the health check of `name` be that shell text; give the questions."""
    monkeypatch.setattr(services, "SOURCE", tmp_path)

    def write(text):
        (tmp_path / "svc").write_text(SVC % text)
        (tmp_path / "asked").touch()
        return tmp_path / "asked"

    return write


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_only_what_listens_is_asked_for_its_health(folder, svc, monkeypatch):
    asked, listening, lines = svc(HEALTHY), services._listening, []

    def later(places):
        return listening(places) | ({"mlflow"} if len(lines) == 2 else set())

    monkeypatch.setattr(services, "_listening", later)
    services.wait_until_healthy(folder, lines.append)
    assert sorted(asked.read_text().split()[:2]) == ["munged", "redis"]
    assert asked.read_text().split()[2:] == ["mlflow"]
    assert [line.split()[-1] for line in lines][2:] == ["mlflow"]


def test_slow_check_does_not_delay_the_next_question_to_another_service(folder, svc, monkeypatch):
    """The check of munged ends when Redis was asked twice; at the first time Redis is not ready."""
    text = """case $name in
    munged) until [ "$(times redis)" = 2 ]; do sleep 0.05; done ;;
    redis) [ "$(times redis)" = 2 ] || { echo "redis 1 1000 loading"; exit; } ;;
    esac"""
    asked, lines = svc(f"{text}\n{HEALTHY}"), []
    monkeypatch.setattr(services, "_listening", lambda _: {"redis", "mlflow"})
    services.wait_until_healthy(folder, lines.append)
    assert sorted(asked.read_text().split()) == ["mlflow", "munged", "redis", "redis"]
    assert sorted(line.split()[-1] for line in lines) == ["mlflow", "munged", "redis"]


def test_what_never_listens_is_named_with_its_address(folder, svc, monkeypatch):
    svc(f'[ "$name" != munged ] || {{ echo "munged 1 1000 no key"; exit; }}; {HEALTHY}')
    monkeypatch.setattr(services, "READY_S", 2.0)
    with pytest.raises(KitError, match="2 services are not healthy") as caught:
        services.wait_until_healthy(folder, lambda _: None)
    assert "munged: no key" in caught.value.got
    assert "mlflow: nothing listens at 127.0.0.1:" in caught.value.got


def test_check_that_never_ends_costs_only_its_own_answer(folder, svc, monkeypatch):
    svc(f'[ "$name" != munged ] || sleep 600; {HEALTHY}')
    monkeypatch.setattr(services, "CHECK_S", 2.0)
    answers = services.check_health(folder, "munged", "redis")
    assert answers["redis"] == services.HealthAnswer(True, 0.001, "yes")
    assert answers["munged"] == services.HealthAnswer(False, 2.0, "no answer in 2 s")


def test_root_that_cannot_be_entered_is_the_answer(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SOURCE", tmp_path)
    (tmp_path / "svc").write_text('echo "unshare: unshare failed: Operation not permitted" >&2\n')
    monkeypatch.setattr(services, "READY_S", 1.0)
    with pytest.raises(KitError, match="3 services are not healthy") as caught:
        services.wait_until_healthy(folder, lambda _: None)
    assert "munged: unshare: unshare failed: Operation not permitted" in caught.value.got
    answer = services.check_health(folder, "redis")["redis"]
    assert "Operation not permitted" in answer.text


def test_a_supervisor_that_ends_in_the_middle_of_its_answer_has_no_programs(tmp_path):
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "run" / "supervisor.sock"))
        server.listen()

        def answer():
            connection, _ = server.accept()
            with connection:
                request = b""
                while not request.rstrip().endswith(b"</methodCall>"):
                    request += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n<?xml")

        threading.Thread(target=answer, daemon=True).start()
        assert services.programs(tmp_path) == []
