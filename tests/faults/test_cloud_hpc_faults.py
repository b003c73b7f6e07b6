"""The cloud-hpc target on the sandbox's real Slurm, Ray and store, with what can go wrong there."""

import contextlib
import dataclasses
import multiprocessing
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest
from idx_files import real_or_stand_in
from slurm_site import until

from kit import settings, training
from kit.hpc_follow import TrainingFailed, follow
from kit.hyperparameters import Hyperparameters
from kit.jobs import Request, RunState, token
from kit.stage_store import StageStore
from kit.submitter_loop import submitter_for

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(300)]
LONG = Hyperparameters(epochs=3000)
USER = "hpcuser" if os.getuid() == 0 else str(os.getuid())


class Bench:
    """Submitters of one test's own buckets, and what an administrator sees."""

    def __init__(self, profile):
        self.profile, self.data = profile, real_or_stand_in()
        self.submitter = submitter_for(profile)
        self.jobs, self.children = self.submitter.jobs, []
        for store in (self.jobs.store, self.submitter.data):
            store.ensure_bucket()
        StageStore(self.submitter.data, "any").put_data(self.data)

    def ask(self, hp=None, submitter=None):
        run = f"cloud-hpc-{secrets.token_hex(6)}-1"
        self.jobs.ask(Request(run, self.data.hash, True, hp or Hyperparameters()))
        return run

    def passes_until(self, run, done, submitter=None):
        def reached():
            (submitter or self.submitter).once()
            return done()

        return until(reached, 120, 0.5)

    def finish(self, run):
        return self.passes_until(run, lambda: self.jobs.standing(run).state.finished)

    def training(self, run):
        shown = self.jobs.read(run, "progress") or {}
        return shown.get("training")

    def start_process(self):
        """A submitter in a process of its own, to be killed."""

        def loop():
            own = submitter_for(self.profile)
            while True:
                own.once()
                time.sleep(0.3)

        child = multiprocessing.get_context("fork").Process(target=loop, daemon=True)
        child.start()
        self.children.append(child)
        return child

    def sacct(self, run, number=1):
        name = f"kit-{token(run, number)}"
        argv = ["sacct", "-nXP", "--starttime=now-1hours", f"--name={name}", "--format=JobID,State"]
        out = self.submitter.slurm.host.run(argv).out
        return [line.split("|") for line in out.splitlines()]

    def close(self):
        for child in self.children:
            child.kill()
        for standing in self.jobs.standings().values():
            for number in range(1, standing.number + 1):
                self.submitter.slurm.cancel(token(standing.run, number))
        for store in (self.jobs.store, self.submitter.data):
            for each in list(store.list()):
                store.delete(each.key)
            store.delete_bucket()


def processes(*words):
    argv = ["pgrep", "-u", USER, "-af", ".*".join(words)]
    return subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture
def bench(sandbox):
    profile = settings.load("sandbox")
    store = dataclasses.replace(profile.store, bucket_prefix=f"t{secrets.token_hex(4)}")
    made = Bench(dataclasses.replace(profile, store=store))
    yield made
    made.close()
    until(lambda: not processes("kit.ray_main") and not list(Path("/tmp").glob("kr-*")), 30)


def test_the_site_gives_the_same_bits_as_this_process(bench, seen, tmp_path):
    run = bench.ask()
    bench.finish(run)
    result = follow(bench.jobs, run, 0, lambda _: None)
    here = training.train(bench.data, Hyperparameters(), progress=lambda _: None)
    training.save_model(here.model, tmp_path / "model.safetensors")
    theirs = bench.submitter.data.get(result["files"]["model.safetensors"]["key"])
    assert theirs == (tmp_path / "model.safetensors").read_bytes()
    assert {row["State"] for row in result["sacct"].values()} == {"COMPLETED"}
    assert all(row["TotalCPU"] for row in result["sacct"].values())
    seen("none: same seed, threads, machine", "model equal to the last bit, all steps COMPLETED")


