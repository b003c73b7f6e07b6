"""A machine behind ssh: the OpenSSH client, which logs in wherever the person's terminal can.

One connection (a control master with a private socket, or the person's own where one is open)
carries everything. Every piece of a remote command is encoded in one place, so that any login
shell passes it on. Tried with OpenSSH 9.2.
"""

import base64
import contextlib
import hashlib
import os
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.base.errors import (
    Busy,
    ClosedBeforeLogin,
    CredentialExpired,
    CredentialRefused,
    HostKeyRefused,
    KitError,
    Unreachable,
    UsageError,
)
from kit.base.files import file_lock
from kit.base.host import Host, Output, Stdin, run_process

if TYPE_CHECKING:
    from kit.base.settings import Settings

RENEWABLE_S = 600.0  # clocks may differ: a certificate that ended just now is tried all the same
# sshd since 9.8 adds up 5 s for each refused login, less the time that passes, and from 15 s on
# closes every connection of the address before the login, for up to 10 min: PerSourcePenalties in
# https://man.openbsd.org/sshd_config.5. One login in 10 s never comes that far.
LOGIN_PAUSE_S, MAX_LOGIN_PAUSE_S = 10.0, 120.0
# A command of such words needs no encoding: no login shell changes one.
PLAIN_WORD = re.compile(r"[A-Za-z0-9_./-][A-Za-z0-9_./:,+=@%-]*")
WORD_LENGTH = 800  # of an encoded argument: csh refuses words of 1024 characters and more

# Lines of ssh itself; what a remote command writes to stderr has another form.
REFUSED = re.compile(
    r"^(?:\S+@)?(?:(?P<host>[^\s@]+): )?Permission denied \([\w,-]+\)"
    r"|^Received disconnect from .*Too many authentication failures",
    re.MULTILINE,
)
ACCOUNT = re.compile(
    r"password (?:has |is )?expired|change your (?:expired )?password|account (?:has |is )?expired",
    re.IGNORECASE,
)
HOST_KEY = re.compile(r"Host key verification failed|host key is known|IDENTIFICATION HAS")
# Before the other side has sent its version; with UNKNOWN the connection was a jump host's.
CLOSED = re.compile(
    r"^kex_exchange_identification: (?:Connection closed|(?:read|write): (?:Connection reset|Broken"
    r" pipe))(?!.*\n.*by UNKNOWN)",
    re.MULTILINE,
)
CLOSED_STEP = (
    "correct key or certificate if a login was refused before, then wait: OpenSSH 9.8 and later"
    " closes the connections of an address for a while after refused logins (15 s to 10 min), and"
    " a login node does it that has too many logins at once"
)
CONFIG = re.compile(r"Bad configuration|Bad owner|Can't open user config|path too long")


def ssh_options(**more: object) -> list[str]:
    """Return the ssh options of every call: no question, no surprise of the person's config."""
    values: dict[str, object] = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
        "RemoteCommand": "none",
        "ClearAllForwardings": "yes",
        **more,
    }
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


@dataclass(frozen=True)
class _FailedLogin:
    """A login that is not tried again at once: when, with which certificate, its error."""

    at: float
    certificate_end: float | None
    pause_s: float
    error: KitError


