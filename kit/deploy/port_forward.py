"""`kit port-forward`: the platform's services on this machine, by one ssh connection to the VM.

The connection is opened again when it ends. A service of Kubernetes is reached by `kubectl
port-forward` on the VM, which a shell loop there keeps running while it hears from this process.
"""

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from kit.base import (
    Busy,
    HostKeyRefused,
    KitError,
    SSHHost,
    UsageError,
    private_folder,
    ssh_options,
    vm_host,
)
from kit.base.ports import port_holders
from kit.base.settings import Settings
from kit.deploy.forwards import Forward, as_table

Report = Callable[[str], None]
READY = "Forwarding from"  # kubectl prints it when it listens
ENDED = "@ended "  # the loop prints it when kubectl has ended
RECONNECT_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 15.0)
OPEN_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 10.0  # a service that is not ready by then is reported
HEARTBEAT_S, SILENCE_S = 4.0, 15.0  # a line to each loop; without one, the loop ends its kubectl


def vm_connection(settings: Settings, rows: Sequence[Forward]) -> SSHHost:
    """Return the VM with a connection of its own. Raises UsageError if the profile has none."""
    if settings.cloud is None or not settings.cloud.ssh_host or not rows:
        got = "it has no [cloud] ssh_host, or no [ports]"
        raise UsageError(f"forward the ports of {settings.profile}", got, "use another profile")
    folder = vm_host(settings).folder / f"forward-{rows[0].bind}"  # one for each address
    return vm_host(settings, folder=folder)


def refuse_taken(rows: Sequence[Forward]) -> None:
    """Raise Busy that names who holds each port that is taken."""
    holders = port_holders((row.bind, row.to.port) for row in rows)
    taken = [
        f"{row.to.port} ({row.title}) by {holders[row.bind, row.to.port]}"
        for row in rows
        if (row.bind, row.to.port) in holders
    ]
    if taken:
        step = "end that program, or listen elsewhere: kit port-forward --bind 127.0.0.2"
        raise Busy(f"{len(taken)} port(s) on {rows[0].bind} are taken", "; ".join(taken), step)


