"""At most one execution and one commit a try, and no state lost: against a real Slurm.

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
from slurm_site import Relay, until

from kit.base import (
    Busy,
    CommandFailed,
    CredentialRefused,
    HostKeyRefused,
    KitError,
    Unreachable,
)
from kit.doctor.link_race import race
from kit.slurm.client import SUBMIT_STEPS, WAIT_STEPS
from kit.slurm.values import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
HERE = Path(__file__).parent


def names(statuses):
    """The states that were told, one after the other, without repetitions."""
    told = [status.state.name for status in statuses]
    return [name for n, name in enumerate(told) if n == 0 or told[n - 1] != name]


# The client dies.


def client_process(site, token, spec, kill, control):
    """Run a client until it dies at the step `kill`; gives the steps that it came to."""
    code = [sys.executable, HERE / "slurm_client.py", site.sshd.folder / "config", control, token]
    code += [json.dumps(dataclasses.asdict(spec)), kill]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(code, env=env, capture_output=True, text=True, timeout=90)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("step", [*SUBMIT_STEPS, *WAIT_STEPS])
def test_a_client_killed_after_any_step_and_run_again_comes_to_the_same_end(site, seen, step):
    fails = step == "wait 2 closed"  # a try is closed by hand only when it has no result
    token, spec = site.token(), site.spec(then="exit 3; " if fails else "")
    code, steps = client_process(site, token, spec, step, site.folder / "killed")
    assert (code, steps[-1]) == (-signal.SIGKILL, step)
    slurm = site.slurm()
    slurm.submit(spec, token)
    status = slurm.wait(token)
    assert (status.done, status.succeeded) == (True, not fails)
    site.check(token, bodies=1, committed=not fails)
    outcome = "FAILED 3, try closed" if fails else "1 body, 1 commit"
    seen(f"client killed after {step!r}, run again", outcome)


# sbatch does not say what happened.


def test_whatever_sbatch_answers_one_body_runs(site, seen):
    modes = ["drop", "noise", "error", "hang", "twice", "submits-twice", "slow"]
    tokens = {mode: site.token(mode) for mode in modes}

    def play(mode):
        slurm = site.slurm()
        slurm.submit(site.spec(), tokens[mode])
        return slurm.submit(site.spec(), tokens[mode]), slurm.wait(tokens[mode])

    with ThreadPoolExecutor(len(modes)) as pool:
        results = dict(zip(modes, pool.map(play, modes), strict=True))
    for mode, (_, status) in results.items():
        assert status.succeeded, (mode, status)
        site.check(tokens[mode])
        seen(f"sbatch: {mode}", "job found, 1 body, 1 commit")
    twice = tokens["submits-twice"]
    ends = until(lambda: len(e := site.ends(twice)) == 2 and e)
    assert sorted(ends) == [("COMPLETED", "0:0"), ("FAILED", "99:0")]
    seen("sbatch: submits-twice, the surplus job", "ended 99 before any work")


def test_a_reply_lost_with_the_connection_costs_nothing(site, seen):
    moments = [0.1, 0.3, 0.5, 0.7, 0.9]

    def play(number):
        token, sshd = site.token("slow"), site.login(f"cut{number}")
        host = site.host(sshd)
        host.run(["true"])
        timer = threading.Timer(moments[number], sshd.cut)
        timer.start()
        with pytest.raises(Unreachable):
            site.slurm(host).submit(site.spec(), token)
        timer.join()
        site.slurm().submit(site.spec(), token)
        assert site.slurm().wait(token).succeeded
        sshd.stop()
        return token

    with ThreadPoolExecutor(len(moments)) as pool:
        for token in pool.map(play, range(len(moments))):
            site.check(token)
    seen(f"ssh connection killed {moments} s into sbatch", "1 body, 1 commit each")


def test_many_clients_with_one_token_run_one_body(site, seen):
    rounds = 50
    slurms = [site.slurm() for _ in range(8)]
    crowds = [(count, site.token()) for _ in range(rounds) for count in (2, 8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda slurm: slurm.host.run(["true"]), slurms))
        for count, token in crowds:
            barrier = threading.Barrier(count)

            def play(slurm, token=token, barrier=barrier):
                barrier.wait()
                return slurm.submit(site.spec(seconds=0, memory="1M"), token).job_id

            ids = set(pool.map(play, slurms[:count]))
            assert len(ids - {""}) == 1, (count, ids)
    waiting = [token for _, token in crowds]
    until(lambda: all(s.done for s in slurms[0].status(waiting).values()), 200, every=2)
    for _, token in crowds:
        site.check(token)
        assert len(list((site.tries / token).glob("job-*.log"))) == 1
    seen(f"2 and 8 clients with one token at once, {rounds} rounds each", "1 job, 1 body a round")


# The scheduler does not answer.


def test_a_submission_to_a_frozen_controller_whose_client_died_runs_once(site, seen):
    token, sshd = site.token(), site.login("dying")
    with site.frozen("slurmctld"):
        thread = threading.Thread(target=submit_quietly, args=(site, sshd, token))
        thread.start()
        until(lambda: site.link(token, "submit"))
        time.sleep(1)
        sshd.cut()
        thread.join()
        second = site.slurm().host
        second.run(["true"])
        results = []
        asking = threading.Thread(
            target=lambda: results.append(site.slurm(second).submit(site.spec(), token))
        )
        asking.start()
        time.sleep(4)
        assert site.bodies(token) == []
    asking.join()
    assert results[0].job_id
    assert site.slurm().wait(token).succeeded
    site.check(token)
    seen("slurmctld frozen, sbatch hangs, its client killed, a second client", "1 body, 1 commit")
    sshd.stop()


def test_a_submission_without_a_controller_is_given_up_by_its_fence(site, seen):
    token, slurm = site.token(), site.slurm(lost_after_s=5)
    with site.stopped("slurmctld"):
        status = slurm.submit(site.spec(), token)
        assert (status.state, status.done) == (JobState.UNKNOWN, False)
        kept = slurm.wait(token, timeout_s=0)
        assert (kept.done, site.link(token, "owner")) == (False, "")
    status = slurm.wait(token)
    assert (status.done, status.worked) == (True, False)
    site.check(token, bodies=0, committed=False)
    following = site.token()
    slurm.submit(site.spec(), following)
    assert slurm.wait(following).succeeded
    seen("slurmctld stopped at submit", "UNKNOWN; once it answers: fence taken, next try runs")


def submit_quietly(site, sshd, token):
    """Submit on a connection that will be cut."""
    try:
        site.slurm(site.host(sshd)).submit(site.spec(), token)
    except Unreachable:
        return


def test_a_fence_taken_before_a_late_sbatch_lands_leaves_no_body(site, seen):
    token = site.token("slow")
    thread = threading.Thread(target=submit_quietly, args=(site, site.sshd, token))
    thread.start()
    until(lambda: site.link(token, "submit"))
    status = site.slurm().give_up(token)
    assert (status.done, status.worked) == (True, False)
    thread.join()
    ends = until(lambda: site.ends(token))
    assert ends in ([("FAILED", "99:0")], [("CANCELLED", "0:0")]), ends
    site.check(token, bodies=0, committed=False)
    assert site.link(token, "commit") == "closed"
    seen("fence taken, then a late sbatch lands", f"no body; job {ends[0][0]} {ends[0][1]}")


def test_cancelling_a_submission_that_has_not_landed_leaves_no_body(site, seen):
    token = site.token("slow")
    thread = threading.Thread(target=submit_quietly, args=(site, site.sshd, token))
    thread.start()
    until(lambda: site.link(token, "submit"))
    status = site.slurm().cancel(token)
    thread.join()
    assert (status.state, status.done) == (JobState.CANCELLED, True)
    until(lambda: site.ends(token))
    site.check(token, bodies=0, committed=False)
    seen("cancel, then a late sbatch lands", f"no body; job {site.ends(token)[0][1]}")


def test_cancelling_what_has_finished_keeps_the_result(site, seen):
    token, slurm = site.token(), site.slurm()
    slurm.submit(site.spec(), token)
    assert slurm.wait(token).succeeded
    status = slurm.cancel(token)
    assert (status.state, status.why) == (JobState.COMPLETED, "it had finished before the cancel")
    site.check(token)
    seen("cancel of a finished job", "COMPLETED, 'finished before the cancel'")


def test_cancelling_a_running_job_ends_it_without_a_result(site, seen):
    token, slurm = site.token(), site.slurm()
    slurm.submit(site.spec(seconds=60), token)
    until(lambda: site.bodies(token))
    with pytest.raises(Busy):
        slurm.give_up(token)
    slurm.cancel(token)
    status = slurm.wait(token)
    assert (status.state, status.done, status.succeeded) == (JobState.CANCELLED, True, False)
    site.check(token, committed=False)
    seen("cancel of a running job", "CANCELLED, no commit")


@pytest.mark.parametrize(
    "programs", [("slurmctld",), ("slurmdbd",), ("slurmdbd", "slurmctld")], ids="+".join
)
def test_services_away_for_30_seconds_change_no_state(site, seen, programs):
    good, bad, slurm = site.token(), site.token(), site.slurm()
    told = {good: [], bad: []}
    slurm.submit(site.spec(seconds=8), good)
    slurm.submit(site.spec(seconds=8, then="exit 3; "), bad)
    until(lambda: site.bodies(good) and site.bodies(bad))
    with ThreadPoolExecutor(2) as pool:
        waits = {t: pool.submit(site.slurm().wait, t, told[t].append) for t in told}
        until(lambda: all(s and s[-1].state is JobState.RUNNING for s in told.values()))
        with site.stopped(*programs):
            time.sleep(30)
        ends = {token: wait.result(120) for token, wait in waits.items()}
    assert ends[good].succeeded
    assert (ends[bad].state, ends[bad].exit_code) == (JobState.FAILED, 3)
    assert names(told[bad]) == ["RUNNING", "FAILED"]
    assert any("does not answer" in status.why for status in told[bad])
    site.check(good)
    site.check(bad, committed=False)
    outcome = "state stayed RUNNING, then COMPLETED / FAILED 3"
    seen(f"{' and '.join(programs)} stopped for 30 s mid-run", outcome)


# The way to the site is lost.


def test_a_network_that_is_cut_mid_run_changes_no_state(site, seen):
    sshd = site.login("relayed")
    relay = Relay(sshd.port)
    sshd.write_config(relay.port)
    token, told = site.token(), []
    slurm = site.slurm(site.host(sshd, connect_timeout_s=3, alive_s=1))
    slurm.submit(site.spec(seconds=6), token)

    def cut():
        until(lambda: told and told[-1].state is JobState.RUNNING)
        relay.cut()
        time.sleep(10)
        relay.mend()

    cutting = threading.Thread(target=cut)
    cutting.start()
    status = slurm.wait(token, told.append)
    cutting.join()
    assert status.succeeded
    assert [n for n in names(told) if n != "PENDING"] == ["RUNNING", "COMPLETED"]
    assert any("last seen" in status.why for status in told)
    site.check(token)
    relay.close()
    sshd.stop()
    seen("network cut for 10 s mid-run", "state stayed RUNNING ('last seen …'), then COMPLETED")


def test_a_login_node_that_goes_away_mid_run_changes_no_state(site, seen):
    sshd, token, told = site.login("restarted"), site.token(), []
    slurm = site.slurm(site.host(sshd))
    slurm.submit(site.spec(seconds=6), token)

    def restart():
        until(lambda: told and told[-1].state is JobState.RUNNING)
        sshd.stop()
        time.sleep(10)
        sshd.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    assert slurm.wait(token, told.append).succeeded
    restarting.join()
    assert [n for n in names(told) if n != "PENDING"] == ["RUNNING", "COMPLETED"]
    site.check(token)
    sshd.stop()
    seen("login sshd stopped for 10 s mid-run", "state stayed RUNNING, then COMPLETED")


def test_a_certificate_that_ends_mid_wait_pauses_until_it_is_renewed(site, seen):
    sshd = site.login("certified", certificates=True)
    begun = time.time()
    sshd.certify(begun - 60, begun + 20)
    token, told, said = site.token(), [], []
    slurm = site.slurm(site.host(sshd, renew_hint="run csc_cert.py"), say=said.append)
    slurm.submit(site.spec(seconds=25), token)

    def renew():
        while time.time() < begun + 22:
            time.sleep(0.2)
        sshd.cut()  # an open connection would outlive its certificate
        while time.time() < begun + 40:
            time.sleep(0.2)
        assert "csc_cert.py" in told[-1].why
        sshd.certify(begun - 60, begun + 3600)

    renewing = threading.Thread(target=renew)
    renewing.start()
    status = slurm.wait(token, told.append)
    renewing.join()
    assert status.succeeded
    assert time.time() - begun < 55
    assert "before the job's time limit" in said[0]
    assert any("ended at" in text and "csc_cert.py" in text for text in said[1:])
    assert [n for n in names(told) if n != "PENDING"] == ["RUNNING", "COMPLETED"]
    site.check(token)
    sshd.stop()
    seen("certificate of 20 s ends mid-wait, renewed after 40 s", "paused, said how, went on")


def test_a_wrong_host_key_and_a_refused_key_change_no_state(site, seen):
    sshd, token, told = site.login("refusing"), site.token(), []
    known = (sshd.folder / "known_hosts").read_text()
    allowed = (sshd.folder / "authorized_keys").read_text()
    slurm = site.slurm(site.host(sshd))
    slurm.submit(site.spec(seconds=8), token)
    (sshd.folder / "known_hosts").write_text(known.replace("* ", "another "))
    sshd.cut()
    with pytest.raises(HostKeyRefused) as caught:
        slurm.wait(token)
    assert caught.value.exit_code == 3
    (sshd.folder / "known_hosts").write_text(known)
    (sshd.folder / "authorized_keys").write_text("")
    with pytest.raises(CredentialRefused):
        until(lambda: slurm.status([token]))
    refused = slurm.wait(token, told.append, timeout_s=2)
    assert (refused.done, refused.state) == (False, JobState.UNKNOWN)
    assert "refuses the login" in refused.why
    (sshd.folder / "authorized_keys").write_text(allowed)
    assert slurm.wait(token).succeeded
    site.check(token)
    sshd.stop()
    seen("wrong host key mid-run", "exit 3 at once, nothing sent, job untouched")
    seen("key refused mid-run", "state kept, told why, went on when accepted")


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_client_whose_clock_is_wrong_comes_to_the_same_end(site, seen, minutes):
    token = site.token()
    slurm = site.slurm(clock=lambda: time.time() + 60 * minutes)
    slurm.submit(site.spec(), token)
    assert slurm.wait(token).succeeded
    site.check(token)
    seen(f"client's clock {minutes:+d} min", "1 body, 1 commit")


# The site itself.


def test_a_full_project_folder_is_no_submission_and_room_mends_it(site, seen):
    token = site.token()
    host = site.host()
    run = host.run

    def full(argv, *args, **kwargs):
        # no file of this user may hold a single byte: what a full disk or quota looks like
        return run(["prlimit", "--fsize=0", "bash", "-c", 'trap "" XFSZ; exec "$@"', "-", *argv],
                   *args, **kwargs)  # fmt: skip

    host.run = full
    with pytest.raises(CommandFailed):
        site.slurm(host).submit(site.spec(), token)
    assert site.link(token, "submit") == ""
    host.run = run
    slurm = site.slurm(host)
    slurm.submit(site.spec(), token)
    assert slurm.wait(token).succeeded
    site.check(token)
    seen("project folder full at submit", "refused before any link; with room again: 1 body")


def test_a_project_folder_that_is_away_is_never_made_anew(site, seen):
    hpc = dataclasses.replace(site.hpc, project_dir=f"{site.hpc.project_dir}/away/project")
    token = site.token()
    for call in (lambda s: s.submit(site.spec(), token), lambda s: s.status([token]),
                 lambda s: s.give_up(token)):  # fmt: skip
        with pytest.raises(CommandFailed, match="cannot use the folder"):
            call(site.slurm(hpc=hpc))
    assert not Path(hpc.project_dir).parent.exists()
    seen("project folder not mounted", "an error that names it, no folder made, no submission")


def test_an_orphan_on_a_lost_node_cannot_publish_and_its_requeue_cannot_work(site, seen):
    token, slurm = site.token(), site.slurm()
    body = (
        'echo "$me" >>bodies',
        "for i in $(seq 200); do [ -e go ] && break; sleep 0.5; done",
        "echo {} >m; (commit m); echo $? >orphan",
    )
    slurm.submit(site.spec(commands=body, requeue=True), token)
    until(lambda: site.bodies(token))
    with site.frozen("slurmd-g1"):
        status = slurm.wait(token)
        assert (status.state, status.done) == (JobState.NODE_FAIL, True), status
        assert site.link(token, "commit") == "closed"
        (site.tries / token / "go").touch()
        until(lambda: (site.tries / token / "orphan").exists())
        assert (site.tries / token / "orphan").read_text() == "97\n"
    seen("node lost, its processes live on and commit after the close", "refused (97)")
    job = site.link(token, "owner").partition(".")[0]
    until(lambda: "down" not in site.node_state("g1"), 90, every=1)
    site.admin("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
    until(lambda: ("FAILED", "99:0") in site.ends(token), 120, every=0.5)
    site.check(token, committed=False)
    assert site.slurm().status([token])[token].state is JobState.NODE_FAIL
    seen("the same job requeued by Slurm", "ended 99, 1 body, state stays NODE_FAIL")


def test_a_job_put_back_to_the_queue_ends_its_try(site, seen):
    token, slurm = site.token(), site.slurm()
    job = slurm.submit(site.spec(seconds=60, requeue=True), token).job_id
    until(lambda: site.bodies(token))
    site.admin("scontrol", "requeue", job)
    status = slurm.wait(token)
    assert (status.done, status.worked, status.succeeded) == (True, True, False)
    assert "put back" in status.why
    site.admin("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
    until(lambda: ("FAILED", "99:0") in site.ends(token), 60)
    site.check(token, committed=False)
    seen("somebody requeues the running job", f"try ends ({status.state.name}), new start: 99")


def test_every_ending_is_told_as_it_was(site, seen):
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
    tokens = {name: site.token() for name in specs}
    ids = {}
    for name, spec in specs.items():
        ids[name] = slurm.submit(spec, tokens[name]).job_id
        if name == "held":
            site.admin("scontrol", "hold", ids["held"])
    until(lambda: all(site.bodies(tokens[n]) for n in ("TIMEOUT", "somebody", "preempted")), 40)
    urgent = site.token()
    slurm.submit(site.spec(partition="urgent", nodes=2, memory="100M"), urgent)
    site.admin("scancel", ids["somebody"])
    held = slurm.status([tokens["held"]])[tokens["held"]]
    assert (held.state, held.done) == (JobState.PENDING, False)
    assert "JobHeldAdmin: an administrator holds it" in held.why
    site.admin("scontrol", "release", ids["held"])
    ends = {name: slurm.wait(tokens[name]) for name in specs if name != "purged"}
    ends["purged"] = slurm.wait(tokens["purged"])  # 60 s and more after it left squeue
    told = {name: (s.state.name, s.exit_code, s.succeeded) for name, s in ends.items()}
    assert told.pop("memory")[0] in ("FAILED", "OUT_OF_MEMORY")  # with cgroups the latter
    assert "memory" in ends["memory"].why
    assert told == {
        "TIMEOUT": ("TIMEOUT", 0, False),
        "failed": ("FAILED", 7, False),
        "somebody": ("CANCELLED", 0, False),
        "held": ("COMPLETED", None, True),
        "preempted": ("PREEMPTED", 0, False),
        "purged": ("FAILED", 5, False),
    }
    assert slurm.wait(urgent).succeeded
    for name, status in ends.items():
        site.check(tokens[name], committed=status.succeeded)
        end = "committed" if status.succeeded else f"{status.exit_code}:{status.signal}, closed"
        seen(f"ending: {name}", f"{status.state.name} {end}")


def test_a_pending_job_says_why_in_a_sentence(site, seen):
    token, slurm = site.token(), site.slurm()
    site.admin("scontrol", "update", "nodename=g1", "state=drain", "reason=test")
    try:
        slurm.submit(site.spec(), token)
        reason = until(lambda: (w := slurm.status([token])[token].why).startswith("Req") and w, 40)
    finally:
        site.admin("scontrol", "update", "nodename=g1", "state=resume")
    assert reason.endswith("nodes that it needs are not available")
    assert slurm.wait(token).succeeded
    site.check(token)
    seen("pending, the node is drained", f"PENDING, {reason!r}")


def test_a_refusal_of_sbatch_is_an_error_and_no_job(site, seen):
    token = site.token()
    with pytest.raises(CommandFailed, match="nvalid partition") as caught:
        site.slurm().submit(site.spec(partition="nope"), token)
    assert "new try" in caught.value.next_step
    site.check(token, bodies=0, committed=False)
    assert site.link(token, "owner") == "fenced"
    seen("sbatch refuses (partition)", "error with the text, try closed, no job")


def test_the_login_node_and_a_job_agree_on_the_winner_of_every_link(site, seen):
    token, slurm = site.token(), site.slurm()
    result = race(slurm, site.spec(memory="50M"), token, rounds=400)
    assert (result.login + result.job, result.disputed) == (400, ())
    assert min(result.login, result.job) > 0
    assert slurm.wait(token).done
    outcome = f"login node won {result.login}, job {result.job}, no dispute"
    seen("race for 400 links, login node against a job", outcome)


def test_no_method_raises_anything_but_the_kits_errors_without_a_site(site):
    sshd = site.login("gone")
    sshd.stop()
    slurm, token = site.slurm(site.host(sshd)), site.token()
    calls = [
        lambda: slurm.submit(site.spec(), token),
        lambda: slurm.status([token]),
        lambda: slurm.give_up(token),
        lambda: slurm.cancel(token),
        lambda: slurm.usage("1"),
        lambda: slurm.logs(token),
    ]
    for call in calls:
        with pytest.raises(KitError):
            call()
    assert not slurm.wait(token, timeout_s=0).done
