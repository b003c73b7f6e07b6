"""Secrets: texts that no output shows, the files they are read from, the login at the store."""

import io
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kit.base.errors import UsageError
from kit.base.files import git, work_dir

if TYPE_CHECKING:
    from kit.base.settings import Settings

LOGIN_NAMES = ("CSC_USERNAME", "CSC_PASSWORD", "CSC_USER_DOMAIN_NAME", "CSC_PROJECT_NAME")
APPLICATION_NAMES = (  # a login by an application credential: no password
    "CSC_USERNAME",
    "OS_APPLICATION_CREDENTIAL_ID",
    "OS_APPLICATION_CREDENTIAL_SECRET",
    "CSC_PROJECT_NAME",
)


class SecretTracked(UsageError):
    """A file with secrets is in git, so everybody with a clone has them."""


class SecretReadable(UsageError):
    """Others than its owner may read a file with secrets."""


def refuse_tracked(path: Path) -> None:
    """Raise SecretTracked for a file that git tracks, or if git does not answer whether it does.

    Without a repository or without git nothing is tracked.
    """
    if not any((folder / ".git").exists() for folder in path.absolute().parents):
        return
    done = git(path.parent, "ls-files", "--error-unmatch", "--", path.name)
    if done is not None and done.returncode == 0:
        step = f"git rm --cached {path}, name it in .gitignore, change every secret in it"
        raise SecretTracked(f"{path} has secrets and is tracked by git", "refused", step)
    got = "git does not answer" if done is None else done.stderr.strip()[-500:]
    if done is None or (done.returncode not in (1, 127) and "not a git repository" not in got):
        raise SecretTracked(
            f"it is not known whether git tracks {path}, which has secrets",
            got,
            "move the file out of that repository, or make the repository yours",
        )


class Secret:
    """A text that no print, log, traceback, copy to disk or JSON shows; `reveal()` returns it."""

    __slots__ = ("__weakref__", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        _alive[id(self)] = self

    def reveal(self) -> str:
        """Return the text, for the one call that needs it."""
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


_alive: weakref.WeakValueDictionary[int, Secret] = weakref.WeakValueDictionary()


def secrets_in_use() -> list[Secret]:
    """Return every secret that this process holds, for the secret scan."""
    return list(_alive.values())


@dataclass(frozen=True)
class Login:
    """User and project of a login; `source` is where the login was read.

    With an `application_id` the password is the secret of that application credential, and the
    domain is empty.
    """

    username: str
    password: Secret
    domain: str
    project: str
    source: str
    application_id: str = ""

    def lines(self) -> dict[str, str]:
        """Return the names of a `.env` file and their values; the password is among them."""
        if self.application_id:
            values = self.username, self.application_id, self.password.reveal(), self.project
            return dict(zip(APPLICATION_NAMES, values, strict=True))
        values = self.username, self.password.reveal(), self.domain, self.project
        return dict(zip(LOGIN_NAMES, values, strict=True))


def read_private(path: Path, tried: str, step: str, encoding: str = "ascii") -> str:
    """Read a secret file. Raises UsageError if it is unreadable, readable by others or in git.

    Exception: a file of root on a read-only mount (a container's secret) may have any mode.
    """
    path = path.expanduser()  # as the person wrote it into a variable
    refuse_tracked(path)
    try:
        with path.open(encoding=encoding) as stream:
            info, text = os.fstat(stream.fileno()), stream.read()
        lent = info.st_uid == 0 != os.getuid() and os.statvfs(path).f_flag & os.ST_RDONLY
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(tried, str(err), step) from err
    if info.st_mode & 0o077 and not lent:
        mode = f"mode {info.st_mode & 0o777:o}"
        raise SecretReadable(f"{path} can be read by others", mode, f"chmod 600 {path}")
    return text


def read_env(path: Path, tried: str, step: str) -> dict[str, str]:
    """Read a private `.env` file; `$` in a value is a dollar sign. Raises UsageError."""
    values, wrong = parse_env(read_private(path, tried, step, encoding="utf-8-sig"))
    if wrong:
        raise UsageError(
            f"{path} is malformed at line {', '.join(map(str, wrong))}",
            next_step="write NAME=value or NAME='value' on each line",
        )
    return values


def parse_env(text: str) -> tuple[dict[str, str], list[int]]:
    """Parse the text of a `.env` file: its values, and the numbers of malformed lines.

    This is the only reader of the format, so that the secret scan knows what a login accepts.
    """
    from dotenv.parser import parse_stream

    values: dict[str, str] = {}
    wrong = []
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key and binding.value is None):
            wrong.append(binding.original.line)
        elif binding.key:
            values[binding.key] = binding.value or ""
    return values, wrong


def login_files(settings: "Settings", home: Path | None = None) -> list[Path]:
    """Return the files in which a login may be: the profile's own, then ~/.ssh/.env and .env."""
    own = [settings.env_file] if settings.env_file else []
    return [*own, (home or Path.home()) / ".ssh" / ".env", work_dir() / ".env"]


def read_login(
    settings: "Settings", environ: Mapping[str, str] = os.environ, home: Path | None = None
) -> Login:
    """Read the login: KIT_ENV_FILE or the profile's file, the environment, ~/.ssh/.env, .env.

    Raises UsageError if there is none, or one that lacks a name, cannot be parsed, is readable
    by others or tracked by git; the message never shows what the file holds.
    """
    complete = all(environ.get(name) for name in _names(environ))
    own = settings.env_file
    if own is not None and (own.exists() or not complete):
        step = (
            "kit sandbox up" if settings.profile == "sandbox" else "write it, or set KIT_ENV_FILE"
        )
        return _login(read_env(own, f"cannot read the login in {own}", step), str(own))
    if complete:
        return _login(environ, "the environment")
    places = login_files(settings, home)[-2:]
    for place in places:
        if place.exists():
            tried, step = f"cannot read the login in {place}", "make it readable for yourself"
            return _login(read_env(place, tried, step), str(place))
    raise UsageError(
        f"the login for the object store of {settings.profile} is missing",
        f"looked for {', '.join(str(place) for place in places)}",
        f"write one of these files with the lines {', '.join(f'{name}=…' for name in LOGIN_NAMES)},"
        " mode 600; or name another one with KIT_ENV_FILE",
    )


def _names(values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of a login; the password, where there is one, has precedence."""
    application = values.get(APPLICATION_NAMES[1]) and not values.get("CSC_PASSWORD")
    return APPLICATION_NAMES if application else LOGIN_NAMES


def _login(values: Mapping[str, str], source: str) -> Login:
    names = _names(values)
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise UsageError(
            f"{source} lacks {', '.join(missing)}",
            next_step=f"the login needs the four names {', '.join(names)}",
        )
    name, second, third, project = (values[key] for key in names)
    if names is APPLICATION_NAMES:
        return Login(name, Secret(third), "", project, source, application_id=second)
    return Login(name, Secret(second), third, project, source)
