"""The forwarder's face: people ask for runs over HTTP, follow them, cancel them, fetch their files.

Who asks is settled before a byte of the request is read. A request is data only, the same that
the store holds.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from kit.base import Busy, Json, KitError, NoSuchObject, Unreachable, UsageError
from kit.forwarder import docs as forwarder_docs
from kit.forwarder.people import Person
from kit.forwarder.services import RunDetail, RunId, RunStatus, status_of
from kit.runs.requests import MAX_REQUEST_BYTES, RunRequest

PORT = 6500
OPEN = ("/docs", "/openapi.json")  # how to ask is no secret
LONGEST_WAIT_S = 60.0
PAUSE_S = 0.5  # between two looks of a long-poll
CODES = {NoSuchObject: 404, Busy: 409, UsageError: 422, Unreachable: 503}


class Progress(RunDetail):
    """How a run stands, what is shown of it, what it ended with; `why` it came to nothing."""

    why: str


class Window(BaseModel):
    """Where Ray's dashboard of a live run is seen; it asks for the token of that run's job."""

    run: str
    url: str


class Artefact(BaseModel):
    """A file that a run left."""

    name: str
    bytes: int
    sha256: str


class Problem(BaseModel):
    """What was tried, what came back, what to do."""

    tried: str
    got: str
    next: str


class Gate:
    """Lets nobody in without a token and nothing that is too large, before any of it is read."""

    def __init__(self, app: ASGIApp, known: Mapping[str, Person]) -> None:
        self.app, self.known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 411 or 413, or let the request through with its person."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        person = self.known.get(hashlib.sha256(token).hexdigest())
        refused: Response | None = None
        length = headers.get(b"content-length", b"0")
        if person is None or scheme.lower() != b"bearer":
            refused = _answer({"detail": "give your token"}, 401)
            refused.headers["WWW-Authenticate"] = "Bearer"
        elif b"transfer-encoding" in headers or not length.isdigit():
            refused = _answer({"detail": "say how long the request is"}, 411)
        elif int(length) > MAX_REQUEST_BYTES:
            refused = _answer({"detail": f"at most {MAX_REQUEST_BYTES} bytes"}, 413)
        scope.setdefault("state", {})["person"] = person
        await (refused or self.app)(scope, receive, send)


def _answer(content: Json, code: int) -> Response:
    """Give JSON in ASCII: half a surrogate in a key that was sent is no UTF-8."""
    return Response(json.dumps(content), code, media_type="application/json")


def _asker(request: Request, _: Annotated[object, Depends(HTTPBearer(auto_error=False))]) -> Person:
    person: Person = request.state.person
    return person


Asker = Annotated[Person, Depends(_asker)]


def forwarder_api(known: Mapping[str, Person]) -> FastAPI:
    """Make the app; `known` are the people by the SHA-256 of their token."""
    texts = {400: "no JSON", 401: "no token", 411: "no length", 413: "too large"}
    answers: dict[int | str, Json] = {code: {"description": text} for code, text in texts.items()}
    answers |= {code: {"model": Problem} for code in CODES.values() if code != 422}
    app = FastAPI(title="Forwarder", docs_url=None, redoc_url=None, responses=answers)
    app.add_middleware(Gate, known=known)

    @app.exception_handler(KitError)
    def explain(_: Request, err: KitError) -> Response:
        """Say what was tried, what came back and the next step."""
        content = {"tried": err.tried, "got": err.got, "next": err.next_step}
        return _answer(content, next((c for k, c in CODES.items() if isinstance(err, k)), 500))

    @app.exception_handler(RequestValidationError)
    def refuse(_: Request, err: RequestValidationError) -> Response:
        """Say where the request is wrong; nothing of it is sent back."""
        rows = [{"loc": each["loc"], "msg": each["msg"], "type": each["type"]}
                for each in err.errors()]  # fmt: skip
        return _answer({"detail": rows}, 422)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def docs(request: Request) -> str:
        """Show the document as a page."""
        return forwarder_docs.page(app.openapi(), str(request.base_url).rstrip("/"))

    _runs(app)
    _results(app)
    return app


def _runs(app: FastAPI) -> None:
    @app.post("/runs", status_code=202)
    def ask(asked: RunRequest, person: Asker) -> RunStatus:
        """Ask for a run; asking again changes nothing."""
        return status_of(person.ask(asked))

    @app.get("/runs")
    def runs(person: Asker) -> list[RunStatus]:
        """Say how your runs stand."""
        return [status_of(each) for each in person.statuses().values()]

    @app.get("/runs/{run}")
    async def one(
        run: RunId,
        person: Asker,
        state: str = "",
        wait_s: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S)] = 0,
    ) -> Progress:
        """Say how a run stands; with `wait_s`, wait so long while that is `state`."""
        end = time.monotonic() + wait_s
        shown = await run_in_threadpool(person.look, run)
        while shown.standing.state.name == state and time.monotonic() < end:
            await anyio.sleep(min(PAUSE_S, max(0.0, end - time.monotonic())))
            shown = await run_in_threadpool(person.look, run)
        status = status_of(shown.standing).model_dump()
        return Progress(**status, progress=shown.progress, ended=shown.ended or None, why=shown.why)

    @app.post("/runs/{run}/cancel", status_code=202)
    def cancel(run: RunId, person: Asker) -> RunStatus:
        """Say that a run is no longer wanted; what has finished stays."""
        return status_of(person.cancel(run))

    @app.get("/tunnels")
    def open_tunnels(person: Asker) -> list[Window]:
        """Say where the dashboards of your live runs are seen."""
        return [Window(run=each.run, url=each.url) for each in person.tunnels()]


def _results(app: FastAPI) -> None:
    @app.get("/runs/{run}/log")
    def log(run: RunId, person: Asker) -> str:
        """Give the log of a run that has ended."""
        return person.log(run)

    @app.get("/runs/{run}/artefacts")
    def artefacts(run: RunId, person: Asker) -> list[Artefact]:
        """Name the files of a finished run: sacct, seff, times, metrics, model, log."""
        rows = person.files(run).items()
        return [Artefact(name=name, bytes=at["bytes"], sha256=at["sha256"]) for name, at in rows]

    @app.get("/runs/{run}/artefacts/{name}", response_class=Response)
    def artefact(run: RunId, name: str, person: Asker) -> Response:
        """Give one file of a finished run, checked by its hash."""
        return Response(person.file(run, name), media_type="application/octet-stream")
