"""A bucket by S3 or Swift on a server whose answers a test plans."""

import pytest
from planned_store import RETRY, FakeLogin, PlannedServer

from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore


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
