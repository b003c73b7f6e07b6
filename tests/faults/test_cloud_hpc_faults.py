"""The cloud-hpc target on the sandbox's real Slurm, Ray and store, with what can go wrong there."""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from allas_site import AllasSite
from hpc_bench import USER, Bench, Place, nothing_runs, processes, ps
from idx_files import write_folder
from kit_sandbox import services as sandbox_services
from kit_sandbox import sites
from private_sshd import PrivateSshd
from rank_attempts import Attempts
from waiting import until

from kit.base import KitError, Unreachable
from kit.base.settings import SITES, load
from kit.billing import rates as billing
from kit.billing import usages
from kit.experiments.fashion_mnist import training
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.follow import TrainingFailed, follow
from kit.runs.requests import RunRequests, RunState, attempt_id
from kit.store import RetryPolicy, open_store
from kit.submitter import env as hpc_env

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EPOCH_STEPS = 180  # 720 images in batches of 4
LONG = 3000  # epochs: it runs until somebody ends it


@pytest.fixture(scope="module")
def place(sandbox):
    """What the site held before these tests."""
    return Place()


def profile_of_its_own(name="sandbox", **hpc):
    """A site of the sandbox with buckets of one test's own."""
    profile = load(name)
    store = dataclasses.replace(profile.store, bucket_prefix=f"t{secrets.token_hex(4)}")
    return dataclasses.replace(profile, store=store, hpc=dataclasses.replace(profile.hpc, **hpc))


@pytest.fixture
def bench(place, request):
    name = getattr(request, "param", "sandbox")
    if name != "sandbox":
        request.getfixturevalue("second_site")
    made = Bench(profile_of_its_own(name))
    yield made
    made.close()
    until(nothing_runs, 30)


@pytest.fixture
def allas(sandbox):
    site = AllasSite()
    yield site
    site.close()


def failure_of(bench, run):
    """Return the error that the person sees of a run that failed."""
    with pytest.raises(TrainingFailed) as error:
        follow(bench.requests, run, 0, lambda _: None)
    return error.value


def admin(*argv, check=True):
    sandbox_services.run(load("sandbox").sandbox_dir, argv, check=check)


@pytest.mark.both_sites
def test_the_site_gives_the_same_bits_as_this_process(bench, seen, tmp_path):
    run = bench.ask()
    bench.finish(run)
    result = follow(bench.requests, run, 0, lambda _: None)
    here = training.train(bench.images, Parameters())
    training.save_model(here.model, tmp_path / "model.safetensors")
    theirs = bench.submitter.data.get(result["files"]["out/model.safetensors"]["key"])
    assert theirs == (tmp_path / "model.safetensors").read_bytes()
    assert {row["State"] for row in result["sacct"].values()} == {"COMPLETED"}
    assert all(row["TotalCPU"] for row in result["sacct"].values())
    seen("none: same seed, threads, machine", "model equal to the last bit, all steps COMPLETED")


# Who asks and who submits.


@pytest.mark.parametrize("when", ["at once", "while it trains"])
def test_a_killed_submitter_is_followed_by_another(bench, seen, when):
    run = bench.ask(epochs=5 if when == "at once" else 30)
    child = bench.start_process()
    if when == "at once":
        time.sleep(0.4)
    else:
        until(lambda: bench.steps(run), 60)
    os.kill(child.pid, signal.SIGKILL)
    assert bench.finish(run).state is RunState.DONE
    assert bench.ended(run) == ["COMPLETED"]
    seen(f"submitter killed {when}", "the next one published the result of the one job")


@pytest.mark.both_sites
def test_two_submitters_and_two_runs_at_once_are_two_jobs(bench, seen):
    runs = [bench.ask() for _ in range(2)]
    for _ in range(2):
        bench.start_process()
    until(lambda: all(bench.requests.status(run).state.finished for run in runs), 120, 0.5)
    assert [bench.requests.status(run).state for run in runs] == [RunState.DONE] * 2
    assert [len(bench.sacct(run)) for run in runs] == [1, 1]
    seen("two submitters, two Rays on the same nodes", "two jobs, two results")


PIPELINE = """
import json, sys
import kit
gates = {"accuracy": 0.0, "precision": 0.0, "recall": 0.0}
run = kit.start("faults", "cloud-hpc", {"epochs": int(sys.argv[1])}, gates=gates)
run.show_credentials()
run.run_pipeline()
print(json.dumps(run.finish()))
"""


