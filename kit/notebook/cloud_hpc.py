"""Parts of a cloud-hpc run: batch script, tunnel, a submitter beside the pipeline."""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kit.base import Json, KitError, site_host, vm_host
from kit.base.settings import Settings
from kit.runs.follow import last_seen, refusal
from kit.runs.history import StoredRun
from kit.runs.kfp_here import RUNNING, PipelineFailed, States
from kit.runs.requests import RunRequest, RunRequests, RunState
from kit.runs.stages import HPC_TRAIN
from kit.slurm import SitePaths

JOB_FILES = ("job.sh", "job.log", "sacct.txt", "seff.txt", "sacct-tries.txt")
LOG_LINES = 8


def describe(settings: Settings, request: RunRequest) -> str:
    """Return the site of a run in one line: nodes, environment, tunnel."""
    hpc = settings.hpc_section()
    place = f"{hpc.ssh_host}, {hpc.nodes} x {hpc.partition}, account {hpc.account}"
    use = "uses the environment that is there" if request.configured else "makes its own"
    window = "no tunnel"
    if request.wants_tunnel(hpc.tunnel):
        window = "the cloud VM shows Ray's dashboard by a reverse tunnel"
    return f"site: {place}; {use}; {window}; progress by the object store"


def tunnel_text(settings: Settings, request: RunRequest, requests: RunRequests) -> str:
    """Return how to open Ray's dashboard; its token is shown to its owner by ssh."""
    hpc, cloud = settings.hpc_section(), settings.cloud
    if not request.wants_tunnel(hpc.tunnel) or cloud is None or not cloud.tunnel_address:
        return "no tunnel: progress comes by the object store"
    status = requests.status(request.run)
    ended = status.state is RunState.ENDED  # running the pipeline opens the next attempt
    name = status.next_attempt_id if ended else status.attempt_id
    where = f"{SitePaths(hpc).attempt(name)}/ray.token"
    secret = shlex.join([*site_host(settings).argv, hpc.ssh_host, "cat", where])
    lines = ["the address of Ray's dashboard is below the picture while the job runs"]
    if cloud.ssh_host and not cloud.tunnel_address.startswith("127."):
        way = ["-N", "-L", f"8280:{cloud.tunnel_address}:8280", cloud.ssh_host]
        forward = shlex.join([*vm_host(settings).argv, *way])
        lines.append(f"forward it to http://127.0.0.1:8280: {forward}")
    return "\n".join([*lines, f"it asks for the job's token, which this prints: {secret}"])


class SubmitterProcess:
    """The submitter that a notebook started, and its log."""

    def __init__(self, child: "subprocess.Popen[bytes]", log: Path) -> None:
        self.child, self.log = child, log

    def refuse_ended(self) -> None:
        """Raise KitError with the end of its log when the submitter has ended by itself."""
        code = self.child.poll()
        if code is None:
            return
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        raise KitError(
            f"the submitter of this notebook ended with exit code {code}",
            "\n".join(lines) or f"{self.log} is empty",
            "correct that, then run this cell again: the run resumes, and a job that is on the "
            "site keeps running",
        )


@contextlib.contextmanager
def submitter(
    settings: Settings, requests: RunRequests, run: StoredRun
) -> Iterator[SubmitterProcess]:
    """Run a submitter for the block, a pipeline; it waits while another one is at work.

    Raises KitError with the submitter's reason where the run's request is refused.
    """
    argv = [sys.executable, "-m", "kit.submitter", settings.profile]
    log = run.folder / "submitter.log"
    with (
        _refusal_alone(requests, run.id),
        log.open("ab") as file,
        subprocess.Popen(argv, stdout=file, stderr=file, stdin=subprocess.DEVNULL) as child,
    ):
        try:
            yield SubmitterProcess(child, log)
        finally:
            child.terminate()


@contextlib.contextmanager
def _refusal_alone(requests: RunRequests, run: str) -> Iterator[None]:
    """Raise KitError with the submitter's reason where a pipeline fails by a refused request.

    The traceback of the component that followed the request says nothing more.
    """
    try:
        yield
    except PipelineFailed:
        refused: Json = {}
        with contextlib.suppress(KitError):  # the store may be what failed
            if (status := requests.status(run)).state is RunState.REFUSED:
                refused = requests.ending(status)
        if not refused:
            raise
        reason = refusal(run, refused)
        raise KitError(reason.tried, reason.got, reason.next_step) from None


def note(child: SubmitterProcess, requests: RunRequests, run: str, states: States) -> str:
    """Return the status of the run on the site while its training component runs.

    Raises KitError when the submitter has ended: nobody would take the run further.
    """
    child.refuse_ended()
    running = [component.name for component in states if component.state == RUNNING]
    return last_seen(requests, run) if running == [HPC_TRAIN] else ""
