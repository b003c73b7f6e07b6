"""Race the fence's primitive between the login node and a short job, on the site's file system.

Everything that the kit promises about an attempt rests on `ln -sT VALUE NAME` followed by
`readlink NAME`: one winner, and both sides agree who it is. `kit doctor --race` tries it.
"""

import contextlib
import re
import secrets
from dataclasses import dataclass, replace

from kit.base import DataError, KitError
from kit.doctor.context import shell_file
from kit.doctor.diagnosis import Known
from kit.slurm import JobSpec, Slurm

ROUNDS = 200
COST = "one core for some seconds, at most two minutes"


class LinksDisputed(DataError):
    """Login node and job both won a symlink: an attempt could run twice there."""


KNOWN: Known = {LinksDisputed: "links-broken", KitError: "race-not-held"}


@dataclass(frozen=True)
class Race:
    """The number of symlinks that each side won; `disputed` numbers those they disagree on."""

    login: int
    job: int
    disputed: tuple[int, ...]


def race(
    slurm: Slurm, spec: JobSpec, attempt_id: str, rounds: int = ROUNDS, limit_s: int = 60
) -> Race:
    """Run the race as an attempt; `spec` has its partition and account, its commands are replaced.

    Raises DataError if the job did not come to the start within `limit_s`, and what
    `Slurm.submit` raises.
    """
    commands = (
        shell_file("race").decode(),
        "touch ready; for n in $(seq 1200); do [ -e go ] && break; sleep 0.05; done",
        f"race job {rounds} >seen.part; mv -T seen.part seen",
    )
    slurm.submit(replace(spec, commands=commands), attempt_id)
    argv = ["bash", "-s", "--", slurm.folder(attempt_id), str(rounds), str(limit_s * 20)]
    text = shell_file("race") + shell_file("race_login")
    done = slurm.host.run(argv, text, timeout=120, check=False)
    here, _, there = done.out.partition("@job\n")
    login, job = here.split(), there.split()
    whole = len(login) == len(job) == rounds
    if done.code != 0 or not whole or re.sub(r"(login|job)\s", "", here + there):
        got = (done.err or done.out)[-300:]
        raise DataError("race for symlinks with a job", got)
    pairs = enumerate(zip(login, job, strict=True), 1)
    disputed = tuple(number for number, pair in pairs if len({*pair}) > 1)
    return Race(login.count("login"), job.count("job"), disputed)


def check_race(slurm: Slurm) -> str:
    """Run the race with a job on the profile's partition and report who won; it costs COST.

    Raises LinksDisputed if the two sides disagree, DataError if they never met, and what `race`
    raises; then nothing of the job is left.
    """
    hpc, attempt_id = slurm.hpc, secrets.token_hex(6)
    spec = JobSpec("race", (), hpc.account, hpc.partition, memory="100M", time="00:02:00")
    try:
        result = race(slurm, spec, attempt_id)
    except KitError:
        with contextlib.suppress(KitError):
            slurm.cancel(attempt_id)
        raise
    tried = f"race for {ROUNDS} symlinks in {hpc.project_dir} between login node and job"
    got = f"login node won {result.login}, job {result.job}"
    if result.disputed:
        got = f"they disagree who won {len(result.disputed)} of them"
        raise LinksDisputed(tried, got)
    if not (result.login and result.job):
        raise DataError(tried, f"{got}: they never met", "run the race again")
    return f"{got} of {ROUNDS} symlinks, no dispute"