@pytest.mark.parametrize("when", ["at once", "while it trains"])
def test_a_killed_submitter_is_followed_by_another(bench, seen, when):
    run = bench.ask(dataclasses.replace(LONG, epochs=30))
    child = bench.start_process()
    if when == "at once":
        time.sleep(0.4)
    else:
        state = RunState.SUBMITTED
        until(lambda: bench.jobs.standing(run).state is state, 60)
    if when == "while it trains":
        until(lambda: bench.training(run), 60)
    os.kill(child.pid, signal.SIGKILL)
    bench.finish(run)
    assert bench.jobs.standing(run).state is RunState.DONE
    assert [state for _, state in bench.sacct(run)] == ["COMPLETED"]
    seen(f"submitter killed {when}", "the next one published the result of the one job")


def test_two_submitters_and_two_runs_at_once_are_two_jobs(bench, seen):
    runs = [bench.ask() for _ in range(2)]
    for _ in range(2):
        bench.start_process()
    until(lambda: all(bench.jobs.standing(run).state.finished for run in runs), 120, 0.5)
    assert [bench.jobs.standing(run).state for run in runs] == [RunState.DONE] * 2
    assert [len(bench.sacct(run)) for run in runs] == [1, 1]
    seen("two submitters, two Rays on the same nodes", "two jobs, two results")


def test_a_lost_node_fails_the_job_and_is_named(bench, seen):
    run = bench.ask(LONG)
    bench.passes_until(run, lambda: bench.training(run))
    job = bench.sacct(run)[0][0]
    lines = processes("raylet/raylet", f"kr-{job}/")
    other = [line for line in lines if "127.0.1.2" in line.split("--node_ip_address=")[1][:9]]
    os.kill(int(other[0].split()[0]), signal.SIGKILL)
    bench.finish(run)
    with pytest.raises(TrainingFailed, match="Ray on node c2 has ended") as error:
        follow(bench.jobs, run, 0, lambda _: None)
    assert error.value.next_step
    assert [state for _, state in bench.sacct(run)] == ["FAILED"]
    seen("Ray worker node lost", error.value.got.splitlines()[0][:60])


def test_a_training_that_fails_shows_its_own_traceback(bench, seen):
    run = bench.ask(Hyperparameters(learning_rate=10.0))
    bench.finish(run)
    with pytest.raises(TrainingFailed) as error:
        follow(bench.jobs, run, 0, lambda _: None)
    assert "the training diverged" in str(error.value)
    assert "Traceback" in error.value.traceback
    assert bench.jobs.standing(run).number == 1
    seen("the driver raises", "FAILED, its traceback where the person looks")


def test_a_cancel_releases_the_nodes_at_once_and_leaves_nothing(bench, seen):
    run = bench.ask(LONG)
    bench.passes_until(run, lambda: bench.training(run))
    begun = time.monotonic()
    bench.jobs.cancel(run)
    bench.finish(run)
    took = time.monotonic() - begun
    assert bench.jobs.standing(run).state is RunState.CANCELLED
    assert took < 6
    seen("cancel while it trains", f"nodes released after {took:.1f} s")


def test_no_secret_is_in_scripts_arguments_or_objects(bench):
    run = bench.ask(LONG)
    bench.passes_until(run, lambda: bench.training(run))
    slurm, name = bench.submitter.slurm, token(run, 1)
    ray_token = slurm.logs(name, name="ray.token")[0].decode()
    assert len(ray_token) == 64
    lines = [line for line in subprocess.run(["ps", "axww", "-o", "args"], capture_output=True,
                                             text=True).stdout.splitlines()]  # fmt: skip
    texts = [*lines, slurm.logs(name, name="job.sh")[0].decode(), slurm.logs(name)[0].decode()]
    for store in (bench.jobs.store, bench.submitter.data):
        texts += [store.get(each.key).decode("latin-1") for each in store.list("runs/")]
    password = bench.submitter.data.keystone.login.password.reveal()
    assert not [text for text in texts if ray_token in text or password in text]
    folder = slurm.folder(name)
    modes = slurm.host.run(["stat", "-c", "%a", folder, f"{folder}/ray.token"]).out.split()
    assert modes == ["700", "600"]
    with contextlib.suppress(TrainingFailed):
        bench.jobs.cancel(run)
        bench.finish(run)
    assert slurm.logs(name, name="ray.token")[0] in (b"", ray_token.encode())
