"""At most one execution and one commit an attempt, and no state lost: against a real Slurm.

Every test makes a real fault happen on the sandbox and looks at the bodies, links and jobs
themselves. What was seen is printed as a table at the end.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm_follow import follow
from slurm_site import Relay
from waiting import until

from kit.base import (
    Busy,
    CommandFailed,
    CredentialRefused,
    HostKeyRefused,
    KitError,
    Unreachable,
)
from kit.doctor.link_race import race
from kit.slurm import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
HERE = Path(__file__).parent
SUPPORT = HERE.parent / "support"


def names(statuses):
    """Return the reported states, one after the other, without repetitions."""
    reported = [status.state.name for status in statuses]
    return [name for n, name in enumerate(reported) if n == 0 or reported[n - 1] != name]


# The client dies.


def client_process(site, attempt_id, spec, moment, script):
    """Run a client until it dies before or after its first call of a script."""
    argv = [sys.executable, SUPPORT / "slurm_client.py", site.settings.profile]
    argv += [
        site.sshd.folder / "config",
        site.folder / "killed",
        attempt_id,
        json.dumps(dataclasses.asdict(spec)),
    ]
    path = f"{HERE.parent.parent}:{SUPPORT}"
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([*argv, moment, script], env=env, timeout=90).returncode


@pytest.mark.parametrize(
    ("moment", "script"),
    [
        ("before", "submit"),
        ("after", "submit"),
        ("after", "queue"),
        ("after", "account"),
        ("before", "close"),
        ("after", "close"),
    ],
)
def test_client_killed_at_any_call_and_run_again_comes_to_the_same_end(site, seen, moment, script):
    fails = script in ("account", "close")  # a committed result needs neither
    attempt_id, spec = site.attempt_id(), site.spec(then="exit 3; " if fails else "")
    assert client_process(site, attempt_id, spec, moment, script) == -signal.SIGKILL
    slurm = site.slurm()
    slurm.submit(spec, attempt_id)
    status = follow(slurm, attempt_id)
    assert (status.done, status.succeeded) == (True, not fails)
    site.check(attempt_id, bodies=1, committed=not fails)
    outcome = "FAILED 3, attempt closed" if fails else "1 body, 1 commit"
    seen(f"client killed {moment} the call {script!r}, run again", outcome)


# sbatch does not say what happened.


@pytest.mark.both_sites
def test_whatever_sbatch_answers_one_body_runs(site, seen):
    modes = ["drop", "noise", "error", "hang", "twice", "submits-twice", "slow"]
    attempt_ids = {mode: site.attempt_id(mode) for mode in modes}

    def play(mode):
        slurm = site.slurm()
        slurm.submit(site.spec(), attempt_ids[mode])
        return slurm.submit(site.spec(), attempt_ids[mode]), follow(slurm, attempt_ids[mode])

    with ThreadPoolExecutor(len(modes)) as pool:
        results = dict(zip(modes, pool.map(play, modes), strict=True))
    for mode, (_, status) in results.items():
        assert status.succeeded, (mode, status)
        site.check(attempt_ids[mode])
        seen(f"sbatch: {mode}", "job found, 1 body, 1 commit")
    twice = attempt_ids["submits-twice"]
    ends = until(lambda: len(e := site.ends(twice)) == 2 and e)
    assert sorted(ends) == [("COMPLETED", "0:0"), ("FAILED", "99:0")]
    seen("sbatch: submits-twice, the surplus job", "ended 99 before any work")


def test_reply_lost_with_the_connection_costs_nothing(site, seen):
    moments = [0.1, 0.3, 0.5, 0.7, 0.9]

    def play(number):
        attempt_id, sshd = site.attempt_id("slow"), site.login(f"cut{number}")
        host = site.host(sshd)
        host.run(["true"])
        timer = threading.Timer(moments[number], sshd.cut)
        timer.start()
        with pytest.raises(Unreachable):
            site.slurm(host).submit(site.spec(), attempt_id)
        timer.join()
        site.slurm().submit(site.spec(), attempt_id)
        assert follow(site.slurm(), attempt_id).succeeded
        sshd.stop()
        return attempt_id

    with ThreadPoolExecutor(len(moments)) as pool:
        for attempt_id in pool.map(play, range(len(moments))):
            site.check(attempt_id)
    seen(f"ssh connection killed {moments} s into sbatch", "1 body, 1 commit each")


def test_many_clients_with_one_attempt_id_run_one_body(site, seen):
    rounds = 20
    slurms = [site.slurm() for _ in range(8)]
    crowds = [(count, site.attempt_id()) for _ in range(rounds) for count in (2, 8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda slurm: slurm.host.run(["true"]), slurms))
        for count, attempt_id in crowds:
            barrier = threading.Barrier(count)

            def play(slurm, attempt_id=attempt_id, barrier=barrier):
                barrier.wait()
                return slurm.submit(site.spec(seconds=0, memory="1M"), attempt_id).job_id

            ids = set(pool.map(play, slurms[:count]))
            assert len(ids - {""}) == 1, (count, ids)
    waiting = [attempt_id for _, attempt_id in crowds]
    until(lambda: all(s.done for s in slurms[0].status(waiting).values()), 200, every=2)
    for _, attempt_id in crowds:
        site.check(attempt_id)
        assert len(list((site.attempts / attempt_id).glob("job-*.log"))) == 1
    seen(f"2 and 8 clients with one attempt at once, {rounds} rounds each", "1 job, 1 body a round")


# The scheduler does not answer.


@pytest.mark.both_sites
def test_submission_to_a_frozen_controller_whose_client_died_runs_once(site, seen):
    attempt_id, sshd = site.attempt_id(), site.login("dying")
    with site.frozen("slurmctld"):
        thread = threading.Thread(target=submit_quietly, args=(site, sshd, attempt_id))
        thread.start()
        until(lambda: site.link(attempt_id, "submit"))
        time.sleep(1)
        sshd.cut()
        thread.join()
        second = site.slurm().host
        second.run(["true"])
        results = []
        asking = threading.Thread(
            target=lambda: results.append(site.slurm(second).submit(site.spec(), attempt_id))
        )
        asking.start()
        time.sleep(4)
        assert site.bodies(attempt_id) == []
    asking.join()
    assert results[0].job_id
    assert follow(site.slurm(), attempt_id).succeeded
    site.check(attempt_id)
    seen("slurmctld frozen, sbatch hangs, its client killed, a second client", "1 body, 1 commit")
    sshd.stop()


def test_submission_without_a_controller_is_closed_by_its_fence(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm(lost_after_s=5)
    with site.stopped("slurmctld"):
        status = slurm.submit(site.spec(), attempt_id)
        assert (status.state, status.done) == (JobState.UNKNOWN, False)
        kept = slurm.settle(attempt_id)
        assert (kept.done, site.link(attempt_id, "owner")) == (False, "")
    status = follow(slurm, attempt_id)
    assert (status.done, status.started) == (True, False)
    site.check(attempt_id, bodies=0, committed=False)
    following = site.attempt_id()
    slurm.submit(site.spec(), following)
    assert follow(slurm, following).succeeded
    seen("slurmctld stopped at submit", "UNKNOWN; once it answers: fence taken, next attempt runs")


def submit_quietly(site, sshd, attempt_id):
    """Submit on a connection that will be cut."""
    try:
        site.slurm(site.host(sshd)).submit(site.spec(), attempt_id)
    except Unreachable:
        return


def test_fence_taken_before_a_late_sbatch_lands_leaves_no_body(site, seen):
    attempt_id = site.attempt_id("slow")
    thread = threading.Thread(target=submit_quietly, args=(site, site.sshd, attempt_id))
    thread.start()
    until(lambda: site.link(attempt_id, "submit"))
    status = site.slurm().give_up(attempt_id)
    assert (status.done, status.started) == (True, False)
    thread.join()
    ends = until(lambda: site.ends(attempt_id))
    assert ends in ([("FAILED", "99:0")], [("CANCELLED", "0:0")]), ends
    site.check(attempt_id, bodies=0, committed=False)
    assert site.link(attempt_id, "commit") == "closed"
    seen("fence taken, then a late sbatch lands", f"no body; job {ends[0][0]} {ends[0][1]}")


@pytest.mark.both_sites
def test_cancelling_a_submission_that_has_not_landed_leaves_no_body(site, seen):
    attempt_id = site.attempt_id("slow")
    thread = threading.Thread(target=submit_quietly, args=(site, site.sshd, attempt_id))
    thread.start()
    until(lambda: site.link(attempt_id, "submit"))
    status = site.slurm().cancel(attempt_id)
    thread.join()
    assert (status.state, status.done) == (JobState.CANCELLED, True)
    until(lambda: site.ends(attempt_id))
    site.check(attempt_id, bodies=0, committed=False)
    seen("cancel, then a late sbatch lands", f"no body; job {site.ends(attempt_id)[0][1]}")


def test_cancelling_what_has_finished_keeps_the_result(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm()
    slurm.submit(site.spec(), attempt_id)
    assert follow(slurm, attempt_id).succeeded
    status = slurm.cancel(attempt_id)
    assert (status.state, status.why) == (JobState.COMPLETED, "it had finished before the cancel")
    site.check(attempt_id)
    seen("cancel of a finished job", "COMPLETED, 'finished before the cancel'")


@pytest.mark.both_sites
def test_cancelling_a_running_job_ends_it_without_a_result(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm()
    slurm.submit(site.spec(seconds=60), attempt_id)
    until(lambda: site.bodies(attempt_id))
    with pytest.raises(Busy):
        slurm.give_up(attempt_id)
    slurm.cancel(attempt_id)
    status = follow(slurm, attempt_id)
    assert (status.state, status.done, status.succeeded) == (JobState.CANCELLED, True, False)
    site.check(attempt_id, committed=False)
    seen("cancel of a running job", "CANCELLED, no commit")


@pytest.mark.parametrize(
    "programs", [("slurmctld",), ("slurmdbd",), ("slurmdbd", "slurmctld")], ids="+".join
)
def test_services_that_are_away_while_jobs_end_change_no_state(site, seen, programs):
    good, bad, slurm = site.attempt_id(), site.attempt_id(), site.slurm()
    reported = {good: [], bad: []}
    slurm.submit(site.spec(seconds=6), good)
    slurm.submit(site.spec(seconds=6, then="exit 3; "), bad)
    until(lambda: site.bodies(good) and site.bodies(bad))
    with ThreadPoolExecutor(2) as pool:
        waits = {t: pool.submit(follow, site.slurm(), t, reported[t].append) for t in reported}
        until(lambda: all(s and s[-1].state is JobState.RUNNING for s in reported.values()))
        with site.stopped(*programs):
            time.sleep(8)  # the jobs end meanwhile
            until(lambda: any("does not answer" in s.why for s in reported[bad]), 60)
        ends = {attempt_id: wait.result(120) for attempt_id, wait in waits.items()}
    assert ends[good].succeeded
    assert (ends[bad].state, ends[bad].exit_code) == (JobState.FAILED, 3)
    assert names(reported[bad]) == ["RUNNING", "FAILED"]
    site.check(good)
    site.check(bad, committed=False)
    outcome = "state stayed RUNNING, then COMPLETED / FAILED 3"
    seen(f"{' and '.join(programs)} stopped while jobs end", outcome)


# The way to the site is lost.


@pytest.mark.both_sites
def test_network_that_is_cut_mid_run_changes_no_state(site, seen):
    sshd = site.login("relayed")
    relay = Relay(sshd.port)
    sshd.write_config(relay.port)
    attempt_id, reported = site.attempt_id(), []
    slurm = site.slurm(site.host(sshd, connect_timeout_s=3, alive_s=1))
    slurm.submit(site.spec(seconds=6), attempt_id)

    def cut():
        until(lambda: reported and reported[-1].state is JobState.RUNNING)
        relay.cut()
        time.sleep(10)
        relay.restore()

    cutting = threading.Thread(target=cut)
    cutting.start()
    status = follow(slurm, attempt_id, reported.append)
    cutting.join()
    assert status.succeeded
    assert [n for n in names(reported) if n != "PENDING"] == ["RUNNING", "COMPLETED"]
    assert any("reach" in status.why for status in reported)
    site.check(attempt_id)
    relay.close()
    sshd.stop()
    seen("network cut for 10 s mid-run", "state stayed RUNNING , then COMPLETED")


@pytest.mark.both_sites
def test_login_node_that_goes_away_mid_run_changes_no_state(site, seen):
    sshd, attempt_id, reported = site.login("restarted"), site.attempt_id(), []
    slurm = site.slurm(site.host(sshd))
    slurm.submit(site.spec(seconds=6), attempt_id)

    def restart():
        until(lambda: reported and reported[-1].state is JobState.RUNNING)
        sshd.stop()
        time.sleep(6)
        sshd.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    assert follow(slurm, attempt_id, reported.append).succeeded
    restarting.join()
    assert [n for n in names(reported) if n != "PENDING"] == ["RUNNING", "COMPLETED"]
    site.check(attempt_id)
    sshd.stop()
    seen("login sshd stopped for 6 s mid-run", "state stayed RUNNING, then COMPLETED")


@pytest.mark.both_sites
def test_certificate_that_ends_mid_wait_pauses_until_it_is_renewed(site, seen):
    sshd = site.login("certified", certificates=True)
    begun = time.time()
    sshd.certify(begun - 60, begun + 12)
    attempt_id, reported, said = site.attempt_id(), [], []
    slurm = site.slurm(site.host(sshd, renew_hint="run csc_cert.py"), say=said.append)
    slurm.submit(site.spec(seconds=15), attempt_id)

    def renew():
        while time.time() < begun + 14:
            time.sleep(0.2)
        sshd.cut()  # an open connection would outlive its certificate
        while time.time() < begun + 24:
            time.sleep(0.2)
        assert "csc_cert.py" in reported[-1].why
        sshd.certify(begun - 60, begun + 3600)

    renewing = threading.Thread(target=renew)
    renewing.start()
    status = follow(slurm, attempt_id, reported.append)
    renewing.join()
    assert status.succeeded
    assert time.time() - begun < 40
    assert "before the job's time limit" in said[0]
    assert any("ended at" in s.why and "csc_cert.py" in s.why for s in reported)
    assert [n for n in names(reported) if n != "PENDING"] == ["RUNNING", "COMPLETED"]
    site.check(attempt_id)
    sshd.stop()
    seen("certificate of 12 s ends mid-wait, renewed after 24 s", "paused, said how, went on")


@pytest.mark.both_sites
def test_wrong_host_key_and_a_refused_key_change_no_state(site, seen):
    sshd, attempt_id, reported = site.login("refusing"), site.attempt_id(), []
    known = (sshd.folder / "known_hosts").read_text()
    slurm = site.slurm(site.host(sshd))
    slurm.submit(site.spec(seconds=8), attempt_id)
    (sshd.folder / "known_hosts").write_text(known.replace("* ", "another "))
    sshd.cut()
    with pytest.raises(HostKeyRefused) as caught:
        follow(slurm, attempt_id)
    assert caught.value.exit_code == 3
    (sshd.folder / "known_hosts").write_text(known)
    sshd.accept(False)
    with pytest.raises(CredentialRefused):
        until(lambda: slurm.status([attempt_id]))
    refused = follow(slurm, attempt_id, reported.append, timeout_s=2)
    assert (refused.done, refused.state) == (False, JobState.UNKNOWN)
    assert "refuses the login" in refused.why
    sshd.accept(True)
    assert follow(slurm, attempt_id).succeeded
    site.check(attempt_id)
    sshd.stop()
    seen("wrong host key mid-run", "exit 3 at once, nothing sent, job untouched")
    seen("key refused mid-run", "state kept, reason reported, resumed when accepted")


@pytest.mark.parametrize("minutes", [-10, 10])
def test_client_whose_clock_is_wrong_comes_to_the_same_end(site, seen, minutes):
    attempt_id = site.attempt_id()
    slurm = site.slurm(clock=lambda: time.time() + 60 * minutes)
    slurm.submit(site.spec(), attempt_id)
    assert follow(slurm, attempt_id).succeeded
    site.check(attempt_id)
    seen(f"client's clock {minutes:+d} min", "1 body, 1 commit")


# The site itself.


def test_full_project_folder_submits_nothing_until_there_is_room(site, seen):
    attempt_id = site.attempt_id()
    host = site.host()
    run = host.run

    def full(argv, *args, **kwargs):
        # no file of this user may hold a single byte: what a full disk or quota looks like
        return run(
            ["prlimit", "--fsize=0", "bash", "-c", 'trap "" XFSZ; exec "$@"', "-", *argv],
            *args,
            **kwargs,
        )

    host.run = full
    with pytest.raises(CommandFailed):
        site.slurm(host).submit(site.spec(), attempt_id)
    assert site.link(attempt_id, "submit") == ""
    host.run = run
    slurm = site.slurm(host)
    slurm.submit(site.spec(), attempt_id)
    assert follow(slurm, attempt_id).succeeded
    site.check(attempt_id)
    seen("project folder full at submit", "refused before any link; with room again: 1 body")


def test_missing_project_folder_is_never_created(site, seen):
    hpc = dataclasses.replace(site.hpc, project_dir=f"{site.hpc.project_dir}/away/project")
    attempt_id = site.attempt_id()
    for call in (
        lambda s: s.submit(site.spec(), attempt_id),
        lambda s: s.status([attempt_id]),
        lambda s: s.give_up(attempt_id),
    ):
        with pytest.raises(CommandFailed, match="cannot use the folder"):
            call(site.slurm(hpc=hpc))
    assert not Path(hpc.project_dir).parent.exists()
    seen("project folder not mounted", "an error that names it, no folder made, no submission")


def test_orphan_on_a_lost_node_cannot_publish_and_its_requeue_cannot_work(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm()
    body = (
        'echo "$me" >>bodies',
        "for i in $(seq 200); do [ -e go ] && break; sleep 0.5; done",
        "echo {} >m; (commit m); echo $? >orphan",
    )
    slurm.submit(site.spec(commands=body), attempt_id)
    site.allow_requeue(attempt_id)
    until(lambda: site.bodies(attempt_id))
    with site.frozen("slurmd-g1"):
        status = follow(slurm, attempt_id)
        assert (status.state, status.done) == (JobState.NODE_FAIL, True), status
        assert site.link(attempt_id, "commit") == "closed"
        (site.attempts / attempt_id / "go").touch()
        until(lambda: (site.attempts / attempt_id / "orphan").exists())
        assert (site.attempts / attempt_id / "orphan").read_text() == "97\n"
    seen("node lost, its processes live on and commit after the close", "refused (97)")
    job = site.link(attempt_id, "owner").partition(".")[0]
    until(lambda: "down" not in site.node_state("g1"), 90, every=1)
    site.wait_for_new_start(attempt_id, job, ("FAILED", "99:0"))
    site.check(attempt_id, committed=False)
    assert site.slurm().status([attempt_id])[attempt_id].state is JobState.NODE_FAIL
    seen("the same job requeued by Slurm", "ended 99, 1 body, state stays NODE_FAIL")


@pytest.mark.both_sites
def test_job_put_back_to_the_queue_ends_its_attempt(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm()
    job = slurm.submit(site.spec(seconds=60), attempt_id).job_id
    site.allow_requeue(attempt_id)
    until(lambda: site.bodies(attempt_id))
    site.admin("scontrol", "requeue", job)
    status = follow(slurm, attempt_id)
    assert (status.done, status.started, status.succeeded) == (True, True, False)
    assert "put back" in status.why
    site.wait_for_new_start(attempt_id, job, ("FAILED", "99:0"))
    site.check(attempt_id, committed=False)
    seen("somebody requeues the running job", f"attempt ends ({status.state.name}), new start: 99")


@pytest.mark.both_sites
def test_every_ending_is_reported_as_it_was(site, seen):
    slurm = site.slurm()
    eater = (
        'echo "$me" >>bodies',
        "python3 -c 'import time; x = b\"x\" * 300_000_000; time.sleep(30)'",
    )
    specs = {
        "TIMEOUT": site.spec(seconds=200, time="00:01:00"),
        "memory": site.spec(commands=eater),
        "failed": site.spec(then="exit 7; "),
        "somebody": site.spec(seconds=100),
        "held": site.spec(),
        "preempted": site.spec(seconds=100, partition="low", nodes=2, memory="100M"),
        "purged": site.spec(then="exit 5; "),
    }
    attempt_ids = {name: site.attempt_id() for name in specs}
    ids = {}
    for name, spec in specs.items():
        if name == "held":  # a newer Slurm starts it before it could be held
            site.admin("scontrol", "update", "nodename=g1", "state=drain", "reason=test")
        ids[name] = slurm.submit(spec, attempt_ids[name]).job_id
        if name == "held":
            site.admin("scontrol", "hold", ids["held"])
            site.admin("scontrol", "update", "nodename=g1", "state=resume")
    until(
        lambda: all(site.bodies(attempt_ids[n]) for n in ("TIMEOUT", "somebody", "preempted")), 40
    )
    urgent = site.attempt_id()
    slurm.submit(site.spec(partition="urgent", nodes=2, memory="100M"), urgent)
    site.admin("scancel", ids["somebody"])
    held = slurm.status([attempt_ids["held"]])[attempt_ids["held"]]
    assert (held.state, held.done) == (JobState.PENDING, False)
    assert "JobHeldAdmin: an administrator holds it" in held.why
    site.admin("scontrol", "release", ids["held"])
    ends = {name: follow(slurm, attempt_ids[name]) for name in specs if name != "purged"}
    ends["purged"] = follow(slurm, attempt_ids["purged"])  # 60 s and more after it left squeue
    reported = {name: (s.state.name, s.exit_code, s.succeeded) for name, s in ends.items()}
    assert reported.pop("memory")[0] in ("FAILED", "OUT_OF_MEMORY")  # with cgroups the latter
    assert "memory" in ends["memory"].why
    assert reported == {
        "TIMEOUT": ("TIMEOUT", 0, False),
        "failed": ("FAILED", 7, False),
        "somebody": ("CANCELLED", 0, False),
        "held": ("COMPLETED", None, True),
        "preempted": ("PREEMPTED", 0, False),
        "purged": ("FAILED", 5, False),
    }
    assert follow(slurm, urgent).succeeded
    for name, status in ends.items():
        site.check(attempt_ids[name], committed=status.succeeded)
        end = "committed" if status.succeeded else f"{status.exit_code}, closed"
        seen(f"ending: {name}", f"{status.state.name} {end}")


@pytest.mark.both_sites
def test_pending_job_says_why_in_a_sentence(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm()
    site.admin("scontrol", "update", "nodename=g1", "state=drain", "reason=test")
    try:
        slurm.submit(site.spec(), attempt_id)
        reason = until(
            lambda: "odes " in (why := slurm.status([attempt_id])[attempt_id].why) and why, 40
        )
    finally:
        site.admin("scontrol", "update", "nodename=g1", "state=resume")
    newer = "Nodes required for job are DOWN, DRAINED or reserved"
    assert reason.endswith("nodes that it needs are not available") or reason.startswith(newer)
    assert follow(slurm, attempt_id).succeeded
    site.check(attempt_id)
    seen("pending, the node is drained", f"PENDING, {reason!r}")


@pytest.mark.both_sites
def test_a_partition_that_goes_down_and_up_again_only_delays_a_job(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm()
    site.admin("scontrol", "update", "nodename=g1", "state=drain", "reason=test")
    try:
        slurm.submit(site.spec(), attempt_id)
        site.admin("scontrol", "update", "partitionname=gputest", "state=down")
        site.admin("scontrol", "update", "nodename=g1", "state=resume")
        down = "its partition is down; it starts when the site opens"
        status = until(lambda: down in (s := slurm.status([attempt_id])[attempt_id]).why and s, 60)
        assert (status.state, status.done) == (JobState.PENDING, False)
        assert site.bodies(attempt_id) == []
    finally:
        site.admin("scontrol", "update", "partitionname=gputest", "state=up")
        site.admin("scontrol", "update", "nodename=g1", "state=resume", check=False)
    assert follow(slurm, attempt_id).succeeded
    site.check(attempt_id)
    seen("partition down, then up", f"PENDING, {status.why!r}; then 1 body")


@pytest.mark.both_sites
def test_refusal_of_sbatch_is_an_error_and_no_job(site, seen):
    attempt_id = site.attempt_id()
    with pytest.raises(CommandFailed, match="nvalid partition") as caught:
        site.slurm().submit(site.spec(partition="nope"), attempt_id)
    assert "new attempt" in caught.value.next_step
    site.check(attempt_id, bodies=0, committed=False)
    assert site.link(attempt_id, "owner") == "fenced"
    seen("sbatch refuses (partition)", "error with the text, attempt closed, no job")


def test_login_node_and_a_job_agree_on_the_winner_of_every_link(site, seen):
    attempt_id, slurm = site.attempt_id(), site.slurm()
    result = race(slurm, site.spec(memory="50M"), attempt_id, rounds=400)
    assert (result.login + result.job, result.disputed) == (400, ())
    assert min(result.login, result.job) > 0
    assert follow(slurm, attempt_id).done
    outcome = f"login node won {result.login}, job {result.job}, no dispute"
    seen("race for 400 links, login node against a job", outcome)


def test_no_method_raises_anything_but_the_kits_errors_without_a_site(site):
    sshd = site.login("gone")
    sshd.stop()
    slurm, attempt_id = site.slurm(site.host(sshd)), site.attempt_id()
    calls = [
        lambda: slurm.submit(site.spec(), attempt_id),
        lambda: slurm.status([attempt_id]),
        lambda: slurm.give_up(attempt_id),
        lambda: slurm.cancel(attempt_id),
        lambda: slurm.usage(attempt_id, "1"),
        lambda: slurm.logs(attempt_id),
    ]
    for call in calls:
        with pytest.raises(KitError):
            call()
    assert not follow(slurm, attempt_id, timeout_s=0).done
