"""The HTTP APIs: people ask for runs, follow and cancel them, fetch their files.

One application serves the forwarder (port 6500, many people, requests) and the submitter (port
6600, its own runs, read only); the gauges (port 6502) are a third, of one page. A request is data
only, the same model that the store holds.
"""

import hashlib
import html
import json
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from kit.base import Busy, Json, KitError, NoSuchObject, Secret, Unreachable, UsageError
from kit.forwarder.collect import Forwarder
from kit.forwarder.gauges import CONTENT_TYPE
from kit.forwarder.people import Person, RunView
from kit.forwarder.serve import TokenAuth, answer
from kit.runs.requests import RUN_ID, RunRequest, RunState
from kit.runs.requests import RunStatus as StoredStatus

OPEN_PATHS = ("/docs", "/openapi.json")  # how to ask is public
MAX_WAIT_S = 60.0
LONG_POLL_S = 0.5  # between two looks of a long poll
MAX_ERROR_ROWS, MAX_ERROR_TEXT = 20, 200
STATUS_CODES = {NoSuchObject: 404, Busy: 409, UsageError: 422, Unreachable: 503}
RunId = Annotated[str, InPath(pattern=f"^{RUN_ID}$")]
ReadLog = Callable[[str, int], tuple[bytes, int]]


class RunStatus(BaseModel):
    """The status of one run, when that state holds, and the attempt that it is about."""

    run: str
    state: str
    finished: bool
    when: str
    number: int


class RunDetail(RunStatus):
    """One run in full: its progress, what it ended with, and why where it failed."""

    progress: Json | None
    ended: Json | None
    why: str


class Log(BaseModel):
    """A piece of the log of a run's job; ask again with `offset` for what came after it."""

    run: str
    number: int
    text: str
    offset: int
    finished: bool


class Dashboard(BaseModel):
    """Where Ray's dashboard of a live run is; it asks for the token of that run's job."""

    run: str
    url: str


class Artefact(BaseModel):
    """A file of a finished run."""

    name: str
    bytes: int
    sha256: str


class Problem(BaseModel):
    """An error: what was tried, what came back, what to do next."""

    tried: str
    got: str
    next: str


def as_answer(status: StoredStatus) -> RunStatus:
    """Return a run's status in the form of the API."""
    run, number, state = status.run, status.number, status.state
    return RunStatus(
        run=run, number=number, state=state.name, finished=state.finished, when=state.when
    )


def detail_of(view: RunView) -> RunDetail:
    """Return a run's details in the form of the API."""
    status = as_answer(view.status).model_dump()
    return RunDetail(**status, progress=view.progress, ended=view.ended or None, why=view.why)


def _current_person(
    request: Request, _: Annotated[object, Depends(HTTPBearer(auto_error=False))]
) -> Person:
    person: Person = request.state.person
    return person


CurrentPerson = Annotated[Person, Depends(_current_person)]


def _application(people: Mapping[str, Person | None], **options: Any) -> FastAPI:
    """Return an application whose answers, but those of its open paths, need a token."""
    app = FastAPI(docs_url=None, redoc_url=None, **options)
    open_paths = OPEN_PATHS if app.openapi_url else ()
    app.add_middleware(TokenAuth, people=people, open_paths=open_paths)

    @app.exception_handler(KitError)
    def explain(_: Request, err: KitError) -> Response:
        """Answer with what was tried, what came back and the next step."""
        content = {"tried": err.tried, "got": err.got, "next": err.next_step}
        code = next((code for kind, code in STATUS_CODES.items() if isinstance(err, kind)), 500)
        return answer(content, code)

    @app.exception_handler(RequestValidationError)
    def refuse(_: Request, err: RequestValidationError) -> Response:
        """Answer with where the request is wrong: a bounded part, and nothing that was sent."""
        errors = err.errors()
        rows = [
            {"loc": [str(part)[:MAX_ERROR_TEXT] for part in row["loc"][:8]], "type": row["type"]}
            | {"msg": str(row["msg"])[:MAX_ERROR_TEXT]}
            for row in errors[:MAX_ERROR_ROWS]
        ]
        return answer({"detail": rows, "count": len(errors)}, 422)

    return app


def _hashed(token: Secret) -> str:
    return hashlib.sha256(token.reveal().encode()).hexdigest()


def metrics_api(forwarder: Forwarder, token: Secret) -> FastAPI:
    """Return the app that Prometheus scrapes: the gauges as of the forwarder's last pass."""
    app = _application({_hashed(token): None}, openapi_url=None)

    @app.get("/metrics")
    def _scrape() -> Response:
        return Response(forwarder.text, media_type=CONTENT_TYPE)

    return app