class SSHHost(Host):
    """A machine behind ssh. `name` is a Host of `config` (empty: the person's own ssh config).

    `folder` (mode 700, short path) holds the control socket. `renew_hint` is the profile's line
    on how to get a new certificate. Nothing is opened before the first command. After a refused
    login its error is raised again, without another login, for LOGIN_PAUSE_S and then for twice
    as long each time; a new certificate is tried at once.
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
        self._person_socket: Path | None = None
        self._settings: dict[str, list[str]] | None = None
        self._ends: dict[tuple[Path, int], float | None] = {}
        self._failed: _FailedLogin | None = None

    @property
    def socket(self) -> Path:
        """The control socket: the person's own if that is used, else one of the kit's."""
        if self._person_socket is not None:
            return self._person_socket
        key = "\0".join((self.config, self.user, self.name))
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:16]

    @property
    def argv(self) -> list[str]:
        """The beginning of every ssh command for this host: `ssh` and where its settings are."""
        config = ["-F", self.config] if self.config else []
        return ["ssh", *config, *(["-l", self.user] if self.user else [])]

    def valid_until(self) -> float | None:
        """See `Host.valid_until`: the latest end of the certificates that ssh would offer."""
        values = self.settings()
        files = [*values.get("identityfile", []), *values.get("certificatefile", [])]
        paths = [Path(file).expanduser() for file in dict.fromkeys(files)]
        paths += [Path(f"{path}-cert.pub") for path in paths]
        certificates = [path for path in paths if path.name.endswith(".pub")]
        ends = [end for path in certificates if (end := self._end(path)) is not None]
        return max(ends, default=None)

    def settings(self) -> dict[str, list[str]]:
        """Return the person's settings for this host (`ssh -G`): lower-case name -> values.

        Raises UsageError if ssh cannot read them.
        """
        if self._settings is None:
            # -N: ForkAfterAuthentication wants a command or none at all
            done = run_process([*self.argv, "-N", "-G", self.name], b"", 20)
            if done.code:
                raise self.failure(done.code, done.err.decode(errors="replace").strip())
            self._settings = {}
            for line in done.out.decode(errors="replace").splitlines():
                key, _, value = line.partition(" ")
                self._settings.setdefault(key, []).append(value)
        return self._settings

    def close(self) -> None:
        """End the kit's connection; the next command opens a new one."""
        if self._person_socket is None:
            run_process(self._command("-O", "exit"), b"", 20)
        self._person_socket = None

    def call(self, argv: Sequence[str], stdin: Stdin, timeout_s: float, repeat: bool) -> Output:
        """See `Host.call`. A master that died unseen is noticed once: then `repeat` runs again.

        The command runs between two marker lines, so that no banner and no profile is taken for
        output. The second marker has the exit code: without it the ending is unknown.
        """
        mark = f"kit-{secrets.token_hex(8)}"
        marker = re.compile(rb"\n%s (\d+)\n" % mark.encode())
        self._open()
        code, raw, err, seconds = run_process(
            [*self._command(), _remote(mark, argv)],
            stdin,
            timeout_s,
            finished=lambda out: marker.search(out, max(0, len(out) - (1 << 16) - 64)) is not None,
        )
        before, begun, rest = raw.partition(mark.encode() + b"\n")
        if begun and (end := list(marker.finditer(rest))):
            after = err.partition(mark.encode() + b"\n")
            out = rest[: end[-1].start()]
            return Output(int(end[-1][1]), out, after[2] if after[1] else err, seconds)
        message = err.replace(mark.encode(), b"").decode(errors="replace").strip()
        if begun:  # the login was good, and the messages may be the command's own
            raise self._lost(message or f"ssh ended with {code} and printed nothing")
        if repeat and not message:
            return self.call(argv, stdin, timeout_s, repeat=False)
        raise self.failure(code, message, before.decode(errors="replace").strip())

    def _end(self, path: Path) -> float | None:
        """Return when one certificate ends; read again only when the file is another one."""
        try:
            key = path, path.stat().st_mtime_ns
        except OSError:
            return None
        if key not in self._ends:
            self._ends = {key: certificate_end(path)}
        return self._ends[key]

    def _command(self, *words: str, **more: object) -> list[str]:
        values: dict[str, object] = {
            "ConnectTimeout": self.connect_timeout_s,
            "ServerAliveInterval": self.alive_s,
            "ServerAliveCountMax": 3,
            "ControlMaster": "no" if self._person_socket else "auto",
            "ControlPath": self.socket,
            "ControlPersist": 300,
        }
        for option in ("StdinNull", "ForkAfterAuthentication"):  # refused by an ssh before 8.7
            if self.settings().get(option.lower()) == ["yes"]:
                values[option] = "no"
        return [*self.argv, *ssh_options(**{**values, **more}), "-T", *words, self.name]

    def _open(self) -> None:
        """Open the one connection if there is none; raise the error that ssh reports."""
        got = "another process is opening the connection"
        busy = Busy(f"reach {self.name} by ssh", got, "try again later")
        lock, timeout_s = Path(f"{self.socket}.lock"), 2 * self.connect_timeout_s + 30
        with self._opening:
            if self._is_open():
                return
            private_folder(self.folder)
            with file_lock(lock, timeout_s, busy, f"give {self.folder} a file system with locks"):
                if not self._is_open():
                    self._connect()

    def _is_open(self) -> bool:
        if self._person_socket is not None:
            if self._answers(self._person_socket):
                return True
            self._person_socket = None
        if self.socket.exists():
            return True
        path = Path(self.settings().get("controlpath", ["none"])[0]).expanduser()
        if path.is_absolute() and path.is_socket() and self._answers(path):
            self._person_socket = path
        return self._person_socket is not None

    def _answers(self, socket: Path) -> bool:
        command = [*self.argv, "-o", f"ControlPath={socket}", "-N", "-O", "check", self.name]
        return run_process(command, b"", 20).code == 0

    def _connect(self) -> None:
        end, last = self.valid_until(), self._failed
        if end is not None and end < self.clock() - RENEWABLE_S:
            raise self._refused("not tried", self.name)
        if last and last.certificate_end != end:
            last = self._failed = None
        if last and 0 <= self.clock() - last.at < last.pause_s:
            raise last.error.with_traceback(None)
        error = self._log_in()
        if isinstance(error, CredentialRefused | ClosedBeforeLogin):
            pause_s = min(2 * last.pause_s, MAX_LOGIN_PAUSE_S) if last else LOGIN_PAUSE_S
            self._failed = _FailedLogin(self.clock(), end, pause_s, error)
        if error:
            raise error
        self._failed = None

    def _log_in(self) -> KitError | None:
        """Open the connection; return the error of a login that failed."""
        timeout_s = self.connect_timeout_s + 15
        done = run_process(self._command("-M", "-N", "-f"), b"", timeout_s, daemon=True)
        if done.code == 0:
            return None
        error = self.failure(done.code, done.err.decode(errors="replace").strip())
        if type(error) in (Unreachable, ClosedBeforeLogin) and "proxyjump" in self.settings():
            # With ControlPersist ssh drops what the jump host reports: once more without.
            alone = {"ControlMaster": "no", "ControlPath": "none", "ControlPersist": "no"}
            retry = run_process([*self._command(**alone), "true"], b"", timeout_s)
            if retry.code != 0 and retry.err.strip():
                return self.failure(retry.code, retry.err.decode(errors="replace").strip())
        return error

    def failure(self, code: int, err: str, out: str = "") -> KitError:
        """Return the error of an ssh call that ran no command, from its exit code and streams."""
        tried, text = f"reach {self.name} by ssh", (err or out)[-2000:]
        if match := REFUSED.search(err):  # it has the host name: a jump host's is another one
            own = [None, self.name, *self.settings().get("hostname", [])]
            return self._refused(text, self.name if match["host"] in own else match["host"])
        if ACCOUNT.search(f"{err}\n{out}"):
            step = f"log in with `ssh {self.name}` in a terminal and follow its message"
            return CredentialRefused(f"{self.name} refuses the login", text, step)
        if HOST_KEY.search(err):
            step = f"compare its fingerprint with the site's, then correct known_hosts: {self.name}"
            return HostKeyRefused(tried, err, step)
        if CLOSED.search(err) and "proxycommand" not in self.settings():
            return self._closed(text)
        if CONFIG.search(err):
            return UsageError(tried, err, "correct the ssh config that is named there")
        if code != 255:
            step = (
                f"try `ssh {self.name} true`; a start file there (~/.bashrc, ~/.profile) may end"
                " the shell or start another one (exit, exec)"
            )
            got = text or f"the login shell ended with {code} and printed nothing"
            return Unreachable(tried, got, step)
        return self._lost(text or f"ssh ended with {code} and printed nothing")

    def _lost(self, got: str) -> Unreachable:
        return Unreachable(f"reach {self.name} by ssh", got[-2000:], "try later")

    def _closed(self, text: str) -> KitError:
        """Return the error of a connection that the other side closed before the login.

        It does so whatever the login would be now: what the kit knows of the login is the cause.
        """
        end, before = self.valid_until(), self._failed and self._failed.error
        got = f"it closed the connection before the login: {text}"
        if end is not None and end < self.clock():
            return self._refused(got, self.name)
        if isinstance(before, CredentialRefused):
            step = f"{self.renew_hint}; {CLOSED_STEP}" if self.renew_hint else CLOSED_STEP
            return CredentialRefused(before.tried, got[-2000:], step)
        return ClosedBeforeLogin(f"reach {self.name} by ssh", got[-2000:], CLOSED_STEP)

    def _refused(self, got: str, host: str) -> CredentialRefused:
        """Return the error of a refused login; CredentialExpired if the certificate has ended."""
        end = self.valid_until()
        until = "" if end is None else datetime.fromtimestamp(end).astimezone().isoformat()
        if end is not None and end < self.clock():
            tried = f"the certificate for {self.name} ended at {until}"
            return CredentialExpired(tried, got, self.renew_hint)
        known = f"the certificate is valid until {until} by this clock; " if until else ""
        hint = self.renew_hint or f"try `ssh -v {self.name}`"
        return CredentialRefused(f"{host} refuses the login", got, known + hint)


