"""A small model of a Slurm site behind a Host: links, sbatch, squeue, sacct, scancel.

It knows the scripts of `kit.slurm.fence` by their text and a few commands of the Host contract, and
refuses everything else. Its listings are texts in Slurm's own form. Faults are switches; what
happens by itself on a site (a job starts, ends, a node dies) are methods for the test to call.
"""

import hashlib
import itertools
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from kit.base import CommandFailed, Completed, Unreachable
from kit.slurm import fence
from kit.slurm.text import ACCOUNT_COLUMNS

SCRIPTS = ("SUBMIT", "QUEUE", "ACCOUNT", "CLOSE", "LOG")
CONTROLLER_AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
DATABASE_AWAY = "sacct: error: Problem talking to the database: Connection refused"


@dataclass
class Job:
    """One job; `lives` are its rows in the accounting, the last is the present one."""

    id: str
    token: str
    lives: list = field(default_factory=lambda: [{"state": "PENDING", "start": "", "end": ""}])
    reason: str = "None"
    works: bool = False
    purged: bool = False

    @property
    def state(self):
        return self.lives[-1]["state"]

    @property
    def me(self):
        return f"{self.id}.{len(self.lives) - 1}"


class Site:
    """The world behind the host: shared by all clients, moved on by the test."""

    def __init__(self):
        self.now = 1_800_000_000
        self.links = {}  # (token, name) -> (value, time)
        self.replies = {}  # token -> (text, time)
        self.jobs = []
        self.sbatch = "ok"  # ok, late, drop, noise, error, twice, refuse, hung
        self.late = []  # tokens whose sbatch has not landed yet
        self.controller = self.database = True
        self.lag = False  # ends come to the accounting without an end time
        self.orphans = []  # (job, me) of processes on a lost node
        self.bodies, self.commits = [], []
        self.ids, self.callers = itertools.count(1), itertools.count(1)

    # What happens by itself.

    def link(self, token, name, value):
        """`ln -sT` and `readlink`: made once, then never changed."""
        return self.links.setdefault((token, name), (value, self.now))[0]

    def land(self, token, stored=True):
        """Let sbatch reach slurmctld: there is a job now, whatever becomes of the reply."""
        job = Job(str(next(self.ids)), token)
        self.jobs.append(job)
        if stored:
            self.replies[token] = (f"exit 0\nout {job.id}\n", self.now)
        return job

    def start(self, job):
        """A node starts the batch script: its first lines are the fence."""
        job.lives[-1].update(state="RUNNING", start=str(self.now))
        if self.link(job.token, "owner", job.me) == job.me:
            job.works = True
            self.bodies.append((job.token, job.me))
        else:
            self.end(job, "FAILED", 99)

    def commit(self, job):
        """The last line of a script: publish, if nobody closed the try."""
        manifest = "manifest-" + hashlib.sha256(job.me.encode()).hexdigest()
        won = self.link(job.token, "commit", manifest) == manifest
        if won:
            self.commits.append((job.token, job.me))
        return won

    def end(self, job, state, code=0):
        """The job leaves its nodes; `COMPLETED` commits before."""
        if state == "COMPLETED" and job.works and not self.commit(job):
            state, code = "FAILED", 97
        job.works = False
        job.lives[-1].update(state=state, end=str(self.now), code=code, lag=self.lag)

    def lose_node(self, job, requeue):
        """NODE_FAIL: Slurm forgets the node, the processes on it go on."""
        if job.works:
            self.orphans.append(job)
        job.works = False
        job.lives[-1].update(state="NODE_FAIL", end=str(self.now), lag=self.lag)
        if requeue:
            job.lives.append({"state": "PENDING", "start": "", "end": ""})

    # What the scripts do.

    def submit(self, token, refusal=False):
        me = f"login.{next(self.callers)}"
        if (token, "submit") in self.links or (token, "owner") in self.links:
            return
        if self.link(token, "submit", me) != me:
            return
        mode = self.sbatch if self.controller else "hung"
        if mode == "refuse":
            text = "exit 1\nerr sbatch: error: Invalid partition name specified\n"
            self.replies[token] = (text, self.now)
        elif mode in ("late", "hung"):
            self.late.append(token)
        elif mode == "error":
            self.land(token, stored=False)
            text = "exit 1\nerr sbatch: error: Socket timed out on send/recv operation\n"
            self.replies[token] = (text, self.now)
        elif mode == "twice":
            ids = [self.land(token).id for _ in range(2)]
            self.replies[token] = (f"exit 0\nout {ids[0]}\nout {ids[1]}\n", self.now)
        elif mode == "noise":
            job = self.land(token)
            self.replies[token] = (f"exit 0\nout Hello 1\nout {job.id}\nout bye 2\n", self.now)
        else:
            self.land(token, stored=mode != "drop")

    def look(self, tokens):
        lines = [f"{t}|{n}|{at}.5|{v}" for (t, n), (v, at) in self.links.items() if t in tokens]
        for token in tokens:
            if token in self.replies:
                text, at = self.replies[token]
                lines.append(f"{token}|reply|{at}.5|")
                lines += [f"{token}/reply:{line}" for line in text.splitlines()]
        return "@tries\n" + "".join(f"{line}\n" for line in lines) + f"@now {self.now}\n"

    def queue(self, tokens):
        head = self.look(tokens) + "@queue\n"
        if not self.controller:
            return head + "@exit 1\n", CONTROLLER_AWAY
        rows = [
            f"{j.id}|{j.state}|{self.now}|{j.lives[-1]['start'] or 'N/A'}||kit-{j.token}|{j.reason}"
            for j in self.jobs
            if j.token in tokens and not j.purged
        ]
        return head + "".join(f"{row}\n" for row in rows) + "@exit 0\n", ""

    def account(self, columns, ids, names, tokens):
        if not self.database:
            return f"@account\n@exit 1\n@account\n@exit 1\n{self.look(tokens)}", DATABASE_AWAY
        text = ""
        for wanted in (ids, names):
            listing = ["|".join(columns)] if wanted else []
            for job in self.jobs:
                if wanted and (job.id in ids if wanted is ids else f"kit-{job.token}" in names):
                    listing += [self._row(job, life, columns) for life in job.lives]
            text += "@account\n" + "".join(f"{row}\n" for row in listing) + "@exit 0\n"
        return text + self.look(tokens), ""

    def _row(self, job, life, columns):
        values = {
            **{"JobID": job.id, "JobName": f"kit-{job.token}", "State": life["state"]},
            **{"ExitCode": f"{life.get('code', 0)}:0", "Start": life["start"] or "None"},
            **{"Submit": str(self.now), "End": life["end"] or "Unknown"},
            "Partition": "small",
        }
        if life.get("lag"):
            values["End"] = "Unknown"
        return "|".join(values.get(column, "") for column in columns)

    def close(self, token, mode):
        word, end = ("cancelled",) * 2 if mode == "cancel" else ("fenced", "closed")
        owner = self.link(token, "owner", word)
        if mode in ("settle", "cancel") or owner in ("fenced", "cancelled"):
            self.link(token, "commit", end)
        code = 0
        manifest = self.links.get((token, "commit"), ("", 0))[0].startswith("manifest-")
        if not manifest and (mode == "cancel" or (mode, owner) == ("fence", "fenced")):
            code = 0 if self.controller else 8
            live = [j for j in self.jobs if j.token == token and j.state in ("PENDING", "RUNNING")]
            for job in live if self.controller else []:
                self.end(job, "CANCELLED by 1001")
        return self.look([token]) + f"@cancel {code}\n", ""


