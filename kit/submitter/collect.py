"""Copies what an attempt left on the site to the store: its committed files, log and figures.

Everything is derived from the attempt's folder and the accounting, so that doing it twice, or by
two submitters, gives the same objects.
"""

import base64
import contextlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from kit.base import (
    CommandFailed,
    DataError,
    Host,
    Json,
    KitError,
    dumps,
    sha256_of,
    temporary_folder,
)
from kit.experiments.running import check_name
from kit.onsite import END_TRIALS, FAILURE, PROGRESS, TUNNEL_STATE
from kit.runs.objects import StageStore
from kit.runs.requests import attempt_id
from kit.slurm import JobState, JobStatus, Slurm, published_rows
from kit.submitter.scripts import script

LOG_END = 4000
PROGRESS_FILES = {PROGRESS: "training", TUNNEL_STATE: "tunnel"}
PUBLISH_WAIT_S = 45.0  # how long the job of a cancelled sweep may take to publish and to end
AWAITED = "its accounting figures are awaited"

log = logging.getLogger(__name__)


def read_progress(host: Host, folder: str, attempts: Iterable[str]) -> dict[str, Json]:
    """Read what running attempts have reported, in one call: `training` and `tunnel` of each.

    Raises KitError without contact. A file that cannot be read gives None.
    """
    reports: dict[str, Json] = {name: dict.fromkeys(PROGRESS_FILES.values()) for name in attempts}
    argv = ["sh", "-fc", script("read_progress"), "sh", folder, *reports]
    for line in host.run(argv, repeat=True).out.splitlines() if reports else ():
        with contextlib.suppress(ValueError, KeyError, RecursionError):
            attempt, file, content = line.split(" ")
            value = json.loads(base64.b64decode(content))
            dumps(value).encode()  # not a number, or half a character, cannot be stored
            reports[attempt][PROGRESS_FILES[file]] = value if isinstance(value, dict) else None
    return reports


class FinishedTrials:
    """Has cancelled sweeps publish the trials that they have finished, before their jobs end."""

    def __init__(self, slurm: Slurm) -> None:
        self.slurm = slurm
        self._until: dict[str, float] = {}

    def awaited(self, attempt_id: str) -> bool:
        """Return whether the job is publishing finished trials; ask the job to where it has some.

        False for a training, for a job that does not run, for a sweep of which no trial has
        finished, and PUBLISH_WAIT_S after the job was asked. Once false, nobody is asked again:
        the attempt is being closed.
        """
        now = self.slurm.clock()
        if attempt_id not in self._until:
            asked = self._is_running(attempt_id) and self._ask(attempt_id)
            self._until[attempt_id] = now + PUBLISH_WAIT_S if asked else now
        if now < self._until[attempt_id] and self._is_running(attempt_id):
            return True
        self._until[attempt_id] = now
        return False

    def _is_running(self, attempt_id: str) -> bool:
        return self.slurm.status([attempt_id])[attempt_id].state is JobState.RUNNING

    def _ask(self, attempt_id: str) -> bool:
        """Ask the job to publish, if it has reported a finished trial; return whether it has."""
        slurm = self.slurm
        report = read_progress(slurm.host, slurm.paths.attempts, [attempt_id])[attempt_id]
        trials = (report["training"] or {}).get("trials")
        if not isinstance(trials, dict) or not trials.get("done"):
            return False
        argv = ["touch", "--", f"{slurm.folder(attempt_id)}/{END_TRIALS}"]
        slurm.host.run(argv, check=False, repeat=True)
        return True


