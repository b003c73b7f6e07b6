"""The forwarder's pass on a schedule: a Celery worker with the gauges beside it, and Flower.

One task without arguments, sent every PASS_S; what was not begun by then expires, and the one
thread of the worker lets no two overlap. Messages are JSON and hold no secret; no result is kept.
"""

import hmac
import logging
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.beat import EmbeddedService, ScheduleEntry, Scheduler

from kit.base import CredentialRefused, KitError, Secret, Unreachable, UsageError, read_private
from kit.forwarder.collect import PASS_S, Forwarder

TASK, QUEUE = "forwarder-pass", "forwarder"
KEPT_TASKS, GONE_S = 1000, 60  # what Flower remembers: tasks, a worker that is gone
LOOK_S = 2.0  # for Redis to answer; Celery itself would try for 19 s and more

log = logging.getLogger(__name__)


def secret_of(name: str, form: str) -> Secret:
    """Read the secret in the file that the variable `name` names. Raises UsageError."""
    step = f"write {form} into a file of mode 600 and name it with {name}"
    if not os.environ.get(name):
        raise UsageError(f"{name} is not set", next_step=step)
    text = read_private(Path(os.environ[name]), f"read {name}", step).strip()
    if not text or any(character.isspace() for character in text):
        raise UsageError(f"{os.environ[name]} holds no {form}", next_step=step)
    return Secret(text)


def redis_url() -> Secret:
    """Read where Redis is from KIT_FORWARDER_REDIS. Raises UsageError for one without password."""
    url = secret_of("KIT_FORWARDER_REDIS", "redis://:PASSWORD@HOST:PORT/0")
    parts = urlsplit(url.reveal())
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not parts.password:
        step = "write redis://:PASSWORD@HOST:PORT/0"
        raise UsageError("KIT_FORWARDER_REDIS names no Redis with a password", next_step=step)
    return url


def check_redis(url: Secret) -> None:
    """Check that Redis answers. Raises Unreachable, CredentialRefused."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    times = {"socket_timeout": LOOK_S, "socket_connect_timeout": LOOK_S}
    parts = urlsplit(url.reveal())
    where = f"{parts.hostname}:{parts.port or 6379}"
    try:
        with redis.Redis.from_url(url.reveal(), retry=Retry(NoBackoff(), 0), **times) as client:
            client.ping()
    except redis.AuthenticationError as err:
        step = "put the password of Redis into the file KIT_FORWARDER_REDIS"
        raise CredentialRefused(f"Redis at {where} refused", str(err), step) from err
    except redis.RedisError as err:
        raise Unreachable(f"Redis at {where} does not answer", str(err)[:200]) from err


class RedisCheckingScheduler(Scheduler):  # type: ignore[misc]  # Celery ships no types
    """Sends the tasks that are due if Redis answers, and skips them if it does not."""

    reported = ""

    def apply_entry(self, entry: ScheduleEntry, producer: object = None) -> None:
        """Send one task, or log once why it was not sent."""
        try:
            check_redis(Secret(self.app.conf.broker_url))
        except KitError as err:
            if str(err) != self.reported:
                log.warning("no pass: %s", err)
            self.reported = str(err)
            return
        self.reported = ""
        super().apply_entry(entry, producer=producer)


def app_for(url: Secret, forwarder: Forwarder | None = None, every_s: float = PASS_S) -> Celery:
    """Return the Celery app; without a forwarder it only observes (Flower)."""
    app = Celery("forwarder", broker=url.reveal(), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        result_expires=None,  # nothing to clean up on a schedule
        task_default_queue=QUEUE,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_timeout": LOOK_S * 5, "socket_connect_timeout": LOOK_S},
        beat_schedule={TASK: {"task": TASK, "schedule": every_s, "options": {"expires": every_s}}},
    )

    @app.task(name=TASK, bind=True, shared=False)  # type: ignore[untyped-decorator]
    def _forwarder_pass(task: Any) -> None:
        if forwarder is not None:
            forwarder.run_pass(waited_s(task.request.expires, every_s))

    return app


def waited_s(expires: str | None, every_s: float) -> float:
    """Return how long a task waited; it expires `every_s` after it was sent."""
    if not expires:
        return 0.0
    return max(0.0, time.time() - datetime.fromisoformat(expires).timestamp() + every_s)


@contextmanager
def scheduled(app: Celery) -> Iterator[None]:
    """Send what is due, from a thread, while the block runs; nothing is stored on disk."""
    beat = EmbeddedService(app, thread=True, scheduler_cls=RedisCheckingScheduler)
    beat.start()
    try:
        yield
    finally:
        beat.service.stop(wait=False)  # it may be waiting for a Redis that is away


def run_worker(url: Secret, forwarder: Forwarder) -> int:
    """Run the worker until it is stopped; return its exit code.

    Raises CredentialRefused; waits while Redis does not answer.
    """
    try:
        check_redis(url)
    except Unreachable as err:
        log.warning("%s", err)
    app = app_for(url, forwarder)
    with scheduled(app):
        options = {"pool": "threads", "concurrency": 1, "task_events": True, "quiet": True}
        options |= {"without_gossip": True, "without_mingle": True, "loglevel": "WARNING"}
        worker = app.Worker(**options)
        worker.start()
    return int(worker.exitcode or 0)


def watch(url: Secret, login: Secret, address: str, port: int) -> None:
    """Serve Flower until it is signalled to end. It shows the schedule to a person with the login.

    Everything but `/healthcheck` (which says OK) needs the login, Flower's own /metrics included,
    and nothing can be changed through it. Raises Unreachable, CredentialRefused, UsageError.
    """
    import flower.options  # noqa: F401 - defines the options
    from flower.app import Flower
    from flower.urls import settings
    from flower.views import BaseHandler
    from tornado.options import options
    from tornado.web import HTTPError

    check_redis(url)
    options.address, options.port, options.basic_auth = address, port, [login.reveal()]
    options.max_tasks, options.purge_offline_workers = KEPT_TASKS, GONE_S
    expected = b"Basic " + b64encode(login.reveal().encode())

    class _Refused(BaseHandler):  # type: ignore[misc]
        def initialize(self, code: int) -> None:
            """Store the status that every request gets."""
            self.code = code

        def prepare(self) -> None:
            """End the request with that status."""
            raise HTTPError(self.code)

    class _Guarded(Flower):  # type: ignore[misc]
        def find_handler(self, request: Any, **more: Any) -> Any:
            """Admit requests with the login only; Flower itself leaves /metrics open."""
            sent = request.headers.get("Authorization", "").encode()
            reads_only = request.method in ("GET", "HEAD") or request.path == "/tasks/datatable"
            if request.path != "/healthcheck" and not hmac.compare_digest(sent, expected):
                return self.get_handler_delegate(request, _Refused, {"code": 401})
            if not reads_only:
                return self.get_handler_delegate(request, _Refused, {"code": 405})
            return super().find_handler(request, **more)

    server = _Guarded(capp=app_for(url), options=options, **settings)
    try:
        server.start_http_server()
    except OSError as err:
        raise UsageError(f"listen at {address}:{port}", str(err), "give --port") from err
    server.start()
