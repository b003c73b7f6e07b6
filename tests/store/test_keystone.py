"""Logins, tokens, EC2 keys and the credentials list; on the real Keystone where it decides."""

import copy
import json
import logging
import pickle
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fake_keystone import FakeKeystone

from kit.base import (
    CredentialRefused,
    Login,
    Secret,
    StoreUnavailable,
    Unreachable,
    UsageError,
    read_login,
)
from kit.base.settings import Hpc, Store, load
from kit.store import Credential, Keystone, as_row, describe_expiry, keystone_for, list_credentials

PLANTED = "pl4nted$ecret#1"
LINES = {
    "CSC_USERNAME": "anna",
    "CSC_PASSWORD": PLANTED,
    "CSC_USER_DOMAIN_NAME": "Default",
    "CSC_PROJECT_NAME": "project_2001234",
}
LOGIN = Login("anna", Secret(PLANTED), "Default", "project_2001234", "a file")


def env_file(path, text=None, mode=0o600, **changes):
    values = LINES | changes
    path.write_text(
        "".join(f"{k}='{v}'\n" for k, v in values.items() if v is not None)
        if text is None
        else text
    )
    path.chmod(mode)
    return path


@pytest.fixture
def loaded(tmp_path):
    """Settings that name `tmp_path/.env` and nothing that runs."""
    base = load("sandbox", {"KIT_ENV_FILE": str(tmp_path / ".env")})
    return replace(base, hpc=None)


SHOWN = {
    "repr": repr,
    "str": str,
    "format": lambda s: f"{s} {s:>40}",
    "dataclass": lambda s: repr(replace(LOGIN, password=s)),
    "asdict": lambda s: repr(asdict(replace(LOGIN, password=s))),
    "deepcopy": lambda s: repr(copy.deepcopy(s)),
    "json": lambda s: json.dumps({"a": s}, default=str),
    "log": lambda s: logging.LogRecord("a", 10, "b", 1, "%s", (s,), None).getMessage(),
}


@pytest.mark.parametrize("way", SHOWN)
def test_a_secret_shows_nothing_of_itself(way):
    assert PLANTED not in SHOWN[way](Secret(PLANTED))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol):
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret(PLANTED), protocol)


def test_a_secret_is_equal_to_the_same_secret_only():
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("a").reveal() == "a"


GOOD = {
    "plain": "CSC_USERNAME=anna\nCSC_PASSWORD=pw\nCSC_USER_DOMAIN_NAME=Default\nCSC_PROJECT_NAME=p",
    "quotes, export, comments, blank lines": "# a login\n\nexport CSC_USERNAME='anna'\n"
    'CSC_PASSWORD="pw"\nCSC_USER_DOMAIN_NAME = "Default"\nCSC_PROJECT_NAME=p # mine\n',
    "a BOM and CRLF": "\ufeffCSC_USERNAME=anna\r\nCSC_PASSWORD=pw\r\n"
    "CSC_USER_DOMAIN_NAME=Default\r\nCSC_PROJECT_NAME=p\r\n",
    "more names": "CSC_USERNAME=anna\nCSC_PASSWORD=pw\nCSC_USER_DOMAIN_NAME=Default\n"
    "CSC_PROJECT_NAME=p\nOTHER=x\n",
}


@pytest.mark.parametrize("form", GOOD)
def test_a_login_is_read_in_every_usual_form(form, loaded, tmp_path):
    env_file(tmp_path / ".env", GOOD[form])
    login = read_login(loaded, {})
    assert (login.username, login.password.reveal(), login.domain, login.project) == (
        "anna",
        "pw",
        "Default",
        "p",
    )


@pytest.mark.parametrize("password", ["a$HOME", "${HOME}", "a b", "ä€", "a#b", 'a"b', "=a="])
def test_a_password_is_taken_unchanged(password, loaded, tmp_path):
    env_file(tmp_path / ".env", CSC_PASSWORD=password)
    assert read_login(loaded, {}).password.reveal() == password


