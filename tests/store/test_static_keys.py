"""S3 keys from a file of one's own: of the AWS tools, of rclone, and what is refused."""

import os
import traceback
from dataclasses import replace

import pytest
from planned_store import BODY, GOOD, RETRY, PlannedServer

from kit.base import CredentialRefused, UsageError
from kit.base.settings import Store, load
from kit.store import bucket_name, list_credentials, open_store
from kit.store.static_keys import StaticKeys

PLANTED = "pl4nted/secret+key%(x)s="
AWS = f"[default]\naws_access_key_id = AK1\naws_secret_access_key = {PLANTED}\n"
RCLONE = (
    "[lumi-465000001-private]\ntype = s3\nprovider = Ceph\nendpoint = https://lumidata.eu\n"
    f"access_key_id = AK2\nsecret_access_key = {PLANTED}\n\n[local]\ntype = local\n"
)
TWO = AWS + RCLONE


@pytest.fixture
def write(tmp_path):
    """Write a key file; return its path."""

    def write(text, mode=0o600):
        path = tmp_path / "keys"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "section", "access"),
    [
        (AWS, "", "AK1"),
        (AWS, "default", "AK1"),
        (RCLONE, "", "AK2"),
        (TWO, "default", "AK1"),
        (TWO, "lumi-465000001-private", "AK2"),
        ("\ufeff" + AWS.replace("\n", "\r\n"), "", "AK1"),
        (AWS.replace(" = ", "="), "", "AK1"),
    ],
)
def test_key_is_read_in_both_forms(write, text, section, access):
    key = StaticKeys(write(text), section).ec2_key()
    assert (key.access, key.secret.reveal()) == (access, PLANTED)
    assert PLANTED not in repr(key)


@pytest.mark.parametrize(
    ("text", "section", "got"),
    [
        ("", "", "0 sections have a key: none"),
        (TWO, "", "2 sections have a key: default, lumi-465000001-private"),
        (TWO, "mine", "no section [mine]"),
        (AWS.replace("aws_access_key_id = AK1\n", ""), "", "0 sections"),
        (AWS.replace("AK1", ""), "default", "no section [default]"),
        (AWS + "aws_session_token = abc\n", "", "session token"),
        (f"{PLANTED}\n", "", "malformed"),
        (f"[default\n{PLANTED}\n", "", "malformed"),
        ("RCLONE_ENCRYPT_V0:\nabc", "", "encrypted"),
    ],
)
def test_file_without_the_key_is_refused_and_not_shown(write, text, section, got):
    path = write(text)
    with pytest.raises(UsageError) as caught:
        StaticKeys(path, section).ec2_key()
    shown = "".join(traceback.format_exception(caught.value))
    assert got in caught.value.got
    assert str(path) in shown
    assert caught.value.next_step
    assert PLANTED not in shown


def test_file_that_others_can_read_is_refused(write):
    with pytest.raises(UsageError, match="can be read by others"):
        StaticKeys(write(AWS, 0o640)).ec2_key()


def test_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        StaticKeys(tmp_path / "nowhere").ec2_key()


@pytest.fixture
def site(write, tmp_path):
    """Return settings of a store whose key is in a file, and the server of that store."""
    server = PlannedServer()
    store = Store("s3", server.url, credentials_file=str(write(AWS)))
    yield replace(load("sandbox", {}), hpc=None, env_file=None, store=store), server
    server.close()


def test_store_is_used_with_the_key_and_without_keystone(site):
    loaded, server = site
    server.plan = [(200, GOOD, BODY)]
    assert open_store(loaded, "abc", retry=RETRY).get("a") == BODY
    assert "Credential=AK1/" in server.seen[0][1]["Authorization"]
    assert bucket_name(loaded, "pipeline").startswith("integration-pipeline-")


def test_new_key_is_taken_after_a_refusal(site, write):
    loaded, server = site
    server.plan = [(403, {}, b""), (200, GOOD, BODY)]
    store = open_store(loaded, "abc", retry=RETRY)
    with pytest.raises(CredentialRefused):
        store.get("a")
    write(AWS.replace("AK1", "AK9"))
    assert store.get("a") == BODY
    assert "Credential=AK9/" in server.seen[-1][1]["Authorization"]


def test_key_is_in_the_list_of_credentials_with_its_end(site):
    loaded, _ = site
    (row,) = list_credentials(loaded)
    assert row.what == f"S3 key in {loaded.store.credentials_file}"
    assert (row.valid_until, row.problem) == (None, "")
    week = replace(loaded.store, credentials_hours=168, renew_hint="auth.lumidata.eu")
    written = os.stat(week.credentials_file).st_mtime
    (row,) = list_credentials(replace(loaded, store=week), written + 3600)
    assert (row.valid_until, row.left_s) == (written + 168 * 3600, 167 * 3600)
    assert row.how_to_renew == "auth.lumidata.eu"
    (late,) = list_credentials(replace(loaded, store=week), written + 169 * 3600)
    assert late.problem == "it has expired"


def test_key_that_cannot_be_read_is_in_the_list_with_its_problem(site, write):
    loaded, _ = site
    write(AWS.replace("AK1", ""))
    (row,) = list_credentials(loaded)
    assert "sections have a key" in row.problem
    assert PLANTED not in repr(row)
