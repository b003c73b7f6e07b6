"""The forwarder's API: authentication, accepted requests, visibility of runs."""

import http.client
import json
import re
import threading
import time

import pytest
from forwarder_buckets import ANNA, BEA, ForwarderBuckets, known_people
from gauge_samples import RUN
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kit.base import StoreUnavailable
from kit.forwarder import people as forwarder_people
from kit.forwarder.api import forwarder_api
from kit.forwarder.serve import serve
from kit.runs.requests import MAX_REQUEST_BYTES, RunRequest, RunRequests, RunState
from kit.store import FolderStore

ASKED = {"run": RUN, "data_hash": "a" * 64}
OTHER = "cloud-hpc-ba9876543210-2"


@pytest.fixture
def world(tmp_path):
    return ForwarderBuckets(tmp_path)


@pytest.fixture
def known(world, tmp_path):
    return known_people(world, tmp_path)


@pytest.fixture
def ask(known):
    with serve(forwarder_api(known), "127.0.0.1", 0) as port:

        def send(method, path, body=None, token=ANNA, **headers):
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            headers.setdefault("Content-Type", "application/json")
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            link.request(method, path, data, headers)
            answer = link.getresponse()
            content = answer.read()
            link.close()
            kind = answer.headers.get("content-type", "")
            return answer.status, json.loads(content) if kind == "application/json" else content

        yield send


def test_a_request_that_names_no_profile_is_for_that_of_the_forwarder(world, ask):
    assert ask("POST", "/runs", ASKED)[0] == 202
    stored = RunRequests(world.request_store).request(RUN)
    assert stored.profile == "sandbox"  # another profile's submitter leaves it alone
    assert re.fullmatch("[0-9a-f]{12}", stored.site)
    assert ask("POST", "/runs", ASKED)[0] == 202  # repeated: the same request


def asked(world):
    return RunRequests(world.request_store).status(RUN).state


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/runs"),
        ("GET", "/runs"),
        ("GET", f"/runs/{RUN}"),
        ("POST", f"/runs/{RUN}/cancel"),
        ("GET", f"/runs/{RUN}/log"),
        ("GET", f"/runs/{RUN}/artefacts"),
        ("GET", f"/runs/{RUN}/artefacts/model.safetensors"),
        ("GET", "/tunnels"),
        ("GET", "/nothing"),
    ],
)
@pytest.mark.parametrize("token", [None, "", "guess", ANNA[:-1], ANNA + "x"])
def test_requests_without_a_valid_token_are_refused(world, ask, method, path, token):
    code, content = ask(method, path, b"[" * 50_000, token)
    assert (code, content) == (401, {"detail": "give your token"})
    assert asked(world) is RunState.UNKNOWN


def test_documentation_is_public_and_has_no_secret(ask):
    code, document = ask("GET", "/openapi.json", token=None)
    assert code == 200
    assert ask("GET", "/docs", token=None)[0] == 200
    assert set(document["paths"]) == {
        "/runs",
        "/runs/{run}",
        "/runs/{run}/cancel",
        "/runs/{run}/log",
        "/runs/{run}/artefacts",
        "/runs/{run}/artefacts/{name}",
        "/tunnels",
    }
    assert "bearer" in json.dumps(document["components"]["securitySchemes"])
    assert not re.search("t0ken|password|secret", json.dumps(document), re.IGNORECASE)


