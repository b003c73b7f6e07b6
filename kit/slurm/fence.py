"""One attempt of a job: its folder with three symlinks, the scripts, their answers as data.

An attempt is one submission. Its folder on the site holds symlinks that are made once and never
changed: `submit` (who may call sbatch), `owner` (which start of which job may work,
`<job>.<restart>`, or `fenced`, `cancelled`) and `commit` (`manifest-<sha256>`: the result; or
`closed`, `cancelled`). `ln -sT VALUE NAME` followed by `readlink NAME` is the only primitive: it
is atomic on a shared file system, names the winner, and does no harm when it is sent twice. (One
exception: `submit` is released when sbatch has answered that a limit refused the job.)
No I/O in this file; the scripts are in `scripts/`.
"""

import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kit.base import DataError, UsageError
from kit.slurm.script import shell
from kit.slurm.text import SubmitReply, read_reply

if TYPE_CHECKING:
    from kit.base.settings import Hpc

ATTEMPT_ID = re.compile(r"[0-9a-f]{12}")
ABANDONED_OWNER = ("fenced", "cancelled")


@dataclass(frozen=True)
class SitePaths:
    """Where the kit keeps its files below the project folder of a site."""

    hpc: "Hpc"

    @property
    def root(self) -> str:
        """The kit's folder."""
        return f"{self.hpc.project_dir}/kit"

    @property
    def attempts(self) -> str:
        """The folder with one folder for each attempt."""
        return f"{self.root}/tries"

    @property
    def inputs(self) -> str:
        """Code and data of jobs, named by their hash."""
        return f"{self.root}/inputs"

    @property
    def venvs(self) -> str:
        """Python environments."""
        return f"{self.root}/venvs"

    @property
    def wheels(self) -> str:
        """Python packages that environments are made from."""
        return f"{self.root}/wheels"

    @property
    def image(self) -> str:
        """The container image; empty without one."""
        return (
            posixpath.join(self.hpc.project_dir, self.hpc.container) if self.hpc.container else ""
        )

    def attempt(self, attempt_id: str) -> str:
        """Return the folder of an attempt. Raises UsageError for an id of another form."""
        if not ATTEMPT_ID.fullmatch(attempt_id):
            raise UsageError(
                f"{attempt_id[:80]!r} is not an attempt id", next_step="give 12 hex digits"
            )
        return f"{self.attempts}/{attempt_id}"


def job_name(attempt_id: str) -> str:
    """Return the Slurm name of an attempt's jobs."""
    return f"kit-{attempt_id}"


def wrap(name: str, *arguments: str) -> bytes:
    """Return the stdin of `bash -s` for a script: nothing runs before all of it has arrived.

    bash reads a script from a pipe byte by byte, a system call each; `cat` reads it in blocks.
    """
    head = f'eval "$(cat)"\nmain() {{\nset -- {shlex.join(arguments)}\n'
    return f"{head}{shell('look')}{shell(name)}}}\nmain; exit\n".encode()


@dataclass(frozen=True)
class Attempt:
    """The symlinks of one attempt and sbatch's stored reply; times are the server's."""

    attempt_id: str
    submit: str = ""
    owner: str = ""
    commit: str = ""
    reply: SubmitReply | None = None
    exit_code: int = 0
    submitted_at: float | None = None
    replied_at: float | None = None

    @property
    def name(self) -> str:
        """The Slurm name of its jobs."""
        return job_name(self.attempt_id)

    @property
    def started(self) -> bool:
        """Whether a job of this attempt began executing."""
        return bool(re.fullmatch(r"\d+\.\d+", self.owner))

    @property
    def abandoned(self) -> bool:
        """Whether the owner symlink was taken before any job could start."""
        return self.owner in ABANDONED_OWNER

    @property
    def manifest(self) -> str:
        """The name of the committed manifest, or an empty text."""
        return self.commit if re.fullmatch(r"manifest-[0-9a-f]{64}", self.commit) else ""

    @property
    def job_id(self) -> str:
        """The job that owns the attempt, else the one that sbatch named."""
        if self.started:
            return self.owner.partition(".")[0]
        return self.reply.job_id if self.reply else ""

    @property
    def restart_count(self) -> int | None:
        """Which start of the job owns the attempt (0 is the first); None while none does."""
        return int(self.owner.partition(".")[2]) if self.started else None


@dataclass(frozen=True)
class Answer:
    """The answer of a script: attempts, the server's time, raw listings with exit codes."""

    attempts: dict[str, Attempt]
    now: float
    listings: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    cancel_code: int = 0
    err: str = ""

    def listing(self, name: str) -> list[tuple[int, str]]:
        """Return the listings of a name. Raises DataError when the answer has none."""
        if name not in self.listings:
            raise DataError(f"the site's answer has no {name}", repr(self.err[-300:]), "ask again")
        return self.listings[name]


def read_answer(text: str, err: str, attempt_ids: Sequence[str]) -> Answer:
    """Read what `look` and the listings printed. Raises DataError when the end is missing."""
    parts = r"^@(attempts|queue|account|(?:now|exit|cancel)(?= \d))(?: (\d+))?\n"
    pieces = re.split(parts, text, flags=re.M)
    attempts = {attempt_id: Attempt(attempt_id) for attempt_id in attempt_ids}
    now, cancel_code = None, 0
    listings: dict[str, list[tuple[int, str]]] = {}
    open_listing: tuple[str, str] | None = None
    for word, number, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if word == "attempts":
            attempts = _read_attempts(body, attempt_ids)
        elif word in ("queue", "account"):
            open_listing = word, body
        elif word == "exit" and open_listing:
            listings.setdefault(open_listing[0], []).append((int(number), open_listing[1]))
            open_listing = None
        elif word == "now":
            now = float(number)
        elif word == "cancel":
            cancel_code = int(number)
    if now is None or open_listing:
        raise DataError("the site's answer is not complete", repr(text[-300:]), "ask again")
    return Answer(attempts, now, listings, cancel_code, err)


def _read_attempts(body: str, attempt_ids: Sequence[str]) -> dict[str, Attempt]:
    lines: dict[str, list[str]] = {attempt_id: [] for attempt_id in attempt_ids}
    for line in body.splitlines():
        lines.get(line[:12], []).append(line)
    return {attempt_id: _read_attempt(attempt_id, lines[attempt_id]) for attempt_id in attempt_ids}


def _read_attempt(attempt_id: str, lines: Sequence[str]) -> Attempt:
    """Read one attempt: `id|name|time|value` of each symlink, `id/reply:…` of sbatch's reply."""
    values: dict[str, str] = {}
    times: dict[str, float] = {}
    reply = {"exit": "", "out": "", "err": ""}
    for line in lines:
        if link := re.fullmatch(r"\w+\|(submit|owner|commit|reply)\|([\d.]+)\|(.*)", line):
            values[link[1]], times[link[1]] = link[3], float(link[2])
        elif part := re.fullmatch(r"\w+/reply:(exit|out|err) ?(.*)", line):
            reply[part[1]] += f"{part[2]}\n"
    code = int(reply["exit"]) if reply["exit"].strip().isdigit() else None
    return Attempt(
        attempt_id=attempt_id,
        submit=values.get("submit", ""),
        owner=values.get("owner", ""),
        commit=values.get("commit", ""),
        reply=None if code is None else read_reply(code, reply["out"], reply["err"]),
        exit_code=code or 0,
        submitted_at=times.get("submit"),
        replied_at=times.get("reply"),
    )
