"""The faces of submitter and forwarder, over HTTP, for whoever has the bearer token.

Both only read. `kit submitter` and `kit forwarder` serve them beside their loops.
"""

import contextlib
import hmac
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from kit.base import Json, KitError, NoSuchBucket, Secret, Unreachable, UsageError, read_private
from kit.base.settings import Settings
from kit.forwarder.collect import Forwarder
from kit.forwarder.gauges import CONTENT_TYPE
from kit.runs.follow import write_stored_log
from kit.runs.requests import RUN_ID, RunState, attempt_id
from kit.runs.requests import RunStatus as StoredStatus
from kit.submitter.submitter import Submitter

PORT = 6600
LEAST = 16  # characters of a token
RunId = Annotated[str, InPath(pattern=f"^{RUN_ID}$")]


class RunStatus(BaseModel):
    """How one run stands: its state and when that is so, the try that it is about."""

    run: str
    state: str
    finished: bool
    when: str
    number: int


class RunDetail(RunStatus):
    """One run in full: what is shown of it while it is open, and what it ended with."""

    progress: Json | None
    ended: Json | None


class Log(BaseModel):
    """A piece of the log of a run's job; ask again with `offset` for what came after it."""

    run: str
    number: int
    text: str
    offset: int
    finished: bool


def api_token(loaded: Settings) -> Secret:
    """Read the face's token from the file KIT_FACE_TOKEN, else from one that is made once.

    Raises UsageError for a file that others may read, or that holds no token.
    """
    path = api_token_path(loaded)
    if "KIT_FACE_TOKEN" not in os.environ and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(32))
    step = f"write {LEAST} characters or more into it, mode 600, or leave KIT_FACE_TOKEN out"
    text = read_private(path, f"cannot read the face's token in {path}", step).strip()
    if len(text) < LEAST:
        raise UsageError(f"{path} holds no token", f"{len(text)} characters", step)
    return Secret(text)


def api_token_path(loaded: Settings) -> Path:
    """Say which file the face's token is in."""
    given = os.environ.get("KIT_FACE_TOKEN")
    return Path(given).expanduser() if given else loaded.cache_dir / "face-token"


def _guarded(expected: Secret) -> FastAPI:
    def check(authorization: Annotated[str, Header()] = "") -> None:
        """Refuse whoever has not the token, after the same time for any other."""
        wanted = f"Bearer {expected.reveal()}".encode()
        if not hmac.compare_digest(authorization.encode(), wanted):
            raise HTTPException(401, "give the token", {"WWW-Authenticate": "Bearer"})

    return FastAPI(dependencies=[Depends(check)], openapi_url=None)


def metrics_api(forwarder: Forwarder, expected: Secret) -> FastAPI:
    """Make the app that Prometheus scrapes: the gauges as of the forwarder's last pass."""
    app = _guarded(expected)

    @app.get("/metrics")
    def _scrape() -> Response:
        return Response(forwarder.text, media_type=CONTENT_TYPE)

    return app


def submitter_api(submitter: Submitter, expected: Secret) -> FastAPI:
    """Make the app; every answer but 401 needs the token."""

    app = _guarded(expected)

    @app.exception_handler(KitError)
    def explain(_: Request, err: KitError) -> JSONResponse:
        """Say what was tried, what came back and the next step."""
        content = {"tried": err.tried, "got": err.got, "next": err.next_step}
        return JSONResponse(content, 503 if isinstance(err, Unreachable) else 500)

    @app.get("/runs")
    def runs() -> list[RunStatus]:
        """Say how all runs stand."""
        with contextlib.suppress(NoSuchBucket):  # nobody has asked for anything yet
            return [status_of(each) for each in submitter.jobs.statuses().values()]
        return []

    @app.get("/runs/{run}")
    def one(run: RunId) -> RunDetail:
        """Say how one run stands and what it ended with."""
        standing, jobs = _known(submitter, run), submitter.jobs
        names = {RunState.DONE: "result", RunState.REFUSED: "refused"}
        ended = names.get(standing.state, f"try-{standing.number}/ended")
        found = jobs.read(run, "progress"), jobs.read(run, ended)
        return RunDetail(**status_of(standing).model_dump(), progress=found[0], ended=found[1])

    @app.get("/runs/{run}/log")
    def log(run: RunId, offset: Annotated[int, Query(ge=0)] = 0) -> Log:
        """Give the log of a run's job from `offset` on."""
        standing = _known(submitter, run)
        number, finished = standing.number, standing.state.finished
        if finished:
            pieces: list[bytes] = []
            write_stored_log(submitter.jobs, submitter.data, standing, pieces.append)
            content = b"".join(pieces)
            chunk, end = content[offset:], len(content)
        elif standing.state is RunState.REQUESTED:
            chunk, end = b"", 0
        else:
            chunk, end = submitter.slurm.logs(attempt_id(run, number), offset)
        text = chunk.decode(errors="replace")
        return Log(run=run, number=number, text=text, offset=end, finished=finished)

    return app


def status_of(standing: StoredStatus) -> RunStatus:
    """Put a run's standing into the shape of the faces."""
    state = standing.state
    return RunStatus(
        run=standing.run,
        state=state.name,
        finished=state.finished,
        when=state.when,
        number=standing.number,
    )


def _known(submitter: Submitter, run: str) -> StoredStatus:
    """Say how a run stands; 404 for one that nobody asked for."""
    with contextlib.suppress(NoSuchBucket):
        standing = submitter.jobs.status(run)
        if standing.state is not RunState.UNKNOWN:
            return standing
    raise HTTPException(404, f"{run}: {RunState.UNKNOWN.when}")


@contextlib.contextmanager
def serve(app: FastAPI, address: str, port: int) -> Iterator[int]:
    """Serve an app in a thread as long as the block lasts; give the port (0: a free one).

    Raises UsageError when the port is taken.
    """
    import uvicorn

    try:
        listener = socket.create_server((address, port))
    except OSError as err:
        step = "end the other one (two do no harm, but one face is enough), or give --port"
        raise UsageError(f"listen at {address}:{port}", str(err), step) from err
    # Inherited by each connection. asyncio sets it only on sockets made with IPPROTO_TCP, and an
    # answer in two writes would wait 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
