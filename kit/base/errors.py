"""The errors of the kit: each says what was tried, what came back and what to do next."""

from collections.abc import Sequence


class KitError(Exception):
    """Something the kit was asked for did not work.

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
        """Give the message on one to three lines."""
        lines = [self.tried]
        if self.got:
            lines.append(f"  got:  {self.got}")
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)


class UsageError(KitError):
    """A wrong parameter, profile or setting; nothing was started."""

    exit_code = 2


class DataError(KitError):
    """A data file that is missing, damaged or not what it says it is."""


class NoSuchObject(DataError):
    """The bucket holds no object of that key."""


class NoSuchBucket(DataError):
    """The store has no bucket of that name."""


class ObjectDamaged(DataError):
    """An object's bytes are not the ones its SHA-256 was made of."""


class ObjectTooLarge(UsageError):
    """More bytes than the store takes in one object by that protocol."""


class BucketTaken(KitError):
    """A bucket of that name belongs to another project: names are global in the store."""


class Busy(KitError):
    """Another process holds what this one needs."""


class Unreachable(KitError):
    """No contact: it says nothing about the state of what runs on the other side."""

    exit_code = 3


class StoreUnavailable(Unreachable):
    """The object store does not answer, or says that it cannot now; asking again may help."""


class HostKeyRefused(Unreachable):
    """The other side is not the machine that is known by that name; nothing was sent to it."""


class CredentialRefused(KitError):
    """The other side does not accept a key, certificate, password or token."""


class CredentialExpired(CredentialRefused):
    """A credential that was good once and has reached its end."""


class CommandFailed(KitError):
    """A command that was reached and run, and ended with a non-zero exit code."""

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
