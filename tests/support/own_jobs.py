"""A profile without a store, whose Slurm site is in memory: for jobs that a person submits."""

import functools

import pytest
from cloud_site import make_site
from fake_slurm import Site
from submitter_world import WorkingHost

from kit.submitter import jobs

PROFILE = """
[site]
name = "own"
title = "A site without a store"
[hpc]
ssh_host = "x"
project_dir = "/proj"
account = "p1"
partition = "small"
time = "01:00:00"
poll_floor_s = 1
[partitions.small]
rate = "cpu"
time = "3-00:00:00"
nodes = 4
cores = 128
gib = 256
[rates.cpu]
unit = "BU"
kind = "CPU"
per = "core-h"
rate = 1
source = "https://example.org"
checked = "2026-11-01"
"""


class OwnSite(Site):
    """A site whose jobs are committed with a log."""

    def __init__(self):
        super().__init__()
        self.files, self.scripts = {}, {}
        self.run = lambda: None  # what happens while a client sleeps

    def row(self, job, start, columns):
        """Add what a bill needs to a line of sacct."""
        values = dict(zip(columns, super().row(job, start, columns).split("|"), strict=True))
        values |= {"ElapsedRaw": "3600", "AllocCPUS": "2", "AllocNodes": "1", "ReqCPUS": "2"}
        return "|".join(values[column] for column in columns)

    def play(self, state="COMPLETED", code=0, log=b"the log\n"):
        """Let the last job start and end."""
        job = self.jobs[-1]
        self.start(job)
        self.files[f"/proj/kit/tries/{job.attempt_id}/job-{job.id}.log"] = log
        self.end(job, state, code)
        self.now += 5


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The site, with a profile `own` that reaches it by every client."""
    make_site(tmp_path, monkeypatch)
    (tmp_path / "sites" / "own.toml").write_text(PROFILE)
    monkeypatch.setenv("KIT_PROFILE", "own")
    site = OwnSite()
    site.folder, site.profile = tmp_path, tmp_path / "sites" / "own.toml"

    def host(_):
        client = WorkingHost(site)
        client.files = site.files
        return client

    monkeypatch.setattr(jobs, "site_host", host)
    clock = {"clock": lambda: float(site.now), "sleep": lambda _: site.run()}
    monkeypatch.setattr(jobs, "Slurm", functools.partial(jobs.Slurm, **clock))
    return site
