"""The person's login at the object store: the four names of a CSC `.env`, and secrets that hide."""

import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kit.base.errors import UsageError
from kit.base.files import ROOT
from kit.base.host import LocalHost

if TYPE_CHECKING:
    from kit.base.settings import Settings

LOGIN_NAMES = ("CSC_USERNAME", "CSC_PASSWORD", "CSC_USER_DOMAIN_NAME", "CSC_PROJECT_NAME")


class SecretTracked(UsageError):
    """A file with secrets is in git: whoever has a clone has them."""


def refuse_tracked(path: Path) -> None:
    """Raise SecretTracked for a file that git tracks; where there is no git, nothing is tracked."""
    if any((folder / ".git").exists() for folder in path.absolute().parents):
        ask = ["git", "-C", str(path.parent), "ls-files", "--error-unmatch", "--", path.name]
        if LocalHost().run(ask, timeout=10, check=False).code == 0:
            step = f"git rm --cached {path}, name it in .gitignore, change every secret in it"
            raise SecretTracked(f"{path} has secrets and is tracked by git", "refused", step)


class Secret:
    """A text that no print, log, traceback, copy to disk or JSON shows; `reveal()` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Give the text, for the one call that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, form: str) -> str:
        return format(repr(self), form)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __deepcopy__(self, memo: object) -> "Secret":
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied to another process")


@dataclass(frozen=True)
class Login:
    """Who logs in, and to which project; `source` says where that was read."""

    username: str
    password: Secret
    domain: str
    project: str
    source: str


def read_private(path: Path, tried: str, step: str, encoding: str = "ascii") -> str:
    """Read a secret file. Raises UsageError when it cannot be read, others may read it, or git
    tracks it.

    One on a read-only mount that root lends to somebody else (a secret in a container) is for
    whoever has that mount, whatever its mode.
    """
    refuse_tracked(path)
    try:
        info, text = path.stat(), path.read_text(encoding=encoding)
        lent = info.st_uid == 0 != os.getuid() and os.statvfs(path).f_flag & os.ST_RDONLY
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(tried, str(err), step) from err
    if info.st_mode & 0o077 and not lent:
        raise UsageError(
            f"{path} can be read by others", f"mode {info.st_mode & 0o777:o}", "chmod 600"
        )
    return text


def read_login(
    settings: "Settings", environ: Mapping[str, str] = os.environ, home: Path | None = None
) -> Login:
    """Read the login: KIT_ENV_FILE or the profile's file, the environment, ~/.ssh/.env, .env.

    Warns when a file can be read by others. Raises UsageError when there is none, or one that
    lacks a name, cannot be parsed or is tracked by git; the message never says what stands there.
    """
    given = settings.env_file
    if given is not None and (given.exists() or not all(environ.get(name) for name in LOGIN_NAMES)):
        hint = (
            "kit sandbox up" if settings.profile == "sandbox" else "write it, or set KIT_ENV_FILE"
        )
        return _login(_parsed(given, hint), str(given))
    if all(environ.get(name) for name in LOGIN_NAMES):
        return _login(environ, "the environment")
    places = [(home or Path.home()) / ".ssh" / ".env", ROOT / ".env"]
    for place in places:
        if place.exists():
            return _login(_parsed(place, "make it readable for yourself"), str(place))
    raise UsageError(
        f"there is no login for the object store of {settings.profile}",
        f"looked for {', '.join(str(place) for place in places)}",
        f"write one of these files with the lines {', '.join(f'{name}=…' for name in LOGIN_NAMES)},"
        " mode 600; or name another one with KIT_ENV_FILE",
    )


def _parsed(path: Path, hint: str) -> dict[str, str]:
    """Read a `.env` file; `$` in a password is a dollar sign."""
    from dotenv.parser import parse_stream

    refuse_tracked(path)
    try:
        with path.open(encoding="utf-8-sig") as stream:
            others = stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot read the login in {path}", str(err), hint) from err
    if others:
        warnings.warn(f"{path} can be read by others: chmod 600 {path}", stacklevel=2)
    wrong = [str(b.original.line) for b in bindings if b.error or (b.key and b.value is None)]
    if wrong:
        raise UsageError(
            f"{path} is malformed at line {', '.join(wrong)}",
            next_step="write NAME=value or NAME='value' on each line",
        )
    return {binding.key: binding.value or "" for binding in bindings if binding.key}


def _login(values: Mapping[str, str], source: str) -> Login:
    missing = [name for name in LOGIN_NAMES if not values.get(name)]
    if missing:
        raise UsageError(
            f"{source} lacks {', '.join(missing)}",
            next_step=f"the login needs the four names {', '.join(LOGIN_NAMES)}",
        )
    name, password, domain, project = (values[key] for key in LOGIN_NAMES)
    return Login(name, Secret(password), domain, project, source)
