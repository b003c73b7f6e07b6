"""`kit runs`, `kit logs`, `kit cancel`: what they show and do, with and without contact."""

import json
import secrets
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from cloud_site import make_site
from submitter_world import RUN, World

from kit.base import CommandFailed, StoreUnavailable, Unreachable
from kit.base.settings import load
from kit.cli import runs
from kit.cli.main import cli
from kit.runs.requests import RunRequest, RunRequests, RunState, attempt_id
from kit.slurm import JobSpec
from kit.store import bucket_name, open_store
from kit.submitter.loop import submitter_for

OTHER = "cloud-hpc-0123456789ab-2"
HPC = """
[hpc]
ssh_host = "nowhere.invalid"
project_dir = "/proj"
ssh_config = "/dev/null"
"""


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def running(world, experiment="fashion_mnist"):
    """A run whose job works."""
    world.ask(experiment)
    submitter = world.submitter()
    submitter.once()
    world.play()
    submitter.once()
    return submitter


def break_contact(submitter):
    def refuse(*_, **__):
        raise Unreachable("reach x by ssh", "connection refused", "try later")

    submitter.slurm.host.run = refuse


def log_of(world, content):
    (job,) = world.live()
    name = f"/proj/kit/tries/{job.attempt_id}/job-{job.id}.log"
    world.files[name] = world.files.get(name, b"") + content


# -- runs --------------------------------------------------------------------------------------


def test_no_runs_are_an_empty_list(world):
    assert runs.list_runs(world.submitter()) == []


def test_all_live_runs_are_asked_about_in_one_query(world):
    submitter = running(world)
    world.requests.ask(RunRequest(run=OTHER, data_hash="0" * 64))
    world.requests.write(OTHER, "try-1/submitted", {"token": attempt_id(OTHER, 1)})
    done = "cloud-hpc-0123456789ab-3"
    world.requests.write(done, "result", {"job": {"id": "7", "state": "COMPLETED"}})
    asked = len(submitter.slurm.host.calls)
    rows = runs.list_runs(submitter)
    assert [(row.run, row.state, row.slurm) for row in rows] == [
        (RUN, "SUBMITTED", "RUNNING"),
        (OTHER, "SUBMITTED", "UNKNOWN"),
        (done, "DONE", ""),
    ]
    assert [row.known for row in rows] == [True, False, True]
    assert len(submitter.slurm.host.calls) - asked == 1
    (alone,) = runs.list_runs(submitter, done)
    assert (alone.job, alone.slurm) == ("7", "COMPLETED")


@pytest.mark.parametrize(
    ("training", "wanted"),
    [
        (
            {"trials": {"failed": 1, "running": 2, "best": "score 0.5: seed 3"}},
            "trial 4/9, 1 of them failed, 2 running, best score 0.5: seed 3; ",
        ),
        ({"loss": 0.25}, "step 4/9, loss 0.250; "),
        ({"loss": "low"}, ""),
    ],
)
def test_runs_and_sweeps_are_listed_with_how_far_they_are(world, training, wanted):
    submitter = running(world)
    (before,) = runs.list_runs(submitter)
    content = {"state": "RUNNING", "training": {"step": 4, "steps": 9, **training}}
    world.requests.write(RUN, "progress", content)
    (row,) = runs.list_runs(submitter)
    assert row.why == wanted + before.why
    assert (row.slurm, row.known) == ("RUNNING", True)


def test_without_contact_a_run_is_unknown_and_was_last_seen(world):
    submitter = running(world)
    world.site.now += 40
    break_contact(submitter)
    (row,) = runs.list_runs(submitter)
    assert (row.state, row.slurm, row.known) == ("SUBMITTED", "UNKNOWN", False)
    assert "connection refused" in row.why
    assert "last seen 40 s ago" in row.why
    world.requests.store.delete(f"runs/{RUN}/progress.json")
    assert "never seen" in runs.list_runs(submitter)[0].why


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"schema": 1, "seen": "yesterday"}'])
def test_damaged_progress_of_one_run_does_not_hide_the_others(world, content):
    """It is read where the site does not answer, of every run that is live."""
    submitter = running(world)
    other = "cloud-hpc-aaaaaaaaaaaa-1"
    world.requests.ask(RunRequest(run=other, data_hash="d" * 64))
    break_contact(submitter)
    world.requests.store.put(f"runs/{RUN}/progress.json", content)
    rows = {row.run: row for row in runs.list_runs(submitter)}
    assert set(rows) == {RUN, other}
    assert "never seen" in rows[RUN].why


