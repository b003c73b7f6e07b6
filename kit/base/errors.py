"""The errors of the kit: each says what was tried, what came back and what to do next."""

import itertools
from collections.abc import Sequence


class KitError(Exception):
    """The kit could not do what it was asked for.

    `tried` is a sentence about the attempt, `got` what came back, `next_step` what the
    person can do now. All three stay readable as fields; `str()` puts them on lines.
    """

    exit_code = 1

    def __init__(self, tried: str, got: str = "", next_step: str = "") -> None:
        super().__init__(tried, got, next_step)
        self.tried = tried
        self.got = got
        self.next_step = next_step

    def __str__(self) -> str:
        """Return the message on one to three lines."""
        lines = [self.tried]
        if self.got:
            lines.append(f"  got:  {self.got}")
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)

    @property
    def sentence(self) -> str:
        """Return the three parts in one line, for tables and logs."""
        return "; ".join(part for part in (self.tried, self.got, self.next_step) if part)


class UsageError(KitError):
    """A wrong parameter, profile or setting; nothing was started."""

    exit_code = 2


class ProfileMissing(UsageError):
    """No profile has that name."""


class ProfileUnfilled(UsageError):
    """The profile is a template with a value that is still to be filled in."""


class DataError(KitError):
    """A data file is missing, damaged or not of the expected form."""


class NoSuchObject(DataError):
    """The bucket holds no object of that key."""


class NoSuchBucket(DataError):
    """The store has no bucket of that name."""


class ObjectDamaged(DataError):
    """The bytes of an object do not have its SHA-256."""


class ObjectTooLarge(UsageError):
    """An object has more bytes than the store accepts by that protocol."""


class BucketTaken(KitError):
    """A bucket of that name belongs to another project: names are global in the store."""


class Busy(KitError):
    """Another process holds what this one needs."""


class Unreachable(KitError):
    """Contact is lost; the state of what runs on the other side is unknown."""

    exit_code = 3


class StoreUnavailable(Unreachable):
    """The object store does not answer or is overloaded; a later call may succeed."""


class ClockSkewed(KitError):
    """The store refuses requests because this machine's clock and its own differ too much."""


class ClosedBeforeLogin(Unreachable):
    """The machine closed the connection before the login; nothing was sent to it."""


class HostKeyRefused(Unreachable):
    """The machine has another host key than the known one; nothing was sent to it."""


class CredentialRefused(KitError):
    """The other side does not accept a key, certificate, password or token."""


class CredentialExpired(CredentialRefused):
    """A credential that was valid has expired."""


class CommandFailed(KitError):
    """A command ran and ended with a non-zero exit code."""

    def __init__(
        self, argv: Sequence[str], code: int, out: str = "", err: str = "", next_step: str = ""
    ) -> None:
        got = (err.strip() or out.strip() or "no output")[-2000:]
        words = " ".join("…" if "\n" in word else word for word in argv)  # no whole script
        super().__init__(f"`{words}` ended with exit code {code}", got, next_step)
        self.argv, self.code, self.out, self.err = tuple(argv), code, out, err

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the fields (the base class would pass only the message)."""
        return type(self), (self.argv, self.code, self.out, self.err, self.next_step)


def ca_bundle_step(err: Exception, usual: str) -> str:
    """Return the next step where requests did not find its CA bundle, else the usual one.

    requests takes the bundle's path from the environment of any program, and raises a plain
    OSError where nothing is there (tried with 2.32).
    """
    if "TLS CA certificate bundle, invalid path" not in str(err):
        return usual
    return "correct or unset REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, then run the command again"


def last_error(text: str) -> str:
    """Return the type and message of the error that a text with a traceback ends with."""
    lines = text.rpartition("Traceback (most recent call last):\n")[2].splitlines()
    return "\n".join(itertools.dropwhile(lambda line: line.startswith(" "), lines))
