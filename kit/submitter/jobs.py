"""Jobs that a person submits by their description: `kit submit`, `open_slurm(...).submit(job)`.

The site alone decides what was submitted. The record of a job, the folder
`results/<profile>/runs/job-<attempt id>/`, makes it known to `kit runs`, `kit logs`, `kit cancel`
and `kit bill`. It is written before the job is submitted; submitting the same again restores it.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kit.base import (
    SCHEMA,
    DataError,
    Host,
    Json,
    SecretFound,
    UsageError,
    dumps,
    find_secrets,
    known_secrets,
    parse_json,
    site_host,
    write_bytes,
    write_json,
    write_text,
)
from kit.base.settings import Settings, load
from kit.billing import check_job
from kit.slurm import JobSpec, JobStatus, Slurm

JOB = re.compile(r"job-([0-9a-f]{12})")
LOG_BYTES = 1_000_000  # of a job's log, its end, are kept here


def open_slurm(
    profile: str | Settings | None = None, say: Callable[[str], None] = lambda _: None
) -> Slurm:
    """Open the Slurm site of a profile; jobs that it submits are recorded for the kit's commands.

    Raises UsageError for a profile without a site, or a closed one. A job over the profile's
    budget, or with a secret in it, is refused when it is submitted.
    """
    settings = profile if isinstance(profile, Settings) else load(profile)
    hpc = settings.hpc_section(accepts_jobs=True)
    host, name = site_host(settings), settings.profile
    return Slurm(host, hpc, say=say, profile=name, before_submit=partial(_admit, settings, host))


@dataclass(frozen=True)
class JobRecord:
    """The record of a submitted job; `ended` is None before its end was stored."""

    run: str
    folder: Path
    number: int
    name: str
    nodes: int
    ended: Json | None = None

    @property
    def attempt_id(self) -> str:
        """The id of its attempt on the site."""
        return self.run.removeprefix("job-")

    @property
    def billed(self) -> Json:
        """The job as a run that `kit bill` can price."""
        ended = self.ended or {}
        slurm = {"job": {"id": ended.get("job_id", "")}, "seff": ended.get("seff", {})}
        parameters = {"workers": self.nodes}
        return {"run": self.run, "target": "job", "slurm": slurm, "parameters": parameters}


def job_records(settings: Settings) -> list[JobRecord]:
    """Return the recorded jobs of a profile, oldest first. Raises DataError for a damaged one."""
    paths = (settings.profile_dir / "runs").glob("job-*/job.json")
    return [_read(path.parent) for path in sorted(paths, key=lambda path: path.stat().st_mtime)]


def job_record(settings: Settings, run: str) -> JobRecord:
    """Return the record of a job. Raises UsageError without one, and names the profile it has."""
    folder = settings.profile_dir / "runs" / run
    if not JOB.fullmatch(run) or not (folder / "job.json").exists():
        others = [path.parents[2].name for path in settings.results_dir.glob(f"*/runs/{run}/*")]
        step = f"it is a job of --profile {others[0]}" if others else "`kit runs` lists the ids"
        raise UsageError(f"profile {settings.profile} has no job {run[:80]!r}", next_step=step)
    return _read(folder)


def collect_job(slurm: Slurm, record: JobRecord, status: JobStatus) -> JobRecord:
    """Store what an ended job left: its log, its figures, its end last; return the new record.

    Nothing is stored while the job has not ended or the accounting has no complete record of it.
    Raises what `Slurm.settle` does.
    """
    if record.ended or not status.done:
        return record
    status = slurm.settle(record.attempt_id)
    end: Json = {"state": status.state.name, "why": status.why, "job_id": status.job_id}
    end |= {"exit_code": exit_code_of(status), "succeeded": status.succeeded}
    if status.job_id:
        used = slurm.usage(record.attempt_id, status.job_id, status.restart_count)
        if used.available and used.missing:
            return record
        write_bytes(record.folder / "job.log", slurm.log_end(record.attempt_id, LOG_BYTES))
        write_text(record.folder / "sacct.txt", used.sacct_text)
        write_text(record.folder / "seff.txt", used.seff_text)
        end |= {"seff": used.seff, "missing": list(used.missing)}
    write_json(record.folder / "ended.json", {"schema": SCHEMA, **end})
    return _read(record.folder)


def exit_code_of(status: JobStatus) -> int:
    """Return the exit code of an ended job: 0 with a result, else its own, else 1."""
    return 0 if status.succeeded else status.exit_code or 1


def _admit(
    settings: Settings, host: Host, job: JobSpec, attempt_id: str, number: int, new: bool
) -> None:
    """Refuse a new job that holds a secret or costs too much; record every other job."""
    fields = {**vars(job), "environment": dict(job.environment)}
    if new:
        content = json.dumps(fields, ensure_ascii=False).encode()
        if found := find_secrets(content, known_secrets(settings)):
            step = "read it from a file on the site that only you can read"
            raise SecretFound(f"submit {job.name}", f"it holds {', '.join(found)}", step)
        check_job(settings, job, host)
    path = settings.profile_dir / "runs" / f"job-{attempt_id}" / "job.json"
    if not path.exists():
        facts = {"run": path.parent.name, "number": number, "recorded": time.time()}
        write_text(path, dumps({"schema": SCHEMA, **facts, "job": fields}), 0o600)


def _read(folder: Path) -> JobRecord:
    path, end = folder / "job.json", folder / "ended.json"
    facts = parse_json(path.read_bytes(), str(path))
    ended = parse_json(end.read_bytes(), str(end)) if end.exists() else None
    try:
        job = facts["job"]
        return JobRecord(
            folder.name, folder, int(facts["number"]), str(job["name"]), int(job["nodes"]), ended
        )
    except (KeyError, TypeError, ValueError) as err:
        raise DataError(f"read {path}", repr(err)[:200], "remove it, and submit again") from err
