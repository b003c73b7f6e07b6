"""Serves an HTTP API in a thread: bounded connections, deadlines for slow clients, tokens.

A client without a token can hold nothing for long: a connection that does not complete a request
within REQUEST_S is closed, and beyond MAX_CONNECTIONS the oldest of them makes room. Checked with
uvicorn 0.54 and h11.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from kit.base import Json, Secret, UsageError, read_private
from kit.base.settings import Settings
from kit.forwarder.people import Person
from kit.runs.requests import MAX_REQUEST_BYTES

MAX_CONNECTIONS = 200
REQUEST_S = 10.0  # for head and body of a request
DISCARD_S = 0.5
MIN_TOKEN_LENGTH = 16
FREE_GUESSES, MAX_PENALTY_S, MAX_ADDRESSES = 10, 2.0, 1000
SERVICES = ("fastapi-service", "celery-service")  # names in a cluster, see env/platform/forwarder
HOSTS = (
    "localhost",
    *SERVICES,
    *(f"{name}.forwarder" for name in SERVICES),
    *(f"{name}.forwarder.svc.cluster.local" for name in SERVICES),
)

log = logging.getLogger(__name__)


def answer(content: Json, code: int, close: bool = False) -> Response:
    """Return a JSON answer in ASCII: half a surrogate in a key that was sent is not UTF-8."""
    headers = {"Connection": "close"} if close else None
    return Response(json.dumps(content), code, headers, media_type="application/json")


class TokenAuth:
    """ASGI middleware: refuses foreign hosts, unknown tokens and large bodies, before reading.

    `people` are those who may ask, by the SHA-256 of their token. An answer that leaves a body
    unread closes the connection.
    """

    def __init__(
        self, app: ASGIApp, people: Mapping[str, Person | None], open_paths: tuple[str, ...] = ()
    ) -> None:
        self.app = app
        self.people = people
        self.open_paths = open_paths
        self._wrong: dict[str, tuple[int, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 400, 401, 411 or 413, or pass the request on with its person."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = await self._refusal(scope)
        if refusal:
            await _discard(receive)
        await (refusal or self.app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on; else note its person."""
        headers = dict(scope["headers"])
        length, chunked = headers.get(b"content-length", b"0"), b"transfer-encoding" in headers
        if not _is_our_host(headers.get(b"host", b"")) or scope["path"][:1] != "/":
            return answer({"detail": "unknown host"}, 400, close=True)
        if chunked and b"content-length" in headers:
            return answer({"detail": "two lengths"}, 400, close=True)
        if scope["path"] in self.open_paths:
            return None
        tokens = [value for key, value in scope["headers"] if key == b"authorization"]
        name = self._known(tokens[0]) if len(tokens) == 1 else ""  # of two, which one counts?
        if name not in self.people:
            await asyncio.sleep(self._penalty(scope))
            refusal = answer({"detail": "give your token"}, 401, close=True)
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        if chunked or not length.isdigit():
            return answer({"detail": "say how long the request is"}, 411, close=True)
        if int(length[:20]) > MAX_REQUEST_BYTES:
            return answer({"detail": f"at most {MAX_REQUEST_BYTES} bytes"}, 413, close=True)
        scope.setdefault("state", {})["person"] = self.people[name]
        return None

    def _known(self, header: bytes) -> str:
        """Return the hash of the token in a header; "" for none, or a weak one."""
        scheme, _, token = header.partition(b" ")
        weak = len(token) < MIN_TOKEN_LENGTH  # its hash was written by hand
        return "" if scheme.lower() != b"bearer" or weak else hashlib.sha256(token).hexdigest()

    def _penalty(self, scope: Scope) -> float:
        """Count a wrong token of an address; return for how long its answer is held back."""
        address, now = (scope.get("client") or ("?", 0))[0], time.monotonic()
        count, begun = self._wrong.get(address, (0, now))
        if now - begun > 60:
            log.warning("%s wrong tokens from %s in a minute", count, address)
            count, begun = 0, now
        if len(self._wrong) >= MAX_ADDRESSES:
            self._wrong.clear()
        self._wrong[address] = count + 1, begun
        return min(MAX_PENALTY_S, 0.05 * max(0, count + 1 - FREE_GUESSES))


async def _discard(receive: Receive) -> None:
    """Discard a bounded part of a refused body: a client that still sends would see no answer."""
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while more and size < 2 * MAX_REQUEST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = bool(message.get("more_body"))


def _is_our_host(header: bytes) -> bool:
    """Return whether a Host header names this service: an address, or one of its own names.

    A web page can reach a local service only under a name that its own site controls.
    """
    name = header.decode("latin-1").lower()
    name = name[: name.rindex("]") + 1] if name.startswith("[") else name.partition(":")[0]
    more = os.environ.get("KIT_API_HOSTS", "").lower().split(",")
    if name in HOSTS or (name and name in more):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class BoundedProtocol(H11Protocol):
    """A connection that is closed unless it completes a request in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch the connection; close the oldest waiting one beyond the limit."""
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [connection for connection in self.connections if connection.is_waiting()]  # type: ignore[union-attr]
            min(waiting, key=lambda connection: connection.waiting_since).transport.abort()  # type: ignore[union-attr]
        self._watch()

    def is_waiting(self) -> bool:
        """Return whether the client has to send something."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def _watch(self) -> None:
        if self.transport.is_closing():
            return
        if not self.is_waiting():
            self.waiting_since = self.loop.time()
        elif self.loop.time() - self.waiting_since > REQUEST_S:
            self.transport.abort()
            return
        self.loop.call_later(REQUEST_S / 10, self._watch)


@contextlib.contextmanager
def serve(app: ASGIApp, address: str, port: int) -> Iterator[int]:
    """Serve an app in a thread while the block runs; yields the port (0: a free one).

    Raises UsageError when the port is taken.
    """
    try:
        listener = socket.create_server((address, port))
    except OSError as err:
        step = "end the other one (two do no harm, but one is enough), or give --port"
        raise UsageError(f"listen at {address}:{port}", str(err), step) from err
    # Inherited by each connection. asyncio sets it only on sockets made with IPPROTO_TCP, and an
    # answer in two writes would wait 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=BoundedProtocol,
        ws="none",
        h11_max_incomplete_event_size=MAX_REQUEST_BYTES,
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()


def api_token(settings: Settings) -> Secret:
    """Read the token of the API from the file KIT_FACE_TOKEN, else from one that is made once.

    Raises UsageError for a file that others may read, or that holds no token.
    """
    path = api_token_path(settings)
    if "KIT_FACE_TOKEN" not in os.environ and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(32))
    least = f"{MIN_TOKEN_LENGTH} characters or more"
    step = f"write {least} into it, mode 600, or leave KIT_FACE_TOKEN out"
    text = read_private(path, f"cannot read the token of the API in {path}", step).strip()
    if len(text) < MIN_TOKEN_LENGTH:
        raise UsageError(f"{path} holds no token", f"{len(text)} characters", step)
    return Secret(text)


def api_token_path(settings: Settings) -> Path:
    """Return the path of the file with the API's token."""
    path = os.environ.get("KIT_FACE_TOKEN")
    return Path(path).expanduser() if path else settings.cache_dir / "face-token"
