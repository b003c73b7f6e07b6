"""Race the fence's primitive between the login node and a short job, on the site's file system.

Everything that the kit promises about a try rests on `ln -sT VALUE NAME` followed by `readlink
NAME`: one winner, and both sides agree who it is. `kit doctor` tries it where it matters.
"""

import contextlib
import re
import secrets
from dataclasses import dataclass, replace

from kit.base import DataError, KitError
from kit.slurm.client import Slurm
from kit.slurm.script import JobSpec

# Both sides make the same links in the same order and write down whom each link then names. The
# job waits for the login node's word; who has won a link pauses, so that the other catches up and
# they meet again and again.
RACERS = """\
race() {
    for n in $(seq "$2"); do
        ln -sT "$1" "race-$n" 2>/dev/null; who=$(readlink "race-$n"); echo "$who"
        [ "$who" != "$1" ] || sleep "0.00$((RANDOM % 10))"
    done
}
"""
LOGIN = """\
cd "$1" || exit 74
for n in $(seq "$3"); do [ -e ready ] && break; sleep 0.05; done
touch go; race login "$2"
for n in $(seq "$3"); do [ -e seen ] && break; sleep 0.05; done
echo "@job"; cat seen
rm -f race-* ready go
"""
ROUNDS = 200
COST = "one core for some seconds, at most two minutes"


class LinksDisputed(DataError):
    """Login node and job both won a link: a try could run twice there."""


@dataclass(frozen=True)
class Race:
    """How many links each side won; `disputed` numbers the links on which they disagree."""

    login: int
    job: int
    disputed: tuple[int, ...]


def race(
    slurm: Slurm, spec: JobSpec, token: str, rounds: int = ROUNDS, patience_s: int = 60
) -> Race:
    """Run the race in the try of `token`; `spec` says where (its commands are replaced).

    Both sides must have won some links for the race to say something. Raises DataError when the
    job did not come to the start in time (`patience_s`), and what `Slurm.submit` raises.
    """
    commands = (
        RACERS,
        "touch ready; for n in $(seq 1200); do [ -e go ] && break; sleep 0.05; done",
        f"race job {rounds} >seen.part; mv -T seen.part seen",
    )
    slurm.submit(replace(spec, commands=commands), token)
    argv = ["bash", "-c", RACERS + LOGIN, "race", slurm.folder(token), str(rounds)]
    argv.append(str(patience_s * 20))
    done = slurm.host.run(argv, timeout=120, check=False)
    here, _, there = done.out.partition("@job\n")
    login, job = here.split(), there.split()
    whole = len(login) == len(job) == rounds
    if done.code != 0 or not whole or re.sub(r"(login|job)\s", "", here + there):
        step = "look at the job in squeue; run the doctor again when the queue is shorter"
        raise DataError("race for links with a job", (done.err or done.out)[-300:], step)
    disputed = tuple(
        n for n, pair in enumerate(zip(login, job, strict=True), 1) if len({*pair}) > 1
    )
    return Race(login.count("login"), job.count("job"), disputed)


def check(slurm: Slurm) -> str:
    """Run the race with a job on the profile's partition and say who won how many; it costs COST.

    Raises LinksDisputed when the two sides disagree, DataError when they never met, and what
    `race` raises; then nothing of the job is left.
    """
    hpc, token = slurm.hpc, secrets.token_hex(6)
    small = JobSpec("race", (), hpc.account, hpc.partition, memory="100M", time="00:02:00")
    try:
        found = race(slurm, small, token)
    except KitError:
        with contextlib.suppress(KitError):
            slurm.cancel(token)
        raise
    tried = f"race for {ROUNDS} links in {hpc.project_dir} between login node and job"
    got = f"login node won {found.login}, job {found.job}"
    if found.disputed:
        got = f"they disagree who won {len(found.disputed)} of them"
        step = "set [hpc] project_dir to another file system: here a try could run twice"
        raise LinksDisputed(tried, got, step)
    if not (found.login and found.job):
        raise DataError(tried, f"{got}: they never met", "run the race again")
    return f"{got} of {ROUNDS} links, no dispute"