def test_repeated_request_is_stored_once(world, ask):
    first = ask("POST", "/runs", ASKED)
    assert first[0] == 202
    assert (first[1]["run"], first[1]["state"]) == (RUN, "REQUESTED")
    assert ask("POST", "/runs", ASKED) == first
    stored = RunRequests(world.request_store).request(RUN)
    assert stored.same_training(RunRequest(run=RUN, data_hash="a" * 64))
    code, problem = ask("POST", "/runs", ASKED | {"workers": 2})
    assert (code, problem["got"]) == (409, "it was asked for with other settings")
    assert [one["run"] for one in ask("GET", "/runs")[1]] == [RUN]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 60_000,
        b'{"run": NaN}',
        b"\xff\xfe",
        [],
        {},
        {"run": RUN},
        ASKED | {"run": "../../etc/passwd"},
        ASKED | {"run": RUN + "\n"},
        ASKED | {"data_hash": "A" * 64},
        ASKED | {"\ud800": "\ud800"},
        ASKED | {"configured": "yes"},
        ASKED | {"workers": 0},
        ASKED | {"workers": 1.5},
        ASKED | {"workers": True},
        ASKED | {"command": "rm -rf /"},
        ASKED | {"partition": "large"},
        ASKED | {"hyperparameters": {"epochs": "5"}},
        ASKED | {"hyperparameters": {"epochs": 10**30}},
        ASKED | {"hyperparameters": {"learning_rate": -1.0}},
        ASKED | {"hyperparameters": {"device": "tpu"}},
        ASKED | {"hyperparameters": {"entrypoint": "sh"}},
        ASKED | {"hyperparameters": None},
    ],
)
def test_invalid_request_is_refused_and_stores_nothing(world, ask, body):
    code, _ = ask("POST", "/runs", body)
    assert code in (400, 422)
    assert list(world.request_store.list()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=JSON, key=st.sampled_from(["run", "data_hash", "workers", "hyperparameters", "x"]))
def test_no_json_makes_the_api_fail(ask, value, key):
    body = json.dumps(ASKED | {key: value}).encode()
    code, _ = ask("POST", "/runs", body)
    assert code in (202, 409, 422)


def test_a_large_body_is_refused_before_it_is_read(world, ask):
    code, content = ask("POST", "/runs", b"x" * (MAX_REQUEST_BYTES + 1))
    assert (code, content) == (413, {"detail": f"at most {MAX_REQUEST_BYTES} bytes"})
    code, _ = ask("POST", "/runs", iter([b"{", b"}"]))  # in chunks, without a length
    assert code == 411


def test_another_persons_run_is_neither_seen_nor_cancelled(world, ask):
    ask("POST", "/runs", ASKED)
    assert ask("GET", "/runs", token=BEA) == (200, [])
    for method, path in (
        ("GET", ""),
        ("POST", "/cancel"),
        ("GET", "/log"),
        ("GET", "/artefacts"),
        ("GET", "/artefacts/model.safetensors"),
    ):
        assert ask(method, f"/runs/{RUN}{path}", token=BEA)[0] == 404
    assert asked(world) is RunState.REQUESTED


def test_tunnels_of_live_runs_are_shown_to_their_owner_until_they_end(world, ask):
    assert ask("GET", "/tunnels") == (200, [])
    ask("POST", "/runs", ASKED)
    world.write(world.request_store, RUN, "try-1/submitted.json", {})
    world.write(world.request_store, RUN, "progress.json", {"tunnel": {"port": 8283}})
    time.sleep(2 * forwarder_people.FRESH_S)
    url = f"http://{world.settings.cloud.tunnel_address}:8283"
    assert ask("GET", "/tunnels") == (200, [{"run": RUN, "url": url}])
    assert ask("GET", "/tunnels", token=BEA) == (200, [])
    world.write(world.request_store, RUN, "progress.json", {"tunnel": {"barred": "why"}})
    assert ask("GET", "/tunnels") == (200, [])


def test_run_is_cancelled_by_its_owner_idempotently(world, ask):
    ask("POST", "/runs", ASKED)
    assert ask("POST", f"/runs/{RUN}/cancel")[1]["state"] == "CANCELLING"
    assert ask("POST", f"/runs/{RUN}/cancel")[0] == 202
    assert asked(world) is RunState.CANCELLING
    assert ask("POST", f"/runs/{OTHER}/cancel")[0] == 404
    assert ask("POST", "/runs/..%2f..%2fx/cancel")[0] in (404, 422)


