"""Fill Keystone with what a CSC project looks like, through its own API; harmless when repeated.

A start that finds what an earlier one has filled in saves that work: 1 s of a processor.

One person in two projects; a service user by which the object store asks about tokens; a service
user of the platform with an EC2 key, which MLflow and the health checks use. Settings come from
the environment. Writes etc/.env and etc/mlflow-s3.env when all is there.
"""

import hashlib
import os
from pathlib import Path

from keystoneauth1.exceptions import ClientException
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session

REGION = "regionOne"
FILES = (".env", "mlflow-s3.env", "mlflow-swift.env")
SETTINGS = (
    *("OS_BOOTSTRAP_PUBLIC_URL", "OS_BOOTSTRAP_PASSWORD", "ADDR_RGW", "PORT_RGW", "PROJECTS"),
    *("RGW_SERVICE_PASSWORD", "CSC_PASSWORD", "PLATFORM_PASSWORD"),
)


class Keystone:
    """The few calls of the identity API that are needed, made as a user in its own project."""

    def __init__(self, url: str, password: str, user: str = "admin") -> None:
        self.url = url
        login = Password(
            url,
            username=user,
            password=password,
            user_domain_id="default",
            project_name=user,
            project_domain_id="default",
        )
        self.session = Session(login)

    def get(self, path: str, **params: str) -> dict:
        """GET a path of the API; the parsed answer."""
        return self.session.get(self.url + path, params=params).json()

    def ensure(self, kind: str, name: str, **fields: str) -> str:
        """Return the id of a project, user, role or service of that name, created if needed."""
        for row in self.get(f"/{kind}s", name=name)[f"{kind}s"]:
            if row["name"] == name:
                return row["id"]
        body = {kind: {"name": name, **fields}}
        return self.session.post(f"{self.url}/{kind}s", json=body).json()[kind]["id"]

    def member(self, user: str, password: str, projects: list[str], role: str) -> tuple[str, str]:
        """Assign a user a role in projects; (user id, id of the last project)."""
        user_id = self.ensure("user", user, password=password, domain_id="default")
        role_id = self.ensure("role", role)
        for name in projects:
            project = self.ensure("project", name, domain_id="default")
            self.session.put(f"{self.url}/projects/{project}/users/{user_id}/roles/{role_id}")
        return user_id, project

    def endpoint(self, name: str, kind: str, url: str) -> None:
        """Register a service in the catalogue, at this URL."""
        service = self.ensure("service", name, type=kind)
        rows = self.get("/endpoints", service_id=service)["endpoints"]
        have = {row["interface"]: row for row in rows}
        for interface in ("public", "internal", "admin"):
            body = {"service_id": service, "interface": interface, "url": url, "region_id": REGION}
            old = have.get(interface)
            if old is None:
                self.session.post(f"{self.url}/endpoints", json={"endpoint": body})
            elif old["url"] != url:
                self.session.patch(f"{self.url}/endpoints/{old['id']}", json={"endpoint": body})

    def ec2_key(self, user_id: str, project: str) -> tuple[str, str]:
        """Return the EC2 key of a user in a project, created if needed: (access, secret)."""
        path = f"/users/{user_id}/credentials/OS-EC2"
        for row in self.get(path)["credentials"]:
            if row["tenant_id"] == project:
                return row["access"], row["secret"]
        made = self.session.post(self.url + path, json={"tenant_id": project})
        return made.json()["credential"]["access"], made.json()["credential"]["secret"]

    def has_ec2_key(self, text: str) -> bool:
        """Report whether this user can log in and has an EC2 key that is in a text."""
        try:
            path = f"/users/{self.session.get_user_id()}/credentials/OS-EC2"
            return any(f'"{row["access"]}"' in text for row in self.get(path)["credentials"])
        except ClientException:
            return False


def write(path: Path, values: dict[str, str]) -> None:
    """Write NAME="value" lines that only their owner can read, whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text("".join(f'{name}="{value}"\n' for name, value in values.items()))
    new.replace(path)


def fingerprint(etc: Path) -> str:
    """Return a hash of what is filled in: this program, its settings and the files it writes."""
    files = [Path(__file__), *(etc / name for name in FILES)]
    parts = [path.read_bytes() if path.exists() else b"" for path in files]
    parts += [os.environ[name].encode() for name in SETTINGS]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def main(mark: Path) -> None:
    """Do all of it, unless `mark` says that it was done and the platform's key is still there."""
    given = os.environ
    url, etc = given["OS_BOOTSTRAP_PUBLIC_URL"], Path(given["SBX"], "etc")
    if mark.exists() and mark.read_text() == fingerprint(etc):
        platform = Keystone(url, given["PLATFORM_PASSWORD"], "platform")
        if platform.has_ec2_key((etc / "mlflow-s3.env").read_text()):
            return
    fill(Keystone(url, given["OS_BOOTSTRAP_PASSWORD"]), etc)
    mark.write_text(fingerprint(etc))


def fill(keystone: Keystone, etc: Path) -> None:
    """Make what is missing and write the files."""
    given = os.environ
    rgw = f"https://{given['ADDR_RGW']}:{given['PORT_RGW']}"
    keystone.endpoint("swift", "object-store", f"{rgw}/swift/v1/AUTH_%(project_id)s")
    keystone.endpoint("s3", "s3", rgw)
    # RGW asks Keystone about other people's tokens (admin) and EC2 signatures (service)
    for role in ("admin", "service"):
        keystone.member("rgw", given["RGW_SERVICE_PASSWORD"], ["service"], role)
    projects = given["PROJECTS"].split()
    keystone.member("researcher", given["CSC_PASSWORD"], projects, "member")
    user, project = keystone.member("platform", given["PLATFORM_PASSWORD"], ["platform"], "member")
    access, secret = keystone.ec2_key(user, project)
    key = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
    write(etc / "mlflow-swift.env", {"OS_STORAGE_URL": f"{rgw}/swift/v1/AUTH_{project}"})
    write(etc / "mlflow-s3.env", key)
    person = {"CSC_USERNAME": "researcher", "CSC_PASSWORD": given["CSC_PASSWORD"]}
    person |= {"CSC_USER_DOMAIN_NAME": "Default", "CSC_PROJECT_NAME": min(projects)}
    write(etc / ".env", person)
