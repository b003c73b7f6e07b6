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
from kit.slurm.script import shell
from kit.slurm.text import STATUS_COLUMNS

SCRIPTS = ("submit", "queue", "account", "close", "log")
CONTROLLER_AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
DATABASE_AWAY = "sacct: error: Problem talking to the database: Connection refused"


@dataclass
class Job:
    """One job; `starts` are its rows in the accounting, the last is the present one."""

    id: str
    attempt_id: str
    starts: list = field(default_factory=lambda: [{"state": "PENDING", "start": "", "end": ""}])
    reason: str = "None"
    working: bool = False
    purged: bool = False

    @property
    def state(self):
        return self.starts[-1]["state"]

    @property
    def name(self):
        return f"kit-{self.attempt_id}"

    @property
    def me(self):
        return f"{self.id}.{len(self.starts) - 1}"


class Site:
    """The world behind the host: shared by all clients, moved on by the test."""

    def __init__(self):
        self.now = 1_800_000_000
        self.links = {}  # (attempt_id, name) -> (value, time)
        self.replies = {}  # attempt_id -> (text, time)
        self.jobs = []
        self.sbatch = "ok"  # ok, late, drop, noise, error, twice, refuse, limit, hung
        self.message = ""  # of a job_submit plugin, beside an accepted job
        self.late = []  # attempt_ids whose sbatch has not landed yet
        self.controller = self.database = True
        self.database_error = DATABASE_AWAY
        self.lag = False  # ends come to the accounting without an end time
        self.orphans = []  # (job, me) of processes on a lost node
        self.bodies, self.commits = [], []
        self.ids, self.callers = itertools.count(1), itertools.count(1)

    # What happens by itself.

    def link(self, attempt_id, name, value):
        """`ln -sT` and `readlink`: made once, then never changed."""
        return self.links.setdefault((attempt_id, name), (value, self.now))[0]

    def land(self, attempt_id, stored=True):
        """Let sbatch reach slurmctld: there is a job now, whatever becomes of the reply."""
        job = Job(str(next(self.ids)), attempt_id)
        self.jobs.append(job)
        if stored:
            self.replies[attempt_id] = (f"exit 0\nout {job.id}\n", self.now)
        return job

    def start(self, job):
        """A node starts the batch script: its first lines are the fence."""
        job.starts[-1].update(state="RUNNING", start=str(self.now))
        if self.link(job.attempt_id, "owner", job.me) == job.me:
            job.working = True
            self.bodies.append((job.attempt_id, job.me))
        else:
            self.end(job, "FAILED", 99)

    def commit(self, job):
        """The last line of a script: publish, if nobody closed the attempt."""
        manifest = "manifest-" + hashlib.sha256(job.me.encode()).hexdigest()
        won = self.link(job.attempt_id, "commit", manifest) == manifest
        if won:
            self.commits.append((job.attempt_id, job.me))
        return won

    def end(self, job, state, code=0):
        """The job leaves its nodes; `COMPLETED` commits before."""
        if state == "COMPLETED" and job.working and not self.commit(job):
            state, code = "FAILED", 97
        job.working = False
        job.starts[-1].update(state=state, end=str(self.now), code=code, lag=self.lag)

    def lose_node(self, job, requeue):
        """NODE_FAIL: Slurm forgets the node, the processes on it go on."""
        if job.working:
            self.orphans.append(job)
        job.working = False
        job.starts[-1].update(state="NODE_FAIL", end=str(self.now), lag=self.lag)
        if requeue:
            job.starts.append({"state": "PENDING", "start": "", "end": ""})

    # What the scripts do.

    def submit(self, attempt_id):
        me = f"login.{next(self.callers)}"
        if (attempt_id, "owner") in self.links:
            return
        if "Limit" in self.replies.get(attempt_id, ("", 0))[0]:  # nothing exists: submit again
            del self.links[attempt_id, "submit"], self.replies[attempt_id]
        if (attempt_id, "submit") in self.links or self.link(attempt_id, "submit", me) != me:
            return
        self._call_sbatch(attempt_id, self.sbatch if self.controller else "hung")

    def _call_sbatch(self, attempt_id, mode):
        refusals = {
            "refuse": "Invalid partition name specified",
            "limit": "AssocMaxSubmitJobLimit",
            "error": "Socket timed out on send/recv operation",
        }
        if mode in ("late", "hung"):
            self.late.append(attempt_id)
            return
        ids = []
        if mode not in ("refuse", "limit"):
            ids = [self.land(attempt_id).id for _ in range(2 if mode == "twice" else 1)]
        lines = [f"out {number}" for number in ids]
        if mode == "noise":
            lines = ["out Hello 1", *lines, "out bye 2"]
        text = "exit 0\n" + "".join(f"{line}\n" for line in lines)
        if self.message:
            text += f"err sbatch: {self.message}\n"
        if mode in refusals:
            text = f"exit 1\nerr sbatch: error: {refusals[mode]}\n"
        if mode == "drop":
            self.replies.pop(attempt_id, None)
        else:
            self.replies[attempt_id] = (text, self.now)

    def look(self, attempt_ids):
        lines = [
            f"{t}|{n}|{at}.5|{v}" for (t, n), (v, at) in self.links.items() if t in attempt_ids
        ]
        for attempt_id in attempt_ids:
            if attempt_id in self.replies:
                text, at = self.replies[attempt_id]
                lines.append(f"{attempt_id}|reply|{at}.5|")
                lines += [f"{attempt_id}/reply:{line}" for line in text.splitlines()]
        return "@attempts\n" + "".join(f"{line}\n" for line in lines) + f"@now {self.now}\n"

    def queue(self, attempt_ids):
        head = self.look(attempt_ids) + "@queue\n"
        if not self.controller:
            return head + "@exit 1\n", CONTROLLER_AWAY
        rows = [
            f"{job.id}|{job.state}|{self.now}|{job.starts[-1]['start'] or 'N/A'}||"
            f"{job.name}|{job.reason}"
            for job in self.jobs
            if job.attempt_id in attempt_ids and not job.purged
        ]
        return head + "".join(f"{row}\n" for row in rows) + "@exit 0\n", ""

    def account(self, columns, ids, names, attempt_ids):
        """Answer as `account.sh` does: known jobs by id and name, the others by name."""
        known = [f"kit-{attempt_id}" for attempt_id in attempt_ids]
        text = ""
        for wanted, asked in ((ids, known), (names, names)):
            if not wanted:
                continue
            if not self.database:
                text += "@account\n@exit 1\n"
                continue
            listing = ["|".join(columns)]
            for job in self.jobs:
                if job.name in asked and (wanted is names or job.id in ids):
                    listing += [self.row(job, start, columns) for start in job.starts]
            text += "@account\n" + "".join(f"{row}\n" for row in listing) + "@exit 0\n"
        return text + self.look(attempt_ids), "" if self.database else self.database_error

    def row(self, job, start, columns):
        """Return a line of sacct for one start of a job."""
        values = {
            "JobID": job.id,
            "JobName": job.name,
            "State": start["state"],
            "ExitCode": f"{start.get('code', 0)}:{start.get('signal', 0)}",
            "Start": start["start"] or "None",
            "Submit": str(self.now),
            "End": start["end"] or "Unknown",
            "Partition": "small",
        }
        if start.get("lag"):
            values["End"] = "Unknown"
        return "|".join(values.get(column, "") for column in columns)

    def close(self, attempt_id, mode):
        word, end = ("cancelled",) * 2 if mode == "cancel" else ("fenced", "closed")
        owner = self.link(attempt_id, "owner", word)
        if mode in ("settle", "cancel") or owner in ("fenced", "cancelled"):
            self.link(attempt_id, "commit", end)
        code = 0
        manifest = self.links.get((attempt_id, "commit"), ("", 0))[0].startswith("manifest-")
        if not manifest and (mode == "cancel" or (mode, owner) == ("fence", "fenced")):
            code = 0 if self.controller else 8
            live = [
                j
                for j in self.jobs
                if j.attempt_id == attempt_id and j.state in ("PENDING", "RUNNING")
            ]
            for job in live if self.controller else []:
                self.end(job, "CANCELLED by 1001")
        return self.look([attempt_id]) + f"@cancel {code}\n", ""


