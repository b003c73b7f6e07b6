"""A run asked for and followed through the forwarder's face, with the face itself on folders."""

import contextlib
import dataclasses
import http.server
import threading
import time

import pytest
from forwarder_buckets import ANNA, BEA, ForwarderBuckets, known_people
from gauge_samples import RUN

from kit.base import (
    Busy,
    CredentialRefused,
    NoSuchObject,
    Secret,
    StoreUnavailable,
    Unreachable,
    UsageError,
)
from kit.base.settings import Port, load
from kit.forwarder.api import forwarder_api
from kit.forwarder.serve import serve
from kit.runs import client as forwarder
from kit.runs.client import ForwarderClient, forwarder_client
from kit.runs.follow import TrainingFailed, follow
from kit.runs.requests import RunRequest, RunRequests, RunState
from kit.store import FolderStore

REQUEST = RunRequest(run=RUN, data_hash="a" * 64)


@pytest.fixture
def world(tmp_path):
    return ForwarderBuckets(tmp_path)


@pytest.fixture
def known(world, tmp_path):
    return known_people(world, tmp_path)


@pytest.fixture
def port(known):
    with serve(forwarder_api(known), "127.0.0.1", 0) as port:
        yield port


def client(port, token=ANNA, wait_s=0.2):
    return ForwarderClient(f"http://127.0.0.1:{port}", Secret(token), wait_s)


def test_a_run_is_asked_for_once_followed_and_its_result_read(world, port):
    ours, said = client(port), []
    later = threading.Timer(0.5, world.done)

    def ask():
        ours.ask(REQUEST)
        later.start()

    result = follow(ours, RUN, 60, said.append, sleep=lambda _: None, ask=ask)
    later.join()
    assert result == RunRequests(world.request_store).read(RUN, "result")
    assert said[0] == RunState.REQUESTED.when


@pytest.mark.slow
def test_a_change_ends_the_wait_at_once(world, port):
    ours = client(port, wait_s=30)
    ours.ask(REQUEST)
    ours.status(RUN)
    begin, later = time.monotonic(), threading.Timer(0.3, world.done)
    later.start()
    assert ours.status(RUN).state is RunState.DONE
    assert ours.status(RUN).state is RunState.DONE  # what is final is not waited for
    later.join()
    assert time.monotonic() - begin < 25


def test_a_failed_attempt_is_reported_as_by_the_store(world, port):
    ours = client(port)
    ours.ask(REQUEST)
    requests = RunRequests(world.request_store)
    failure = {"cause": "the driver was killed", "got": "-9", "next": "n", "traceback": "Tr"}
    requests.write(RUN, "try-1/ended", {"why": "w", "failure": failure, "log": "end"})
    errors = []
    for each in (ours, requests):
        with pytest.raises(TrainingFailed) as error:
            follow(each, RUN, 60, lambda _: None)
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert "the driver was killed" in errors[0]


def test_a_forwarder_that_goes_away_and_comes_back_is_waited_for(known, world):
    def free():
        with serve(forwarder_api(known), "127.0.0.1", 0) as port:
            return port

    ours, said, faces = client(free()), [], contextlib.ExitStack()

    def pause(_):
        pauses.append(1)
        number = int(ours.url.rpartition(":")[2])
        if len(pauses) == 3:
            faces.enter_context(serve(forwarder_api(known), "127.0.0.1", number))
        if len(pauses) == 5:
            faces.close()
        if len(pauses) == 7:
            world.done()
            faces.enter_context(serve(forwarder_api(known), "127.0.0.1", number))
        assert len(pauses) < 40

    pauses = []
    with faces:
        result = follow(ours, RUN, 600, said.append, sleep=pause, ask=lambda: ours.ask(REQUEST))
    assert result["sacct"]
    assert len([text for text in said if "no answer, asked again: ask the forwarder" in text]) == 2


def test_what_the_api_refuses_has_an_error_of_its_own(world, port, monkeypatch):
    ours = client(port)
    ours.ask(REQUEST)
    for token in ("guess", ""):
        with pytest.raises(CredentialRefused, match="401") as error:
            client(port, token).ask(REQUEST)
        assert "KIT_FORWARDER_TOKEN" in error.value.next_step
    with pytest.raises(NoSuchObject):
        client(port, BEA).status(RUN)
    with pytest.raises(Busy, match="other settings"):
        ours.ask(REQUEST.model_copy(update={"workers": 2}))

    def away(*_):
        raise StoreUnavailable("list runs/", "no answer", "try again later")

    monkeypatch.setattr(FolderStore, "list", away)
    time.sleep(0.4)
    with pytest.raises(Unreachable, match="503"):
        ours.status(RUN)


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"run": 1, "state": "NEW"}'),
        (502, b"{}"),
        (302, b"{}"),
    ],
)
def test_another_server_at_that_port_is_no_status_and_gets_no_second_chance(code, body):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Exception, match="forwarder"):
            client(server.server_address[1]).status(RUN)
        server.shutdown()


def profile(**cloud):
    loaded = load("sandbox")
    return dataclasses.replace(loaded, cloud=dataclasses.replace(loaded.cloud, **cloud))


def test_the_api_is_used_where_the_profile_has_one_for_its_own_bucket(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text(ANNA + "\n")
    token.chmod(0o600)
    monkeypatch.delenv("KIT_FORWARDER_TOKEN", raising=False)
    loaded = profile(forwarder_url="http://f:1/", forwarder_token_file=str(token))
    ours = forwarder_client(loaded)
    assert (ours.url, ours.token.reveal()) == ("http://f:1", ANNA)
    assert ANNA not in repr(ours)
    assert forwarder_client(profile(forwarder_url="")) is None
    monkeypatch.setattr(forwarder, "bucket_name", lambda *_: "ours")
    monkeypatch.setattr(forwarder, "open_store", lambda *_: None)
    assert isinstance(forwarder.requests_at(loaded, "ours"), ForwarderClient)
    assert isinstance(forwarder.requests_at(loaded, "another"), RunRequests)


@pytest.mark.parametrize(("text", "mode"), [(ANNA, 0o644), (None, 0), ("\xe9", 0o600)])
def test_unusable_token_is_refused_before_any_request(tmp_path, monkeypatch, text, mode):
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    monkeypatch.setenv("KIT_FORWARDER_TOKEN", str(path))
    with pytest.raises(UsageError):
        forwarder_client(profile(forwarder_url="http://f:1"))
    monkeypatch.setenv("KIT_FORWARDER_TOKEN", "")
    with pytest.raises(UsageError, match="a token for the forwarder .* is missing") as error:
        forwarder_client(profile(forwarder_url="http://f:1", forwarder_token_file=""))
    assert "forwarder_url" in error.value.next_step


def test_inside_a_cluster_the_api_has_another_name(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text(ANNA)
    token.chmod(0o600)
    monkeypatch.setenv("KIT_FORWARDER_TOKEN", str(token))
    port = Port(port=6500, svc="fastapi-service", namespace="forwarder")
    loaded = profile(forwarder_url="http://127.0.0.1:6500", runner="cluster")
    loaded = dataclasses.replace(loaded, ports={"forwarder": port})
    assert forwarder_client(loaded).url == "http://fastapi-service.forwarder:6500"
