"""Submitters of one test's own buckets on the sandbox, and what an administrator sees and does."""

import contextlib
import multiprocessing
import os
import re
import secrets
import signal
import subprocess
import time
from pathlib import Path

from buckets import remove_bucket
from idx_files import as_data, real_or_striped_images
from kit_sandbox import sites
from waiting import until

from kit.base import read_json
from kit.base.settings import load
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite import PROGRESS
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunState, attempt_id, site_id
from kit.submitter import env as hpc_env
from kit.submitter.loop import run_loop as loop
from kit.submitter.loop import submitter_for

USER = sites.SITES["sandbox"].user
LIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"}
OURS = r"kit\.onsite\.main|kit\.onsite\.driver|raylet/raylet|gcs_server|ssh .*-R"


class Bench:
    """Asks for runs, does a submitter's passes, looks at jobs; `close` undoes all of it."""

    def __init__(self, profile):
        self.profile, self.images = profile, real_or_striped_images()
        self.data = as_data(self.images)
        self.submitter = submitter_for(profile)
        self.requests, self.children = self.submitter.requests, []
        for store in (self.requests.store, self.submitter.data):
            store.ensure_bucket()
        StageStore(self.submitter.data, "any").put_data(self.data)

    # What a person does.

    def ask(self, configured=True, workers=1, sweep=None, run="", **hyperparameters):
        run = run or f"cloud-hpc-{secrets.token_hex(6)}-1"
        hp = Parameters(**hyperparameters).model_dump()
        asked = {"run": run, "data_hash": self.data.hash, "hyperparameters": hp}
        asked |= {"profile": self.profile.profile, "site": site_id(self.profile)}
        asked |= {"sweep": sweep} if sweep else {}
        self.requests.ask(RunRequest(**asked, configured=configured, workers=workers))
        return run

    def passes_until(self, run, done, seconds=300):
        """Do passes until `done()` gives a value; a run that ended without it fails at once."""
        deadline = time.monotonic() + seconds
        while True:
            self.submitter.once()
            if value := done():
                return value
            status = self.requests.status(run)
            assert not status.state.finished, (status, self.shown(run))
            assert time.monotonic() < deadline, (status, self.shown(run), f"{seconds} s")
            time.sleep(0.5)

    def finish(self, run):
        self.passes_until(run, lambda: self.requests.status(run).state.finished)
        return self.requests.status(run)

    def shown(self, run):
        """What the submitter shows of a run."""
        return self.requests.read(run, "progress") or {}

    def training(self, run):
        return self.shown(run).get("training")

    def wait_until_trained(self, run, steps=0):
        """Do passes until the job is submitted, then wait until it has trained more than `steps`.

        This looks on the site itself: a pass may take longer than a short training.
        """
        self.passes_until(run, lambda: self.requests.status(run).state is RunState.SUBMITTED)
        until(lambda: self.steps(run) > steps, 75)

    def steps(self, run):
        """The steps that the first attempt's training has reported on the site."""
        path = self.folder(run) / PROGRESS
        return read_json(path)["step"] if path.exists() else 0

    def start_process(self):
        """A submitter in a process of its own, to be killed."""
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=lambda: loop(submitter_for(self.profile)), daemon=True)
        child.start()
        self.children.append(child)
        return child

    # What an administrator sees and does.

    def sacct(self, run, number=1):
        return listed_jobs(self.submitter.slurm.host, run, number)

    def states(self, run, number=1):
        """The states of an attempt's jobs by the accounting, without who cancelled them."""
        return [state for _, state in self.sacct(run, number)]

    def job(self, run, number=1):
        """The id of an attempt's job; the accounting lists a new job some seconds late."""
        return until(lambda: self.sacct(run, number), 60, 0.5)[0][0]

    def ended(self, run, number=1):
        """The states of an attempt's jobs once the accounting has an end of each."""
        return [state for _, state in ended_jobs(self.submitter.slurm.host, run, number)]

    def folder(self, run, number=1):
        return Path(self.submitter.slurm.folder(attempt_id(run, number)))

    def workers(self, run, number=1):
        """The processes that train: children of the raylets of this attempt's job."""
        job = os.readlink(self.folder(run, number) / "owner").partition(".")[0]
        table = [line.split(None, 2) for line in ps("pid=,ppid=,args=")]
        raylets = {row[0] for row in table if "raylet/raylet" in row[2] and f"kr-{job}-" in row[2]}
        return [int(r[0]) for r in table if r[1] in raylets and r[2].startswith("ray::work")]

    @contextlib.contextmanager
    def frozen(self, run, number=1):
        """Hold the training still: the job runs for as long as the test needs."""
        for pid in self.workers(run, number):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in self.workers(run, number):
                os.kill(pid, signal.SIGCONT)

    def close(self):
        """End what is left over, and tell the test when a finished run still had a job."""
        for child in self.children:
            child.kill()
        leaked = []
        for status in self.requests.statuses().values():
            for number in range(1, status.number + 1):
                name = attempt_id(status.run, number)
                argv = ["squeue", "-h", "-n", f"kit-{name}", "-t", "PD,R,CF,S", "-o", "%i"]
                if self.submitter.slurm.host.run(argv).out and status.state.finished:
                    leaked.append(status)
                self.submitter.slurm.cancel(name)
        for store in (self.requests.store, self.submitter.data):
            remove_bucket(store)
        assert not leaked, leaked