class ForwardedService:
    """A service of Kubernetes, forwarded by a kubectl on the VM."""

    def __init__(self, row: Forward, report: Report) -> None:
        self.row, self.report = row, report
        self.ready = False
        self.last_line = ""
        self._reported = ""  # the same reason is reported once until the service is ready again

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start its ssh command and a thread that reads it."""
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, args=(child,), daemon=True).start()
        return child

    def _read(self, child: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ValueError):  # closed while it is read
            for line in child.stdout or ():
                self._handle(line.strip()[-300:])

    def _handle(self, line: str) -> None:
        if line.startswith(READY):
            self.ready, self._reported = True, ""
        elif line.startswith(ENDED):
            reason = self.last_line
            if self.ready or not reason:
                reason = f"kubectl ended with {line.removeprefix(ENDED)}"
            if reason != self._reported:
                self.report(f"{self.row.title}: {reason}; started again")
            self.ready, self.last_line, self._reported = False, "", reason
        elif not line.startswith("Handling"):
            self.last_line = line


class Connection:
    """One ssh connection with its forwards, and the services behind it."""

    def __init__(self, host: SSHHost, rows: Sequence[Forward], report: Report) -> None:
        self.host, self.rows, self.report = host, rows, report
        self.services: list[ForwardedService] = []
        self._master: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[str]] = []
        self._beat_at = 0.0

    def open(self, stop: threading.Event) -> None:
        """Connect, unless `stop` is set. Raises the error that ssh reports."""
        private_folder(self.host.folder.parent)
        private_folder(self.host.folder)
        self.host.socket.unlink(missing_ok=True)
        options = [word for row in self.rows for word in ("-L", row.option)]
        with tempfile.TemporaryFile() as errors:
            self._master = subprocess.Popen(
                self._ssh("-M", "-o", "ExitOnForwardFailure=yes", "-N", *options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            deadline = time.monotonic() + OPEN_TIMEOUT_S
            while not self.host.socket.exists() and self._master.poll() is None:
                if stop.wait(0.02):
                    return
                if time.monotonic() > deadline:
                    self._master.kill()
            if self._master.poll() is not None and not stop.is_set():
                errors.seek(0)
                message = errors.read().decode(errors="replace").strip()
                raise self.host.failure(self._master.returncode, message)
        self.services = [ForwardedService(row, self.report) for row in self.rows if row.to.svc]
        self._children = [service.start(self._loop(service.row)) for service in self.services]

    def alive(self) -> bool:
        """Report whether the ssh connection and all commands in it run."""
        children = [self._master, *self._children]
        return all(child is not None and child.poll() is None for child in children)

    def beat(self) -> None:
        """Send each loop on the VM its line, if it is time."""
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + HEARTBEAT_S
        for child in self._children:
            with contextlib.suppress(BrokenPipeError):  # it has ended: `alive` sees that
                if child.stdin:
                    os.write(child.stdin.fileno(), b"\n")

    def missing(self) -> list[str]:
        """List the services that are not forwarded yet, with kubectl's last line."""
        late = [service for service in self.services if not service.ready]
        return [f"{row.row.title} ({row.last_line or 'no answer yet'})" for row in late]

    def close(self) -> None:
        """End the connection; kubectl on the VM ends with it."""
        children: list[subprocess.Popen[Any]] = [*self._children]
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
        self._master, self._children, self.services = None, [], []

    def _loop(self, row: Forward) -> list[str]:
        text = (files(__package__) / "scripts" / "kubectl_loop.sh").read_text()
        lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
        words = ["sh", "-c", " ".join(lines), "sh", f"{SILENCE_S:.0f}", *row.kubectl]
        return self._ssh(command=shlex.join(words))

    def _ssh(self, *options: str, command: str = "") -> list[str]:
        values = ssh_options(
            ClearAllForwardings="no",
            ConnectTimeout=10,
            ServerAliveInterval=5,
            ServerAliveCountMax=2,
            ControlPersist="no",  # else the connection would leave this process
        )
        socket, end = str(self.host.socket), [command] if command else []
        return [*self.host.argv, *values, "-S", socket, "-T", *options, self.host.name, *end]


def keep_forwarding(connection: Connection, show: Report, stop: threading.Event) -> None:
    """Forward until `stop`: show the table when all is ready, connect again when it ends.

    Raises Busy for taken ports and the error of the first connection; later only the error of a
    changed host key.
    """
    refuse_taken(connection.rows)
    report = connection.report
    try:
        connection.open(stop)
        _watch(connection, lambda: show(as_table(connection.rows)), stop)
        while not stop.is_set():
            report("the ssh connection has ended; connecting again")
            if _reconnect(connection, stop):
                _watch(connection, lambda: report("forwarding again"), stop)
    finally:
        connection.close()


def _watch(connection: Connection, on_ready: Callable[[], None], stop: threading.Event) -> None:
    """Wait while the connection lives; call `on_ready` once all services are, or are late."""
    begin, reported = time.monotonic(), False
    while connection.alive() and not stop.is_set():
        connection.beat()
        missing = [] if reported else connection.missing()
        if not reported and (not missing or time.monotonic() > begin + READY_TIMEOUT_S):
            on_ready()
            reported = True
            if missing:
                connection.report(f"not there yet: {', '.join(missing)}")
        stop.wait(0.2 if reported else 0.05)


def _reconnect(connection: Connection, stop: threading.Event) -> bool:
    """Connect until it works; return False if `stop` came first."""
    attempts = 0
    connection.close()
    while not stop.wait(RECONNECT_PAUSES_S[min(attempts, len(RECONNECT_PAUSES_S) - 1)]):
        attempts += 1
        try:
            connection.open(stop)
        except HostKeyRefused:
            raise
        except KitError as err:
            connection.report(" ".join(str(err).split()))
        else:
            return True
    return False