def test_a_pipeline_killed_mid_training_is_resumed(bench, seen, tmp_path):
    text = (SITES / "sandbox.toml").read_text().replace('name = "sandbox"', 'name = "f"')
    prefix = f'[store]\nbucket_prefix = "{bench.profile.store.bucket_prefix}"'
    text = re.sub(r"^forwarder_.*\n", "", text, flags=re.MULTILINE)  # it serves other buckets
    (tmp_path / "faults.toml").write_text(text.replace("[store]", prefix))
    environ = {**os.environ, "KIT_TEST_SITES": str(tmp_path), "KIT_CACHE_DIR": str(tmp_path / "c")}
    environ |= {"PYTHONPATH": f"{ROOT}:{HERE.parent / 'in_child'}"}
    environ |= {"KIT_RESULTS_DIR": str(tmp_path / "results")}
    environ |= {"KIT_DATA_DIR": str(write_folder(tmp_path / "data", bench.images))}
    start = [sys.executable, "-c", PIPELINE, "20"]
    with (tmp_path / "log").open("wb") as log:
        options = {"env": environ, "start_new_session": True, "stdout": log, "stderr": log}
        child = subprocess.Popen(start, **options)
        try:
            run = until(lambda: next(iter(bench.requests.statuses()), ""), 90, 0.5)
            until(lambda: bench.steps(run), 90)
        finally:
            killed = time.time()
            os.killpg(child.pid, signal.SIGKILL)  # with its components and its submitter
            child.wait()
    done = subprocess.run(start, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert (line["run"], line["resumed"]) == (run, True)
    assert bench.ended(run) == ["COMPLETED"]
    stages = json.loads((tmp_path / f"results/faults/runs/{run}/stages.json").read_text())
    assert stages["cloud-hpc-preprocess"]["time"]["end-time"] < killed
    assert stages["cloud-hpc-train"]["training"]["start-time"] < killed
    assert stages["cloud-hpc-train"]["slurm"]["try"] == 1
    seen("pipeline and submitter killed mid-training", "next start: same job, first times, resumed")


# Services that go away.


def test_services_that_go_away_mid_run_are_waited_for(bench, allas, seen):
    run, said, results = bench.ask(epochs=20), [], []
    bucket, short = bench.requests.store.bucket, RetryPolicy(2, 2)
    mine = RunRequests(open_store(bench.profile, bucket, retry=short))
    bench.start_process()
    until(lambda: bench.steps(run), 90)
    pipeline = threading.Thread(
        target=lambda: results.append(follow(mine, run, 600, said.append)), daemon=True
    )
    with bench.frozen(run):
        pipeline.start()
        with allas.stopped("rgw"):
            until(lambda: "no answer, asked again" in "".join(said), 60)
        with allas.stopped("keystone"):
            new = RunRequests(open_store(bench.profile, bucket, retry=short))
            with pytest.raises(Unreachable, match="Keystone at .* gives no usable answer"):
                follow(new, run, 3, said.append)
        with allas.stopped("sshd-login"):
            bench.submitter.slurm.host.close()
            until(lambda: bench.shown(run)["state"] == "UNKNOWN", 90)
        until(lambda: bench.shown(run)["state"] == "RUNNING", 90)
        with allas.stopped("slurmctld"):
            until(lambda: bench.shown(run)["state"] == "UNKNOWN", 90)
        until(lambda: bench.shown(run)["state"] == "RUNNING", 90)
        assert bench.requests.status(run).state is RunState.SUBMITTED
    pipeline.join(120)
    assert results[0]["job"]["state"] == "COMPLETED"
    assert bench.ended(run) == ["COMPLETED"]
    seen("RGW stopped mid-run", "submitter and pipeline wait and go on; job untouched")
    seen("Keystone stopped mid-run", "who has logged in continues, others report it and wait")
    seen("login sshd stopped mid-run", "UNKNOWN, why; then RUNNING, COMPLETED")
    seen("slurmctld stopped mid-run", "UNKNOWN, why; then RUNNING, COMPLETED, 1 job")


def test_a_token_that_is_expired_for_as_long_as_the_job_runs_costs_no_result(
    place, allas, seen, tmp_path
):
    profile = profile_of_its_own()
    # A login of its own: the process shares the one of the other tests, whose token is still good.
    login = shutil.copy(profile.env_file, tmp_path)
    swift = dataclasses.replace(profile.store, kind="swift")
    other = dataclasses.replace(profile, store=swift, env_file=Path(login))
    with allas.short_tokens(15), contextlib.closing(Bench(other)) as bench:
        run = bench.ask(epochs=20)
        bench.passes_until(run, lambda: bench.requests.status(run).state is RunState.SUBMITTED)
        commit, begun = bench.folder(run) / "commit", time.time()
        with allas.stopped("keystone"):
            until(lambda: commit.is_symlink() and time.time() > begun + 16, 120, 0.5)
            with pytest.raises(KitError) as error:
                bench.submitter.once()
        assert bench.finish(run).state is RunState.DONE
    seen("token expired while the job runs", f"{error.value.tried[:30]}…; published after renewal")


# What fails on the site.


def test_a_lost_node_fails_the_job_and_is_named(bench, seen):
    run = bench.ask(epochs=LONG)
    bench.passes_until(run, lambda: bench.training(run))
    job = bench.job(run)
    lines = processes("raylet/raylet", f"kr-{job}-")
    other = [line for line in lines if "127.0.1.2" in line.split("--node_ip_address=")[1][:9]]
    os.kill(int(other[0].split()[0]), signal.SIGKILL)
    bench.finish(run)
    error = failure_of(bench, run)
    assert "Ray on node c2 has ended" in str(error)
    assert error.next_step
    assert bench.ended(run) == ["FAILED"]
    seen("Ray worker node lost", error.got.splitlines()[0][:60])


def test_a_killed_rank_fails_the_attempt_and_the_next_one_resumes(bench, seen, tmp_path):
    run = bench.ask(workers=2, epochs=20)
    bench.wait_until_trained(run, 2 * EPOCH_STEPS)
    ranks = bench.workers(run)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    bench.finish(run)
    error = failure_of(bench, run)
    assert "worker" in error.got
    assert error.traceback
    bench.requests.ask_again(run)
    assert bench.finish(run).number == 2
    result = follow(bench.requests, run, 0, lambda _: None)
    times = json.loads(bench.submitter.data.get(result["files"]["times.json"]["key"]))
    assert times["resumed_step"] >= 2 * EPOCH_STEPS
    here = Attempts(tmp_path, bench.images, epochs=20).run("here")
    theirs = bench.submitter.data.get(result["files"]["out/model.safetensors"]["key"])
    assert theirs == (here / "out/model.safetensors").read_bytes()
    steps = [row for row in result["sacct"].values() if row["JobName"] == "bash"]
    cpu = [row["TotalCPU"] for row in steps[-2:]]  # Ray starts again on a busy node: more steps
    assert len(cpu) == 2
    assert "00:00:00" not in cpu  # both nodes worked
    seen("one of two ranks killed", "attempt failed; the next one has the bits of two ranks here")


def test_a_training_that_fails_shows_its_own_traceback(bench, seen):
    run = bench.ask(learning_rate=10.0)
    bench.finish(run)
    error = failure_of(bench, run)
    assert "the training diverged" in str(error)
    assert "Traceback" in error.traceback
    assert bench.requests.status(run).number == 1
    seen("the driver raises", "FAILED, its traceback where the person looks")


def test_a_killed_driver_is_named(bench, seen):
    run = bench.ask(epochs=LONG)
    bench.wait_until_trained(run)
    for line in processes("bin/python -m kit.onsite.driver"):
        os.kill(int(line.split()[0]), signal.SIGKILL)
    bench.finish(run)
    error = failure_of(bench, run)
    assert "the driver was killed" in str(error)
    assert bench.ended(run) == ["FAILED"]
    seen("driver killed", error.got.splitlines()[0][:60])


def test_another_ray_on_the_site_is_refused_before_anything_starts(bench, seen):
    hpc, host = bench.profile.hpc, bench.submitter.slurm.host
    key = hpc_env.environment_key(hpc, hpc_env.pins())
    made = f"{hpc.project_dir}/kit/venvs/{key}.{'0' * 8}"
    other = f"""
set -e; cd "$(dirname {made})"
python3 -m venv --system-site-packages --without-pip {made}
cd {made}/lib/python3*/site-packages
cp ../../../../{key}/lib/python3*/site-packages/module.pth .
realpath ../../../../{key}/lib/python3*/site-packages >real.pth
mkdir ray; echo '__version__ = "2.9.0"' >ray/__init__.py
cd {hpc.project_dir}/kit/venvs; readlink {key}; ln -sfT {made} {key}
"""
    before = host.run(["bash", "-c", other]).out.strip()
    try:
        run = bench.ask()
        bench.finish(run)
    finally:
        host.run(["bash", "-c", f"ln -sfT {before} {made.rpartition('.')[0]}; rm -rf {made}"])
    error = failure_of(bench, run)
    assert "the environment has Ray 2.9.0" in error.got
    assert error.next_step == "run with configured = False"
    assert bench.ended(run) == ["FAILED"]
    seen("wrong Ray version on the site", error.got[:60])


def test_the_time_limit_keeps_the_last_epoch_for_the_next_attempt(bench, seen):
    run = bench.ask(epochs=40)
    bench.wait_until_trained(run, 2 * EPOCH_STEPS)
    with bench.frozen(run):
        admin("scontrol", "update", f"JobId={bench.job(run)}", "TimeLimit=1")
        bench.finish(run)
    error = failure_of(bench, run)
    assert "the job was asked to end" in error.got
    bench.requests.ask_again(run)
    status = bench.finish(run)
    assert (status.state, status.number) == (RunState.DONE, 2)
    result = follow(bench.requests, run, 0, lambda _: None)
    times = json.loads(bench.submitter.data.get(result["files"]["times.json"]["key"]))
    assert times["resumed_step"] >= 2 * EPOCH_STEPS
    assert bench.ended(run, 1) in (["FAILED"], ["TIMEOUT"])  # by itself, or ended by a busy node
    assert bench.ended(run, 2) == ["COMPLETED"]
    text = bench.submitter.data.get(result["files"]["sacct-tries.txt"]["key"]).decode()
    lines = billing.actual(bench.profile, usages(bench.profile, text), result["job"]["id"])
    assert [line.note for line in lines] == [billing.LOST, ""]  # the bill has both jobs
    assert all(line.bu > 0 for line in lines)
    seen(
        "time limit near",
        f"ended early; the next attempt resumed after step {times['resumed_step']}",
    )


def test_a_folder_that_is_not_writable_or_full_is_reported_and_waited_for(bench, seen):
    run, host = bench.ask(epochs=LONG), bench.submitter.slurm.host
    tries = bench.folder(run).parent
    host.run(["chmod", "500", str(tries)])
    try:
        bench.submitter.once()
        shown = bench.shown(run)
    finally:
        host.run(["chmod", "700", str(tries)])
    assert "cannot use the folder" in shown["why"]
    assert bench.requests.status(run).state is RunState.REQUESTED
    seen("project folder not writable", "said, waited for, no job")
    usual = host.run

    def full(argv, *args, **kwargs):
        # no file of this user may hold a single byte: what a full disk or quota looks like
        return usual(
            ["prlimit", "--fsize=0", "bash", "-c", 'trap "" XFSZ; exec "$@"', "-", *argv],
            *args,
            **kwargs,
        )

    host.run = full
    bench.submitter.once()
    host.run = usual
    assert bench.requests.status(run).state is RunState.REQUESTED
    seen("project folder full at submit", "said, waited for, no job")
    bench.passes_until(run, lambda: bench.training(run))
    with bench.frozen(run):
        for line in processes("kit.onsite.main|kit.onsite.driver|ray::work"):
            usual(["prlimit", "--fsize=0", "--pid", line.split()[0]], check=False)
    assert bench.finish(run).state is RunState.ENDED
    error = failure_of(bench, run)
    assert "full or not writable" in error.got, error
    assert bench.ended(run) == ["FAILED"]
    seen("project folder full while it trains", error.got[:60])


# Who is not wanted any more.


def test_a_cancel_before_and_in_the_queue_leaves_nothing(bench, seen):
    run = bench.ask()
    bench.requests.cancel(run)
    assert bench.finish(run).state is RunState.CANCELLED
    assert bench.sacct(run) == []
    seen("cancel before the submitter saw it", "CANCELLED, no job")
    admin("scontrol", "update", "nodename=c[1-2]", "state=drain", "reason=test")
    try:
        run = bench.ask()
        bench.passes_until(run, lambda: bench.shown(run).get("state") == "PENDING")
        bench.requests.cancel(run)
        assert bench.finish(run).state is RunState.CANCELLED
    finally:
        admin("scontrol", "update", "nodename=c[1-2]", "state=resume")
    assert bench.ended(run) == ["CANCELLED"]
    assert not (bench.folder(run) / "owner").readlink().name[0].isdigit()
    seen("cancel while it is pending", "CANCELLED, no work done")


def cancel_after_its_end(bench, run):
    """Have the job of a run end and cancel the run before its result is published: it is done."""
    bench.passes_until(run, lambda: bench.requests.status(run).state is RunState.SUBMITTED)
    until((bench.folder(run) / "commit").is_symlink, 90)
    bench.requests.cancel(run)
    assert bench.finish(run).state is RunState.DONE
    assert bench.ended(run) == ["COMPLETED"]
    assert bench.requests.cancel(run).state is RunState.DONE


def test_an_account_removed_between_two_attempts_ends_the_run(allas, bench, seen):
    account = f"project_{secrets.token_hex(4)}"
    bench.submitter.hpc = dataclasses.replace(bench.submitter.hpc, account=account)
    user = ("user", USER, f"Account={account}")
    admin("sacctmgr", "-iQ", "add", "account", account)
    admin("sacctmgr", "-iQ", "add", *user)
    try:
        with allas.stopped("slurmctld"):  # it reads the accounts when it starts
            pass
        admin("scontrol", "update", "nodename=c[1-2]", "state=drain", "reason=test")
        run = bench.ask()
        bench.passes_until(run, lambda: bench.shown(run).get("state") == "PENDING")
        admin("scancel", bench.job(run))  # it did no work, so another attempt follows
        bench.ended(run)
    finally:
        admin("sacctmgr", "-iQ", "delete", *user[:2], "where", user[2])
        admin("sacctmgr", "-iQ", "delete", "account", account)
        admin("scontrol", "update", "nodename=c[1-2]", "state=resume")
    status = bench.finish(run)
    assert (status.state, status.number) == (RunState.ENDED, 2)
    assert "Invalid account" in str(failure_of(bench, run))
    assert bench.ended(run, 1) == ["CANCELLED"]
    assert bench.sacct(run, 2) == []
    assert not (bench.folder(run, 2) / "owner").readlink().name[0].isdigit()
    keys = Path(bench.profile.cloud.tunnel_keys).read_text()
    assert [number for number in (1, 2) if attempt_id(run, number) in keys] == []
    seen("account removed between two attempts", "FAILED with sbatch's words, 1 job, no work done")


def test_a_cancel_while_the_environment_is_made_removes_it(bench, seen):
    run = bench.ask(configured=False)
    venvs = Path(bench.profile.hpc.project_dir) / "kit" / "venvs"
    before = set(venvs.iterdir())

    def making():
        return any((path / "bin" / "python").exists() for path in set(venvs.iterdir()) - before)

    bench.passes_until(run, making)
    bench.requests.cancel(run)
    assert bench.finish(run).state is RunState.CANCELLED
    until(lambda: set(venvs.iterdir()) == before, 20)
    seen("cancel while its environment is made", "CANCELLED, the environment removed")


# Hostile input.


FIELDS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "seed",
    "threads",
    "device",
    "fast_step",
)


