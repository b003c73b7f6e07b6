"""The sandbox's Allas: what CSC's has too, asked by plain clients without the kit's own code."""

import contextlib
import os
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from keystoneauth1.exceptions import Unauthorized
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session
from sandbox_command import kit_sandbox
from swiftclient import Connection
from swiftclient.exceptions import ClientException

from kit.base import KitError
from kit.base.settings import load
from kit.store import RetryPolicy, keystone_for
from kit.store.s3 import S3Store
from kit.store.swift import SwiftStore

pytestmark = pytest.mark.sandbox
REQUIRED = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


def read(path):
    lines = Path(path).read_text().splitlines()
    return {name: value.strip('"') for name, value in (line.split("=", 1) for line in lines)}


class Person:
    """The user of `.env` in one project, with plain clients of each service."""

    def __init__(self, files, project=""):
        given, store = read(files["env_file"]), load("sandbox").store
        self.url, self.ca, self.keystone = store.url, files["ca_file"], store.auth_url
        login = Password(
            self.keystone,
            username=given["CSC_USERNAME"],
            password=given["CSC_PASSWORD"],
            user_domain_name=given["CSC_USER_DOMAIN_NAME"],
            project_name=project or given["CSC_PROJECT_NAME"],
            project_domain_name="Default",
        )
        self.session = Session(login, verify=self.ca)
        self.swift = Connection(
            session=self.session, os_options={"region_name": "regionOne"}, cacert=self.ca
        )

    def ec2_key(self):
        user, project = self.session.get_user_id(), self.session.get_project_id()
        path = f"{self.keystone}/users/{user}/credentials/OS-EC2"
        made = self.session.post(path, json={"tenant_id": project}).json()["credential"]
        return made["access"], made["secret"], f"{path}/{made['access']}"

    def s3(self, access, secret, **config):
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="regionOne",
            verify=self.ca,
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            config=Config(**config, retries={"total_max_attempts": 1}),
        )


@pytest.fixture(scope="module")
def person(sandbox):
    return Person(sandbox["files"])


@pytest.fixture(scope="module")
def key(person):
    access, secret, url = person.ec2_key()
    yield access, secret
    person.session.delete(url)


@pytest.fixture
def bucket(person):
    name = f"test-{uuid.uuid4().hex[:12]}"
    person.swift.put_container(name)
    yield name
    for row in person.swift.get_container(name)[1]:
        person.swift.delete_object(name, row["name"])
    person.swift.delete_container(name)


