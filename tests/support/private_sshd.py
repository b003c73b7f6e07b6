"""An sshd of the test's own, on a free port of 127.0.0.1: it can be stopped, cut and refused
without disturbing anybody. Real OpenSSH, keys and certificates made for the test."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import weakref
from datetime import datetime
from pathlib import Path

from kit_sandbox import roots
from kit_sandbox.services import environment

from kit.base import SSHHost

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {keys}
TrustedUserCAKeys {folder}/trusted_cas
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
MaxStartups 100
MaxSessions 100
Banner {folder}/banner
{setenv}
{more}
"""
CLIENT = """\
Host site
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


def keygen(*arguments):
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def closing_port():
    """Yield a port whose connections end before the login, as a penalised address's in sshd 9.8."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"Not allowed at this time\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class PrivateSshd:
    """`start`, `stop` (with its sessions), `host()`; `certify(seconds)` for certificates only.

    With the folder of a sandbox it serves the sandbox's login node.
    """

    def __init__(
        self, folder: Path, user: str = "", setenv="", certificates=False, more="", sandbox=None
    ):
        self.folder, self.user, self.port = folder, user or getpass.getuser(), free_port()
        self.process, self.sandbox = None, sandbox
        # control sockets need a path of at most 107 bytes: pytest's own folder is too long
        self.control = Path(tempfile.mkdtemp(prefix="kit-c-", dir="/tmp"))
        weakref.finalize(self, shutil.rmtree, self.control, ignore_errors=True)
        folder.mkdir(mode=0o755, exist_ok=True)
        (folder / "banner").write_text("*** Welcome. All use is logged. 4711 ***\n")
        for name in ("host_key", "user_key", "user_ca"):
            keygen("-t", "ed25519", "-N", "", "-f", folder / name)
        self.accept(True)
        self.know((folder / "host_key.pub").read_text())
        self.write_config(self.port)
        (folder / "sshd_config").write_text(
            CONFIG.format(
                port=self.port,
                folder=folder,
                keys="none" if certificates else folder / "authorized_keys",
                setenv=setenv and f"SetEnv {setenv}",
                more=more,
            )
        )

    def write_config(self, port):
        """Let the client connect to `port` (this sshd, or a relay before it)."""
        text = CLIENT.format(port=port, user=self.user, folder=self.folder)
        (self.folder / "config").write_text(text)

    def know(self, public_key):
        key = " ".join(public_key.split()[:2])
        (self.folder / "known_hosts").write_text(f"* {key}\n")

    def accept(self, logins):
        """Accept the user's key and certificates, or no login at all: sshd reads both each time."""
        for file, key in (("authorized_keys", "user_key.pub"), ("trusted_cas", "user_ca.pub")):
            (self.folder / file).write_text((self.folder / key).read_text() if logins else "")

    def certify(self, start, end):
        """Sign the user's key from `start` to `end` (seconds since 1970; absolute times)."""
        span = ":".join(datetime.fromtimestamp(t).strftime("%Y%m%d%H%M%S") for t in (start, end))
        key = self.folder / "user_key.pub"
        keygen("-s", self.folder / "user_ca", "-I", "test", "-n", self.user, "-V", span, key)

    def start(self):
        if os.getuid() == 0 and not self.sandbox:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd as root wants it
        log = self.folder / "sshd.log"
        command = [shutil.which("sshd"), "-D", "-E", log, "-f", self.folder / "sshd_config"]
        environ = None
        if self.sandbox:
            command = roots.inside(self.sandbox, ["/usr/sbin/sshd", *command[1:]])
            environ = environment(self.sandbox)
        self.process = subprocess.Popen(command, start_new_session=True, env=environ)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)
        raise RuntimeError(log.read_text())

    def sessions(self):
        """Return the pids of the processes that serve connections."""
        pids = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in pids.stdout.split()]

    def cut(self):
        """Kill every connection, as a crash of the login node does for its clients."""
        for pid in self.sessions():
            for child in (pid, *self._children(pid)):
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    @staticmethod
    def _children(pid):
        out = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
        return [int(child) for child in out.stdout.split()]

    def stop(self):
        if self.process:
            self.cut()
            self.process.kill()
            self.process.wait()
            self.process = None

    def host(self, **options):
        """Return a client with a connection of its own (`name` tells clients apart)."""
        control = self.control / options.pop("name", "c")
        return SSHHost("site", config=str(self.folder / "config"), folder=control, **options)