def test_a_long_poll_ends_with_the_change_and_not_before(world, ask):
    ask("POST", "/runs", ASKED)
    begin = time.monotonic()
    assert ask("GET", f"/runs/{RUN}?state=REQUESTED&wait_s=1.2")[1]["state"] == "REQUESTED"
    assert time.monotonic() - begin >= 1.2
    assert ask("GET", f"/runs/{RUN}?state=DONE&wait_s=60")[1]["state"] == "REQUESTED"
    later = threading.Timer(
        0.7, world.write, (world.request_store, RUN, "refused.json", {"why": "the site is closed"})
    )
    later.start()
    code, one = ask("GET", f"/runs/{RUN}?state=REQUESTED&wait_s=60")
    later.join()
    assert (code, one["state"], one["finished"]) == (200, "REFUSED", True)
    assert one["why"] == "the site is closed"


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "long"])
def test_invalid_wait_is_refused(ask, wait):
    assert ask("GET", f"/runs/{RUN}?wait_s={wait}")[0] == 422


def test_files_and_log_of_a_finished_run_are_fetched_and_checked(world, ask):
    kept = {"job.log": b"the log\n", "sacct.txt": b"JobID|\n", "out/model.npy": b"m"}
    files = {}
    for name, content in kept.items():
        at = world.write(world.data, RUN, f"try-1/{name}", content)
        files[name] = {"key": at.key, "sha256": at.sha256, "bytes": at.size}
    world.done(files=files)
    assert ask("GET", f"/runs/{RUN}")[1]["state"] == "DONE"
    assert {one["name"]: one["bytes"] for one in ask("GET", f"/runs/{RUN}/artefacts")[1]} == {
        name: len(content) for name, content in kept.items()
    }
    assert ask("GET", f"/runs/{RUN}/artefacts/sacct.txt") == (200, b"JobID|\n")
    assert ask("GET", f"/runs/{RUN}/artefacts/out/model.npy") == (200, b"m")
    assert ask("GET", f"/runs/{RUN}/log") == (200, "the log\n")
    assert ask("GET", f"/runs/{RUN}/artefacts/..%2f..%2fpeople")[0] == 404
    assert ask("GET", f"/runs/{RUN}/artefacts/none")[0] == 404
    world.write(world.data, RUN, "try-1/sacct.txt", b"changed")
    assert ask("GET", f"/runs/{RUN}/artefacts/sacct.txt")[0] == 500


def test_failed_run_reports_why(world, ask):
    ask("POST", "/runs", ASKED)
    world.write(world.request_store, RUN, "try-1/submitted.json", {})
    assert ask("GET", f"/runs/{RUN}/log") == (200, "")
    world.write(world.request_store, RUN, "try-1/ended.json", {"why": "TIMEOUT", "log": "the end"})
    time.sleep(forwarder_people.FRESH_S + 0.1)
    assert ask("GET", f"/runs/{RUN}")[1]["why"] == "TIMEOUT"
    assert ask("GET", f"/runs/{RUN}/log") == (200, "the end")
    assert ask("GET", f"/runs/{RUN}/artefacts") == (200, [])


def test_unavailable_store_is_reported_with_the_next_step(ask, monkeypatch):
    def away(*_):
        raise StoreUnavailable("list runs/", "no answer", "try again later")

    monkeypatch.setattr(FolderStore, "list", away)
    problem = {"tried": "list runs/", "got": "no answer", "next": "try again later"}
    assert ask("GET", "/runs") == (503, problem)


def test_concurrent_requests_share_a_listing(world, known):
    person = next(iter(known.values()))
    now, listings = [100.0], []
    person.clock = lambda: now[0]
    listing = person.requests.store.list
    object.__setattr__(person, "requests", RunRequests(person.requests.store))
    person.requests.store.list = lambda *a: listings.append(1) or listing(*a)
    world.done()
    reads = []
    read = person.requests.store.get
    person.requests.store.get = lambda key, **more: reads.append(key) or read(key, **more)
    for _ in range(50):
        assert person.view(RUN).status.state is RunState.DONE
    once = [f"runs/{RUN}/{name}.json" for name in ("progress", "result")]
    assert (len(listings), sorted(reads)) == (1, once)
    now[0] += forwarder_people.FRESH_S + 0.01
    person.view(RUN)
    assert (len(listings), len(reads)) == (2, 4)
