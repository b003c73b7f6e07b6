"""The submitter's API and its command: authentication and answers."""

import itertools
import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from submitter_world import RUN, World

from kit.base import Secret, StoreUnavailable, UsageError
from kit.base.settings import load
from kit.forwarder import Buckets, api, serve
from kit.forwarder.people import FRESH_S, Person
from kit.runs.requests import RunState

TOKEN = "t0ken-of-the-apis-0123456789"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def api_of(world, submitter):
    person = Person(
        world.settings, Buckets("", "", world.requests.store, world.data), lambda: next(TIME)
    )
    return api.submitter_api(person, submitter.slurm.logs, Secret(TOKEN))


TIME = itertools.count(0, 2 * FRESH_S)


@pytest.fixture
def ask(world):
    submitter = world.submitter()

    def get(path, token=TOKEN, scheme="Bearer"):
        headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
        try:
            with urlopen(Request(f"http://127.0.0.1:{port}{path}", headers=headers)) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as err:
            with err:
                return err.code, err.read().decode()

    with serve.serve(api_of(world, submitter), "127.0.0.1", 0) as port:
        yield get


@pytest.mark.parametrize("path", ["/runs", f"/runs/{RUN}", f"/runs/{RUN}/log"])
@pytest.mark.parametrize("token", [None, "", "x" * 28, TOKEN[:-1], TOKEN + "x", "t\xf6ken"])
def test_requests_without_the_token_are_refused(world, ask, path, token):
    world.ask()
    world.requests.store.calls.clear()
    code, text = ask(path, token)
    assert code == 401
    assert TOKEN not in text
    assert RUN not in text
    assert world.requests.store.calls == []


def test_token_of_another_scheme_is_refused(ask):
    assert ask("/runs", scheme="Basic")[0] == 401


def test_other_paths_are_not_found(ask):
    assert [ask(path)[0] for path in ("/", "/docs", "/openapi.json", "/redoc")] == [404] * 4


def test_a_run_is_seen_from_request_to_result(world, ask):
    assert ask("/runs") == (200, [])
    world.ask()
    assert ask("/runs")[1] == [
        {
            "run": RUN,
            "state": "REQUESTED",
            "finished": False,
            "when": RunState.REQUESTED.when,
            "number": 1,
        }
    ]
    assert ask(f"/runs/{RUN}/log")[1]["text"] == ""
    submitter = world.submitter()
    submitter.once()
    world.play()
    submitter.once()
    code, one = ask(f"/runs/{RUN}")
    assert (code, one["state"], one["progress"]["state"]) == (200, "SUBMITTED", "RUNNING")
    world.until_finished(submitter)
    one = ask(f"/runs/{RUN}")[1]
    assert (one["state"], one["finished"], one["ended"]["job"]["state"]) == (
        "DONE",
        True,
        "COMPLETED",
    )
    log = ask(f"/runs/{RUN}/log")[1]
    assert log == {
        "run": RUN,
        "number": 1,
        "text": "the job's log\n",
        "offset": 14,
        "finished": True,
    }
    assert ask(f"/runs/{RUN}/log?offset=10")[1]["text"] == "log\n"


def test_failed_run_is_reported_with_its_cause(world, ask):
    world.ask()
    world.site.sbatch = "refuse"
    world.until_finished()
    one = ask(f"/runs/{RUN}")[1]
    assert one["state"] == "ENDED"
    assert "Invalid partition" in one["ended"]["failure"]["got"]


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ("cloud-hpc-ffffffffffff-1", 404),
        ("local-0123456789ab-1", 422),
        ("..%2F..%2Fetc%2Fpasswd", 404),
        ("%24%28reboot%29", 422),
        (f"{RUN}%0A", 422),
    ],
)
def test_unknown_or_invalid_run_is_refused(world, ask, run, code):
    world.ask()
    assert ask(f"/runs/{run}")[0] == code
    assert ask(f"/runs/{run}/log")[0] == code


def test_unavailable_store_is_reported_with_the_next_step(world, ask):
    world.requests.store.away = StoreUnavailable("ask the store", "503", "wait")
    code, text = ask("/runs")
    assert code == 503
    assert json.loads(text) == {"tried": "ask the store", "got": "503", "next": "wait"}


def loaded(tmp_path):
    return load("sandbox", {"KIT_CACHE_DIR": str(tmp_path / "cache")})


def test_token_is_created_once_with_private_mode(tmp_path, monkeypatch):
    monkeypatch.delenv("KIT_FACE_TOKEN", raising=False)
    first = serve.api_token(loaded(tmp_path)).reveal()
    assert serve.api_token(loaded(tmp_path)).reveal() == first
    assert len(first) >= serve.MIN_TOKEN_LENGTH
    path = serve.api_token_path(loaded(tmp_path))
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (TOKEN, 0o644, "read by others"),
        (TOKEN, 0o640, "read by others"),
        ("", 0o600, "holds no token"),
        ("short\n", 0o600, "holds no token"),
        ("\xff" * 40, 0o600, "cannot read"),
        (None, 0o600, "cannot read"),
    ],
)
def test_invalid_token_file_is_refused(tmp_path, monkeypatch, content, mode, message):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    monkeypatch.setenv("KIT_FACE_TOKEN", str(path))
    with pytest.raises(UsageError, match=message) as error:
        serve.api_token(loaded(tmp_path))
    assert error.value.next_step
    assert TOKEN not in str(error.value)


def test_port_in_use_is_reported(world):
    app = api_of(world, world.submitter())
    with serve.serve(app, "127.0.0.1", 0) as port:
        second = serve.serve(app, "127.0.0.1", port)
        with pytest.raises(UsageError, match=f"listen at 127.0.0.1:{port}"):
            second.__enter__()
