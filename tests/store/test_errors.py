"""What both clients make of a store's answers: a server that says what the test wants it to say."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kit.base import (
    BucketTaken,
    CredentialRefused,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    ObjectTooLarge,
    Secret,
    StoreUnavailable,
    UsageError,
)
from kit.store.errors import Patience
from kit.store.keystone import Ec2Key
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore

BODY = b"0123456789" * 100
GOOD = {"x-amz-meta-sha256": hashlib.sha256(BODY).hexdigest()}
GOOD |= {"x-object-meta-sha256": GOOD["x-amz-meta-sha256"]}
GOOD |= {"last-modified": "Mon, 23 Nov 2026 22:23:29 GMT"}


class Told:
    """A server that answers with the rows of `plan`, the last one for ever; keeps the requests.

    A row is (status, headers, body, bytes of the body that are really sent).
    """

    def __init__(self):
        self.plan, self.seen = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def any(self):
                length = int(self.headers.get("Content-Length") or 0)
                outer.seen.append((self.command, self.headers, self.rfile.read(length)))
                row = outer.plan.pop(0) if len(outer.plan) > 1 else outer.plan[0]
                status, headers, body, sent = (*row, None)[:4]
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[:sent])
                self.close_connection = sent is not None

            do_GET = do_PUT = do_HEAD = do_DELETE = any

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class Keys:
    """The part of Keystone that a store uses; counts renewals."""

    def __init__(self, url):
        self.url, self.renewed = url, 0

    def token(self):
        return Secret(f"token-{self.renewed}")

    def renew(self):
        self.renewed += 1

    def storage_url(self, region):
        return self.url + "/swift/v1/AUTH_a"

    def ec2_key(self):
        return Ec2Key("access", Secret("s3cret"))


@pytest.fixture
def told():
    server = Told()
    yield server
    server.close()


class Time:
    def __init__(self):
        self.now, self.slept = 0.0, []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def slept():
    return Time()


@pytest.fixture(params=["s3", "swift"])
def store(request, told, slept):
    patience = Patience(5, 60, slept.sleep, lambda: slept.now)
    if request.param == "swift":
        return SwiftStore("abc", Keys(told.url), "r", patience=patience)
    return S3Store("abc", Keys(told.url), told.url, "r", patience=patience)


def code(word):
    return f"<Error><Code>{word}</Code></Error>".encode()


ANSWERS = [
    (404, code("NoSuchKey"), NoSuchObject),
    (404, code("NoSuchBucket"), NoSuchBucket),
    (409, code("BucketAlreadyExists"), BucketTaken),
    (409, code("BucketNotEmpty"), KitError),
    (403, code("AccessDenied"), CredentialRefused),
    (403, code("SignatureDoesNotMatch"), CredentialRefused),
    (403, code("InvalidAccessKeyId"), CredentialRefused),
    (413, b"", ObjectTooLarge),
    (400, code("EntityTooLarge"), ObjectTooLarge),
    (400, code("InvalidBucketName"), UsageError),
    (418, b"", KitError),
    *[(status, b"", StoreUnavailable) for status in (408, 429, 500, 502, 503, 504)],
]


@pytest.mark.parametrize(("status", "body", "error"), ANSWERS)
def test_an_answer_has_its_error_and_what_the_server_said(store, told, status, body, error):
    told.plan = [(status, {}, body)]
    with pytest.raises(KitError) as caught:
        store.put("a", b"x")
    assert type(caught.value) is error
    assert str(status) in caught.value.got
    assert "s3cret" not in str(caught.value)
    retried = error is StoreUnavailable
    assert (len(told.seen) > 3) == retried


def test_a_busy_store_is_asked_again_after_the_time_it_names(store, told, slept):
    told.plan = [(503, {"Retry-After": "7"}, b""), (429, {}, b""), (200, {}, b"")]
    store.put("a", BODY)
    assert len(told.seen) == 3
    assert slept.slept[0] == 7
    assert 0.5 < slept.slept[1] < 2
    assert [body for _, _, body in told.seen] == [BODY] * 3


def test_a_store_that_asks_for_too_much_time_is_given_up(store, told, slept):
    told.plan = [(503, {"Retry-After": "600"}, b"")]
    with pytest.raises(StoreUnavailable, match="503"):
        store.get("a")
    assert slept.slept == []


@pytest.mark.parametrize("sent", [0, 1, 999])
def test_an_answer_that_breaks_off_is_asked_for_again(store, told, sent):
    told.plan = [(200, GOOD, BODY, sent), (200, GOOD, BODY)]
    assert store.get("a") == BODY
    assert len(told.seen) == 2


def test_a_file_that_always_breaks_off_is_not_made(store, told, tmp_path):
    told.plan = [(200, GOOD, BODY, 500)]
    with pytest.raises(StoreUnavailable):
        store.get_file("a", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_away_is_unreachable_with_exit_code_3(store, told, slept):
    told.close()
    with pytest.raises(StoreUnavailable) as caught:
        store.stat("a")
    assert caught.value.exit_code == 3
    assert slept.now > 30


def test_a_report_of_progress_is_taken_back_when_the_bytes_go_again(told, slept, tmp_path):
    store = SwiftStore("abc", Keys(told.url), "r", patience=Patience(5, 60, slept.sleep))
    told.plan = [(503, {}, b""), (201, {}, b"")]
    moved = []
    store.put("a", BODY, progress=moved.append)
    assert sum(moved) == len(BODY)
    assert min(moved) == -len(BODY)
    told.plan = [(200, GOOD, BODY, 300), (200, GOOD, BODY)]
    moved.clear()
    store.get_file("a", tmp_path / "x", progress=moved.append)
    assert sum(moved) == len(BODY)


def test_a_refused_token_is_renewed_once_and_the_bytes_sent_again(told, slept):
    keys = Keys(told.url)
    store = SwiftStore("abc", keys, "r", patience=Patience(5, 60, slept.sleep))
    told.plan = [(401, {}, b""), (201, {}, b"")]
    store.put("a", BODY)
    assert [headers["X-Auth-Token"] for _, headers, _ in told.seen] == ["token-0", "token-1"]
    assert told.seen[1][2] == BODY
    told.plan = [(401, {}, b"")]
    with pytest.raises(CredentialRefused):
        store.put("a", BODY)
    assert keys.renewed == 2


def test_what_goes_over_the_wire_has_the_hash_and_no_checksum_trailer(store, told):
    told.plan = [(200, {}, b"")]
    store.put("a", BODY)
    command, headers, _ = told.seen[0]
    names = {name.lower() for name in headers}
    assert command == "PUT"
    assert GOOD["x-amz-meta-sha256"] in headers.values()
    assert not {name for name in names if "checksum" in name or "trailer" in name}
    assert "aws-chunked" not in str(headers)


def test_a_certificate_that_is_not_trusted_is_no_reason_to_wait(slept, monkeypatch):
    import urllib3

    def fail(*args, **options):
        raise urllib3.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", fail)
    keys, patience = Keys("https://127.0.0.1:1"), Patience(5, 60, slept.sleep)
    for store in (
        SwiftStore("abc", keys, "r", patience=patience),
        S3Store("abc", keys, keys.url, "r", patience=patience),
    ):
        with pytest.raises(KitError, match="certificate is not trusted") as caught:
            store.stat("a")
        assert "ca_file" in caught.value.next_step
    assert slept.slept == []
