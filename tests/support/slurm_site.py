"""The sandbox's Slurm for fault tests: an sshd of the test's own before it, an sbatch that can be
made to fail, a relay that can be cut, and what an administrator sees and does.

Nothing here goes through the code under test: bodies, links and jobs are looked at directly.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from kit_sandbox import files
from kit_sandbox import services as sandbox_services
from kit_sandbox.sites import SITES
from kit_sandbox.supervisor import control
from private_sshd import PrivateSshd, free_port
from waiting import until

from kit.base.settings import load
from kit.slurm import JobSpec, Slurm

SBATCH = """\
#!/bin/bash
# An sbatch that may fail after it has submitted: the mode is in a file named by the attempt_id.
for script; do :; done
attempt_id=$(basename "$(dirname "$script")")
real() { env PATH="${PATH#*:}" sbatch "$@"; }
case $(cat "{modes}/$attempt_id" 2>/dev/null) in
    drop) (real "$@") >/dev/null 2>&1 ;;
    noise) echo "Hello, 17 news."; (real "$@"); echo "4711 jobs wait"; echo "z" >&2 ;;
    error) (real "$@") >/dev/null; echo "Socket timed out on send/recv operation" >&2; exit 1 ;;
    hang) (real "$@") >/dev/null; sleep 25 ;;
    twice) id=$(real "$@"); echo "$id"; echo "$id" ;;
    submits-twice) (real "$@"); (real "$@") ;;
    slow) sleep 3; real "$@" ;;
    *) real "$@" ;;
