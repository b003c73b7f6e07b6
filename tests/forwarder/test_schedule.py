"""The forwarder's schedule: tasks that are sent, behaviour without Redis, secret files."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest
from click.testing import CliRunner

from kit.base import CredentialRefused, Secret, Unreachable, UsageError, read_private
from kit.base import secret as login
from kit.cli.main import cli
from kit.forwarder import schedule as forwarder_schedule
from kit.forwarder.collect import PASS_S
from kit.forwarder.schedule import (
    TASK,
    RedisCheckingScheduler,
    app_for,
    check_redis,
    redis_url,
    secret_of,
    waited_s,
)

PASSWORD = "s3cret-of-redis-0123456789"


@pytest.fixture
def port():
    """Return a port of this machine without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def away(port):
    return Secret(f"redis://:{PASSWORD}@127.0.0.1:{port}/0")


class Passes:
    """A forwarder that counts."""

    def __init__(self):
        self.waited = []

    def run_pass(self, waited=0.0):
        self.waited.append(waited)


def file_of(tmp_path, monkeypatch, name, text, mode=0o600):
    path = tmp_path / "secret"
    path.write_bytes(text)
    path.chmod(mode)
    monkeypatch.setenv(name, str(path))


def test_the_one_task_has_no_arguments_and_expires_with_its_interval():
    app = app_for(Secret("memory://"), Passes())
    assert app.conf.beat_schedule == {
        TASK: {"task": TASK, "schedule": PASS_S, "options": {"expires": PASS_S}}
    }
    assert [name for name in app.tasks if not name.startswith("celery.")] == [TASK]
    beat = RedisCheckingScheduler(app)
    assert set(beat.schedule) == {TASK}


def test_messages_are_json_and_a_pickle_is_not_accepted(monkeypatch):
    app = app_for(Secret("memory://"), Passes())
    monkeypatch.setattr(forwarder_schedule, "check_redis", lambda url: None)
    beat = RedisCheckingScheduler(app)
    with app.connection() as link:
        queue = link.SimpleQueue("forwarder")
        beat.apply_entry(beat.schedule[TASK], producer=app.amqp.Producer(link))
        message = queue.get(timeout=5)
        assert message.content_type == "application/json"
        args, kwargs, _ = json.loads(message.body)
        assert (args, kwargs) == ([], {})
        assert 0 <= waited_s(message.headers["expires"], PASS_S) < PASS_S
    assert app.conf.accept_content == ["json"]
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")
    assert app.conf.result_backend is None


def test_task_runs_a_pass_with_its_delay():
    ours = Passes()
    app_for(Secret("memory://"), ours).tasks[TASK].apply()
    assert ours.waited == [0.0]


def test_how_late_a_pass_is_follows_from_when_it_expires():
    now = datetime.now(UTC)
    late = waited_s((now + timedelta(seconds=PASS_S - 3)).isoformat(), PASS_S)
    assert late == pytest.approx(3, abs=0.5)
    assert waited_s((now + timedelta(hours=1)).isoformat(), PASS_S) == 0
    assert waited_s(None, PASS_S) == 0


@pytest.mark.slow
def test_unreachable_redis_is_reported_once_and_nothing_is_sent(away, caplog):
    beat = RedisCheckingScheduler(app_for(away, Passes()))
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            beat.apply_entry(beat.schedule[TASK])
    assert time.monotonic() - begin < 15, "Celery itself waits 19 s a time"
    assert caplog.text.count("does not answer") == 1
    assert PASSWORD not in caplog.text


