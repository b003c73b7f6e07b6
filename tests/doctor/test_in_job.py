"""What a job sees: the report of a real shell, its comparison, and jobs of the sandbox's sites."""

import dataclasses
import os
import subprocess
import sys

import pytest
from doctor_faults import assert_diagnosed, by_name, faults_of
from doctor_seeds import SEEN
from kit_sandbox.sites import PROFILES

from kit.base import DataError
from kit.base.settings import Hpc, load
from kit.doctor import checks as doctor
from kit.doctor import in_job
from kit.doctor.context import CheckContext
from kit.doctor.diagnosis import DiagnosisError
from kit.slurm import JobSpec, JobState, JobStatus, job_for
from kit.submitter import env

TORCH = "__version__ = '2.13.0'\nclass cuda:\n    device_count = staticmethod(lambda: 2)\n"
ONE = JobSpec("x", ())
HPC = Hpc(ssh_host="x", project_dir="/nowhere", python=sys.executable)


@pytest.mark.parametrize("fault", faults_of(in_job))
def test_seeded_fault_has_its_own_diagnosis(bench, fault):
    assert_diagnosed(fault, bench)


def reported(tmp_path, *before, hpc=HPC):
    """Run the job's commands in a shell; return the completed process and what was committed."""
    lines = ["umask 077", "commit() { cp $1 committed; }", *before, *in_job.report_lines(hpc)]
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    return done, tmp_path / "committed"


def test_job_reports_its_shell_and_what_its_python_imports(tmp_path):
    (tmp_path / "torch.py").write_text(TORCH)
    done, committed = reported(tmp_path, "srun() { :; }", "LOADEDMODULES=pytorch/2.13")
    seen = in_job.read_report(committed.read_text())
    assert done.stdout == committed.read_text()
    version = ".".join(map(str, sys.version_info[:3]))
    assert seen["python"].split()[0] == version
    assert (seen["umask"], seen["locale"], seen["srun"]) == ("0077", "C.UTF-8", "srun")
    assert (seen["modules"], seen["torch"], seen["gpus"]) == ("pytorch/2.13", "2.13.0", "2")
    assert "missing" not in seen


def test_package_that_cannot_be_imported_is_reported_and_the_rest_too(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open it')\n")
    done, committed = reported(tmp_path)
    seen = in_job.read_report(committed.read_text())
    assert (done.returncode, seen["missing"]) == (0, "libcudart.so.12: cannot open it")
    assert "torch" not in seen


def test_python_that_does_not_run_commits_nothing(tmp_path):
    gone = dataclasses.replace(HPC, python="/nowhere/python")
    done, committed = reported(tmp_path, hpc=gone)
    assert (done.returncode, committed.exists()) == (127, False)
    assert "/nowhere/python" in done.stderr


def test_published_environment_is_the_one_that_is_reported(tmp_path):
    hpc = dataclasses.replace(HPC, project_dir=str(tmp_path), python="/nowhere/python")
    venv = tmp_path / "kit/venvs/made"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text('#!/bin/sh\nshift 2; echo "@missing $* ${PYTHONPATH-unset}"\n')
    (venv / "bin/python").chmod(0o755)
    os.symlink("made", env.published_link(hpc))
    _, committed = reported(tmp_path, hpc=hpc)
    assert in_job.read_report(committed.read_text())["missing"] == "torch ray unset"


def test_report_with_all_that_a_run_needs_is_one_sentence():
    assert in_job.check_report(SEEN, ONE) == "Python 3.11.2 /usr/bin/python3, PyTorch 2.13.0 on c1"
    gpus = dataclasses.replace(ONE, gres="gpu:gh200:2")
    answer = in_job.check_report({**SEEN, "gpus": "2"}, gpus)
    assert answer.endswith("PyTorch 2.13.0, 2 GPU(s) on c1")


@pytest.mark.parametrize(
    ("changed", "asked", "diagnosis", "words"),
    [
        ({"umask": "0022"}, {}, "job-environment", "umask is '0022' on c1, not '0077'"),
        ({"locale": "fi_FI.UTF-8"}, {}, "job-environment", "locale is 'fi_FI.UTF-8'"),
        ({"srun": ""}, {}, "job-environment", "srun is not in PATH"),
        ({"missing": "No module named 'ray'"}, {}, "job-packages", "No module named 'ray'"),
        ({"gpus": "0"}, {"gres": "gpu:1"}, "gpu-unseen", "1 for the job on c1"),
        ({"gpus": "1"}, {"gpus_per_node": "a100:4"}, "gpu-unseen", "sees 1"),
    ],
)
def test_report_that_lacks_something_has_its_diagnosis(changed, asked, diagnosis, words):
    with pytest.raises(DiagnosisError) as caught:
        in_job.check_report({**SEEN, **changed}, dataclasses.replace(ONE, **asked))
    assert caught.value.diagnosis.name == diagnosis
    assert words in caught.value.got


def test_empty_report_is_not_taken_for_a_good_one():
    with pytest.raises(DiagnosisError, match="umask is 'not known'"):
        in_job.check_report(in_job.read_report("nothing\n"), ONE)


class Jobs:
    """What the check needs of Slurm; `ends` are the statuses that it answers, one after another."""

    def __init__(self, *ends, log=""):
        self.hpc, self.ends, self.log, self.cancelled = HPC, list(ends), log, []

    def job(self, name, commands, **more):
        return job_for(self.hpc, name, commands, **{"nodes": 1, **more})

    def submit(self, spec, attempt_id):
        self.spec = spec

    def settle(self, attempt_id):
        return self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]

    def cancel(self, attempt_id):
        self.cancelled.append(attempt_id)

    def log_end(self, attempt_id):
        return self.log.encode()

    def sleep(self, seconds):
        pass


