"""Jobs of a person's own: opened by a profile, refused, recorded, collected."""

import dataclasses
import json

import pytest
from own_jobs import own  # noqa: F401 - a fixture

from kit.base import DataError, SecretFound, UsageError
from kit.base.settings import load
from kit.slurm import JobSpec
from kit.submitter import collect_job, job_record, job_records, open_slurm

pytestmark = pytest.mark.usefixtures("own")


def submit(name="sweep", **fields):
    slurm = open_slurm("own")
    return slurm, slurm.submit(slurm.job(name, ["./simulate"], **fields))


def test_job_is_recorded_before_it_is_submitted(own):  # noqa: F811
    own.sbatch = "late"
    _, status = submit(cpus=2)
    (record,) = job_records(load("own"))
    assert (record.run, record.name, record.number) == (f"job-{status.attempt_id}", "sweep", 1)
    text = json.loads((record.folder / "job.json").read_text())
    assert (text["job"]["commands"], text["job"]["cpus"]) == (["./simulate"], 2)
    assert (record.folder / "job.json").stat().st_mode & 0o077 == 0


def test_lost_record_is_restored_by_submitting_the_same_again(own):  # noqa: F811
    _, status = submit()
    (record,) = job_records(load("own"))
    (record.folder / "job.json").unlink()
    record.folder.rmdir()
    assert submit()[1].attempt_id == status.attempt_id
    assert [found.run for found in job_records(load("own"))] == [record.run]
    assert len(own.jobs) == 1


def test_end_is_stored_once_with_log_and_figures(own):  # noqa: F811
    slurm, _ = submit()
    own.play("FAILED", 3)
    settings = load("own")
    (record,) = job_records(settings)
    ended = collect_job(slurm, record, slurm.status([record.attempt_id])[record.attempt_id])
    assert (ended.ended["state"], ended.ended["exit_code"]) == ("FAILED", 3)
    assert (record.folder / "job.log").read_bytes() == b"the log\n"
    assert "FAILED" in (record.folder / "sacct.txt").read_text()
    assert job_record(settings, record.run) == ended
    calls = len(slurm.host.calls)
    assert collect_job(slurm, ended, slurm.status([record.attempt_id])[record.attempt_id]) is ended
    assert len(slurm.host.calls) == calls + 2  # the status alone was asked


def test_end_is_not_stored_while_the_accounting_lacks_figures(own):  # noqa: F811
    slurm, _ = submit()
    own.play()
    own.database = False
    (record,) = job_records(load("own"))
    status = slurm.status([record.attempt_id])[record.attempt_id]
    assert status.succeeded
    assert collect_job(slurm, record, status).ended is None
    own.database = True
    assert collect_job(slurm, record, status).ended["succeeded"]


def test_end_without_accounting_is_stored_with_what_is_missing(own):  # noqa: F811
    slurm, _ = submit()
    own.play()
    own.database, own.database_error = False, "Slurm accounting storage is disabled"
    (record,) = job_records(load("own"))
    status = slurm.status([record.attempt_id])[record.attempt_id]
    ended = collect_job(slurm, record, status).ended
    assert ended["succeeded"]
    assert "disabled" in ended["missing"][0]


def test_job_with_a_known_secret_is_refused(own, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CSC_PASSWORD", "correct-horse-battery")
    with pytest.raises(SecretFound, match="CSC_PASSWORD") as caught:
        submit(environment={"PASSWORD": "correct-horse-battery"})
    assert "correct-horse" not in str(caught.value)
    assert own.jobs == []
    assert job_records(load("own")) == []


def test_job_over_the_budget_is_refused_and_not_recorded(own):  # noqa: F811
    own.profile.write_text(own.profile.read_text() + "[budget]\nCPU = 2\n")
    with pytest.raises(UsageError, match="over the budget"):
        submit(cpus=3)
    assert own.jobs == []
    assert job_records(load("own")) == []


def test_closed_site_and_profile_without_a_site_are_refused(own):  # noqa: F811
    with pytest.raises(UsageError, match=r"\[hpc\]"):
        open_slurm("folders")
    text = own.profile.read_text().replace("[hpc]", 'closed = "gone in 2026"\n[hpc]')
    own.profile.write_text(text)
    with pytest.raises(UsageError, match="accepts no jobs"):
        open_slurm("own")


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1, "number": 1}', "[1]"])
def test_damaged_record_is_an_error_with_its_file(own, text):  # noqa: F811
    submit()
    (record,) = job_records(load("own"))
    (record.folder / "job.json").write_text(text)
    with pytest.raises(DataError, match=r"job\.json"):
        job_records(load("own"))


def test_unknown_job_names_the_profile_that_has_it(own):  # noqa: F811
    submit()
    (record,) = job_records(load("own"))
    with pytest.raises(UsageError, match="no job") as caught:
        job_record(load("folders"), record.run)
    assert "--profile own" in caught.value.next_step
    with pytest.raises(UsageError, match="no job"):
        job_record(load("own"), "job-../../x")


def test_spec_of_another_shape_is_kept_whole():
    slurm = open_slurm("own")
    job = JobSpec("x", ("true",), environment={"A": "1"})
    slurm.submit(dataclasses.replace(job, modules=("git",)))
    (record,) = job_records(load("own"))
    stored = json.loads((record.folder / "job.json").read_text())["job"]
    assert (stored["environment"], stored["modules"]) == ({"A": "1"}, ["git"])
