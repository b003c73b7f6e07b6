"""The HTTP APIs hold against slow, rude and guessing clients."""

import contextlib
import hashlib
import json
import re
import socket
import time

import pytest
from gauge_samples import RUN, kept

from kit.base import DataError
from kit.forwarder import gauges, serve
from kit.forwarder.api import forwarder_api, metrics_api
from kit.runs.requests import MAX_REQUEST_BYTES

TOKEN = "a-token-of-enough-length"
HEAD = f"Host: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"


class Nobody:
    """A person without runs."""

    def statuses(self):
        return {}


@pytest.fixture
def port():
    people = {hashlib.sha256(word.encode()).hexdigest(): Nobody() for word in (TOKEN, "secret")}
    with serve.serve(forwarder_api(people), "127.0.0.1", 0) as port:
        yield port


def send(port, text, timeout=10):
    """Send raw bytes; return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(text.encode() if isinstance(text, str) else text)
        received = b""
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65536):
                received += part
    return received.decode(errors="replace")


def get(port, path="/runs", head=HEAD):
    return send(port, f"GET {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:6500", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/docs", "/runs"])
def test_foreign_host_is_refused_and_not_repeated(port, host, path):
    head = HEAD.replace("Host: 127.0.0.1", f"Host: {host}")
    text = get(port, path, head)
    assert text.startswith("HTTP/1.1 400 ")
    assert "evil" not in text


def test_absolute_form_of_a_foreign_host_is_refused(port):
    text = get(port, "http://evil.example/docs")
    assert text.startswith("HTTP/1.1 400 ")
    assert "evil" not in text


@pytest.mark.parametrize("host", ["localhost:1", "10.1.2.3:6500", "[::1]:6500", "fastapi-service"])
def test_names_and_addresses_of_the_service_are_answered(port, host):
    head = HEAD.replace("Host: 127.0.0.1", f"Host: {host}")
    assert get(port, "/runs", head).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("path", "code"),
    [("//docs", 404), ("//runs", 404), ("/docs/../runs", 404), ("/%2e%2e/runs", 404)],
)
def test_odd_spelling_of_a_path_opens_nothing(port, path, code):
    assert get(port, path).startswith(f"HTTP/1.1 {code} ")
    assert get(port, path, "Host: 127.0.0.1\r\n").startswith("HTTP/1.1 401 ")


@pytest.mark.parametrize("tokens", [(TOKEN, "x" * 40), ("x" * 40, TOKEN), (TOKEN, TOKEN)])
def test_two_authorization_headers_are_refused(port, tokens):
    """A proxy before the service may have judged the other one."""
    lines = "".join(f"Authorization: Bearer {token}\r\n" for token in tokens)
    assert get(port, head=f"Host: 127.0.0.1\r\n{lines}").startswith("HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2, 3",
        "Content-Length: -1",
        "Content-Length: +2",
        "Content-Length: 0x2",
    ],
)
def test_odd_or_two_lengths_are_refused_and_the_rest_is_not_read(port, lines):
    body = f"{{}}GET /runs HTTP/1.1\r\n{HEAD}\r\n"
    text = send(port, f"POST /runs HTTP/1.1\r\n{HEAD}{lines}\r\n\r\n{body}")
    assert re.findall(r"HTTP/1.1 (\d+)", text) == ["400"]


def test_huge_header_is_not_read_to_its_end(port):
    with contextlib.suppress(ConnectionError):
        text = get(port, head=f"{HEAD}X-Huge: {'a' * 1_000_000}\r\n")
        assert re.findall(r"HTTP/1.1 (\d+)", text) in ([], ["400"])
    assert get(port).startswith("HTTP/1.1 200 ")


def test_page_of_another_site_may_not_read_an_answer(port):
    text = get(port, head=f"{HEAD}Origin: http://evil.example\r\n").lower()
    assert "access-control" not in text


@pytest.mark.parametrize(
    ("request_head", "code"),
    [
        ("POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n", 401),
        (f"POST /runs HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (f"POST /runs HTTP/1.1\r\n{HEAD}Content-Length: {MAX_REQUEST_BYTES + 1}\r\n\r\n", 413),
        (
            f"POST /runs HTTP/1.1\r\n{HEAD}Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
    ],
)
def test_refused_body_is_not_read_as_the_next_request(port, request_head, code):
    text = send(port, f"{request_head}GET /runs HTTP/1.1\r\n{HEAD}\r\n")
    assert re.findall(r"HTTP/1.1 (\d+)", text) == [str(code)]


def test_answer_to_a_wrong_request_is_bounded(port):
    body = json.dumps({f"a{number}": 1 for number in range(5000)})
    head = f"POST /runs HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\nConnection: close\r\n"
    text = send(port, f"{head}Content-Length: {len(body)}\r\n\r\n{body}")
    assert text.startswith("HTTP/1.1 422 ")
    assert "a0" in text
    assert len(text) < 16 * 1024


def test_weak_token_is_refused_although_its_hash_is_listed(port):
    assert get(port, head=HEAD.replace(TOKEN, "secret")).startswith("HTTP/1.1 401 ")


def test_wrong_tokens_slow_their_own_address_down():
    auth = serve.TokenAuth(None, {})
    pauses = [auth._penalty({"client": ("10.0.0.1", 1)}) for _ in range(100)]
    assert pauses[: serve.FREE_GUESSES] == [0] * serve.FREE_GUESSES
    assert pauses[-1] == serve.MAX_PENALTY_S
    assert auth._penalty({"client": ("10.0.0.2", 1)}) == 0


@pytest.mark.slow
def test_wrong_token_is_answered_late_and_the_right_one_at_once(port, monkeypatch):
    monkeypatch.setattr(serve, "FREE_GUESSES", 0)
    monkeypatch.setattr(serve, "MAX_PENALTY_S", 0.5)
    for _ in range(9):
        get(port, head=HEAD.replace(TOKEN, "x" * 40))
    started = time.monotonic()
    assert get(port, head=HEAD.replace(TOKEN, "x" * 40)).startswith("HTTP/1.1 401 ")
    assert time.monotonic() - started >= 0.5
    started = time.monotonic()
    assert get(port).startswith("HTTP/1.1 200 ")
    assert time.monotonic() - started < 0.5


def test_oldest_waiting_connection_makes_room_before_its_deadline(monkeypatch):
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 5)
    people = {hashlib.sha256(TOKEN.encode()).hexdigest(): Nobody()}
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serve.serve(forwarder_api(people), "127.0.0.1", 0))
        held = []
        for _ in range(8):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            held[-1].sendall(b"GET / HTTP/1.1\r\n")
            held[-1].settimeout(3)
            time.sleep(0.02)  # so that their age is known
        for connection in held[:3]:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        held[-1].settimeout(0.3)
        with pytest.raises(TimeoutError):
            held[-1].recv(1)


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["GET / HTTP/1.1\r\nHost: x\r\nX-a: ", "", "body"])
def test_slow_clients_are_closed_and_hold_up_nobody(monkeypatch, begin):
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(serve, "REQUEST_S", 2.0)
    if begin == "body":
        begin = f"POST /runs HTTP/1.1\r\n{HEAD}Content-Length: 100\r\n\r\n"
    people = {hashlib.sha256(TOKEN.encode()).hexdigest(): Nobody()}
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serve.serve(forwarder_api(people), "127.0.0.1", 0))
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(60)
        ]
        for connection in held:
            with contextlib.suppress(OSError):
                connection.sendall(begin.encode())
        started = time.monotonic()
        assert get(port).startswith("HTTP/1.1 200 ")
        assert time.monotonic() - started < 1.5
        for connection in held:
            connection.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass


@pytest.mark.parametrize("value", [7, "\ud800", None, ["x"], "x" * 2000])
def test_damaged_label_costs_its_own_run_only(value):
    damaged = kept()
    damaged.result["sacct"]["1"]["JobName"] = value
    if value is None:
        assert gauges.run_samples(damaged)
        return
    with pytest.raises(DataError, match=RUN):
        gauges.run_samples(damaged)


def test_gauges_need_the_token_of_the_api():
    from kit.base import Secret

    app = metrics_api(type("Forwarder", (), {"text": b"gauges"}), Secret(TOKEN))
    with serve.serve(app, "127.0.0.1", 0) as port:
        assert get(port, "/metrics").endswith("gauges")
        assert get(port, "/metrics", "Host: localhost\r\n").startswith("HTTP/1.1 401 ")