BAD = {
    "a name missing": ({"CSC_PROJECT_NAME": None}, "lacks CSC_PROJECT_NAME"),
    "two names missing": ({"CSC_USERNAME": None, "CSC_PASSWORD": None}, "CSC_USERNAME, CSC_PASS"),
    "an empty value": ({"CSC_PASSWORD": ""}, "lacks CSC_PASSWORD"),
    "an empty file": ({"text": ""}, "lacks CSC_USERNAME"),
    "a malformed line": ({"text": f"CSC_USERNAME=anna\n{PLANTED} is it\n"}, "malformed at line 2"),
    "an open quote": ({"text": f"CSC_PASSWORD='{PLANTED}\n"}, "malformed at line 1"),
}


@pytest.mark.parametrize("form", BAD)
def test_a_bad_login_file_is_refused_without_showing_it(form, loaded, tmp_path):
    changes, said = BAD[form]
    path = env_file(tmp_path / ".env", **changes)
    with pytest.raises(UsageError) as caught:
        read_login(loaded, {})
    text = "".join(traceback.format_exception(caught.value))
    assert said in text
    assert str(path) in text
    assert PLANTED not in text


@pytest.mark.parametrize("kind", ["absent", "a folder", "not text"])
def test_a_login_file_that_cannot_be_read_is_named(kind, loaded, tmp_path):
    path = tmp_path / ".env"
    if kind == "a folder":
        path.mkdir()
    if kind == "not text":
        path.write_bytes(b"CSC_PASSWORD=\xff\xfe")
    with pytest.raises(UsageError, match=f"cannot read the login in {path}") as caught:
        read_login(loaded, {})
    assert caught.value.next_step == "kit sandbox up"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_login_file_that_others_can_read_is_refused(mode, loaded, tmp_path):
    path = env_file(tmp_path / ".env", mode=mode)
    with pytest.raises(UsageError, match="can be read by others") as caught:
        read_login(loaded, {})
    assert caught.value.next_step == f"chmod 600 {path}"


def test_a_login_is_looked_for_in_the_places_in_order(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("kit.base.secret.work_dir", lambda: tmp_path / "checkout")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "checkout").mkdir()
    nowhere = replace(loaded, env_file=None)
    with pytest.raises(UsageError, match="is missing"):
        read_login(nowhere, {}, home=tmp_path)
    env_file(tmp_path / "checkout" / ".env", CSC_USERNAME="checkout")
    assert read_login(nowhere, {}, home=tmp_path).username == "checkout"
    env_file(tmp_path / ".ssh" / ".env", CSC_USERNAME="home")
    assert read_login(nowhere, {}, home=tmp_path).username == "home"
    assert read_login(nowhere, LINES, home=tmp_path).username == "anna"
    assert read_login(loaded, LINES, home=tmp_path).source == "the environment"
    env_file(tmp_path / ".env", CSC_USERNAME="named")
    assert read_login(loaded, LINES, home=tmp_path).username == "named"


@pytest.fixture
def fake():
    servers = []

    def start(**options):
        servers.append(FakeKeystone(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_token_is_reused_until_shortly_before_it_expires(fake):
    server = fake(life_s=3600)
    keystone = Keystone(LOGIN, server.url)
    assert keystone.token() == keystone.token() == Secret("token-1")
    assert keystone.valid_until() == pytest.approx(time.time() + 3600, abs=3)
    server.life_s = 60  # the next one will be about to end at once
    keystone.session.invalidate()
    assert [keystone.token().reveal() for _ in range(3)] == ["token-2", "token-3", "token-4"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, CredentialRefused), (403, CredentialRefused), (500, StoreUnavailable)],
)
def test_what_keystone_answers_becomes_an_error_without_the_password(status, error, fake):
    keystone = Keystone(LOGIN, fake(status=status).url)
    with pytest.raises(error) as caught:
        keystone.token()
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


def test_a_keystone_that_is_away_says_nothing_about_the_login():
    keystone = Keystone(LOGIN, "http://127.0.0.1:9/v3")
    for ask in (keystone.token, keystone.ec2_key, keystone.valid_until):
        with pytest.raises(Unreachable, match="no usable answer"):
            ask()