def test_the_login_file_has_the_four_names_and_is_private(sandbox):
    path = sandbox["files"]["env_file"]
    given = read(path)
    assert set(given) == {
        "CSC_USERNAME",
        "CSC_PASSWORD",
        "CSC_USER_DOMAIN_NAME",
        "CSC_PROJECT_NAME",
    }
    assert given["CSC_USER_DOMAIN_NAME"] == "Default"
    assert given["CSC_PROJECT_NAME"] == "project_2001234"
    assert len(given["CSC_PASSWORD"]) >= 24
    folder = Path(path).parent
    for name in (".env", "mlflow-s3.env", "ceph.conf", "keystone.conf", "sandbox.env"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


def test_a_token_lives_eight_hours_and_names_both_faces_of_the_store(person):
    access = person.session.auth.get_access(person.session)
    left = (access.expires - access.issued).total_seconds()
    assert left == pytest.approx(float(os.environ.get("KIT_SANDBOX_TOKEN_SECONDS", 28800)), abs=2)
    catalog = access.service_catalog
    assert catalog.url_for(service_type="s3", region_name="regionOne") == person.url
    url = catalog.url_for(service_type="object-store", region_name="regionOne")
    assert url == f"{person.url}/swift/v1/AUTH_{access.project_id}"


def test_the_user_is_in_two_projects_and_in_no_other(sandbox):
    for project in ("project_2001234", "project_2005678"):
        Person(sandbox["files"], project).session.get_token()
    for project in ("service", "platform", "project_9999999"):
        with pytest.raises(Unauthorized):
            Person(sandbox["files"], project).session.get_token()


def test_a_token_puts_by_swift_what_an_ec2_key_gets_by_s3_over_tls(person, bucket, key):
    person.swift.put_object(bucket, "a b", b"hello", headers={"X-Object-Meta-Sha256": "abc"})
    assert person.url.startswith("https://")
    got = person.s3(*key).get_object(Bucket=bucket, Key="a b")
    assert (got["Body"].read(), got["Metadata"]) == (b"hello", {"sha256": "abc"})


def test_boto3s_default_checksums_are_refused_and_the_kits_settings_accepted(person, bucket, key):
    with pytest.raises(ClientError, match="MissingContentLength"):
        person.s3(*key).put_object(Bucket=bucket, Key="a", Body=b"x")
    person.s3(*key, **REQUIRED).put_object(Bucket=bucket, Key="a", Body=b"x")
    assert person.swift.get_object(bucket, "a")[1] == b"x"


def test_container_names_are_global_across_projects(sandbox, bucket):
    other = Person(sandbox["files"], "project_2005678")
    with pytest.raises(ClientException, match="409"):
        other.swift.put_container(bucket)
    with pytest.raises(ClientException, match="403"):
        other.swift.get_container(bucket)


def test_nothing_is_served_without_a_credential(person, bucket):
    for url in (f"{person.url}/{bucket}", person.swift.get_auth()[0]):
        for headers in ({}, {"X-Auth-Token": "made-up"}):
            assert requests.get(url, headers=headers, verify=person.ca).status_code in (401, 403)
    with pytest.raises(ClientError, match="403|InvalidAccessKeyId|AccessDenied"):
        person.s3("nobody", "nothing").list_buckets()
    assert requests.get(f"{person.keystone}/projects").status_code == 401


def test_logins_at_once_are_each_answered_for_what_they_are(sandbox, person):
    """A login that fails is counted in Keystone's database; two at once were a deadlock there."""

    given = read(sandbox["files"]["env_file"])

    def login(number):
        password = "wrong" if number % 4 else given["CSC_PASSWORD"]
        user = {"name": given["CSC_USERNAME"], "domain": {"id": "default"}, "password": password}
        body = {"identity": {"methods": ["password"], "password": {"user": user}}}
        return requests.post(f"{person.keystone}/auth/tokens", json={"auth": body}).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(login, range(64)))
    assert answers == [201, 401, 401, 401] * 16


def test_ceph_itself_wants_a_key(sandbox):
    conf = Path(sandbox["files"]["env_file"]).parent / "ceph.conf"
    words = ("exec", "ceph", "-c", str(conf), "--connect-timeout", "5", "health")
    assert kit_sandbox(*words, timeout=30).returncode == 0
    assert kit_sandbox(*words, "--keyring", "/dev/null", timeout=30).returncode != 0


def test_the_certificate_is_the_sandboxs_own_and_nobody_elses_is_taken(person, bucket):
    with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        requests.get(person.url)
    keystone = keystone_for(load("sandbox"))
    retry = RetryPolicy(5, 1)
    for store in (
        S3Store(bucket, keystone, person.url, "regionOne", retry=retry),
        SwiftStore(bucket, keystone, "regionOne", retry=retry),
    ):
        with pytest.raises(KitError, match="certificate is not trusted"):
            store.stat("a")


def test_the_platforms_key_sees_its_own_buckets_only(sandbox, person, bucket):
    given = read(Path(sandbox["files"]["env_file"]).parent / "mlflow-s3.env")
    s3 = person.s3(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"])
    assert "mlflow" in [row["Name"] for row in s3.list_buckets()["Buckets"]]
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.list_objects_v2(Bucket=bucket)


def test_no_password_is_in_the_arguments_of_any_process(sandbox):
    folder = Path(sandbox["files"]["env_file"]).parent
    planted = [path.read_text().strip() for path in (folder / "secrets").iterdir()]
    planted += [read(folder / "mlflow-s3.env")["AWS_SECRET_ACCESS_KEY"]]
    assert len(planted) > 5
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text(errors="replace")
            assert not [secret for secret in planted if secret in words], words[:50]