def test_a_silent_scheduler_leaves_the_state_unknown(world):
    submitter = running(world)
    world.site.controller = False
    (row,) = runs.list_runs(submitter)
    assert (row.slurm, row.known) == ("UNKNOWN", False)
    assert "the scheduler does not answer" in row.why


def test_a_failed_run_says_why(world):
    world.ask()
    world.until_finished(end="FAILED", code=3)
    (row,) = runs.list_runs(world.submitter(), RUN)
    assert (row.state, row.slurm) == ("ENDED", "FAILED")
    assert row.why == world.requests.read(RUN, "try-1/ended")["why"]


def test_refused_runs_are_listed_with_the_reason_in_short(world):
    submitter = world.submitter()
    world.requests.ask(RunRequest(run=RUN, data_hash="0" * 64, experiment="no_such_model"))
    submitter.once()
    damaged = "cloud-hpc-aaaaaaaaaaaa-1"
    world.requests.store.put(f"runs/{damaged}/refused.json", b"{")
    rows = {row.run: row for row in runs.list_runs(submitter)}
    assert {row.state for row in rows.values()} == {"REFUSED"}
    assert rows[RUN].why.startswith(
        "unknown experiment 'no_such_model': no package installed there has"
    )
    assert len(rows[RUN].why) <= runs.SHORT_REASON
    assert rows[damaged].why == RunState.REFUSED.when
    (alone,) = runs.list_runs(submitter, RUN)
    assert "KIT_EXPERIMENTS to the path of its file" in alone.why


# -- logs --------------------------------------------------------------------------------------


def followed(world, submitter, on_sleep):
    written, said = [], []
    submitter.slurm.sleep = on_sleep
    well = runs.follow_log(submitter, RUN, written.append, said.append)
    return well, b"".join(written), said


def test_a_log_is_followed_from_before_the_submission_to_its_last_line(world):
    world.ask()
    turns = iter(range(100))

    def meanwhile(_):
        turn = next(turns)
        if turn == 1:
            world.submitter().once()
        elif turn in (4, 5):
            log_of(world, b"epoch %d\n" % turn)
        elif turn in (2, 6):
            world.play()

    well, text, said = followed(world, world.submitter(), meanwhile)
    assert well
    assert text == b"epoch 4\nepoch 5\nthe job's log\n"
    assert "not submitted yet" in said[0]
    assert "COMPLETED" in said[-1]


@pytest.mark.parametrize(("end", "well"), [("COMPLETED", True), ("FAILED", False)])
def test_the_log_of_a_finished_run_is_read_from_the_store_alone(world, end, well):
    world.ask()
    world.until_finished(end=end, code=0 if well else 3)
    submitter = world.submitter()
    break_contact(submitter)
    found, text, _ = followed(world, submitter, lambda _: None)
    assert found is well
    assert (b"the job's log\n" in text) is well


def test_lost_contact_is_waited_for_while_following(world):
    submitter = running(world)
    log_of(world, b"one\n")
    whole, turns = submitter.slurm.host.run, iter(range(100))

    def meanwhile(_):
        turn = next(turns)
        if turn == 0:
            break_contact(submitter)
        elif turn == 3:
            submitter.slurm.host.run = whole
            world.play()
        world.site.now += 10

    well, text, said = followed(world, submitter, meanwhile)
    assert well
    assert text == b"one\nthe job's log\n"
    assert sum("no contact" in line for line in said) == 1


@pytest.mark.parametrize("seconds", [0, 10])
def test_no_contact_at_the_start_or_for_long_is_an_error_of_code_3(world, seconds):
    submitter = running(world)
    log_of(world, b"one\n")
    if not seconds:
        break_contact(submitter)

    def meanwhile(_):
        break_contact(submitter)
        world.site.now += seconds

    with pytest.raises(Unreachable) as caught:
        followed(world, submitter, meanwhile)
    assert caught.value.exit_code == 3


