"""A site, a store and submitters between them, all in memory: for tests of the submitter."""

import base64
import dataclasses
import hashlib
import json
from pathlib import Path

import fake_slurm
from fake_slurm import FakeHost, Site
from idx_files import striped_images
from memory_store import MemoryStore

from kit.base.settings import Hpc, load
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite.main import FILES
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunRequests
from kit.slurm import fence
from kit.slurm.client import Slurm
from kit.slurm.text import ACCOUNT_COLUMNS
from kit.submitter import collect
from kit.submitter.submitter import Submitter

RUN = "cloud-hpc-0123456789ab-1"
DATA = striped_images(40, 10)


class WorkingSite(Site):
    """A site whose jobs leave the files of a training when they commit."""

    def __init__(self, files):
        super().__init__()
        self.files, self.scripts = files, {}

    def commit(self, job):
        folder = f"/proj/kit/tries/{job.token}"
        hashes = {}
        for name in FILES:
            content = f"{name} of {job.token}".encode()
            self.files[f"{folder}/{name}"] = content
            hashes[name] = hashlib.sha256(content).hexdigest()
        text = json.dumps({"schema": 1, "files": hashes}).encode()
        manifest = f"manifest-{hashlib.sha256(text).hexdigest()}"
        won = self.link(job.token, "commit", manifest) == manifest
        if won:
            self.files[f"{folder}/{manifest}"] = text
            log = f"{folder}/job-{job.id}.log"
            self.files[log] = self.files.get(log, b"") + b"the job's log\n"
            self.commits.append((job.token, job.me))
        return won


class WorkingHost(FakeHost):
    """A FakeHost that also knows the few commands beside those of `kit.slurm.client`."""

    def _answer(self, argv, given, timeout):
        if argv[:2] == ["test", "-e"]:
            return int(argv[2] not in self.files), "", ""
        if argv[:3] == ["sh", "-fc", collect.READ_PROGRESS]:
            lines = [
                f"{token} {file} {self.files[path].decode()}\n"
                for token in argv[5:]
                for file in collect.PROGRESS_FILES.values()
                if (path := f"{argv[4]}/{token}/{file}") in self.files
            ]
            return 0, "".join(lines), ""
        if argv[0] == "env" and argv[2] == "sacct":
            which, _, wanted = argv[6].partition("=")
            rows = ["|".join(ACCOUNT_COLUMNS)]
            for job in self.site.jobs:
                named = {"--jobs": job.id, "--name": f"kit-{job.token}"}[which]
                if named in wanted.split(","):
                    rows += [self.site._row(job, life, ACCOUNT_COLUMNS) for life in job.lives]
            return 0, "\n".join(rows) + "\n", ""
        return super()._answer(argv, given, timeout)

    def _script(self, text):
        if fence.LOG in text:
            tries, token, offset, name = fake_slurm.shlex.split(
                text.split("set -- ", 1)[1].split(fence.LOOK)[0]
            )
            owner = self.site.links.get((token, "owner"), ("", 0))[0]
            name = name or f"job-{owner.partition('.')[0]}.log"
            content = self.files.get(f"{tries}/{token}/{name}", b"")
            return base64.b64encode(content[int(offset) :]).decode(), ""
        if f"{fence.LOOK}{fence.SUBMIT}" in text:
            words = fake_slurm.shlex.split(text.split("set -- ", 1)[1].split(fence.LOOK)[0])
            self.site.scripts.setdefault(words[1], words[3])
            self.files[f"{words[0]}/{words[1]}/job.sh"] = words[3].encode()
        return super()._script(text)


class World:
    """Everything that outlives a submitter; `submitter()` makes another one."""

    def __init__(self, folder: Path, **hpc):
        self.files = {}
        self.site = WorkingSite(self.files)
        self.jobs, self.data = RunRequests(MemoryStore()), MemoryStore()
        self.hpc = Hpc(ssh_host="x", project_dir="/proj", poll_floor_s=0, build_env_on="job", **hpc)
        self.settings = dataclasses.replace(
            load("sandbox", {"KIT_CACHE_DIR": str(folder)}), hpc=self.hpc
        )
        self.hosts = []
        StageStore(self.data, RUN).put_data(DATA)

    def ask(self, **hp):
        return self.jobs.ask(
            RunRequest(
                run=RUN, data_hash=DATA.hash, configured=True, hyperparameters=Parameters(**hp)
            )
        )

    def submitter(self, step=lambda _: None, vm=None):
        host = WorkingHost(self.site)
        host.files = self.files
        self.hosts.append(host)
        clock = {"clock": lambda: float(self.site.now), "sleep": lambda _: None}
        return Submitter(
            self.settings, Slurm(host, self.hpc, **clock), self.jobs, self.data, step=step, vm=vm
        )

    def live(self):
        return [job for job in self.site.jobs if job.state in ("PENDING", "RUNNING")]

    def play(self, end="COMPLETED", code=0):
        """Let what waits start and what runs end; time goes on."""
        self.site.now += 5
        for job in self.live():
            if job.state == "PENDING":
                self.site.start(job)
            else:
                self.site.end(job, end, code)

    def until_finished(self, submitter=None, turns=40, **play):
        for _ in range(turns):
            (submitter or self.submitter()).once()
            standing = self.jobs.status(RUN)
            if standing.state.finished:
                return standing
            self.play(**play)
        raise AssertionError(f"{standing} after {turns} passes: {self.jobs.read(RUN, 'progress')}")
