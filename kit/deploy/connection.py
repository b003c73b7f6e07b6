"""The ssh connection of `kit forward`: opened, watched, made anew when it ends."""

import contextlib
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kit.base import HostKeyRefused, KitError, SSHHost, private_folder
from kit.deploy.port_forward import Forward, refuse_taken, text

# kubectl lives as long as its stdin: an ssh connection that ends leaves nothing on the VM.
KUBECTL = """\
exec 3<&0; kubectl "$@" </dev/null & k=$!
(cat <&3; kill "$k") >/dev/null 2>&1 & wait "$k"
"""
READY = "Forwarding from"
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 15.0)  # before each next try to connect
OPEN_S = 30.0
PATIENCE_S = 10.0  # a service that is not ready by then is told of
AGAIN_S = 3.0  # a kubectl that ended is started no sooner


class Connection:
    """One ssh connection with its forwards, and the kubectl commands behind it."""

    def __init__(self, host: SSHHost, rows: Sequence[Forward]) -> None:
        self.host, self.rows = host, rows
        self._master: subprocess.Popen[bytes] | None = None
        self._behind: dict[Forward, subprocess.Popen[str]] = {}
        self._said: dict[Forward, str] = {}  # the last line of each kubectl that runs
        self._told: dict[Forward, str] = {}  # why it ended, told once until it is ready again
        self._begun: dict[Forward, float] = {}

    def open(self, stop: threading.Event) -> None:
        """Connect, or leave it when `stop` is set. Raises what ssh says, or its silence."""
        private_folder(self.host.folder.parent)
        private_folder(self.host.folder)
        self.host.socket.unlink(missing_ok=True)
        options = [word for each in self.rows for word in ("-L", each.local)]
        with tempfile.TemporaryFile() as errors:
            self._master = subprocess.Popen(
                self._ssh("-M", "-o", "ExitOnForwardFailure=yes", "-N", *options),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            deadline = time.monotonic() + OPEN_S
            while not self.host.socket.exists() and self._master.poll() is None:
                if stop.wait(0.02):
                    return
                if time.monotonic() > deadline:
                    self._master.kill()
            if self._master.poll() is not None and not stop.is_set():
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()
                raise self.host.failure(self._master.returncode, said)

    def tend(self) -> Iterator[str]:
        """Start each kubectl that does not run; say which had ended, and why."""
        now = time.monotonic()
        for each in self.rows:
            child = self._behind.get(each)
            if not each.service or (child and child.poll() is None):
                continue
            if child:
                if now < self._begun[each] + AGAIN_S:
                    continue
                said = self._said.pop(each, "")
                why = f"kubectl ended with {child.returncode}" if READY in said else said
                if self._told.get(each) != why or READY in said:
                    yield f"{each.title}: {why or 'kubectl ended'}; started again"
                self._told[each] = why
            command = shlex.join(["sh", "-c", KUBECTL, "sh", *each.kubectl])
            self._begun[each] = now
            new = subprocess.Popen(
                self._ssh(command=command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
            self._behind[each] = new
            threading.Thread(target=self._listen, args=(each, new), daemon=True).start()

    def missing(self) -> list[str]:
        """Name the services that do not say yet that they are forwarded."""
        services = [each for each in self.rows if each.service]
        late = [each for each in services if READY not in self._said.get(each, "")]
        return [f"{each.title} ({self._said.get(each, 'no answer yet')})" for each in late]

    def alive(self) -> bool:
        """Whether the ssh connection is there."""
        return self._master is not None and self._master.poll() is None

    def close(self) -> None:
        """End all of it; kubectl on the VM ends with its ssh."""
        children: list[subprocess.Popen[Any]] = [*self._behind.values()]
        children += [self._master] if self._master else []
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()
        self.host.socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.host.folder.rmdir()
        self._master, self._behind, self._said, self._begun = None, {}, {}, {}

    def _ssh(self, *options: str, command: str = "") -> list[str]:
        values = ["BatchMode=yes", "StrictHostKeyChecking=yes", "LogLevel=ERROR"]
        values += ["ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=2"]
        values += ["ControlPersist=no"]  # else the connection would leave this process
        config = ["-F", self.host.config] if self.host.config else []
        words = [word for value in values for word in ("-o", value)]
        socket, end = str(self.host.socket), [command] if command else []
        return ["ssh", *config, *words, "-S", socket, "-T", *options, self.host.name, *end]

    def _listen(self, each: Forward, child: subprocess.Popen[str]) -> None:
        """Keep the last thing that a kubectl said, but for each connection that it handles."""
        with contextlib.suppress(ValueError):  # closed while it is read
            for line in child.stdout or ():
                if self._behind.get(each) is child and not line.startswith("Handling"):
                    self._said[each] = line.strip()[-300:]


def run(
    connection: Connection,
    say: Callable[[str], None],
    show: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Forward until `stop`: show the table when all is ready, connect again when it ends.

    Raises Busy for taken ports, what the first connection fails with, and later only that the
    host key has changed.
    """
    refuse_taken(connection.rows)
    try:
        connection.open(stop)
        _watch(connection, say, lambda: show(text(connection.rows)), stop)
        while not stop.is_set():
            say("the ssh connection has ended; connecting again")
            if _again(connection, say, stop):
                _watch(connection, say, lambda: say("forwarding again"), stop)
    finally:
        connection.close()


def _watch(
    connection: Connection,
    say: Callable[[str], None],
    up: Callable[[], None],
    stop: threading.Event,
) -> None:
    """Keep the kubectl commands running while the connection lives; `up` once all is ready."""
    begun, told = time.monotonic(), False
    while connection.alive() and not stop.is_set():
        for line in connection.tend():
            say(line)
        missing = [] if told else connection.missing()
        if not told and (not missing or time.monotonic() > begun + PATIENCE_S):
            up()
            told = True
            if missing:
                say(f"not there yet: {', '.join(missing)}")
        stop.wait(0.2 if told else 0.05)


def _again(connection: Connection, say: Callable[[str], None], stop: threading.Event) -> bool:
    """Connect until it works; False when `stop` came first."""
    tried = 0
    connection.close()
    while not stop.wait(PAUSES[min(tried, len(PAUSES) - 1)]):
        tried += 1
        try:
            connection.open(stop)
        except HostKeyRefused:
            raise
        except KitError as err:
            say(" ".join(str(err).split()))
        else:
            return True
    return False