def _remote(mark: str, argv: Sequence[str]) -> str:
    """Return a remote command that any login shell passes on as it is.

    csh refuses line breaks and replaces `!` within quotes, so the program goes as base64, in
    words that are short enough for csh. Plain words go as they are, which saves three processes.
    """
    if len(" ".join(argv)) < WORD_LENGTH and all(map(PLAIN_WORD.fullmatch, argv)):
        begin = rf'printf "%s\n" {mark}; printf "%s\n" {mark} >&2'
        end = rf'r=$?; printf "\n%s %s\n" {mark} "$r"; exit "$r"'
        return f"exec sh -c '{begin}; \"$@\"; {end}' sh {' '.join(argv)}"
    program = (
        f"printf '%s\\n' {mark}; printf '%s\\n' {mark} >&2; set -- {shlex.join(argv)}\n"
        f'"$@"; r=$?; printf \'\\n%s %s\\n\' {mark} "$r"; exit "$r"'
    )
    text = base64.b64encode(program.encode()).decode()
    words = [text[n : n + WORD_LENGTH] for n in range(0, len(text), WORD_LENGTH)]
    return 'exec sh -c \'eval "$(printf %s "$@" | base64 -d)"\' sh ' + " ".join(words)


def private_folder(folder: Path) -> None:
    """Create a folder that only this user can enter.

    Raises UsageError if it is another's, KitError if it cannot be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        found = folder.lstat()
    except OSError as err:
        got = err.strerror or str(err)
        raise KitError(f"cannot make the folder {folder}", got, "make room there") from err
    if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
        raise UsageError(f"{folder} is not a private folder of this user", next_step="remove it")


def certificate_end(path: Path) -> float | None:
    """Return when an ssh certificate ends, by `ssh-keygen -L`; None for none and for `forever`."""
    done = run_process(["ssh-keygen", "-L", "-f", str(path)], b"", 20)
    match = re.search(r"^\s+Valid: from \S+ to (\S+)$", done.out.decode(errors="replace"), re.M)
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
