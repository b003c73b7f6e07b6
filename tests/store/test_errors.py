"""What both clients make of a store's answers: a server that gives the answers a test plans."""

import hashlib
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
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
from kit.store import Ec2Key, RetryPolicy
from kit.store.errors import answer_error
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore

BODY = b"0123456789" * 100
GOOD = {"x-amz-meta-sha256": hashlib.sha256(BODY).hexdigest(), "ETag": '"abc"'}
GOOD |= {"x-object-meta-sha256": GOOD["x-amz-meta-sha256"]}
GOOD |= {"last-modified": "Mon, 23 Nov 2026 22:23:29 GMT"}
RETRY = RetryPolicy(timeout_s=5, attempts=4)


class PlannedServer:
    """Answers with the rows of `plan`, the last one for ever; keeps the requests in `seen`.

    A row is (status, headers, body, bytes of the body that are really sent). A question for the
    project's buckets is answered with `buckets` and not kept.
    """

    def __init__(self):
        self.plan, self.seen, self.buckets = [], [], ["abc"]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def any(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                row = outer.bucket_list(self.path) if self.command == "GET" else None
                if row is None:
                    outer.seen.append((self.command, self.headers, body))
                    row = outer.plan.pop(0) if len(outer.plan) > 1 else outer.plan[0]
                status, headers, body, sent = (*row, None)[:4]
                self.send_response_only(status)
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

    def bucket_list(self, path):
        """Return the answer to a listing of buckets, by S3 or Swift; None for another request."""
        path, _, query = path.partition("?")
        if path == "/":
            rows = "".join(f"<Bucket><Name>{name}</Name></Bucket>" for name in self.buckets)
            text = f"<ListAllMyBucketsResult><Buckets>{rows}</Buckets></ListAllMyBucketsResult>"
            return 200, {}, text.encode()
        if path == "/swift/v1/AUTH_a":
            rows = [] if "marker=" in query else [{"name": name} for name in self.buckets]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        return None

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class FakeLogin:
    """The part of Keystone that a store uses, and its session; counts renewals."""

    def __init__(self, url):
        self.url, self.renewed, self.session = url, 0, self

    def token(self):
        return Secret(self.get_token())

    def get_token(self):
        return f"token-{self.renewed}"

    def invalidate(self):
        self.renewed += 1
        return True

    def get_endpoint(self, **_):
        return self.storage_url("")

    def storage_url(self, region):
        return self.url + "/swift/v1/AUTH_a"

    def ec2_key(self):
        return Ec2Key("access", Secret("s3cret"))


@pytest.fixture
def server():
    server = PlannedServer()
    yield server
    server.close()


@pytest.fixture
def slept(monkeypatch):
    """Seconds that a client waited between attempts; none passes."""
    seconds = []
    monkeypatch.setattr("swiftclient.client.sleep", seconds.append)
    monkeypatch.setattr("botocore.endpoint.time.sleep", seconds.append)
    return seconds


@pytest.fixture(params=["s3", "swift"])
def store(request, server, slept):
    if request.param == "swift":
        return SwiftStore("abc", FakeLogin(server.url), "r", retry=RETRY)
    return S3Store("abc", FakeLogin(server.url), server.url, "r", retry=RETRY)


@pytest.fixture
def swift(server, slept):
    return SwiftStore("abc", FakeLogin(server.url), "r", retry=RETRY)


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
def test_an_answer_has_its_error_and_what_the_server_said(store, server, status, body, error):
    server.plan = [(status, {}, body)]
    with pytest.raises(KitError) as caught:
        store.put("a", b"x")
    assert type(caught.value) is error
    assert str(status) in caught.value.got
    assert "s3cret" not in str(caught.value)
    if status >= 500:
        assert len(server.seen) == RETRY.attempts
    if error is not StoreUnavailable:
        assert len(server.seen) == 1


def test_a_busy_store_is_asked_again_with_longer_waits(store, server, slept):
    server.plan = [(503, {}, code("SlowDown")), (503, {}, b""), (200, {}, b"")]
    store.put("a", BODY)
    assert len(server.seen) == 3
    assert len(slept) == 2
    assert [body for _, _, body in server.seen] == [BODY] * 3


@pytest.mark.parametrize("sent", [0, 1, 999])
def test_an_answer_that_is_cut_off_is_asked_for_again(store, server, sent):
    server.plan = [(200, GOOD, BODY, sent), (200, GOOD, BODY)]
    assert store.get("a") == BODY
    assert len(server.seen) == 2


def test_a_download_that_is_always_cut_off_leaves_no_file(store, server, tmp_path):
    server.plan = [(200, GOOD, BODY, 500)]
    with pytest.raises(StoreUnavailable):
        store.get_file("a", tmp_path / "x")
    with pytest.raises(StoreUnavailable):
        store.get("a")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_away_is_unreachable_with_exit_code_3(store, server, slept):
    server.close()
    with pytest.raises(StoreUnavailable) as caught:
        store.stat("a")
    assert caught.value.exit_code == 3
    assert len(slept) == RETRY.attempts - 1


def test_progress_is_taken_back_when_bytes_are_sent_again(swift, server, tmp_path):
    server.plan = [(503, {}, b""), (201, {}, b"")]
    moved = []
    swift.put("a", BODY, progress=moved.append)
    assert sum(moved) == len(BODY)
    assert min(moved) == -len(BODY)
    server.plan = [(200, GOOD, BODY, 300), (200, GOOD, BODY)]
    moved.clear()
    swift.get_file("a", tmp_path / "x", progress=moved.append)
    assert sum(moved) == len(BODY)
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_refused_token_is_renewed_once_and_the_bytes_sent_again(swift, server):
    server.plan = [(401, {}, b""), (201, {}, b"")]
    swift.put("a", BODY)
    assert [headers["X-Auth-Token"] for _, headers, _ in server.seen] == ["token-0", "token-1"]
    assert server.seen[1][2] == BODY
    server.plan = [(401, {}, b"")]
    with pytest.raises(CredentialRefused):
        swift.put("a", BODY)
    assert swift.keystone.renewed == 3


def test_a_request_has_the_hash_and_no_checksum_trailer(store, server):
    server.plan = [(200, {}, b"")]
    store.put("a", BODY)
    command, headers, _ = server.seen[0]
    names = {name.lower() for name in headers}
    assert command == "PUT"
    assert GOOD["x-amz-meta-sha256"] in headers.values()
    assert not {name for name in names if "checksum" in name or "trailer" in name}
    assert "aws-chunked" not in str(headers)


def no_objects(store):
    """Return an empty listing of a bucket as the store's protocol has it."""
    return b"[]" if isinstance(store, SwiftStore) else b"<ListBucketResult/>"


def test_a_web_page_in_place_of_a_listing_is_an_error(swift, server):
    server.plan = [(200, {}, b"<html>Sign in to the network</html>")]
    with pytest.raises(StoreUnavailable, match="list abc"):
        list(swift.list())


def test_a_bucket_that_is_not_this_projects_is_neither_read_nor_written(store, server, tmp_path):
    server.buckets, server.plan = ["other"], [(200, {}, no_objects(store))]
    for call in (
        lambda: store.get("a"),
        lambda: store.put("a", BODY),
        lambda: store.put("a", BODY, make_bucket=True),
        lambda: list(store.list()),
        lambda: store.stat("a"),
        lambda: store.delete("a"),
        lambda: store.get_file("a", tmp_path / "x"),
    ):
        with pytest.raises(BucketTaken, match="another project has a bucket abc"):
            call()
    assert {command for command, _, _ in server.seen} == {"GET"}  # whether it exists at all


def test_a_bucket_that_appears_later_is_checked_again(store, server):
    server.plan = [(200, GOOD, BODY)]
    assert store.get("a") == BODY
    server.plan = [(404, {}, code("NoSuchBucket"))]
    with pytest.raises(NoSuchBucket):
        store.get("a")
    server.buckets, server.plan = [], [(200, {}, no_objects(store))]
    with pytest.raises(BucketTaken):
        store.get("a")


def test_a_clock_that_is_off_is_named_as_the_cause(store, server):
    date = format_datetime(datetime.now(UTC) - timedelta(minutes=20), usegmt=True)
    server.plan = [(403, {"Date": date}, code("RequestTimeTooSkewed"))]
    with pytest.raises(
        KitError, match=r"this machine's clock is off by 20 min \(ahead\)"
    ) as caught:
        store.put("a", b"x")
    assert "set the clock" in caught.value.next_step
    error = answer_error("put a", "abc", 403, "RequestTimeTooSkewed", "no date")
    assert "clock is off" in error.tried


def test_aws_settings_of_another_program_do_not_matter(server, tmp_path, monkeypatch):
    damaged = tmp_path / "config"
    damaged.write_text("[profile x\nregion =")
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.setenv("AWS_DEFAULT_PROFILE", "other")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(damaged))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(damaged))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere"))
    store = S3Store("abc", FakeLogin(server.url), server.url, "r", retry=RETRY)
    server.plan = [(200, {}, b"")]
    store.put("a", BODY)
    assert "Credential=access/" in server.seen[0][1]["Authorization"]


def test_an_untrusted_certificate_is_not_asked_again(slept, monkeypatch):
    import urllib3

    def fail(*args, **options):
        raise urllib3.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify")

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", fail)
    login = FakeLogin("https://127.0.0.1:1")
    begin = time.monotonic()
    for store in (
        SwiftStore("abc", login, "r", retry=RETRY),
        S3Store("abc", login, login.url, "r", retry=RetryPolicy(5, 1)),
    ):
        with pytest.raises(KitError, match="certificate is not trusted") as caught:
            store.stat("a")
        assert "ca_file" in caught.value.next_step
    assert slept == []
    assert time.monotonic() - begin < 5