def listed_jobs(host, run, number=1):
    """The jobs of an attempt by the accounting, as (id, state without who cancelled it)."""
    name = f"kit-{attempt_id(run, number)}"
    argv = ["sacct", "-nXP", "--starttime=now-1hours", f"--name={name}", "--format=JobID,State"]
    rows = [line.split("|") for line in host.run(argv).out.splitlines()]
    return [(job, state.split()[0]) for job, state in rows]


def ended_jobs(host, run, number=1):
    """`listed_jobs` once there is one and none lives: the accounting is some seconds late."""

    def all_ended():
        rows = listed_jobs(host, run, number)
        return rows and not {state for _, state in rows} & LIVE and rows

    return until(all_ended, 60, 0.5)


def ps(columns):
    return subprocess.run(
        ["ps", "axww", "-o", columns], capture_output=True, text=True
    ).stdout.splitlines()


def processes(*words, user=USER):
    """The processes of an account of the sandbox whose command has these words."""
    argv = ["pgrep", "-u", str(sites.account_uid(user)), "-af", ".*".join(words)]
    return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()


def nothing_runs():
    """Whether no process and no temporary folder of a Ray job is left on this machine."""
    left = [line for line in ps("user=,args=") if re.search(OURS, line) and "pgrep" not in line]
    return not left and not list((load("sandbox").sandbox_dir / "tmp").glob("kr-*"))


class Place:
    """What of the whole site should be the same before and after: `left()` gives what is new."""

    def __init__(self):
        self.profile, self.begun = load("sandbox"), time.time()
        self.before = self._found()

    def left(self):
        return sorted(self._found() - self.before)

    def _found(self):
        host, hpc = submitter_for(self.profile).slurm.host, self.profile.hpc
        found = {
            f"venv {each.name}"
            for each in hpc_env.list_environments(host, hpc)
            if not each.published
        }
        box = self.profile.sandbox_dir
        keys = [*box.glob("etc/ssh/*_keys/*"), *box.glob("home/*/.ssh/*")]
        found |= {f"{path} {path.read_bytes()!r}" for path in keys if path.is_file()}
        tries = Path(hpc.project_dir) / "kit" / "tries"
        found |= {f"open attempt {p}" for p in tries.glob("*") if not (p / "commit").is_symlink()}
        return found | {f"process {line}" for line in processes(OURS)}

    def jobs(self):
        """Every life of every job since then: {name: [(id, state, exit code, elapsed)]}."""
        host = submitter_for(self.profile).slurm.host
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.begun))
        argv = ["sacct", "-nXPDa", f"--starttime={since}"]
        argv += ["--format=JobName,JobID,State,ExitCode,ElapsedRaw"]
        found = {}
        for line in host.run(argv).out.splitlines():
            name, *row = line.split("|")
            if name.startswith("kit-"):
                found.setdefault(name, []).append(tuple(row))
        return found
