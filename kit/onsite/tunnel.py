"""The job's end of the reverse tunnel: the cloud VM shows Ray's dashboard. Runs on the site.

Nothing depends on it: whatever fails here is written to `tunnel.json` and retried while the job
continues. Tried with OpenSSH 9.2.
"""

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator

from kit.base import Json, KitError, ssh_options, write_json
from kit.onsite.names import TUNNEL_HOSTS, TUNNEL_KEY, TUNNEL_STATE
from kit.onsite.ray_cluster import Cluster, listens, say

PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
_UP = "remote forward success"
_TAKEN = "remote port forwarding failed"
# `connect_to`: a connection through the tunnel to a Ray that has ended.
_CHATTER = r"debug|OpenSSH|Authenticated|Transferred|Bytes|connect_to"


class _Tunnel:
    """Keeps `ssh -R` open until it is closed; if a port of the VM is taken, it uses the next."""

    def __init__(self, settings: Json, cluster: Cluster) -> None:
        self.settings = settings
        self.cluster = cluster
        self.folder = cluster.folder
        self.closed = threading.Event()
        self.ssh: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Keep the tunnel open, with longer pauses while it is refused."""
        ports, pause = list(self.settings["ports"]), PAUSE_S
        while not self._dashboard_answers() and not self.closed.wait(0.1):
            pass  # before that the tunnel would lead nowhere
        while not self.closed.is_set():
            for port in ports:
                came_up, error = self._hold(port)
                if came_up:  # and was lost: the same port first
                    ports = [port, *(other for other in ports if other != port)]
                if came_up or _TAKEN not in error or self.closed.is_set():
                    break
            else:
                error = f"the VM forwards none of the ports {ports[0]} to {ports[-1]}: {error}"
            self._report(barred=error.strip()[-300:] or "ssh ended without a message")
            pause = PAUSE_S if came_up else min(2 * pause, MAX_PAUSE_S)
            self.closed.wait(pause)

    def _dashboard_answers(self) -> bool:
        return bool(self.cluster.ports[1]) and listens(self.cluster.address, self.cluster.ports[1])

    def _hold(self, port: int) -> tuple[bool, str]:
        """Run ssh until it ends; return whether the tunnel was open, and ssh's messages."""
        error, came_up = "", False
        try:
            with self._connection(port) as ssh:
                for line in ssh.stderr or ():
                    if _UP in line:
                        came_up = True
                        self._report(address=self.settings["address"], port=port)
                    elif not re.match(_CHATTER, line):
                        error = f"{error}{line}"[-1000:]
        except OSError as err:  # no ssh on this node
            error = str(err)
        return came_up, error

    @contextlib.contextmanager
    def _connection(self, port: int) -> Iterator[subprocess.Popen[str]]:
        target = f"{self.cluster.address}:{self.cluster.ports[1]}"
        vm = self.settings
        argv = ["ssh", "-N", "-T", "-F", "/dev/null", "-i", str(self.folder / TUNNEL_KEY)]
        argv += ssh_options(
            LogLevel="DEBUG1",  # else ssh does not report that a forwarding is open
            ClearAllForwardings="no",
            ExitOnForwardFailure="yes",
            IdentitiesOnly="yes",
            IdentityAgent="none",
            UserKnownHostsFile=self.folder / TUNNEL_HOSTS,
            GlobalKnownHostsFile="/dev/null",
            HostKeyAlias=vm["alias"],
            ConnectTimeout=10,
            ServerAliveInterval=5,
            ServerAliveCountMax=2,
            ControlPath="none",
        )
        argv += ["-R", f"{vm['address']}:{port}:{target}", "-p", str(vm["port"])]
        argv += ["-l", vm["user"], "--", vm["host"]]
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as self.ssh:
            if self.closed.is_set():  # closed while ssh was being started
                self.ssh.terminate()
            yield self.ssh

    def _report(self, **state: object) -> None:
        if self.closed.is_set():
            return
        say(f"tunnel: {state}")
        with contextlib.suppress(KitError):  # a full disk costs the line, not the job
            write_json(self.folder / TUNNEL_STATE, state)


@contextlib.contextmanager
def opened(settings: Json | None, cluster: Cluster) -> Iterator[None]:
    """Keep the tunnel open while the block runs, if the task has settings for one."""
    if not settings:
        yield
        return
    tunnel = _Tunnel(settings, cluster)
    thread = threading.Thread(target=tunnel.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        tunnel.closed.set()
        if tunnel.ssh:
            tunnel.ssh.terminate()
        thread.join(5)
        (cluster.folder / TUNNEL_KEY).unlink(missing_ok=True)