# -- cancel ------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", ["fashion_mnist", "digits"])
def test_a_cancel_ends_the_job_without_a_submitter(world, experiment):
    submitter, said = running(world, experiment), []
    assert runs.cancel_run(submitter, RUN, said.append).state is RunState.CANCELLED
    assert world.live() == []
    assert world.site.commits == []
    assert said == [f"{RUN} CANCELLED: it was cancelled"]


def test_a_run_that_was_not_submitted_can_never_be(world):
    world.ask()
    said = []
    assert runs.cancel_run(world.submitter(), RUN, said.append).state is RunState.CANCELLED
    world.submitter().once()
    assert world.site.jobs == []


def test_a_finished_run_keeps_its_result_after_a_cancel(world):
    world.ask()
    world.until_finished()
    said = []
    assert runs.cancel_run(world.submitter(), RUN, said.append).state is RunState.DONE
    assert "finished before the cancel" in said[0]
    assert world.requests.read(RUN, "cancel") is None


def test_a_result_that_was_committed_but_not_published_is_the_result(world):
    submitter = running(world)
    world.play()
    assert runs.cancel_run(submitter, RUN, lambda _: None).state is RunState.DONE


def test_a_cancel_without_contact_is_kept_and_done_later(world):
    submitter, said = running(world), []
    break_contact(submitter)
    with pytest.raises(Unreachable):
        runs.cancel_run(submitter, RUN, said.append)
    assert "is stored" in said[0]
    assert world.until_finished().state is RunState.CANCELLED
    assert world.site.commits == []


def test_a_refused_cancel_is_an_error_and_stays_requested(world):
    submitter = running(world)
    world.site.controller = False
    with pytest.raises(CommandFailed, match="scancel"):
        runs.cancel_run(submitter, RUN, lambda _: None)
    assert world.requests.status(RUN).state is RunState.CANCELLING


def test_cancel_does_not_wait_forever_for_a_job_to_end(world, monkeypatch):
    submitter, said = running(world), []
    monkeypatch.setattr(world.site, "end", lambda *_: None)
    submitter.slurm.sleep = lambda _: setattr(world.site, "now", world.site.now + 7)
    assert runs.cancel_run(submitter, RUN, said.append).state is RunState.CANCELLING
    assert said[-1].endswith(f"kit runs {RUN}")


# -- the commands ------------------------------------------------------------------------------


def call(*words):
    """Run a command here; gives its exit code and its error or nothing."""
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    if done.exception:
        return getattr(done.exception, "exit_code", None), str(done.exception)
    return done.return_value, done.output


@pytest.mark.parametrize("command", ["logs", "cancel", "runs"])
def test_an_impossible_question_exits_2_with_the_next_step(command, tmp_path, monkeypatch):
    make_site(tmp_path, monkeypatch)
    sites = tmp_path / "sites"
    folders = (sites / "folders.toml").read_text()
    (sites / "site.toml").write_text(folders + HPC)
    closed = 'title = "Old"\nclosed = "closed in 2026: use new"'
    text = folders.replace('title = "Everything in folders"', closed)
    (sites / "closed.toml").write_text(text + HPC)
    (tmp_path / "results" / "other" / "runs" / OTHER).mkdir(parents=True)
    for run, profile, words in [
        ("x", "site", "is not the id of a cloud-hpc run"),
        ("local-0123456789ab-1", "site", "other targets have no job"),
        ("../../etc", "site", "is not the id"),
        (RUN, "site", f"no request of {RUN}"),
        (OTHER, "site", "--profile other"),
        (RUN, "closed", "closed in 2026"),
        (RUN, "folders", "no section [hpc]"),
        (RUN, "atlantis", "profile 'atlantis' does not exist"),
    ]:
        code, said = call(command, run, "--profile", profile)
        assert (code, words in said) == (2, True), (run, profile, said)
    assert list((tmp_path / "store").rglob("*cancel*")) == []


