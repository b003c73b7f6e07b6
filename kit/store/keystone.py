"""Credentials of the object store and the login node: obtain, reuse, renew, hide.

The person's login (the four names of a CSC `.env`) gives Keystone tokens, which live hours, and
EC2 keys for S3, which do not expire. They are held in memory and written nowhere.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kit.base import (
    LOGIN_NAMES,
    CredentialRefused,
    KitError,
    Login,
    Secret,
    SSHHost,
    StoreUnavailable,
    Unreachable,
    UsageError,
    read_login,
)
from kit.base.settings import Settings

if TYPE_CHECKING:
    from keystoneauth1.session import Session

TIMEOUT_S = 20.0
LEAST_S = 120.0  # a token with less left is replaced; keystoneauth1's own limit, too


@dataclass(frozen=True)
class Ec2Key:
    """A key for S3; it lives until somebody deletes it."""

    access: str
    secret: Secret


@dataclass(frozen=True)
class Credential:
    """One line of the clock: `valid_until` in seconds since 1970, None where there is no end.

    `left_s` is what is left of it; `problem` says why there is none.
    """

    what: str
    valid_until: float | None
    left_s: float | None
    how_to_renew: str
    problem: str = ""


class Keystone:
    """Tokens and EC2 keys of one login at one Keystone; the first use logs in.

    `ca_file` is a CA certificate to trust ("": the system's). Methods raise CredentialRefused,
    and Unreachable when Keystone does not answer. Safe to share between threads.
    """

    def __init__(self, login: Login, auth_url: str, ca_file: str = "") -> None:
        self.login, self.auth_url, self.ca_file = login, auth_url, ca_file
        self._session: Session | None = None
        self._held: tuple[Secret, float] | None = None

    @property
    def session(self) -> "Session":
        """The keystoneauth1 session; it gets a new token LEAST_S before one ends."""
        if self._session is None:
            from keystoneauth1.identity.v3 import Password
            from keystoneauth1.session import Session

            login = self.login
            auth = Password(
                self.auth_url,
                username=login.username,
                password=login.password.reveal(),
                user_domain_name=login.domain,
                project_name=login.project,
                project_domain_name=login.domain,
            )
            local = urlsplit(self.auth_url).scheme == "http"
            verify = True if local or not self.ca_file else self.ca_file
            self._session = Session(auth, verify=verify, timeout=TIMEOUT_S)
        return self._session

    def token(self) -> Secret:
        """Give a token that is good for at least two minutes more; the same one if it is."""
        if self._held is None or time.time() > self._held[1] - LEAST_S:
            with self._explained():
                access = self.session.auth.get_access(self.session)
                self._held = Secret(access.auth_token), float(access.expires.timestamp())
        return self._held[0]

    def valid_until(self) -> float:
        """When the present token ends, in seconds since 1970."""
        with self._explained():
            return float(self.session.auth.get_access(self.session).expires.timestamp())

    def renew(self) -> None:
        """Forget the present token: somebody answered 401 to it (revoked, or keys rotated)."""
        self.session.invalidate()
        self._held = None

    def storage_url(self, region: str) -> str:
        """Give the URL of the project's account in the Swift API, from the catalogue."""
        from keystoneauth1.exceptions import CatalogException

        with self._explained():
            try:
                where = {"service_type": "object-store", "region_name": region}
                return str(self.session.get_endpoint(**where))
            except CatalogException as err:
                raise UsageError(
                    f"{self.auth_url} names no object store in region {region}",
                    str(err),
                    "check [store] region in the profile, and that the project has Allas",
                ) from err

    def ec2_key(self) -> Ec2Key:
        """Give the project's EC2 key of this login: the one there is, else a new one."""
        with self._explained():
            session = self.session
            user, project = session.get_user_id(), session.get_project_id()
            url = f"{self.auth_url.rstrip('/')}/users/{user}/credentials/OS-EC2"
            rows = session.get(url).json()["credentials"]
            ours = sorted((r for r in rows if r["tenant_id"] == project), key=lambda r: r["access"])
            if not ours:
                made = session.post(url, json={"tenant_id": project}).json()
                ours = [made["credential"]]
            return Ec2Key(ours[0]["access"], Secret(ours[0]["secret"]))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what keystoneauth1 raises into what a person can act on."""
        from keystoneauth1 import exceptions

        try:
            yield
        except exceptions.Unauthorized as err:
            raise CredentialRefused(
                f"Keystone at {self.auth_url} refuses the login of {self.login.username}",
                err.message,
                "it says no more than that: check user name, password, domain and project in "
                f"{self.login.source}, and in MyCSC that the account is a member of "
                f"{self.login.project} and neither locked nor expired",
            ) from err
        except exceptions.Forbidden as err:
            step = f"ask the owner of {self.login.project} for the right to do this"
            raise CredentialRefused(
                f"Keystone at {self.auth_url} forbids this to {self.login.username}",
                err.message,
                step,
            ) from err
        except exceptions.HttpServerError as err:
            raise StoreUnavailable(
                f"Keystone at {self.auth_url} has a fault of its own",
                err.message,
                "it is not your login: ask again; if it stays so, tell its operator "
                "(sandbox: kit sandbox logs keystone)",
            ) from err
        except (exceptions.ClientException, ValueError, KeyError) as err:
            step = "check the network and [store] auth_url; for the sandbox: kit sandbox status"
            raise Unreachable(
                f"Keystone at {self.auth_url} gives no usable answer", str(err)[:500], step
            ) from err


def keystone_for(settings: Settings) -> Keystone:
    """Give the Keystone of a profile, with the login read from its `.env`.

    Raises UsageError when the profile has no Keystone or there is no login.
    """
    if settings.store is None or not settings.store.auth_url:
        raise UsageError(
            f"profile {settings.profile} has no Keystone",
            next_step="set [store] auth_url in the profile, or use another profile",
        )
    return Keystone(read_login(settings), settings.store.auth_url, settings.store.ca_file)


def clock(settings: Settings, now: float | None = None) -> list[Credential]:
    """List every credential that the profile needs, until when it is good, how to renew it.

    Logs in at Keystone. What cannot be had is in the list with its problem; nothing is raised.
    """
    now = time.time() if now is None else now
    rows = []
    if settings.store is not None and settings.store.auth_url:
        rows += _store_rows(settings, now)
    return rows + certificates(settings, now)


def certificates(settings: Settings, now: float) -> list[Credential]:
    """List the ssh certificate of the profile, if it needs one: read here, nobody is asked."""
    hpc = settings.hpc
    if hpc is None or not hpc.needs_certificate:
        return []
    host = SSHHost(hpc.ssh_host, hpc.ssh_config, hpc.user, hpc.renew_hint)
    what, renew = f"ssh certificate for {hpc.ssh_host}", hpc.renew_hint or "ask the centre"
    try:
        end = host.valid_until()
    except KitError as err:
        return [Credential(what, None, None, renew, str(err))]
    return [_row(what, end, now, renew, "" if end else "there is no certificate")]


def _store_rows(settings: Settings, now: float) -> list[Credential]:
    """The login, the token and the S3 key; after the first problem there is nothing to ask."""
    rows: list[Credential] = []
    what, renew = "login", f"write {', '.join(LOGIN_NAMES)} to the .env file"
    try:
        keystone = keystone_for(settings)
        source = keystone.login.source
        what = f"login of {keystone.login.username} in {keystone.login.project}"
        renew = f"new password in MyCSC, then in {source}"
        end = keystone.valid_until()
        rows.append(_row(what, None, now, renew))
        rows.append(_row("Keystone token (Swift)", end, now, f"by itself, from {source}"))
        what, renew = "EC2 key (S3)", "by itself: made anew when it was deleted"
        if settings.store and settings.store.kind == "s3":
            keystone.ec2_key()
            rows.append(_row(what, None, now, renew))
    except KitError as err:
        rows.append(Credential(what, None, None, renew, str(err)))
    return rows


def _row(what: str, end: float | None, now: float, renew: str, problem: str = "") -> Credential:
    left = None if end is None else end - now
    if left is not None and left <= 0:
        problem = "it has ended"
    return Credential(what, end, left, renew, problem)


def held_against(row: Credential, end: float) -> str:
    """Say whether a credential lasts to the end of a plan, and what happens when it does not."""
    if row.problem:
        return f"{row.problem.splitlines()[0]}; renewed {row.how_to_renew}"
    if row.valid_until is None or row.valid_until >= end:
        return "lasts"
    return (
        f"ends {(end - row.valid_until) / 60:.0f} min too early: what was submitted goes on, "
        f"the kit waits for a new one; renewed {row.how_to_renew}"
    )


def texts(row: Credential) -> dict[str, str]:
    """Say a row of the clock in words: what, until (UTC), left, renew, problem."""
    until = left = "no end" if not row.problem else "-"
    if row.valid_until is not None and row.left_s is not None:
        until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(row.valid_until))
        hours, seconds = divmod(max(0, int(row.left_s)), 3600)
        left = f"{hours} h {seconds // 60:02d} min" if hours else f"{seconds} s"
    words = {"what": row.what, "valid until": until, "left": left, "renewed": row.how_to_renew}
    return words | {"problem": row.problem.replace("\n", " ")}