def status(**more):
    return JobStatus("0123456789ab", **more)


PENDING = status(state=JobState.PENDING, why="waits for nodes")


def test_job_is_followed_to_its_end_and_its_log_is_read():
    log = "\n".join(f"@{name} {value}" for name, value in SEEN.items())
    jobs = Jobs(PENDING, PENDING, status(done=True, manifest="manifest-1"), log=f"hello\n{log}\n")
    assert in_job.check_with_job(jobs) == "Python 3.11.2 /usr/bin/python3, PyTorch 2.13.0 on c1"
    assert (jobs.spec.time, jobs.spec.nodes, jobs.cancelled) == ("00:05:00", 1, [])


def test_job_that_fails_is_reported_with_the_end_of_its_log():
    ended = status(state=JobState.FAILED, why="exit code 96", done=True)
    with pytest.raises(DiagnosisError, match="could not be loaded") as caught:
        in_job.check_with_job(Jobs(ended, log="the module x could not be loaded\n"))
    assert caught.value.got == "exit code 96: the module x could not be loaded"


def test_job_that_stays_in_the_queue_is_cancelled(monkeypatch):
    monkeypatch.setattr(in_job, "WAIT_S", -1)
    jobs = Jobs(PENDING)
    with pytest.raises(DataError, match="PENDING: waits for nodes"):
        in_job.check_with_job(jobs)
    assert len(jobs.cancelled) == 1


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_job_of_each_site_sees_what_a_run_needs_and_a_gpu_that_is_not_there_is_named(
    name, second_site
):
    profile = load(name)
    context = CheckContext(dataclasses.replace(profile, store=None, cloud=None, ports={}))
    found = by_name(doctor.run_checks(context, doctor.JOB_LIMIT_S, job=True))["inside a job"]
    assert found.state == "ok", found
    assert "PyTorch 2.13.0" in found.answer
    gpu = dataclasses.replace(profile.hpc, partition="gputest", gres="gpu:1")
    context = CheckContext(dataclasses.replace(context.settings, hpc=gpu))
    found = by_name(doctor.run_checks(context, doctor.JOB_LIMIT_S, job=True))["inside a job"]
    assert (found.state, found.diagnosis) == ("failed", "gpu-unseen"), found
    assert "1 for the job on g1" in found.answer
