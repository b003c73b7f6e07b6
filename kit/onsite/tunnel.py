"""The job's end of the reverse tunnel: the cloud VM shows Ray's dashboard. Runs on the HPC side.

A window, nothing depends on it: whatever goes wrong here is written to `tunnel.json` and tried
again, and the work goes on. Tried with OpenSSH 9.2.
"""

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator

from kit.base import Json, KitError, write_json
from kit.onsite.ray_cluster import Cluster, listens, say

KEY, HOSTS, STATE = "tunnel.key", "tunnel.hosts", "tunnel.json"
PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
# ssh tells only with -v that a forwarding is there (`ssh -f` would hide its process from us).
_UP, _TAKEN = "remote forward success", "remote port forwarding failed"
# `connect_to`: somebody's one connection through it, to a Ray that is not there any more.
_CHATTER = r"debug|OpenSSH|Authenticated|Transferred|Bytes|connect_to"


class _Tunnel:
    """Keeps `ssh -R` open until told to end; a port of the VM that is taken means the next."""

    def __init__(self, given: Json, cluster: Cluster) -> None:
        self.given, self.cluster, self.folder = given, cluster, cluster.folder
        self.over = threading.Event()
        self.ssh: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Open the tunnel again and again, later and later while it is barred."""
        ports, pause = list(self.given["ports"]), PAUSE_S
        while not self._answers() and not self.over.wait(0.1):
            pass  # before that the link would lead nowhere
        while not self.over.is_set():
            for port in ports:
                came_up, said = self._hold(port)
                if came_up:  # and was lost: the same port first
                    ports = [port, *(each for each in ports if each != port)]
                if came_up or _TAKEN not in said or self.over.is_set():
                    break
            else:
                said = f"the VM forwards none of the ports {ports[0]} to {ports[-1]}: {said}"
            self._tell(barred=said.strip()[-300:] or "ssh ended and said nothing")
            pause = PAUSE_S if came_up else min(2 * pause, LONGEST_PAUSE_S)
            self.over.wait(pause)

    def _answers(self) -> bool:
        return bool(self.cluster.ports[1]) and listens(self.cluster.address, self.cluster.ports[1])

    def _hold(self, port: int) -> tuple[bool, str]:
        """Run ssh until it ends: whether the tunnel was there, and what ssh complained of."""
        said, came_up = "", False
        try:
            with self._connection(port) as ssh:
                for line in ssh.stderr or ():
                    if _UP in line:
                        came_up = True
                        self._tell(address=self.given["address"], port=port)
                    elif not re.match(_CHATTER, line):
                        said = f"{said}{line}"[-1000:]
        except OSError as err:  # no ssh on this node
            said = str(err)
        return came_up, said

    @contextlib.contextmanager
    def _connection(self, port: int) -> Iterator[subprocess.Popen[str]]:
        given, way = self.given, f"{self.cluster.address}:{self.cluster.ports[1]}"
        options = ["BatchMode=yes", "IdentitiesOnly=yes", "IdentityAgent=none", "ConnectTimeout=10"]
        options += ["StrictHostKeyChecking=yes", "GlobalKnownHostsFile=/dev/null"]
        options += [f"UserKnownHostsFile={self.folder / HOSTS}", "ExitOnForwardFailure=yes"]
        options += ["ServerAliveInterval=5", "ServerAliveCountMax=2", "ControlPath=none"]
        options += [f"HostKeyAlias={given['alias']}"]
        argv = ["ssh", "-v", "-N", "-T", "-F", "/dev/null", "-i", str(self.folder / KEY)]
        argv += [word for option in options for word in ("-o", option)]
        argv += ["-R", f"{given['address']}:{port}:{way}", "-p", str(given["port"])]
        argv += ["-l", given["user"], "--", given["host"]]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace",
        ) as self.ssh:  # fmt: skip
            if self.over.is_set():  # told to end while it was being started
                self.ssh.terminate()
            yield self.ssh

    def _tell(self, **state: object) -> None:
        if self.over.is_set():
            return
        say(f"tunnel: {state}")
        with contextlib.suppress(KitError):  # a full disk costs the line, not the job
            write_json(self.folder / STATE, state)


@contextlib.contextmanager
def opened(given: Json | None, cluster: Cluster) -> Iterator[None]:
    """Have the tunnel there while the block runs, when one is `given`."""
    if not given:
        yield
        return
    tunnel = _Tunnel(given, cluster)
    thread = threading.Thread(target=tunnel.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        tunnel.over.set()
        if tunnel.ssh:
            tunnel.ssh.terminate()
        thread.join(5)
        (cluster.folder / KEY).unlink(missing_ok=True)