def test_hostile_requests_are_refused_and_harmless(bench, seen, tmp_path):
    mark = tmp_path / "harm"
    tmp_path.chmod(0o777)
    good = bench.ask()
    fair = json.loads(bench.requests.store.get(f"runs/{good}/request.json"))
    shell = f"1; touch {mark}; $(touch {mark}) `touch {mark}` ' \" | & > {mark}\n"
    tables = [fair | {name: shell} for name in ("run", "data_hash", "configured", "schema")]
    tables += [fair | {"data_hash": "../../../etc/passwd"}, fair | {"partition": "urgent"}]
    tables += [fair | {"commands": [f"touch {mark}"]}, fair | {"project_dir": "/", "account": "x"}]
    given = fair["hyperparameters"]
    tables += [fair | {"hyperparameters": given | {name: shell}} for name in FIELDS]
    tables += [fair | {"hyperparameters": given | {"nodes": 100, "partition": "urgent"}}]
    contents = [json.dumps(table).encode() for table in tables]
    contents += [b"[" * 60_000, b'{"a":' * 9_000, json.dumps(fair | {"x": "y" * 70_000}).encode()]
    contents += [b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.", b"", b"\xff\x00"]
    runs = [f"cloud-hpc-{secrets.token_hex(6)}-1" for _ in contents]
    for run, content in zip(runs, contents, strict=True):
        content = content.replace(good.encode(), run.encode())  # the id is not what is wrong
        bench.requests.store.put(f"runs/{run}/request.json", content)
    for key in (f"runs/$(touch {mark})/request.json", f"runs/a;touch {mark}/request.json"):
        bench.requests.store.put(key, json.dumps(fair).encode())
    cancel_after_its_end(bench, good)
    seen("cancel after it finished", "DONE: finished before the cancel")
    assert {bench.requests.status(run).state for run in runs} == {RunState.REFUSED}
    assert not mark.exists()
    assert [run for run in runs if bench.folder(run).exists()] == []
    assert [run for run in runs if bench.sacct(run)] == []
    seen(f"{len(runs)} hostile requests", "refused with the reason, no folder, no job, no harm")


@pytest.fixture
def theirs(place, allas):
    """The bench of another user with a project folder and an environment of their own."""
    mine, user = profile_of_its_own().hpc, sites.VM_ACCOUNTS[0]
    if sites.account_uid(user) == sites.account_uid(USER):
        pytest.skip("an ordinary user's sandbox has one uid, so no second user of the site")
    home = Path(mine.project_dir).with_name(f"t{secrets.token_hex(4)}")
    venv = f"kit/venvs/{hpc_env.environment_key(mine, hpc_env.pins())}"
    before = Path(mine.project_dir, venv).resolve()
    shutil.copytree(before, home / venv, symlinks=True)
    ray = home / venv / "bin" / "ray"  # it names its Python in its first line
    ray.write_text(ray.read_text().replace(str(before), str(home / venv)))
    subprocess.run(["chown", "-R", str(sites.account_uid(user)), home], check=True)
    box = load("sandbox").sandbox_dir
    folder = Path(tempfile.mkdtemp(prefix="sshd-", dir=box / "home"))
    folder.chmod(0o755)
    conf = box / "etc" / "slurm.conf"
    setenv = f"SLURM_CONF={conf} PATH=/usr/local/bin:/usr/bin:/bin"
    sshd = PrivateSshd(folder / "s", user=user, setenv=setenv, sandbox=box).start()
    admin("sacctmgr", "-iQ", "add", "user", user, f"Account={mine.account}", check=False)
    with allas.stopped("slurmctld"):  # it learns of new users when it starts
        pass
    where = {"ssh_host": "site", "ssh_config": str(sshd.folder / "config")}
    made = Bench(profile_of_its_own(**where, user=user, project_dir=str(home)))
    yield made
    made.close()
    sshd.stop()
    shutil.rmtree(home)
    shutil.rmtree(folder)
    admin("sacctmgr", "-iQ", "delete", "user", user)


def test_another_users_cluster_on_the_same_nodes_does_no_harm(bench, theirs, seen):
    second = theirs.ask(epochs=20)
    first = bench.ask(epochs=LONG)
    bench.submitter.once()  # the two jobs start side by side
    theirs.wait_until_trained(second)
    with theirs.frozen(second):
        bench.passes_until(first, lambda: bench.training(first))
        refused_without_token(bench, first)
        refused_without_token(theirs, second)
        assert closed_to_others(bench, first) == [True]
        bench.requests.cancel(first)
        assert bench.finish(first).state is RunState.CANCELLED
        assert not processes(f"kr-{bench.job(first)}-")
    assert theirs.finish(second).state is RunState.DONE
    assert theirs.ended(second) == ["COMPLETED"]
    seen("another user's cluster on the same nodes", "two tokens; the end of one touches no other")


def closed_to_others(bench, run):
    """Whether another account can neither list nor write each folder of Ray on the nodes."""
    job, box = bench.job(run), load("sandbox").sandbox_dir
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    return [
        all(
            sandbox_services.run(box, [*as_nobody, word, f"/tmp/{folder.name}"]).returncode
            for word in ("ls", "touch")
        )
        for folder in (box / "tmp").glob(f"kr-{job}-*")
    ]


def refused_without_token(bench, run):
    """Ray's face answers nobody who has not the token of the attempt."""
    job = bench.job(run)
    table = [line for line in ps("args=") if f"kr-{job}-" in line]
    assert not any("client.server" in line for line in table), "nobody uses Ray Client here"
    line = next(line for line in table if "dashboard/dashboard" in line)
    host = re.search(r"--host=(\S+)", line)[1]
    port = re.search(r"--port=(\d+)", line)[1]
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"http://{host}:{port}/api/jobs/", timeout=10)
    assert error.value.code in (401, 403)


