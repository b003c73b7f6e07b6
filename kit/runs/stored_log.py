"""The log of a finished run's job, as the store holds it."""

from collections.abc import Callable

from kit.runs.objects import StageStore
from kit.runs.requests import RunRequests, RunState, RunStatus
from kit.store import ObjectStore


def write_stored_log(
    requests: RunRequests, data: ObjectStore, status: RunStatus, write: Callable[[bytes], object]
) -> bool:
    """Write the stored log of a finished run; return whether the run succeeded.

    The log of a run with a result is stored whole, of a failed attempt only its end.
    """
    run = status.run
    if status.state is RunState.DONE:
        files = (requests.read(run, "result") or {}).get("files") or {}
        if "job.log" in files:
            write(StageStore(data, run).get(files["job.log"]))
        return True
    ended = requests.read(run, f"try-{status.number}/ended") or requests.read(run, "refused") or {}
    write(str(ended.get("log") or ended.get("why") or status.state.when).encode())
    return False
