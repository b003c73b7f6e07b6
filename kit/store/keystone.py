"""The login at the object store and its credentials: obtained, reused, renewed, listed.

The person's login (the four names of a CSC `.env`) gives Keystone tokens, which live hours, and
EC2 keys for S3, which do not expire. They are held in memory and written nowhere.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kit.base import (
    LOGIN_NAMES,
    CredentialRefused,
    KitError,
    Login,
    Secret,
    StoreUnavailable,
    Unreachable,
    UsageError,
    ca_bundle_step,
    read_login,
    site_host,
)
from kit.store.static_keys import Ec2Key, StaticKeys

if TYPE_CHECKING:
    from keystoneauth1.identity.v3.base import BaseAuth
    from keystoneauth1.session import Session

    from kit.base.settings import Settings, Store

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Credential:
    """One row of the credentials list: `valid_until` in seconds since 1970, None if it never ends.

    `left_s` is the time until then; `problem` is why the credential cannot be used.
    """

    what: str
    valid_until: float | None
    left_s: float | None
    how_to_renew: str
    problem: str = ""


class Keystone:
    """Tokens and EC2 keys of one login at one Keystone; the first use logs in.

    `ca_file` is a CA certificate to trust ("": the system's). Methods raise CredentialRefused,
    and Unreachable if Keystone does not answer. Threads may share it.
    """

    def __init__(self, login: Login, auth_url: str, ca_file: str = "") -> None:
        self.login, self.auth_url, self.ca_file = login, auth_url, ca_file
        self._session: Session | None = None

    @property
    def session(self) -> "Session":
        """The keystoneauth1 session; it gets a new token two minutes before the old one ends."""
        if self._session is None:
            from keystoneauth1.session import Session

            auth = self._auth()
            local = urlsplit(self.auth_url).scheme == "http"
            verify = True if local or not self.ca_file else self.ca_file
            self._session = Session(auth, verify=verify, timeout=TIMEOUT_S)
        return self._session

    def _auth(self) -> "BaseAuth":
        """Return keystoneauth1's way to log in: the password, or the application credential."""
        from keystoneauth1.identity.v3 import ApplicationCredential, Password

        login = self.login
        if login.application_id:
            return ApplicationCredential(
                self.auth_url,
                application_credential_id=login.application_id,
                application_credential_secret=login.password.reveal(),
            )
        return Password(
            self.auth_url,
            username=login.username,
            password=login.password.reveal(),
            user_domain_name=login.domain,
            project_name=login.project,
            project_domain_name=login.domain,
        )

    def token(self) -> Secret:
        """Return a token that is good for at least two minutes more; the same one if it is."""
        with self.kit_errors():
            return Secret(self.session.get_token())

    def valid_until(self) -> float:
        """Return when the present token ends, in seconds since 1970."""
        with self.kit_errors():
            return float(self.session.auth.get_access(self.session).expires.timestamp())

    def storage_url(self, region: str) -> str:
        """Return the URL of the project's account in the Swift API, from the catalogue."""
        from keystoneauth1.exceptions import CatalogException

        with self.kit_errors():
            try:
                url = self.session.get_endpoint(service_type="object-store", region_name=region)
                return str(url)
            except CatalogException as err:
                raise UsageError(
                    f"{self.auth_url} names no object store in region {region}",
                    str(err),
                    "check [store] region in the profile, and that the project has Allas",
                ) from err

    def find_ec2_key(self) -> Ec2Key | None:
        """Return the project's EC2 key of this login; None if there is none. Makes nothing."""
        with self.kit_errors():
            rows = self.session.get(self._ec2_url()).json()["credentials"]
            project = self.session.get_project_id()
            ours = sorted((r for r in rows if r["tenant_id"] == project), key=lambda r: r["access"])
            return Ec2Key(ours[0]["access"], Secret(ours[0]["secret"])) if ours else None

    def ec2_key(self) -> Ec2Key:
        """Return the project's EC2 key of this login; make one if there is none."""
        key = self.find_ec2_key()
        if key is not None:
            return key
        with self.kit_errors():
            body = {"tenant_id": self.session.get_project_id()}
            row = self.session.post(self._ec2_url(), json=body).json()["credential"]
            return Ec2Key(row["access"], Secret(row["secret"]))

    def _ec2_url(self) -> str:
        user = self.session.get_user_id()
        return f"{self.auth_url.rstrip('/')}/users/{user}/credentials/OS-EC2"

    def _refused_step(self) -> str:
        if self.login.application_id:
            return (
                f"check the application credential in {self.login.source}: it may have expired or "
                "been deleted (openstack application credential list)"
            )
        return (
            "check user name, password, domain and project in "
            f"{self.login.source}, and in MyCSC that the account is a member of "
            f"{self.login.project} and neither locked nor expired"
        )

    @contextlib.contextmanager
    def kit_errors(self) -> Iterator[None]:
        """Turn keystoneauth1's exceptions into the kit's."""
        from keystoneauth1 import exceptions

        try:
            yield
        except exceptions.Unauthorized as err:
            raise CredentialRefused(
                f"Keystone at {self.auth_url} refuses the login of {self.login.username}",
                err.message,
                self._refused_step(),
            ) from err
        except exceptions.Forbidden as err:
            next_step = f"ask the owner of {self.login.project} for the right to do this"
            if self.login.application_id:
                next_step = (
                    "a restricted application credential makes no EC2 key: make the key once with "
                    "your password (kit store ls), or the credential with --unrestricted"
                )
            raise CredentialRefused(
                f"Keystone at {self.auth_url} forbids this to {self.login.username}",
                err.message,
                next_step,
            ) from err
        except exceptions.HttpServerError as err:
            raise StoreUnavailable(
                f"Keystone at {self.auth_url} failed",
                err.message,
                "it is not your login: try again, and report it to its operator if it stays so "
                "(sandbox: kit sandbox logs keystone)",
            ) from err
        except (exceptions.ClientException, OSError, ValueError, KeyError) as err:
            usual = "check the network and [store] auth_url; for the sandbox: kit sandbox status"
            next_step = ca_bundle_step(err, usual)
            raise Unreachable(
                f"Keystone at {self.auth_url} gives no usable answer", str(err)[:500], next_step
            ) from err


def keystone_for(settings: "Settings") -> Keystone:
    """Return the Keystone of a profile, with the login read from its `.env`.

    All stores of a process share it, so that they log in once. Raises UsageError if the profile
    has no Keystone or the login is missing.
    """
    if settings.store is None or not settings.store.auth_url:
        raise UsageError(
            f"profile {settings.profile} has no Keystone",
            next_step="set [store] auth_url in the profile, or credentials_file for an S3 key of "
            "your own, or use another profile",
        )
    return _shared(read_login(settings), settings.store.auth_url, settings.store.ca_file)


@functools.lru_cache(maxsize=32)
def _shared(login: Login, auth_url: str, ca_file: str) -> Keystone:
    return Keystone(login, auth_url, ca_file)


def list_credentials(settings: "Settings", now: float | None = None) -> list[Credential]:
    """List every credential that the profile needs, when it expires and how to renew it.

    Shows the token that the process already has, or logs in to see whether the login is good;
    makes no key. A credential that cannot be had is in the list with its problem.
    """
    now = time.time() if now is None else now
    rows = []
    if settings.store is not None and settings.store.auth_url:
        rows += _store_rows(settings, now)
    elif settings.store is not None and settings.store.credentials_file:
        rows.append(_static_row(settings.store, now))
    return rows + certificates(settings, now)


def certificates(settings: "Settings", now: float) -> list[Credential]:
    """List the ssh certificate of the profile, if it needs one, from the file here."""
    hpc = settings.hpc
    if hpc is None or not hpc.needs_certificate:
        return []
    host = site_host(settings)
    what, renew = f"ssh certificate for {hpc.ssh_host}", hpc.renew_hint or "ask the centre"
    try:
        end = host.valid_until()
    except KitError as err:
        return [Credential(what, None, None, renew, str(err))]
    return [_row(what, end, now, renew, "" if end else "the certificate is missing")]


def _store_rows(settings: "Settings", now: float) -> list[Credential]:
    """List the login, the token and the S3 key; the first problem ends the list."""
    rows: list[Credential] = []
    what, renew = "login", f"write {', '.join(LOGIN_NAMES)} to the .env file"
    try:
        keystone = keystone_for(settings)
        source = keystone.login.source
        what = f"login of {keystone.login.username} in {keystone.login.project}"
        renew = f"change the password in MyCSC, then in {source}"
        if keystone.login.application_id:
            what = f"application credential of {what.removeprefix('login of ')}"
            renew = f"make a new application credential, write it to {source}"
        end = keystone.valid_until()
        rows.append(_row(what, None, now, renew))
        rows.append(_row("Keystone token (Swift)", end, now, f"automatic, from {source}"))
        what, renew = "EC2 key (S3)", "automatic: made again if it was deleted"
        if settings.store and settings.store.kind == "s3":
            if keystone.find_ec2_key() is None:
                what, renew = "EC2 key (S3), not made yet", "the first use makes it: kit store ls"
            rows.append(_row(what, None, now, renew))
    except KitError as err:
        rows.append(Credential(what, None, None, renew, str(err)))
    return rows


def static_keys(store: "Store") -> StaticKeys:
    """Return the reader of a profile's key file."""
    return StaticKeys(Path(store.credentials_file), store.credentials_section)


def _static_row(store: "Store", now: float) -> Credential:
    """List the key of the profile's own file; its end is known only if the profile says so."""
    keys = static_keys(store)
    what, renew = f"S3 key in {keys.path}", store.renew_hint or "write a new key into that file"
    try:
        keys.ec2_key()
        hours = store.credentials_hours
        end = keys.written() + 3600 * hours if hours else None
    except (KitError, OSError) as err:
        return Credential(what, None, None, renew, str(err))
    return _row(what, end, now, renew)


def _row(what: str, end: float | None, now: float, renew: str, problem: str = "") -> Credential:
    left = None if end is None else end - now
    if left is not None and left <= 0:
        problem = "it has expired"
    return Credential(what, end, left, renew, problem)


def describe_expiry(row: Credential, end: float) -> str:
    """Return whether a credential lasts until `end`, and what happens if it does not."""
    if row.problem:
        return f"{row.problem.splitlines()[0]}; to renew: {row.how_to_renew}"
    if row.valid_until is None or row.valid_until >= end:
        return "lasts"
    return (
        f"expires {(end - row.valid_until) / 60:.0f} min too early: what was submitted continues, "
        f"the kit waits for a new one; to renew: {row.how_to_renew}"
    )


def as_row(row: Credential) -> dict[str, str]:
    """Return a row of the list as text: what, expires (UTC), left, how to renew, problem."""
    expires, left = ("never", "-") if not row.problem else ("-", "-")
    if row.valid_until is not None and row.left_s is not None:
        expires = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(row.valid_until))
        hours, seconds = divmod(max(0, int(row.left_s)), 3600)
        left = f"{hours} h {seconds // 60:02d} min" if hours else f"{seconds} s"
    return {
        "credential": row.what,
        "expires": expires,
        "left": left,
        "how to renew": row.how_to_renew,
        "problem": row.problem.replace("\n", " "),
    }
