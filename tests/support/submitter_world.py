"""A site, a store and submitters between them, all in memory: for tests of the submitter."""

import base64
import dataclasses
import hashlib
import json
from pathlib import Path

from fake_slurm import FakeHost, Site, script_and_words
from idx_files import as_data, striped_images
from memory_store import MemoryStore

from kit.base.settings import Hpc, load
from kit.experiments import load_experiment
from kit.onsite import RESULTS
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunRequests
from kit.slurm import ACCOUNT_COLUMNS, Slurm, room_argv
from kit.submitter import collect
from kit.submitter.scripts import script
from kit.submitter.submitter import Submitter

RUN = "cloud-hpc-0123456789ab-1"
DATA = as_data(striped_images(40, 10))


class WorkingSite(Site):
    """A site whose jobs leave the files of a training when they commit."""

    def __init__(self, files):
        super().__init__()
        self.files, self.scripts = files, {}
        self.room = ""  # what df and quota tools say

    def commit(self, job):
        folder = f"/proj/kit/tries/{job.attempt_id}"
        hashes = {}
        for name in (*RESULTS, "out/model.safetensors", "out/predictions.npy"):
            content = f"{name} of {job.attempt_id}".encode()
            self.files[f"{folder}/{name}"] = content
            hashes[name] = hashlib.sha256(content).hexdigest()
        text = json.dumps({"schema": 1, "files": hashes}).encode()
        manifest = f"manifest-{hashlib.sha256(text).hexdigest()}"
        won = self.link(job.attempt_id, "commit", manifest) == manifest
        if won:
            self.files[f"{folder}/{manifest}"] = text
            log = f"{folder}/job-{job.id}.log"
            self.files[log] = self.files.get(log, b"") + b"the job's log\n"
            self.commits.append((job.attempt_id, job.me))
        return won


class WorkingHost(FakeHost):
    """A FakeHost that also knows the few commands beside those of `kit.slurm.client`."""

    def _answer(self, argv, given, timeout):
        if argv[:3] == ["ls", "-d", "--"]:
            return self._listed(argv[3:])
        if argv[0] == "touch" or argv[:5] == room_argv("/proj")[:5]:
            return 0, self.site.room, ""
        if argv[:2] == ["sha256sum", "--check"]:
            known, _, path = self.files.get(argv[-1], b"").decode().rstrip("\n").partition("  ")
            return int(hashlib.sha256(self.files.get(path, b"")).hexdigest() != known), "", ""
        if argv[0] == "sha256sum":
            if argv[2] not in self.files:
                return 1, "", ""
            return 0, f"{hashlib.sha256(self.files[argv[2]]).hexdigest()}  {argv[2]}\n", ""
        if argv[:3] == ["sh", "-fc", script("read_progress")]:
            lines = [
                f"{token} {file} {base64.b64encode(self.files[path]).decode()}\n"
                for token in argv[5:]
                for file in collect.PROGRESS_FILES
                if (path := f"{argv[4]}/{token}/{file}") in self.files
            ]
            return 0, "".join(lines), ""
        if argv[0] == "env" and argv[2] == "sacct":
            return self._accounting(argv)
        return super()._answer(argv, given, timeout)

    def _accounting(self, argv):
        if not self.site.database:
            return 1, "", self.site.database_error
        asked = dict(word.removeprefix("--").split("=", 1) for word in argv[6:])
        rows = ["|".join(ACCOUNT_COLUMNS)]
        for job in self.site.jobs:
            by_id = job.id in asked.get("jobs", job.id).split(",")
            if by_id and job.name in asked["name"].split(","):
                rows += [self.site.row(job, start, ACCOUNT_COLUMNS) for start in job.starts]
        return 0, "\n".join(rows) + "\n", ""

    def _listed(self, names):
        """Answer as `ls -d` does of folders: those that have a file."""
        there = [n for n in names if any(file.startswith(f"{n}/") for file in self.files)]
        return 2 * (there != names), "".join(f"{name}\n" for name in there), ""

    def _script(self, text):
        name, words = script_and_words(text)
        if name == "log":
            attempts, attempt_id, count, file = words
            owner = self.site.links.get((attempt_id, "owner"), ("", 0))[0]
            file = file or f"job-{owner.partition('.')[0]}.log"
            content = self.files.get(f"{attempts}/{attempt_id}/{file}", b"")
            part = content[int(count) - 1 :] if count[0] == "+" else content[-int(count) :]
            return base64.b64encode(part).decode(), ""
        if name == "submit":
            self.site.scripts.setdefault(words[1], words[5])
            self.files[f"{words[0]}/{words[1]}/job.sh"] = words[5].encode()
        return super()._script(text)


class World:
    """Everything that outlives a submitter; `submitter()` makes another one."""

    def __init__(self, folder: Path, **hpc):
        self.files = {}
        self.site = WorkingSite(self.files)
        self.requests, self.data = RunRequests(MemoryStore()), MemoryStore()
        self.hpc = Hpc(ssh_host="x", project_dir="/proj", poll_floor_s=0, build_env_on="job", **hpc)
        self.settings = dataclasses.replace(
            load("sandbox", {"KIT_CACHE_DIR": str(folder)}), hpc=self.hpc
        )
        self.hosts = []
        StageStore(self.data, RUN).put_data(DATA)

    def ask(self, experiment="fashion_mnist", **hp):
        values = load_experiment(experiment).parameters(**hp).model_dump()
        asked = {"data_hash": DATA.hash, "experiment": experiment, "hyperparameters": values}
        return self.requests.ask(RunRequest(run=RUN, configured=True, **asked))

    def submitter(self, tunnel_keys=None):
        host = WorkingHost(self.site)
        host.files = self.files
        self.hosts.append(host)
        clock = {"clock": lambda: float(self.site.now), "sleep": lambda _: None}
        return Submitter(
            self.settings, Slurm(host, self.hpc, **clock), self.requests, self.data, tunnel_keys
        )

    def live(self):
        return [job for job in self.site.jobs if job.state in ("PENDING", "RUNNING")]

    def play(self, end="COMPLETED", code=0):
        """Let what waits start and what runs end; time passes."""
        self.site.now += 5
        for job in self.live():
            if job.state == "PENDING":
                self.site.start(job)
            else:
                self.site.end(job, end, code)

    def until_finished(self, submitter=None, turns=40, **play):
        for _ in range(turns):
            (submitter or self.submitter()).once()
            status = self.requests.status(RUN)
            if status.state.finished:
                return status
            self.play(**play)
        raise AssertionError(
            f"{status} after {turns} passes: {self.requests.read(RUN, 'progress')}"
        )