def test_nothing_happens_when_a_keystone_object_is_made(fake):
    server = fake()
    Keystone(LOGIN, server.url)
    assert server.logins == 0


def test_a_profile_without_keystone_says_so(loaded):
    for store in (None, Store("directory", "/somewhere")):
        with pytest.raises(UsageError, match="has no Keystone"):
            keystone_for(replace(loaded, store=store))
        assert list_credentials(replace(loaded, store=store)) == []


def test_a_credential_that_cannot_be_had_is_listed_with_its_problem(loaded, tmp_path):
    hpc = Hpc("nowhere", "/p", ssh_config="/dev/null", needs_certificate=True, renew_hint="ask")
    rows = list_credentials(replace(loaded, hpc=hpc))
    assert [row.what for row in rows] == ["login", "ssh certificate for nowhere"]
    assert "cannot read the login" in rows[0].problem
    assert (rows[1].problem, rows[1].how_to_renew) == ("the certificate is missing", "ask")


@pytest.fixture
def shown(loaded, fake, tmp_path):
    """Settings of a store with a Keystone that counts, and that Keystone."""
    env_file(tmp_path / ".env")
    server = fake()
    return replace(loaded, store=Store("s3", "http://127.0.0.1:9", auth_url=server.url)), server


def test_showing_credentials_makes_no_login_of_its_own_and_no_key(shown):
    here, server = shown
    keystone_for(here).token()
    rows = list_credentials(here)
    assert [row.what for row in rows] == [
        "login of anna in project_2001234",
        "Keystone token (Swift)",
        "EC2 key (S3), not made yet",
    ]
    assert rows[2].how_to_renew == "the first use makes it: kit store ls"
    assert not any(row.problem for row in rows)
    assert (server.logins, server.ec2_keys) == (1, [])
    assert keystone_for(here).ec2_key().access == "access-1"
    assert [row.what for row in list_credentials(here)][2] == "EC2 key (S3)"
    assert (server.logins, len(server.ec2_keys)) == (1, 1)


def test_a_changed_password_is_a_new_login(shown, tmp_path):
    here, server = shown
    keystone_for(here).token()
    env_file(tmp_path / ".env", CSC_PASSWORD="another")
    keystone_for(here).token()
    assert server.logins == 2


def test_a_row_is_text_for_a_table():
    endless = Credential("EC2 key (S3)", None, None, "automatic")
    assert list(as_row(endless).values()) == ["EC2 key (S3)", "never", "-", "automatic", ""]
    ending = as_row(Credential("token", 1_800_000_000.0, 7325.0, "automatic"))
    assert (ending["expires"], ending["left"]) == ("2027-01-15 08:00:00 UTC", "2 h 02 min")
    refused = as_row(Credential("login", None, None, "fix it", "refused\nby Keystone"))
    assert (refused["expires"], refused["problem"]) == ("-", "refused by Keystone")


def test_the_expiry_is_compared_with_the_end_of_a_job():
    token = Credential("token", 1000.0, 900.0, "automatic")
    assert describe_expiry(token, 1000.0) == "lasts"
    assert describe_expiry(token, 1600.0).startswith("expires 10 min too early: what was submitted")
    assert describe_expiry(replace(token, problem="refused\nbecause"), 1.0).startswith(
        "refused; to"
    )


APPLICATION = {
    "CSC_PASSWORD": None,
    "CSC_USER_DOMAIN_NAME": None,
    "OS_APPLICATION_CREDENTIAL_ID": "app-1",
    "OS_APPLICATION_CREDENTIAL_SECRET": PLANTED,
}


def test_application_credential_takes_the_place_of_the_password(shown, tmp_path):
    here, server = shown
    env_file(tmp_path / ".env", **APPLICATION)
    login = read_login(here, {})
    assert (login.application_id, login.password.reveal(), login.domain) == ("app-1", PLANTED, "")
    assert login.lines() == {name: value for name, value in (LINES | APPLICATION).items() if value}
    keystone_for(here).token()
    assert server.identities[-1] == {
        "methods": ["application_credential"],
        "application_credential": {"id": "app-1", "secret": PLANTED},
    }
    rows = list_credentials(here)
    assert rows[0].what == "application credential of anna in project_2001234"
    assert "new application credential" in rows[0].how_to_renew
    assert PLANTED not in repr(rows) + repr(login)