def test_unreachable_or_silent_redis_is_detected_in_seconds(away):
    with pytest.raises(Unreachable, match="Redis at 127.0.0.1:") as error:
        check_redis(away)
    assert PASSWORD not in str(error.value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/0"
        with pytest.raises(Unreachable):
            check_redis(Secret(url))


def test_redis_that_refuses_the_password_is_distinguished():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            link, _ = server.accept()
            with link:
                while link.recv(4096):
                    link.sendall(b"-WRONGPASS invalid username-password pair\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(CredentialRefused) as error:
            check_redis(Secret(f"redis://:{PASSWORD}@127.0.0.1:{server.getsockname()[1]}/0"))
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (b"", 0o600, "holds no"),
        (b"redis://:a b@c:1/0", 0o600, "holds no"),
        (b"redis://127.0.0.1:6379/0", 0o600, "with a password"),
        (b"http://:p@127.0.0.1:6379/0", 0o600, "with a password"),
        (b"\xff\xfe", 0o600, "read KIT_FORWARDER_REDIS"),
        (b"redis://:p@127.0.0.1:6379/0", 0o640, "can be read by others"),
    ],
)
def test_file_without_a_valid_redis_url_is_refused(tmp_path, monkeypatch, text, mode, message):
    file_of(tmp_path, monkeypatch, "KIT_FORWARDER_REDIS", text, mode)
    with pytest.raises(UsageError, match=message) as error:
        redis_url()
    assert error.value.next_step


FLOWER = """
import sys
from kit.base import Secret
from kit.forwarder import schedule
schedule.check_redis = lambda url: None
redis, login = Secret("redis://:unused-word@127.0.0.1:1/0"), Secret("me:the-login-of-flower")
schedule.watch(redis, login, "127.0.0.1", int(sys.argv[1]))
"""


def test_pages_of_the_schedule_are_closed_without_the_login():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [sys.executable, "-c", FLOWER, str(port)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + 60
            while status_of(port, "GET", "/healthcheck") != 200:
                assert time.monotonic() < end
                time.sleep(0.2)
            for login in (None, "me:wrong"):
                for path in ("/", "/metrics", "/api/workers", "/tasks", "/static/no-such-file"):
                    assert status_of(port, "GET", path, login) == 401, path
                assert status_of(port, "POST", "/api/task/apply/x", login) == 401
            login = "me:the-login-of-flower"
            assert status_of(port, "GET", "/metrics", login) == 200
            assert status_of(port, "POST", "/api/task/apply/x", login) == 405
        finally:
            server.kill()


def status_of(port, method, path, login=None):
    """Return the status of an answer; None while nobody listens."""
    word = b64encode((login or "").encode()).decode()
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(
            method, path, headers={"Authorization": f"Basic {word}"} if login else {}
        )
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


def test_missing_variable_is_reported_with_its_content(monkeypatch):
    monkeypatch.delenv("KIT_FLOWER_LOGIN", raising=False)
    with pytest.raises(UsageError, match="KIT_FLOWER_LOGIN is not set") as error:
        secret_of("KIT_FLOWER_LOGIN", "USER:PASSWORD")
    assert "USER:PASSWORD" in error.value.next_step


@pytest.mark.parametrize(
    ("uid", "flag", "readable"),
    [(1000, os.ST_RDONLY, True), (1000, 0, False), (0, os.ST_RDONLY, False)],
)
def test_secret_of_root_on_a_read_only_mount_is_read(tmp_path, monkeypatch, uid, flag, readable):
    path = tmp_path / "lent"
    path.write_text("lent")
    path.chmod(0o644)
    usual = os.stat(path)
    owned = os.stat_result([*usual[:4], 0, *usual[5:]])
    monkeypatch.setattr(type(path), "stat", lambda self: owned)
    monkeypatch.setattr(login.os, "getuid", lambda: uid)
    flags = os.statvfs(path)
    monkeypatch.setattr(
        login.os, "statvfs", lambda _: os.statvfs_result([*flags[:8], flag, *flags[9:]])
    )
    if readable:
        assert read_private(path, "read it", "") == "lent"
    else:
        with pytest.raises(UsageError, match="can be read by others"):
            read_private(path, "read it", "")


def test_the_command_has_three_subcommands_and_once():
    output = CliRunner().invoke(cli, ["forwarder", "--help"]).output
    assert [name for name in ("api", "worker", "flower", "--once") if name not in output] == []
    for words in (["api"], ["face"], ["worker"], ["flower"]):
        out = CliRunner(env={"KIT_FORWARDER_PEOPLE": "", "KIT_FORWARDER_REDIS": ""}).invoke(
            cli, ["forwarder", *words]
        )
        assert isinstance(out.exception, UsageError), words
        assert "KIT_FORWARDER" in str(out.exception)
