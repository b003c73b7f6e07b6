"""What a try left on the site: the files of its manifest, its log, its figures; to the store.

Everything is derived from the try's folder and the accounting, so that doing it twice, or by two
submitters, gives the same objects.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from kit.base import CommandFailed, DataError, Host, Json, dumps, sha256_of
from kit.onsite import PROGRESS, TUNNEL_STATE
from kit.runs.objects import StageStore
from kit.runs.requests import attempt_id
from kit.slurm import JobStatus, Slurm, published_rows

PROGRESS_FILES = {"training": PROGRESS, "tunnel": TUNNEL_STATE}

# $1 the folder of tries, then tokens: gives a line "token file content" for each file that is
# there (each is one JSON value, whole by rename).
READ_PROGRESS = f"""
cd "$1" 2>/dev/null || exit 0
shift
for token; do for file in {" ".join(PROGRESS_FILES.values())}; do
    content=$(cat "$token/$file" 2>/dev/null) && echo "$token $file" $content
done; done; exit 0
"""


def read_progress(host: Host, tries: str, tokens: Iterable[str]) -> dict[str, Json]:
    """Give what running tries say of themselves, in one call: how training and tunnel stand.

    Raises KitError without contact; what cannot be read is None.
    """
    found: dict[str, Json] = {token: dict.fromkeys(PROGRESS_FILES) for token in tokens}
    names = {file: name for name, file in PROGRESS_FILES.items()}
    argv = ["sh", "-fc", READ_PROGRESS, "sh", tries, *found]
    for line in host.run(argv, repeat=True).out.splitlines() if found else ():
        token, file, content = line.split(" ", 2)
        with contextlib.suppress(ValueError):
            found[token][names[file]] = json.loads(content)
    return found


@dataclass(frozen=True)
class Collector:
    """Brings what one try left from the site into the run's objects."""

    slurm: Slurm
    objects: StageStore
    number: int
    token: str

    def result(self, status: JobStatus) -> Json | None:
        """Publish the files of a committed try; None while the accounting has not all of it.

        Raises DataError for a file that is not the one that the manifest names.
        """
        used = self.slurm.usage(self.token, status.job_id, status.restart_count)
        if used.usage is None or used.missing:
            return None
        zone = ZoneInfo(self.slurm.hpc.timezone)
        figures = {
            "sacct": published_rows(used.usage, zone),
            "seff": dict(used.seff),
            "elapsed_s": used.usage.elapsed_seconds,
            "queued_s": used.usage.queued_seconds,
            "nodes": used.usage.nodes,
            "cores": used.usage.cores,
        }
        files = self._files(status)
        files["sacct.txt"] = self._keep("sacct.txt", used.sacct_text.encode())
        files["seff.txt"] = self._keep("seff.txt", used.seff_text.encode())
        if self.number > 1:  # the run's bill has the jobs of all its tries
            files["sacct-tries.txt"] = self._keep("sacct-tries.txt", self._all_tries().encode())
        job = {"id": status.job_id, "life": status.restart_count, "state": used.usage.state.name}
        return {"try": self.number, "token": self.token, "job": job, "files": files, **figures}

    def _all_tries(self) -> str:
        attempts = [attempt_id(self.objects.run_id, n) for n in range(1, self.number + 1)]
        return self.slurm.list_accounting(attempts)

    def failure(self, status: JobStatus) -> Json:
        """Say why a try came to nothing: its state, the cause that it left, its log's end."""
        left: Json = {}
        text = self.slurm.logs(self.token, name="failure.json")[0]
        try:
            left = json.loads(text) if text else {}
        except ValueError:
            left = {"got": text.decode(errors="replace")}
        log = self.slurm.log_end(self.token).decode(errors="replace")
        job = {"id": status.job_id, "life": status.restart_count, "state": status.state.name}
        facts = {"why": status.why, "exit_code": status.exit_code, "worked": status.started}
        return {"token": self.token, "job": job, **facts, "failure": left, "log": log}

    def _files(self, status: JobStatus) -> dict[str, Json]:
        """Copy the manifest's files, each checked against it, and the job's script and log."""
        manifest = json.loads(self._fetch(status.manifest, status.manifest.partition("-")[2]))
        kept = {name: self._copy(name, wanted) for name, wanted in manifest["files"].items()}
        for source, name in (("job.sh", "job.sh"), (f"job-{status.job_id}.log", "job.log")):
            try:
                kept[name] = self._copy(source, "", name)
            except CommandFailed:  # somebody removed it: the result does not depend on it
                continue
        return kept

    def _copy(self, source: str, wanted: str, name: str = "") -> Json:
        return self._keep(name or source, self._fetch(source, wanted))

    def _fetch(self, name: str, wanted: str) -> bytes:
        if "/" in name:
            raise DataError(f"read the manifest of {self.token}", f"it names {name!r:.200}")
        source = f"{self.slurm.folder(self.token)}/{name}"
        with tempfile.TemporaryDirectory(prefix="kit-") as folder:
            path = Path(folder) / "file"
            self.slurm.host.get(source, path)
            if wanted and sha256_of(path) != wanted:
                raise DataError(f"fetch {source}", f"SHA-256 {sha256_of(path)}", "it was changed")
            return path.read_bytes()

    def _keep(self, name: str, content: bytes) -> Json:
        return self.objects.keep(f"try-{self.number}/{name}", content)


def digest_of(content: Json) -> str:
    """Name a JSON value, to see whether it has changed."""
    return sha256_of(dumps(content).encode())