def test_password_has_precedence_over_an_application_credential(loaded, tmp_path):
    env_file(
        tmp_path / ".env", **(APPLICATION | {"CSC_PASSWORD": "pw", "CSC_USER_DOMAIN_NAME": "D"})
    )
    assert read_login(loaded, {}).application_id == ""
    assert read_login(replace(loaded, env_file=None), LINES | APPLICATION).application_id == "app-1"


def test_incomplete_application_credential_is_refused_without_showing_it(loaded, tmp_path):
    env_file(tmp_path / ".env", **(APPLICATION | {"CSC_PROJECT_NAME": None}))
    with pytest.raises(UsageError, match="lacks CSC_PROJECT_NAME") as caught:
        read_login(loaded, {})
    assert "OS_APPLICATION_CREDENTIAL_SECRET" in caught.value.next_step
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("logins", "keys", "step"),
    [(401, 201, "may have expired or been deleted"), (201, 403, "--unrestricted")],
)
def test_refused_application_credential_has_its_own_next_step(logins, keys, step, fake):
    server = fake(status=logins)
    server.ec2_status = keys
    login = replace(LOGIN, application_id="app-1")
    with pytest.raises(CredentialRefused) as caught:
        Keystone(login, server.url).ec2_key()
    assert step in caught.value.next_step
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def real(sandbox):
    """The sandbox's settings and a Keystone of its login."""
    loaded = load("sandbox")
    return loaded, keystone_for(loaded)


WRONG = {
    "password": {"password": Secret("wrong")},
    "user": {"username": "nobody"},
    "project": {"project": "project_9999999"},
    "domain": {"domain": "Elsewhere"},
}


@pytest.mark.sandbox
@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_login_is_refused_with_all_possible_causes(part, real):
    _, keystone = real
    wrong = Keystone(replace(keystone.login, **WRONG[part]), keystone.auth_url)
    with pytest.raises(CredentialRefused) as caught:
        wrong.token()
    for word in ("user name", "password", "domain", "project", str(keystone.login.source)):
        assert word in caught.value.next_step


@pytest.mark.sandbox
def test_the_sandbox_gives_a_token_of_hours_and_the_same_ec2_key_again(real):
    _, keystone = real
    assert keystone.token() == keystone.token()
    assert keystone.valid_until() - time.time() > 3600
    other = Keystone(keystone.login, keystone.auth_url, keystone.ca_file)
    assert keystone.ec2_key() == keystone.ec2_key() == other.find_ec2_key()
    assert keystone.storage_url("regionOne").startswith("https://127.0.0.1:")
    with pytest.raises(UsageError, match="no object store in region nowhere"):
        keystone.storage_url("nowhere")


@pytest.mark.sandbox
def test_the_list_has_each_credential_and_no_secret(real):
    loaded, keystone = real
    now = time.time()
    key = keystone.ec2_key()
    rows = {row.what: row for row in list_credentials(loaded, now)}
    took = time.time() - now  # the token was made some time after `now`
    login, token, ec2, certificate = rows.values()
    assert login.what == "login of researcher in project_2001234"
    assert 3600 < token.left_s <= 8 * 3600 + took
    assert (ec2.what, ec2.valid_until) == ("EC2 key (S3)", None)
    assert 0 < certificate.left_s <= 24 * 3600 + 600
    assert not any(row.problem for row in rows.values())
    for secret in (keystone.login.password, key.secret, keystone.token()):
        assert secret.reveal() not in repr(rows)
    late = list_credentials(loaded, now + 30 * 3600)[-1]
    assert (late.problem, late.left_s < 0) == ("it has expired", True)


def test_credentials_are_written_nowhere(loaded, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    env_file(tmp_path / ".env")
    here = replace(loaded, store=Store("swift", "", auth_url=fake().url))
    keystone_for(here).token()
    assert [path.name for path in Path(tmp_path).rglob("*")] == [".env"]
