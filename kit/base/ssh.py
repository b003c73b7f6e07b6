"""A machine behind ssh: the OpenSSH client, which logs in wherever the person's terminal can.

One connection (a control master with a private socket) carries everything. Every piece of a
remote command is quoted in one place. Tried with OpenSSH 9.2.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.base.errors import (
    CredentialExpired,
    CredentialRefused,
    HostKeyRefused,
    KitError,
    Unreachable,
    UsageError,
)
from kit.base.files import sha256_of
from kit.base.host import (
    GET,
    PUT,
    Completed,
    Stdin,
    as_completed,
    check_upload,
    run_process,
    save_download,
)

if TYPE_CHECKING:
    from kit.base.settings import Settings

RENEWABLE_S = 600.0  # clocks may differ: a certificate that ended just now is tried all the same


class SSHHost:
    """A machine behind ssh. `name` is a Host of `config` (empty: the person's own ssh config).

    `folder` (mode 700, short path) holds the control socket. `renew_hint` is the profile's line
    on how to get a new certificate. Nothing is opened before the first command.
    """

    def __init__(
        self,
        name: str,
        config: str = "",
        user: str = "",
        renew_hint: str = "",
        folder: Path | None = None,
        connect_timeout_s: int = 15,
        alive_s: int = 15,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self.config, self.user, self.renew_hint = name, config, user, renew_hint
        self.folder = folder or Path(f"/tmp/kit-ssh-{os.getuid()}")  # noqa: S108 - owner checked; sockets need a short path
        self.connect_timeout_s, self.alive_s, self.clock = connect_timeout_s, alive_s, clock
        self._opening = threading.Lock()
        self._certificates: list[Path] | None = None
        self._ends: dict[tuple[Path, int], float | None] = {}

    @property
    def socket(self) -> Path:
        """Where the control master listens: one for each config, user and host."""
        key = "\0".join((self.config, self.user, self.name))
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:16]

    def run(
        self,
        argv: Sequence[str],
        input: Stdin = b"",
        timeout: float = 60,
        check: bool = True,
        repeat: bool = False,
    ) -> Completed:
        """See `Host.run`. A master that died unseen is noticed once: then `repeat` runs again."""
        code, out, err, seconds = self._framed(argv, input, timeout, repeat)
        return as_completed(argv, code, out, err, seconds, check)

    def put(self, source: Stdin, target: str, mode: int = 0o600) -> None:
        """See `Host.put`."""
        argv = ["sh", "-c", PUT, "sh", target, f"{mode:o}", sha256_of(source)]
        check_upload(target, self.run(argv, source, 600, check=False, repeat=True))

    def get(self, source: str, target: Path) -> None:
        """See `Host.get`."""
        argv = ["sh", "-c", GET, "sh", source]
        code, out, err, seconds = self._framed(argv, b"", 600, repeat=True)
        as_completed(argv, code, b"", err, seconds, check=True)
        save_download(source, out, target)

    def valid_until(self) -> float | None:
        """See `Host.valid_until`: the latest end of the certificates that ssh would offer."""
        if self._certificates is None:
            name = r"^(?:identity|certificate)file (.+)$"
            files = dict.fromkeys(re.findall(name, self.settings(), re.M))
            paths = [Path(file).expanduser() for file in files]
            self._certificates = [*paths, *(Path(f"{path}-cert.pub") for path in paths)]
        found = [path for path in self._certificates if path.name.endswith(".pub")]
        ends = [end for path in found if (end := self._end(path)) is not None]
        return max(ends, default=None)

    def settings(self) -> str:
        """Give what ssh would do, as `ssh -G` says it: a lower-case name and a value a line."""
        return run_process(self._command("-G"), b"", 20)[1].decode()

    def close(self) -> None:
        """End the connection; the next command opens a new one."""
        run_process(self._command("-O", "exit"), b"", 20)

    def _end(self, path: Path) -> float | None:
        """When one certificate ends; read again only when the file is another one."""
        try:
            key = path, path.stat().st_mtime_ns
        except OSError:
            return None
        if key not in self._ends:
            self._ends = {key: certificate_end(path)}
        return self._ends[key]

    def _command(self, *options: str) -> list[str]:
        seconds, alive = self.connect_timeout_s, self.alive_s
        values = {
            **{"BatchMode": "yes", "StrictHostKeyChecking": "yes", "LogLevel": "ERROR"},
            **{"ConnectTimeout": seconds, "ServerAliveInterval": alive, "ServerAliveCountMax": 3},
            **{"ControlMaster": "auto", "ControlPath": self.socket, "ControlPersist": 300},
        }
        settings = [word for key, value in values.items() for word in ("-o", f"{key}={value}")]
        config = ["-F", self.config] if self.config else []
        user = ["-l", self.user] if self.user else []
        return ["ssh", *config, *user, *settings, "-T", *options, self.name]

    def _framed(
        self, argv: Sequence[str], input: Stdin, timeout: float, repeat: bool
    ) -> tuple[int, bytes, bytes, float]:
        """Run between two marker lines, so that no banner and no profile is taken for output.

        The second marker carries the exit code: without it nobody knows how the command ended.
        """
        mark = f"kit-{secrets.token_hex(8)}"
        frame = (
            'printf "%s\\n" "$0"; printf "%s\\n" "$0" >&2; "$@"; r=$?; '
            'printf "\\n%s %s\\n" "$0" "$r"; exit "$r"'
        )
        remote = "exec " + shlex.join(["sh", "-c", frame, mark, *argv])
        self._open()
        code, raw, err, seconds = run_process([*self._command(), remote], input, timeout)
        _, begun, rest = raw.partition(mark.encode() + b"\n")
        out, _, end = rest.rpartition(f"\n{mark} ".encode())
        if match := re.match(rb"\d+", end):
            after = err.partition(mark.encode() + b"\n")
            return int(match[0]), out, after[2] if after[1] else err, seconds
        if repeat and not begun and not err.strip():
            return self._framed(argv, input, timeout, repeat=False)
        raise self.failure(code, err.replace(mark.encode(), b"").decode(errors="replace").strip())

    def _open(self) -> None:
        """Open the one connection where none is; raise what ssh says about it."""
        with self._opening:
            if self.socket.exists():
                return
            private_folder(self.folder)
            end = self.valid_until()
            if end is not None and end < self.clock() - RENEWABLE_S:
                raise self.failure(255, "Permission denied: not tried")
            with tempfile.TemporaryFile() as errors:  # an older ssh keeps stderr open for ever
                command = self._command("-M", "-N", "-f")
                code = run_process(command, b"", self.connect_timeout_s + 15, errors)[0]
                errors.seek(0)
                err = errors.read().decode(errors="replace").strip()
            if code != 0:
                raise self.failure(code, err)

    def failure(self, code: int, err: str) -> KitError:
        """Make the error of an ssh that did not do what it was called for, from what it said."""
        tried = f"reach {self.name} by ssh"
        if "Permission denied" in err or "Too many authentication failures" in err:
            end = self.valid_until()
            until = "" if end is None else datetime.fromtimestamp(end).astimezone().isoformat()
            if end is not None and end < self.clock():
                return CredentialExpired(
                    f"the certificate for {self.name} ended at {until}", err, self.renew_hint
                )
            known = f"the certificate is valid until {until} by this clock; " if until else ""
            hint = self.renew_hint or f"try `ssh -v {self.name}`"
            return CredentialRefused(f"{self.name} refuses the login", err, known + hint)
        if re.search(r"Host key verification failed|host key is known|IDENTIFICATION HAS", err):
            step = f"compare its fingerprint with the site's, then mend known_hosts: {self.name}"
            return HostKeyRefused(tried, err, step)
        if re.search(r"Bad configuration|Bad owner|Can't open user config|path too long", err):
            return UsageError(tried, err, "mend the ssh config that is named there")
        return Unreachable(tried, err or f"ssh ended with {code} and said nothing", "try later")


def private_folder(folder: Path) -> None:
    """Make a folder that only this user can enter. Raises UsageError when it is another's."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
        raise UsageError(f"{folder} is not a private folder of this user", next_step="remove it")


def certificate_end(path: Path) -> float | None:
    """Read when an ssh certificate ends, by `ssh-keygen -L`; None for none and for `forever`."""
    said = run_process(["ssh-keygen", "-L", "-f", str(path)], b"", 20)[1].decode(errors="replace")
    match = re.search(r"^\s+Valid: from \S+ to (\S+)$", said, re.M)
    return datetime.fromisoformat(match[1]).timestamp() if match else None


def site_host(settings: "Settings", **options: Any) -> SSHHost:
    """Return the login node of a profile, not connected yet. Raises UsageError without [hpc]."""
    hpc = settings.hpc_section()
    return SSHHost(hpc.ssh_host, hpc.ssh_config, hpc.user, hpc.renew_hint, **options)


def vm_host(settings: "Settings", **options: Any) -> SSHHost:
    """Return the cloud VM of a profile, not connected yet; its Host is in the site's ssh config.

    Raises UsageError if the profile names no VM.
    """
    cloud = settings.cloud_section()
    if not cloud.ssh_host:
        raise UsageError(
            "this profile names no cloud VM",
            f"[cloud] ssh_host is empty in profile {settings.profile}",
            "set it to a Host of your ssh config, or use another profile (--profile)",
        )
    config = settings.hpc.ssh_config if settings.hpc else ""
    return SSHHost(cloud.ssh_host, config, **options)
