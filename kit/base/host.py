"""Run commands and move files on a machine: the protocol, and this machine.

`ssh.SSHHost` is the other implementation; both pass the same contract suite.
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from kit.base.errors import CommandFailed, DataError, Unreachable
from kit.base.files import sha256_of

Stdin = bytes | Path


@dataclass(frozen=True)
class Completed:
    """A command that was reached and has ended by itself."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float


class Host(Protocol):
    """A machine that runs commands and keeps files."""

    name: str

    def run(
        self,
        argv: Sequence[str],
        input: Stdin = b"",
        timeout: float = 60,
        check: bool = True,
        repeat: bool = False,
    ) -> Completed:
        """Run a command with `input` on its stdin and give what it said.

        `repeat` says that running it twice does no harm. Raises CommandFailed when `check` and
        the exit code is not 0, Unreachable when it is not known whether or how it ended,
        CredentialRefused or CredentialExpired when the login was not accepted.
        """

    def put(self, source: Stdin, target: str, mode: int = 0o600) -> None:
        """Write a file: whole by rename, hash checked, never open to others before `mode`."""

    def get(self, source: str, target: Path) -> None:
        """Fetch a file: whole by rename, mode 600. Raises DataError when it changed meanwhile."""

    def valid_until(self) -> float | None:
        """When the login's certificate ends (seconds since 1970); None where there is none."""


PUT = """\
umask 077; mkdir -p "$(dirname "$1")" && t=$(mktemp "$1.XXXXXX") || exit
if cat >"$t" && chmod "$2" "$t" && [ "$(sha256sum <"$t")" = "$3  -" ] && mv -fT "$t" "$1"; then
    exit 0
fi
rm -f "$t"; exit 74
"""
GET = 'sha256sum <"$1" || exit; exec cat "$1"'


class LocalHost:
    """This machine. `prefix` is put before every command, e.g. `("env", "PATH=…")`."""

    name = "localhost"

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.prefix = tuple(prefix)

    def run(
        self,
        argv: Sequence[str],
        input: Stdin = b"",
        timeout: float = 60,
        check: bool = True,
        repeat: bool = False,
    ) -> Completed:
        """See `Host.run`."""
        code, out, err, seconds = self._call(argv, input, timeout)
        return as_completed(argv, code, out, err, seconds, check)

    def put(self, source: Stdin, target: str, mode: int = 0o600) -> None:
        """See `Host.put`."""
        argv = ["sh", "-c", PUT, "sh", target, f"{mode:o}", sha256_of(source)]
        check_upload(target, self.run(argv, source, 600, check=False))

    def get(self, source: str, target: Path) -> None:
        """See `Host.get`."""
        argv = ["sh", "-c", GET, "sh", source]
        code, out, err, seconds = self._call(argv, b"", 600)
        as_completed(argv, code, b"", err, seconds, check=True)
        save_download(source, out, target)

    def valid_until(self) -> float | None:
        """See `Host.valid_until`: nothing ends here."""
        return None

    def _call(
        self, argv: Sequence[str], input: Stdin, timeout: float
    ) -> tuple[int, bytes, bytes, float]:
        try:
            return run_process([*self.prefix, *argv], input, timeout)
        except FileNotFoundError as err:
            return 127, b"", str(err).encode(), 0.0


def run_process(
    argv: Sequence[str], input: Stdin, timeout: float, errors: IO[bytes] | None = None
) -> tuple[int, bytes, bytes, float]:
    """Run a program here: exit code, stdout, stderr, seconds.

    With `errors` stderr goes there and stdout nowhere: for a program that leaves a daemon behind.
    Raises Unreachable when it does not end in time.
    """
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        given = input if isinstance(input, bytes) else None
        stdin = None if given is not None else stack.enter_context(open(input, "rb"))
        try:
            done = subprocess.run(
                argv,
                input=given,
                stdin=stdin,
                stdout=subprocess.DEVNULL if errors else subprocess.PIPE,
                stderr=errors or subprocess.PIPE,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as err:
            raise Unreachable(
                f"run `{argv[0]}`", f"no end after {timeout:g} s", "ask again later"
            ) from err
    return done.returncode, done.stdout or b"", done.stderr or b"", time.monotonic() - begun


def as_completed(
    argv: Sequence[str], code: int, out: bytes, err: bytes, seconds: float, check: bool
) -> Completed:
    """Make the answer of `Host.run`; raises CommandFailed when `check` and `code` is not 0."""
    said, complained = out.decode(errors="replace"), err.decode(errors="replace")
    done = Completed(tuple(argv), code, said, complained, seconds)
    if check and code != 0:
        raise CommandFailed(argv, code, done.out, done.err)
    return done


def check_upload(target: str, done: Completed) -> None:
    """Raise CommandFailed when `PUT` could not write the file, with the folder that it is of."""
    if done.code != 0:
        said = done.err.strip() or "the file did not arrive whole"
        got = f"cannot use the folder {os.path.dirname(target)}: {said}"
        step = "make it writable for the user of the login, make room there, then run again"
        raise CommandFailed(["write", target], done.code, done.out, got, step)


def save_download(name: str, answer: bytes, target: Path) -> None:
    """Write what `GET` printed, whole by rename. Raises DataError when the hash does not fit."""
    line, _, content = answer.partition(b"\n")
    if line.decode() != f"{sha256_of(content)}  -":
        raise DataError(f"fetch {name}", "it changed while it was read", "fetch it again")
    handle, path = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(path, target)
