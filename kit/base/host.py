"""Run commands and move files on a machine: the base class, and this machine.

`ssh.SSHHost` is the other implementation; both pass the same contract suite. A subclass only
implements `call`.
"""

import contextlib
import os
import selectors
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from kit.base.errors import CommandFailed, DataError, KitError, Unreachable, UsageError
from kit.base.files import sha256_of, write_bytes

Stdin = bytes | Path
TRANSFER_S = 600.0  # the longest time for one file
GRACE_S = 0.5  # for a program whose answer is complete

# The folder in which `kit` is must exist: it may be a disk that is not mounted.
PUT = """\
case $1 in */kit/*) [ -d "${1%/kit/*}" ] || { echo "no folder ${1%/kit/*}" >&2; exit 73; } ;; esac
umask 077; mkdir -p "$(dirname "$1")" && t=$(mktemp "$1.XXXXXX") || exit
if cat >"$t" && chmod "$2" "$t" && [ "$(sha256sum <"$t")" = "$3  -" ] && mv -fT "$t" "$1"; then
    exit 0
fi
rm -f "$t"; exit 74
"""
GET = 'sha256sum <"$1" || exit; exec cat "$1"'


class Output(NamedTuple):
    """The result of a program: exit code, both streams, seconds."""

    code: int
    out: bytes
    err: bytes
    seconds: float


@dataclass(frozen=True)
class Completed:
    """A command that was reached and has ended by itself."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float


class ProgramMissing(UsageError):
    """A program is not installed on this machine."""


class Host:
    """A machine that runs commands and keeps files."""

    name: str

    def call(self, argv: Sequence[str], stdin: Stdin, timeout_s: float, repeat: bool) -> Output:
        """Run a command to its end. Raises Unreachable if it is not known how it ended."""
        raise NotImplementedError

    def run(
        self,
        argv: Sequence[str],
        input: Stdin = b"",
        timeout: float = 60,
        check: bool = True,
        repeat: bool = False,
    ) -> Completed:
        """Run a command with `input` on its stdin and return its output.

        `repeat`: running the command twice does no harm. Raises CommandFailed if `check` and the
        exit code is not 0, Unreachable if it is not known whether or how the command ended,
        CredentialRefused or CredentialExpired if the login was not accepted.
        """
        return as_completed(argv, self.call(argv, input, timeout, repeat), check)

    def put(self, source: Stdin, target: str, mode: int = 0o600) -> None:
        """Write a file: whole by rename, hash checked, never open to others before `mode`."""
        argv = ["sh", "-c", PUT, "sh", target, f"{mode:o}", sha256_of(source)]
        done = self.run(argv, source, TRANSFER_S, check=False, repeat=True)
        if done.code != 0:
            reason = done.err.strip() or "the file did not arrive whole"
            got = f"cannot use the folder {os.path.dirname(target)}: {reason}"
            step = "make it writable for the user of the login, make room there, then run again"
            raise CommandFailed(["write", target], done.code, done.out, got, step)

    def get(self, source: str, target: Path) -> None:
        """Fetch a file: whole by rename, mode 600. Raises DataError if it changed meanwhile."""
        argv = ["sh", "-c", GET, "sh", source]
        output = self.call(argv, b"", TRANSFER_S, True)
        as_completed(argv, output._replace(out=b""), check=True)
        line, _, content = output.out.partition(b"\n")
        if line.decode() != f"{sha256_of(content)}  -":
            raise DataError(f"fetch {source}", "it changed while it was read", "fetch it again")
        if not target.parent.is_dir():
            raise DataError(
                f"cannot write {target}", "its folder does not exist", "create the folder"
            )
        write_bytes(target, content, mode=0o600)

    def valid_until(self) -> float | None:
        """Return when the login's certificate ends (seconds since 1970); None without one."""
        return None


class LocalHost(Host):
    """This machine. `prefix` is put before every command, e.g. `("env", "PATH=…")`."""

    name = "localhost"

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.prefix = tuple(prefix)

    def call(self, argv: Sequence[str], stdin: Stdin, timeout_s: float, repeat: bool) -> Output:
        """See `Host.call`. A program that is not installed ends with 127, as in a shell."""
        try:
            return run_process([*self.prefix, *argv], stdin, timeout_s)
        except ProgramMissing as err:
            return Output(127, b"", err.got.encode(), 0.0)


def as_completed(argv: Sequence[str], output: Output, check: bool) -> Completed:
    """Return the answer of `Host.run`; raises CommandFailed if `check` and the code is not 0."""
    out, err = output.out.decode(errors="replace"), output.err.decode(errors="replace")
    if check and output.code != 0:
        raise CommandFailed(argv, output.code, out, err)
    return Completed(tuple(argv), output.code, out, err, output.seconds)


def run_process(
    argv: Sequence[str],
    stdin: Stdin,
    timeout_s: float,
    finished: Callable[[bytearray], bool] | None = None,
    daemon: bool = False,
) -> Output:
    """Run a program here.

    `finished` looks at stdout: when it returns true the answer is complete, even if another
    process still holds the stream open. `daemon`: the program leaves a daemon behind, so stdout
    is not read. Raises Unreachable if the program does not end in time, ProgramMissing if it is
    not installed, DataError if `stdin` is a file that cannot be read.
    """
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(_temporary())
        given = stack.enter_context(_opened(stdin)) if isinstance(stdin, Path) else None
        process = _started(argv, given, errors, daemon)
        stack.callback(_end, process)
        if isinstance(stdin, bytes) and process.stdin:
            threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True).start()
        try:
            out, complete = _read(process.stdout, begun + timeout_s, finished)
            left = GRACE_S if complete else max(0.0, begun + timeout_s - time.monotonic())
            with contextlib.suppress(*([subprocess.TimeoutExpired] if complete else [])):
                process.wait(left)
        except (TimeoutError, subprocess.TimeoutExpired) as err:
            raise Unreachable(
                f"run `{argv[0]}`", f"no end after {timeout_s:g} s", "ask again later"
            ) from err
        errors.seek(0)
        code = -1 if process.returncode is None else process.returncode
        return Output(code, bytes(out), errors.read(), time.monotonic() - begun)


def _temporary() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError as err:
        got = err.strerror or str(err)
        raise KitError("make a temporary file", got, "free space there, or set TMPDIR") from err


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as err:
        raise DataError(f"cannot read {path}", err.strerror or str(err)) from err


def _started(
    argv: Sequence[str], stdin: IO[bytes] | None, errors: IO[bytes], daemon: bool
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin or subprocess.PIPE,
            stdout=subprocess.DEVNULL if daemon else subprocess.PIPE,
            stderr=errors,
        )
    except (FileNotFoundError, NotADirectoryError) as err:
        step = "install it, or correct PATH"
        raise ProgramMissing(f"cannot run `{argv[0]}`", str(err), step) from err
    except (OSError, ValueError) as err:
        raise UsageError(f"cannot run `{argv[0]}`", str(err), "correct its arguments") from err


def _feed(pipe: IO[bytes], content: bytes) -> None:
    with contextlib.suppress(OSError), pipe:
        pipe.write(content)


def _read(
    stream: IO[bytes] | None, deadline: float, finished: Callable[[bytearray], bool] | None
) -> tuple[bytearray, bool]:
    """Read a stream to its end, or until `finished`. Raises TimeoutError at the deadline."""
    out = bytearray()
    if stream is None:
        return out, False
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            chunk = os.read(stream.fileno(), 1 << 16)
            out += chunk
            if not chunk or (finished is not None and finished(out)):
                return out, bool(chunk)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program that still runs, and close what is open to it."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