def test_the_commands_end_with_3_without_contact_and_say_when_it_was_seen(tmp_path, monkeypatch):
    loaded = make_site(tmp_path, monkeypatch)
    profile = tmp_path / "sites" / "folders.toml"
    profile.write_text(profile.read_text() + HPC)
    jobs = RunRequests(open_store(loaded, bucket_name(loaded, "submitter")))
    jobs.store.ensure_bucket()
    jobs.ask(RunRequest(run=RUN, data_hash="0" * 64))
    assert call("runs")[0] == 0
    jobs.write(RUN, "try-1/submitted", {"token": attempt_id(RUN, 1)})
    jobs.write(RUN, "progress", {"seen": time.time() - 40, "state": "RUNNING", "job": "17"})
    code, said = call("runs")
    assert code == 3
    assert "17 UNKNOWN" in said
    assert "last seen 4" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 100
    code, said = call("runs", RUN, "--json")
    (row,) = json.loads(said)
    assert (code, row["state"], row["slurm"], row["known"]) == (3, "SUBMITTED", "UNKNOWN", False)
    assert call("logs", RUN)[0] == 3
    assert call("cancel", RUN)[0] == 3
    assert jobs.status(RUN).state is RunState.CANCELLING


def test_a_store_that_is_away_ends_with_3(tmp_path, monkeypatch):
    make_site(tmp_path, monkeypatch)
    profile = tmp_path / "sites" / "folders.toml"
    profile.write_text(profile.read_text() + HPC)

    def away(*_):
        raise StoreUnavailable("list runs/", "no answer", "ask again")

    monkeypatch.setattr(RunRequests, "statuses", away)
    assert call("runs")[0] == 3


# -- the sandbox -------------------------------------------------------------------------------

TICKS = 'for n in $(seq 60); do echo "tick $n"; sleep 0.5; done'


@pytest.fixture
def ticking(sandbox):
    """A run on the sandbox's Slurm whose job writes a line every half second."""
    submitter = submitter_for(load("sandbox"))
    run = f"cloud-hpc-{secrets.token_hex(6)}-1"
    name, hpc = attempt_id(run, 1), submitter.hpc
    submitter.requests.store.ensure_bucket()
    submitter.data.ensure_bucket()
    submitter.requests.ask(RunRequest(run=run, data_hash="0" * 64))
    fields = {"partition": "gputest", "memory": "20M", "time": "00:05:00"}
    spec = JobSpec("watch", (TICKS,), account=hpc.account, **fields)
    submitter.slurm.submit(spec, name)
    submitter.requests.write(run, "try-1/submitted", {"token": name})
    yield run
    submitter.cancel(run)
    for row in submitter.requests.store.list(f"runs/{run}/"):
        submitter.requests.store.delete(row.key)
    shutil.rmtree(submitter.slurm.folder(name))


def kit(*words):
    argv = [sys.executable, "-m", "kit", *words, "--profile", "sandbox"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


@pytest.fixture
def interruptible():
    """Tests in the background (`make test &`) ignore an interrupt, and so would their children."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def ctrl_c(process):
    """Interrupt it as a person would and give its stderr.

    Python only reports an interrupt that falls into a finalizer, and continues: then once more.
    """
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=10)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return process.communicate(timeout=60)[1]


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_job_on_slurm_is_listed_followed_left_alone_by_ctrl_c_and_ended(ticking):
    argv = [sys.executable, "-m", "kit", "logs", ticking, "--profile", "sandbox"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **pipes) as looking:
        lines = [looking.stdout.readline() for _ in range(6)]
        said = ctrl_c(looking)
    assert lines == [f"tick {n}\n" for n in range(1, 7)]
    assert looking.returncode == 130
    assert f"kit cancel {ticking}" in said
    listed = kit("runs", ticking, "--json")
    (row,) = json.loads(listed.stdout)
    assert (listed.returncode, row["state"], row["slurm"]) == (0, "SUBMITTED", "RUNNING")
    ended = kit("cancel", ticking)
    assert (ended.returncode, ended.stdout) == (0, f"{ticking} CANCELLED: it was cancelled\n")
    shown = kit("logs", ticking)
    assert shown.returncode == 1
    assert "tick 6\n" in shown.stdout
    assert json.loads(kit("runs", ticking, "--json").stdout)[0]["slurm"] == "CANCELLED"