# What listens on every address of a node while a job runs (docs/slurm.md says so): Ray's servers,
# which ask for the token of the attempt, and srun, which asks for Slurm's.
LISTENERS = {"gcs_server", "raylet", "python", "srun"} | {
    f"ray::{name}" for name in ("DashboardAgent", "JobSupervisor", "RuntimeEnvAgent", "work")
}


def listeners(job):
    """Return the programs of a job that listen, each with `any` or the address of its node."""
    roots = [p for p in psutil.process_iter(["cmdline"]) if f"kr-{job}-" in str(p.info["cmdline"])]
    ours = {p.pid: p.name() for root in roots for p in (root, *root.children(recursive=True))}
    return {
        (ours[row.pid], "any" if row.laddr.ip in ("0.0.0.0", "::") else row.laddr.ip)
        for row in psutil.net_connections("tcp")
        if row.status == psutil.CONN_LISTEN and row.pid in ours
    }


def test_no_secret_is_anywhere_and_a_cancel_releases_the_nodes_at_once(bench, seen):
    run = bench.ask(epochs=LONG)
    bench.passes_until(run, lambda: bench.training(run))
    slurm, name = bench.submitter.slurm, attempt_id(run, 1)
    ray_token = slurm.logs(name, name="ray.token")[0].decode()
    assert len(ray_token) == 64
    keystone = bench.submitter.data.keys
    key = keystone.ec2_key()
    hidden = [ray_token, keystone.login.password.reveal(), key.secret.reveal()]
    hidden += [keystone.token().reveal()]
    texts = {line: line.encode() for line in ps("args=")}
    with bench.frozen(run):
        reachable = {name for name, at in listeners(bench.job(run)) if at == "any"}
        assert "gcs_server" in reachable
        assert reachable <= LISTENERS, "docs/slurm.md lists what other nodes can reach"
        for store in (bench.requests.store, bench.submitter.data):
            texts |= {each.key: store.get(each.key) for each in store.list("runs/")}
        box = bench.profile.sandbox_dir
        for root in (box / "home" / USER, Path(bench.profile.hpc.project_dir) / "kit"):
            for path in root.rglob("*"):
                small = path.is_file() and not {"venvs", "wheels"} & set(path.parts)
                if small and path.name != "ray.token":
                    texts[str(path)] = path.read_bytes()
        assert any(path.endswith("/job.sh") for path in texts)
        assert any(name in path and path.endswith(".log") for path in texts)
        found = [
            (where, n)
            for where, text in texts.items()
            for n, secret in enumerate(hidden)
            if secret.encode() in text
        ]
        assert found == []
        folder = slurm.folder(name)
        modes = slurm.host.run(["stat", "-c", "%a", folder, f"{folder}/ray.token"]).out.split()
        assert modes == ["700", "600"]
    seen("Ray's token, password, EC2 key, Keystone token", f"in none of {len(texts)} texts")
    begun = time.monotonic()
    bench.requests.cancel(run)
    assert bench.finish(run).state is RunState.CANCELLED
    took = time.monotonic() - begun
    assert bench.ended(run) == ["CANCELLED"]
    seen("cancel while it trains", f"nodes released after {took:.1f} s")


# After all of them.


def test_nothing_is_left_and_no_job_worked_twice(place, seen):
    assert place.left() == []
    jobs = place.jobs()
    worked = {}
    for name, lives in jobs.items():
        at_work = [life for life in lives if int(life[3]) > 0 and life[2] not in ("98:0", "99:0")]
        worked[name] = len(at_work)
    assert {name: jobs[name] for name, count in worked.items() if count > 1} == {}
    assert sum(worked.values()) > 5, "run the whole file"
    live = [lives for lives in jobs.values() if lives[-1][1] in ("PENDING", "RUNNING")]
    assert live == []
    seen("after all of them", f"{len(jobs)} jobs, none worked twice; nothing left open")
