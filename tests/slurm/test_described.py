"""Jobs that are submitted by their description: one job however often, from wherever."""

import dataclasses

import pytest
from fake_slurm import FakeHost, Killed, Site

from kit.base import Busy, CommandFailed, Unreachable, UsageError
from kit.base.settings import Hpc
from kit.slurm import JobSpec, JobState, Slurm

HPC = Hpc(ssh_host="site", project_dir="/projappl/p")
JOB = JobSpec("sweep", ("python3 sweep.py",), partition="small")


@pytest.fixture
def site():
    return Site()


def client(site, failures=None, **options):
    host = FakeHost(site)
    host.failures = failures or {}
    return Slurm(host, HPC, lambda: site.now, profile="p", **options)


def play(site, state="COMPLETED", code=0):
    """Let the last job run to its end, long enough for every record of it."""
    site.start(site.jobs[-1])
    site.end(site.jobs[-1], state, code)
    site.now += 5


@pytest.mark.parametrize("mode", ["ok", "noise", "drop", "error", "twice", "late"])
@pytest.mark.parametrize("clients", [2, 8])
def test_same_job_from_many_clients_is_submitted_once(site, mode, clients):
    site.sbatch = mode
    ids = {client(site).submit(JOB).attempt_id for _ in range(clients)}
    assert len(ids) == 1
    for waiting in list(site.late):
        site.land(waiting)
    for job in list(site.jobs):
        site.start(job)
    assert len(site.bodies) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["", "kill "])
@pytest.mark.parametrize("call", [0, 1])
def test_client_lost_at_any_call_leads_to_one_job(site, call, kind, moment):
    lost = client(site, {call: f"{kind}{moment}"})
    with pytest.raises(Killed if kind else Unreachable):
        lost.submit(JOB)
    statuses = [client(site).submit(JOB) for _ in range(2)]
    assert [status.job_id for status in statuses] == ["1", "1"]
    assert len(site.jobs) == 1


def test_another_name_or_profile_is_another_job(site):
    client(site).submit(JOB)
    client(site).submit(dataclasses.replace(JOB, name="sweep-2"))
    Slurm(FakeHost(site), HPC, lambda: site.now, profile="q").submit(JOB)
    assert len(site.jobs) == 3


@pytest.mark.parametrize(("state", "code"), [("COMPLETED", 0), ("FAILED", 3)])
def test_ended_job_is_reported_and_submitted_again_on_request_only(site, state, code):
    first = client(site).submit(JOB)
    play(site, state, code)
    found = client(site).submit(JOB)
    assert (found.attempt_id, found.done, found.succeeded) == (first.attempt_id, True, not code)
    assert len(site.jobs) == 1
    again = client(site).submit(JOB, again=True)
    assert again.attempt_id != first.attempt_id
    assert len(site.jobs) == 2
    assert client(site).submit(JOB).attempt_id == again.attempt_id
    assert site.links[first.attempt_id, "commit"], "the first attempt was not closed"


def test_two_who_ask_for_it_again_at_once_get_one_job(site):
    client(site).submit(JOB)
    play(site, "FAILED", 3)
    one, two = client(site), client(site)
    asked = one.host.run
    first = []

    def overtaken(argv, given=b"", **options):
        """Let the other client submit between the question of this one and its submission."""
        if len(one.host.calls) == 3 and not first:
            first.append(two.submit(JOB, again=True).attempt_id)
        return asked(argv, given, **options)

    one.host.run = overtaken
    assert [one.submit(JOB, again=True).attempt_id] == first
    assert len(site.jobs) == 2


def test_live_job_is_not_submitted_again(site):
    client(site).submit(JOB)
    site.start(site.jobs[0])
    with pytest.raises(Busy, match="RUNNING") as caught:
        client(site).submit(JOB, again=True)
    assert "kit cancel job-" in caught.value.next_step
    assert len(site.jobs) == 1


def test_twenty_attempts_of_one_job_are_found_in_order(site):
    for _ in range(20):
        client(site).submit(JOB, again=True)
        play(site, "FAILED", 3)
    assert len(site.jobs) == 20
    newest = site.jobs[-1].attempt_id
    assert client(site).submit(JOB).attempt_id == newest


def test_refused_job_is_an_error_and_may_be_submitted_again(site):
    site.sbatch = "refuse"
    with pytest.raises(CommandFailed, match="partition"):
        client(site).submit(JOB)
    found = client(site).submit(JOB)
    assert (found.state, found.done) == (JobState.CANCELLED, True)
    assert "Invalid partition" in found.why
    site.sbatch = "ok"
    assert client(site).submit(JOB, again=True).job_id == "1"


def test_limit_on_the_number_of_jobs_is_waited_for_by_calling_again(site):
    site.sbatch = "limit"
    with pytest.raises(Busy):
        client(site).submit(JOB)
    site.sbatch = "ok"
    assert client(site).submit(JOB).job_id == "1"


def test_value_that_is_not_allowed_is_refused_before_anything_is_asked(site):
    slurm = client(site)
    with pytest.raises(UsageError, match="nodes"):
        slurm.submit(dataclasses.replace(JOB, nodes=0))
    assert slurm.host.calls == []


def test_job_is_told_of_before_it_is_submitted_and_a_refusal_submits_nothing(site):
    calls = []

    def refuse(job, attempt_id, number, new):
        calls.append((job, number, new, len(site.jobs)))
        if len(calls) == 1:
            raise UsageError("over the budget")

    slurm = client(site, before_submit=refuse)
    with pytest.raises(UsageError):
        slurm.submit(JOB)
    assert site.jobs == []
    slurm.submit(JOB)
    slurm.submit(JOB)
    assert [call[1:] for call in calls] == [(1, True, 0), (1, True, 0), (1, False, 1)]


def test_job_has_the_attempts_name_and_the_persons_name_as_its_comment(site):
    scripts = []
    slurm = client(site)
    slurm.host._script = lambda text, ask=slurm.host._script: scripts.append(text) or ask(text)
    status = slurm.submit(JOB)
    assert f"#SBATCH --job-name=kit-{status.attempt_id}\n" in scripts[-1]
    assert "#SBATCH --comment=sweep\n" in scripts[-1]


def test_job_has_the_profiles_resources_on_one_node():
    slurm = Slurm(FakeHost(), dataclasses.replace(HPC, cpus=4, nodes=2, modules=("pytorch",)))
    job = slurm.job("sweep", ["srun ./x"], time="01:00:00")
    assert (job.cpus, job.modules, job.time, job.nodes) == (4, ("pytorch",), "01:00:00", 1)
    assert slurm.job("sweep", [], nodes=3).nodes == 3
    assert slurm.job("sweep", "srun ./x").commands == ("srun ./x",)


@pytest.mark.parametrize("commands", [(), ("",), ("  ", "\n")])
def test_job_without_a_command_is_refused_before_anything_is_asked(site, commands):
    slurm = client(site)
    with pytest.raises(UsageError, match="no command"):
        slurm.submit(dataclasses.replace(JOB, commands=commands))
    assert slurm.host.calls == []