class Killed(BaseException):
    """The client's process ends here, as by kill -9: nothing catches it."""


class FakeHost:
    """A client's way to a Site, which fails at calls that the test names.

    `failures` maps the number of a call from now (0 is the next) to what happens there: contact
    is lost `before` or `after` the call worked, or the client is killed (`kill before`, `kill
    after`).
    """

    name = "fake"

    def __init__(self, site=None):
        self.site, self.files = site or Site(), {}
        self.failures, self.calls = {}, []

    def run(self, argv, input=b"", timeout=60, check=True, repeat=False):
        self.calls.append(argv)
        failure = self.failures.get(0, "")
        self.failures = {number - 1: what for number, what in self.failures.items() if number}
        self._fail(failure, "before", "connection refused")
        code, out, err = self._answer(list(argv), self._bytes(input), timeout)
        self._fail(failure, "after", "the connection was lost")
        if check and code:
            raise CommandFailed(argv, code, out, err)
        return Completed(tuple(argv), code, out, err, 0.0)

    @staticmethod
    def _fail(failure, moment, got):
        if failure == f"kill {moment}":
            raise Killed
        if failure == moment:
            raise Unreachable("reach fake by ssh", got)

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
        name, words = script_and_words(text)
        site = self.site
        if name == "submit":
            assert words[6:9] == ["sbatch", "--parsable", "--export=NIL"], words
            assert "me=$SLURM_JOB_ID." in words[5], "a job without the fence"
            site.submit(words[1])
            return site.look([words[1]]), ""
        if name == "queue":
            return site.queue(words[3:])
        if name == "account":
            assert words[1] == ",".join(STATUS_COLUMNS)
            return site.account(STATUS_COLUMNS, _list(words[3]), _list(words[4]), words[5:])
        if name == "close":
            return site.close(words[1], words[2])
        raise AssertionError(f"the fake does not play {name}")


def script_and_words(text):
    """Return which of the fence's scripts a call runs, and its arguments."""
    look = shell("look")
    name = next((name for name in SCRIPTS if look + shell(name) in text), None)
    if name is None:
        raise AssertionError(f"the fake does not know this script: {text[:200]}")
    return name, shlex.split(text.split("set -- ", 1)[1].split(look)[0])


def _list(text):
    return text.split(",") if text else []
