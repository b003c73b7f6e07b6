"""The race of the fence's primitive, with a job that is played by a local process."""

import os
import subprocess

import pytest

from kit.base import DataError, LocalHost
from kit.base.settings import Hpc
from kit.doctor import link_race
from kit.doctor.link_race import Race, check_race, race
from kit.slurm import JobSpec

pytestmark = pytest.mark.slow


class LocalJobs:
    """What the race needs of Slurm: `submit` starts the commands at once, or never."""

    def __init__(self, folder, path=os.environ["PATH"], starts=True):
        self.place, self.path, self.starts = folder, path, starts
        self.host = LocalHost(prefix=("env", f"PATH={path}"))

    @property
    def hpc(self):
        return Hpc(ssh_host="here", project_dir=str(self.place), partition="small")

    def folder(self, token):
        return str(self.place)

    def cancel(self, token):
        self.cancelled = token

    def submit(self, spec, token):
        if self.starts:
            env = {**os.environ, "PATH": self.path}
            script = "\n".join(spec.commands)
            self.job = subprocess.Popen(["bash", "-c", script], cwd=self.place, env=env)


SPEC = JobSpec("race", ())


def test_both_sides_agree_on_the_winner_of_every_symlink(tmp_path):
    jobs = LocalJobs(tmp_path)
    result = race(jobs, SPEC, "0123456789ab", rounds=100)
    assert result.disputed == ()
    assert result.login + result.job == 100
    assert min(result.login, result.job) > 0, "they never met: it was no race"
    assert jobs.job.wait() == 0


def test_finds_a_file_system_where_the_later_symlink_wins(tmp_path):
    (tmp_path / "bin").mkdir()
    ln = tmp_path / "bin" / "ln"  # as if `ln -sT` replaced what is there
    ln.write_text('#!/bin/sh\nshift; exec /bin/ln -sfT "$@"\n')
    ln.chmod(0o755)
    jobs = LocalJobs(tmp_path, path=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert race(jobs, SPEC, "0123456789ab", rounds=100).disputed
    jobs.job.wait()


def test_job_that_does_not_start_is_an_error(tmp_path):
    with pytest.raises(DataError, match="race for symlinks"):
        race(LocalJobs(tmp_path, starts=False), SPEC, "0123456789ab", rounds=3, limit_s=1)


def test_check_reports_the_winners_and_leaves_no_symlinks(tmp_path):
    jobs = LocalJobs(tmp_path)
    assert "of 200 symlinks, no dispute" in check_race(jobs)
    assert jobs.job.wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


@pytest.mark.parametrize(
    ("words", "won"),
    [("disagree who won 2", Race(150, 50, (3, 7))), ("never met", Race(200, 0, ()))],
)
def test_disputed_symlinks_fail_the_check(tmp_path, monkeypatch, words, won):
    monkeypatch.setattr(link_race, "race", lambda *_: won)
    with pytest.raises(DataError, match=words):
        check_race(LocalJobs(tmp_path))


def test_job_that_does_not_start_is_cancelled(tmp_path, monkeypatch):
    jobs = LocalJobs(tmp_path)
    monkeypatch.setattr(link_race, "race", lambda *_: (_ for _ in ()).throw(DataError("late")))
    with pytest.raises(DataError, match="late"):
        check_race(jobs)
    assert len(jobs.cancelled) == 12