@dataclass(frozen=True)
class Collector:
    """Copies what one attempt left on the site into the run's objects."""

    slurm: Slurm
    objects: StageStore
    number: int
    attempt_id: str

    def result(self, status: JobStatus, patient: bool = True) -> Json | None:
        """Publish the files of a committed attempt and return its result.

        None while figures of the accounting are missing and the caller is `patient`; otherwise
        the result says in `missing` which figures there are not. Raises DataError, CommandFailed
        for a file that is not the one that the manifest names.
        """
        used = self.slurm.usage(self.attempt_id, status.job_id, status.restart_count)
        if used.missing and used.available and patient:
            return None
        files = self._files(status)
        files["sacct.txt"] = self._keep("sacct.txt", used.sacct_text.encode())
        files["seff.txt"] = self._keep("seff.txt", used.seff_text.encode())
        if self.number > 1:  # the run's bill has the jobs of all its attempts
            with contextlib.suppress(CommandFailed):  # a site without accounting
                ids = [attempt_id(self.objects.run_id, n) for n in range(1, self.number + 1)]
                text = self.slurm.list_accounting(ids)
                files["sacct-tries.txt"] = self._keep("sacct-tries.txt", text.encode())
        usage = used.usage
        state = usage.state.name if usage else "COMPLETED"
        result = {
            "try": self.number,
            "token": self.attempt_id,  # stored files keep this key: readers depend on it
            "job": {"id": status.job_id, "life": status.restart_count, "state": state},
            "files": files,
            "sacct": published_rows(usage, ZoneInfo(self.slurm.hpc.timezone)) if usage else {},
            "seff": dict(used.seff),
            "elapsed_s": usage.elapsed_seconds if usage else None,
            "queued_s": usage.queued_seconds if usage else None,
            "nodes": usage.nodes if usage else None,
            "cores": usage.cores if usage else None,
        }
        return {**result, "missing": list(used.missing)} if used.missing else result

    def failure(self, status: JobStatus) -> Json:
        """Return why an attempt failed: its state, the cause that it wrote, the end of its log."""
        left: Json = {}
        text = self.slurm.logs(self.attempt_id, name=FAILURE)[0]
        try:
            left = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            left = {"got": text.decode(errors="replace")[-LOG_END:]}
        left = left if isinstance(left, dict) else {"got": str(left)[-LOG_END:]}
        log = self.slurm.log_end(self.attempt_id).decode(errors="replace")
        job = {"id": status.job_id, "life": status.restart_count, "state": status.state.name}
        facts = {"why": status.why, "exit_code": status.exit_code, "worked": status.started}
        # Stored files keep the key "token" for the attempt id: readers depend on it.
        return {"token": self.attempt_id, "job": job, **facts, "failure": left, "log": log}

    def _files(self, status: JobStatus) -> dict[str, Json]:
        """Copy the manifest's files, each checked against it, and the job's script and log."""
        content = self._fetch(status.manifest, status.manifest.partition("-")[2])
        try:
            hashes = dict(json.loads(content)["files"])
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            tried = f"read the manifest of attempt {self.attempt_id}"
            raise DataError(tried, repr(err)[:200], "start the run again") from err
        kept = {name: self._keep(name, self._fetch(name, sha)) for name, sha in hashes.items()}
        for source, name in (("job.sh", "job.sh"), (self.slurm.log_name(status.job_id), "job.log")):
            try:
                kept[name] = self._keep(name, self._fetch(source, ""))
            except CommandFailed:  # it was removed: the result does not depend on it
                continue
        return kept

    def _fetch(self, name: str, wanted: str) -> bytes:
        source = f"{self.slurm.folder(self.attempt_id)}/{check_name(name)}"
        with temporary_folder() as folder:
            path = folder / "file"
            self.slurm.host.get(source, path)
            if wanted and sha256_of(path) != wanted:
                raise DataError(f"fetch {source}", f"SHA-256 {sha256_of(path)}", "it was changed")
            return path.read_bytes()

    def _keep(self, name: str, content: bytes) -> Json:
        return self.objects.keep(f"try-{self.number}/{name}", content)


def digest_of(content: Json) -> str:
    """Return a hash of a JSON value."""
    return sha256_of(dumps(content).encode())


def never_began(attempt_id: str, cause: str, err: KitError) -> Json:
    """Return why an attempt failed before its job could start, in the format of a failed job."""
    failure = {"cause": cause, "got": err.got, "next": err.next_step}
    # Stored files keep the key "token" for the attempt id: readers depend on it.
    return {"token": attempt_id, "why": err.got, "worked": False, "failure": failure, "log": ""}


def why_refused(err: KitError) -> Json:
    """Return why a request is not accepted: the whole message, and its parts."""
    got = ": ".join(part for part in (err.tried, err.got) if part)
    return {"why": str(err), "got": got, "next": err.next_step}


def explain(what: str, err: Exception) -> str:
    """Log an error and return it as a text for the person."""
    if isinstance(err, KitError):
        log.warning("%s: %s", what, err)
        return str(err)
    log.error("%s", what, exc_info=err)
    return f"unexpected {type(err).__name__}: {str(err)[:300]}\nreport it with the submitter's log"
