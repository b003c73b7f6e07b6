"""What both clients make of a store's answers: a server that gives the answers a test plans."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from planned_store import BODY, GOOD, RETRY, FakeLogin, code

from kit.base import (
    BucketTaken,
    CredentialRefused,
    KitError,
    NoSuchBucket,
    NoSuchObject,
    ObjectTooLarge,
    StoreUnavailable,
    UsageError,
)
from kit.store import RetryPolicy
from kit.store.errors import answer_error
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore

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


def test_a_web_page_in_place_of_a_listing_is_an_error(swift, server):
    server.plan = [(200, {}, b"<html>Sign in to the network</html>")]
    with pytest.raises(StoreUnavailable, match="list abc"):
        list(swift.list())


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


@pytest.mark.slow
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