esac
"""
BODY = (
    'echo "$me" >>bodies',
    "sleep {seconds}",
    'echo "{{}}" >"manifest.$me"',
    '{then}commit "manifest.$me"',
)


class Relay:
    """A TCP relay: `cut` ends every connection and refuses new ones until `restore`."""

    def __init__(self, port):
        self.to, self.port, self.open, self.pairs = port, free_port(), True, []
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if not self.open:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.to))
                self.pairs.append((near, far))
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.open:  # what arrives during a cut is lost, as on a dead line
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self.open = False
        for pair in self.pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.pairs.clear()

    def restore(self):
        self.open = True

    def close(self):
        self.cut()
        self.listener.close()


class SlurmSite:
    """Everything a fault test needs of the sandbox; `close` undoes it."""

    def __init__(self, profile="sandbox"):
        self.settings, self.kind = load(profile), SITES[profile]
        self.state = files.folder_of(self.settings)
        self.user = self.kind.user
        self.folder = Path(tempfile.mkdtemp(prefix="kit-faults-", dir=self.state / "home"))
        self.folder.chmod(0o755)
        (self.folder / "bin").mkdir()
        (self.folder / "modes").mkdir()
        shim = self.folder / "bin" / "sbatch"
        shim.write_text(SBATCH.replace("{modes}", str(self.folder / "modes")))
        shim.chmod(0o755)
        self.conf = self.state / "etc" / "slurm.conf"
        self.hpc = replace(self.settings.hpc, poll_floor_s=1.0)
        self.attempts = Path(self.hpc.project_dir) / "kit" / "tries"
        self.attempt_ids, self.sshds, self.count = [], [], 0
        self.sshd = self.login("login")

    # Clients.

    def login(self, name, **options):
        """Start an sshd of the test's own that logs in as the jobs' user, as the site's does."""
        path = f"{self.folder}/bin:/usr/local/bin:/usr/bin:/bin"
        setenv = f"SLURM_CONF={self.conf} PATH={path} LANG={self.kind.locale} TZ={self.kind.zone}"
        options = {"certificates": not self.kind.takes_keys, **options}
        sshd = PrivateSshd(
            self.folder / name, user=self.user, setenv=setenv, sandbox=self.state, **options
        )
        if not self.kind.takes_keys:
            sshd.certify(time.time() - 60, time.time() + 3600)
        self.sshds.append(sshd)
        return sshd.start()

    def host(self, sshd=None, **options):
        """A client machine with a connection of its own."""
        self.count += 1
        return (sshd or self.sshd).host(name=f"c{self.count}", **options)

    def slurm(self, host=None, hpc=None, **options):
        return Slurm(host or self.host(), hpc or self.hpc, **options)

    def attempt_id(self, mode=""):
        """A new attempt_id, and what sbatch does when it is called for it."""
        attempt_id = secrets.token_hex(6)
        self.attempt_ids.append(attempt_id)
        if mode:
            (self.folder / "modes" / attempt_id).write_text(mode)
        return attempt_id

    def spec(self, seconds=0.2, then="", commands=(), **fields):
        values = {"partition": "gputest", "memory": "20M", "time": "00:05:00", **fields}
        lines = tuple(line.format(seconds=seconds, then=then) for line in BODY)
        account = self.hpc.account
        return JobSpec("fault", tuple(commands) or lines, account=account, **values)

    # What an administrator sees and does.

    def admin(self, *argv, check=True):
        return sandbox_services.run(self.state, argv, check=check).stdout

    def allow_requeue(self, attempt_id):
        """Let Slurm put the jobs of an attempt back to the queue: the kit's scripts forbid it."""
        for job in self.jobs(attempt_id):
            self.admin("scontrol", "update", f"JobId={job}", "Requeue=1")

    def bodies(self, attempt_id):
        path = self.attempts / attempt_id / "bodies"
        return path.read_text().split() if path.exists() else []

    def link(self, attempt_id, name):
        path = self.attempts / attempt_id / name
        return os.readlink(path) if path.is_symlink() else ""

    def jobs(self, attempt_id):
        """Live jobs of a attempt_id, by the scheduler."""
        states = "PENDING,RUNNING,COMPLETING,CONFIGURING,SUSPENDED"
        text = self.admin("squeue", "-h", "-t", states, "-n", f"kit-{attempt_id}", "-o", "%i")
        return text.split()

    def ends(self, attempt_id):
        """State and exit code of every ended life of a attempt_id's jobs, by the accounting."""
        columns = "--format=State,ExitCode,End,Partition"
        options = ("-n", "-X", "-P", "-D", "-S", "now-2hours", f"--name=kit-{attempt_id}", columns)
        rows = [row.split("|") for row in self.admin("sacct", *options).split("\n") if row]
        return [(r[0].split()[0], r[1]) for r in rows if r[2] != "Unknown" and r[3]]

    def wait_for_new_start(self, attempt_id, job, end):
        """Wait until a requeued job's new start had this end; it need not wait for its time.

        slurmctld gives a requeued job a start time some minutes ahead, and once more when its
        first start has completed: an update before that is lost.
        """

        def ended():
            if "BeginTime" in self.admin("squeue", "-h", "-j", job, "-o", "%r", check=False):
                self.admin("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            return end in self.ends(attempt_id)

        try:
            until(ended, 120, 0.5)
        except AssertionError as error:
            shown = ("scontrol", "show", "job", job), ("sinfo", "-N"), ("sacct", "-XDj", job)
            error.add_note("\n".join(self.admin(*argv, check=False) for argv in shown))
            raise

    def all_ended(self, attempt_id, seconds=60):
        """Wait until no job of a attempt_id lives any more."""
        until(lambda: not self.jobs(attempt_id), seconds)

    def check(self, attempt_id, bodies=1, committed=True):
        """Check the promise: bodies as expected, at most one commit, every surplus job ended."""
        self.all_ended(attempt_id)
        assert len(self.bodies(attempt_id)) == bodies, self.bodies(attempt_id)
        name = self.link(attempt_id, "commit")
        assert name.startswith("manifest-") is committed, name
        if committed:
            content = (self.attempts / attempt_id / name).read_bytes()
            assert name == f"manifest-{hashlib.sha256(content).hexdigest()}"

    def node_state(self, node):
        """A node's state; one that answers again is put back to work at once."""
        state = self.admin("sinfo", "-h", "-n", node, "-o", "%T").strip()
        if state == "down":  # without the star it answers, and waits to register
            self.admin("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return state

    def pid(self, program):
        return control(self.state).getProcessInfo(program)["pid"]

    @contextlib.contextmanager
    def frozen(self, program):
        """Stop a daemon by SIGSTOP: it keeps its connections and answers nobody."""
        pid = self.pid(program)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def stopped(self, *programs):
        """Stop daemons; start them again, each when it was stopped, at the end."""
        for program in programs:
            control(self.state).stopProcess(program)
        try:
            yield
        finally:
            for program in reversed(programs):
                control(self.state).startProcess(program)
            until(self.answers, 60)

    def answers(self):
        ask = ["sacct", "-X", "-j", "1"], ["squeue", "-h"]
        done = [sandbox_services.run(self.state, argv).returncode for argv in ask]
        return done == [0, 0]

    def close(self):
        """End what is left over, tell the test, and take everything away."""
        left = [attempt_id for attempt_id in self.attempt_ids if self.jobs(attempt_id)]
        for attempt_id in left:
            self.admin("scancel", "-n", f"kit-{attempt_id}", check=False)
        for sshd in self.sshds:
            sshd.stop()
        for attempt_id in self.attempt_ids:
            shutil.rmtree(self.attempts / attempt_id, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left, f"jobs leaked: {left}"