class FakeHost:
    """A client's way to a Site; `break_next` cuts the next call `before` or `after` it worked."""

    name = "fake"

    def __init__(self, site=None):
        self.site, self.files = site or Site(), {}
        self.break_next, self.calls = "", []

    def run(self, argv, input=b"", timeout=60, check=True, repeat=False):
        self.calls.append(argv)
        cut, self.break_next = self.break_next, ""
        if cut == "before":
            raise Unreachable("reach fake by ssh", "connection refused")
        code, out, err = self._answer(list(argv), self._bytes(input), timeout)
        if cut == "after":
            raise Unreachable("reach fake by ssh", "the connection was lost")
        if check and code:
            raise CommandFailed(argv, code, out, err)
        return Completed(tuple(argv), code, out, err, 0.0)

    def put(self, source, target, mode=0o600):
        if target.startswith("/proc/"):
            raise CommandFailed(["put", target], 74)
        self.files[target] = self._bytes(source)

    def get(self, source, target):
        if source not in self.files:
            raise CommandFailed(["cat", source], 1)
        target.touch(mode=0o600)
        target.write_bytes(self.files[source])

    def valid_until(self):
        return None

    @staticmethod
    def _bytes(source):
        return source.read_bytes() if isinstance(source, Path) else source

    def _answer(self, argv, given, timeout):
        if argv == ["bash", "-s"]:
            return (0, *self._script(given.decode()))
        if argv[0] == "cat":
            missing = [name for name in argv[1:] if name not in self.files]
            return (1, "", f"cat: {missing[0]}") if missing else (0, given.decode(), "")
        if argv[0] == "printf":
            return 0, "".join(f"{word}|" for word in argv[2:]), ""
        if argv[0] == "sleep":
            raise Unreachable("run `sleep`", f"no end after {timeout} s")
        if argv[0] == "no-such-command":
            return 127, "", "not found"
        raise AssertionError(f"the fake does not know {argv}")

    def _script(self, text):
        name = next((n for n in SCRIPTS if f"{fence.LOOK}{getattr(fence, n)}" in text), None)
        if name is None:
            raise AssertionError(f"the fake does not know this script: {text[:200]}")
        words = shlex.split(text.split("set -- ", 1)[1].split(fence.LOOK)[0])
        site = self.site
        if name == "SUBMIT":
            assert words[4:7] == ["sbatch", "--parsable", "--export=NIL"], words
            assert "me=$SLURM_JOB_ID." in words[3], "a job without the fence"
            site.submit(words[1])
            return site.look([words[1]]), ""
        if name == "QUEUE":
            return site.queue(words[1:])
        if name == "ACCOUNT":
            assert words[1] == ",".join(ACCOUNT_COLUMNS)
            return site.account(ACCOUNT_COLUMNS, _list(words[2]), _list(words[3]), words[4:])
        if name == "CLOSE":
            return site.close(words[1], words[2])
        raise AssertionError(f"the fake does not play {name}")


def _list(text):
    return text.split(",") if text else []
