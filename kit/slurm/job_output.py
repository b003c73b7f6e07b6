"""What a job leaves behind on the site: its figures in the accounting and its log."""

from base64 import b64decode
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from kit.base import DataError, Host
from kit.base.settings import Hpc
from kit.slurm import fence
from kit.slurm.text import ACCOUNT_COLUMNS, read_account
from kit.slurm.usage import Usage, computed_seff, read_seff, read_usage


@dataclass(frozen=True)
class Accounting:
    """What a job used, with the texts that it was read from."""

    usage: Usage
    seff: dict[str, str]
    sacct_text: str
    seff_text: str


def listing(host: Host, *which: str) -> str:
    """Give sacct's text of some jobs, every life of each. Raises CommandFailed."""
    columns = f"--format={','.join(ACCOUNT_COLUMNS)}"
    argv = ["sacct", "--parsable2", "--duplicates", columns, *which]
    return host.run(["env", "SLURM_TIME_FORMAT=%s", *argv], repeat=True).out


def accounting(host: Host, hpc: Hpc, job_id: str, life: int = 0) -> Accounting:
    """Read what one life of a job used from sacct, and from seff where the site has it.

    Raises DataError while the accounting does not have it, CommandFailed without database.
    """
    text = listing(host, f"--jobs={job_id}")
    usage = read_usage(read_account(text, ZoneInfo(hpc.timezone)), job_id, life)
    seff_text = host.run(["seff", job_id], check=False, repeat=True).out if hpc.has_seff else ""
    try:
        seff = read_seff(seff_text)
    except DataError:
        seff = computed_seff(usage)
    return Accounting(usage, seff, text, seff_text)


def log(host: Host, hpc: Hpc, token: str, offset: int = 0, name: str = "") -> tuple[bytes, int]:
    """Read what a job has written since `offset` (at most 1 MB), and the offset to go on from.

    `name` is a file of the try's folder; without it the log of the job that owns the try, which
    is empty before a job has begun.
    """
    body = fence.wrap(fence.LOG, f"{hpc.project_dir}/kit/tries", token, str(offset), name)
    text = b64decode(host.run(["bash", "-s"], body, repeat=True).out)
    return text, offset + len(text)