def submitter_api(person: Person, read_log: ReadLog, token: Secret) -> FastAPI:
    """Return the app of a submitter: its runs, read only. `read_log` reads a live job's log."""
    app = _application({_hashed(token): person}, openapi_url=None)
    _add_views(app)

    @app.get("/runs/{run}/log")
    def log(run: RunId, person: CurrentPerson, offset: Annotated[int, Query(ge=0)] = 0) -> Log:
        """Return the log of a run's job from `offset` on."""
        status = person.known(run)
        chunk, end = b"", 0
        if status.state.finished:
            content = person.log(status)
            chunk, end = content[offset:], len(content)
        elif status.state is not RunState.REQUESTED:
            chunk, end = read_log(status.attempt_id, offset)
        text, finished = chunk.decode(errors="replace"), status.state.finished
        return Log(run=run, number=status.number, text=text, offset=end, finished=finished)

    return app


def forwarder_api(people: Mapping[str, Person]) -> FastAPI:
    """Return the app of the forwarder; `people` by the SHA-256 of their token."""
    texts = {400: "not JSON, or not this host", 401: "no token", 411: "no length", 413: "too large"}
    answers: dict[int | str, Json] = {code: {"description": text} for code, text in texts.items()}
    answers |= {code: {"model": Problem} for code in STATUS_CODES.values() if code != 422}
    app = _application(people, title="Forwarder", responses=answers)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def docs() -> str:
        """Show how to ask, as a page that loads nothing."""
        return _page(app.openapi())

    _add_requests(app)
    _add_views(app)
    _add_results(app)
    return app


def _add_views(app: FastAPI) -> None:
    @app.get("/runs")
    def runs(person: CurrentPerson) -> list[RunStatus]:
        """List your runs and their status."""
        return [as_answer(status) for status in person.statuses().values()]

    @app.get("/runs/{run}")
    async def run_detail(
        run: RunId,
        person: CurrentPerson,
        state: str = "",
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> RunDetail:
        """Return the status of a run; with `wait_s`, wait that long while it is `state`."""
        end = time.monotonic() + wait_s
        view = await run_in_threadpool(person.view, run)
        while view.status.state.name == state and time.monotonic() < end:
            await anyio.sleep(min(LONG_POLL_S, max(0.0, end - time.monotonic())))
            view = await run_in_threadpool(person.view, run)
        return detail_of(view)


def _add_requests(app: FastAPI) -> None:
    @app.post("/runs", status_code=202)
    def ask(request: RunRequest, person: CurrentPerson) -> RunStatus:
        """Request a run; a repeated request changes nothing."""
        return as_answer(person.ask(request))

    @app.post("/runs/{run}/cancel", status_code=202)
    def cancel(run: RunId, person: CurrentPerson) -> RunStatus:
        """Cancel a run; a finished run stays as it is."""
        return as_answer(person.cancel(run))

    @app.get("/tunnels")
    def tunnels(person: CurrentPerson) -> list[Dashboard]:
        """List where the dashboards of your live runs are."""
        return [Dashboard(run=tunnel.run, url=tunnel.url) for tunnel in person.tunnels()]


def _add_results(app: FastAPI) -> None:
    @app.get("/runs/{run}/log")
    def log(run: RunId, person: CurrentPerson) -> str:
        """Return the log of a finished run."""
        return person.log(person.known(run)).decode(errors="replace")

    @app.get("/runs/{run}/artefacts")
    def artefacts(run: RunId, person: CurrentPerson) -> list[Artefact]:
        """List the files of a finished run: sacct, seff, times, metrics, model, log."""
        rows = person.files(run).items()
        return [Artefact(name=name, bytes=at["bytes"], sha256=at["sha256"]) for name, at in rows]

    @app.get("/runs/{run}/artefacts/{name:path}", response_class=Response)
    def artefact(run: RunId, name: str, person: CurrentPerson) -> Response:
        """Return one file of a finished run, checked by its hash."""
        return Response(person.file(run, name), media_type="application/octet-stream")


def _page(document: Json) -> str:
    """Return a page of the operations; the full description is the OpenAPI document."""
    rows = [
        f"<tr><td>{verb.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation.get('description', ''))}</td></tr>"
        for path, operations in document["paths"].items()
        for verb, operation in operations.items()
    ]
    example = {"run": "cloud-hpc-0123456789ab-1", "data_hash": "a" * 64}
    command = f"curl -H 'Authorization: Bearer TOKEN' --json '{json.dumps(example)}' ADDRESS/runs"
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Forwarder</title>"
        "<h1>Forwarder</h1><p>Send your token with each request. All parameters and answers: "
        f"<a href='openapi.json'>openapi.json</a>.</p><table>{''.join(rows)}</table>"
        f"<pre>{html.escape(command)}</pre></html>"
    )
