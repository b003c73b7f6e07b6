"""The list of people who may use the API, and the token of each."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from kit.base import LOGIN_NAMES, UsageError
from kit.base.settings import load
from kit.cli.forwarder import forwarder_group
from kit.forwarder.collect import Buckets
from kit.forwarder.people import new_token, people, people_of
from kit.forwarder.schedule import redis_url, secret_of
from kit.forwarder.serve import TokenAuth


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("anna\n", 0o600, "line 1, names nobody"),
        ("anna " + "a" * 63, 0o600, "line 1"),
        (f"../x {'a' * 64}", 0o600, "line 1"),
        (f"anna {'a' * 64}\nbea {'a' * 64}", 0o600, "line 2"),
        (f"anna {'a' * 64}", 0o644, "can be read by others"),
        ("\xe4", 0o600, "read who may ask"),
    ],
)
def test_invalid_list_of_people_is_refused(tmp_path, text, mode, message):
    file = tmp_path / "people"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(UsageError, match=message):
        people(file, None, lambda user: Buckets(user, user, None, None))
    with pytest.raises(UsageError, match="read who may ask"):
        people(tmp_path / "none", None, lambda user: None)


def let_in(file, token):
    """The user whom the API lets in with a token, None for nobody."""
    persons = people(file, None, lambda user: Buckets(user, user, None, None))
    known = TokenAuth(None, persons)._known(f"Bearer {token}".encode())
    return persons[known].name if known in persons else None


def test_new_token_is_shown_once_and_stored_as_its_hash(tmp_path, monkeypatch):
    file = tmp_path / "secrets" / "people"
    monkeypatch.setenv("KIT_FORWARDER_PEOPLE", str(file))
    tokens = []
    for user in ("anna", "bea"):
        done = CliRunner().invoke(forwarder_group, ["token", user])
        assert done.exit_code == 0, done.output
        tokens.append(done.stdout.strip())
        assert done.output.count(tokens[-1]) == 1
    assert [let_in(file, token) for token in tokens] == ["anna", "bea"]
    assert not [token for token in tokens if token in file.read_text()]
    assert len(base64.urlsafe_b64decode(tokens[0] + "=")) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_new_token_leaves_the_older_ones_unless_they_are_revoked(tmp_path):
    file = tmp_path / "people"
    first, other = new_token(file, "anna"), new_token(file, "bea")
    second = new_token(file, "anna")
    assert [let_in(file, token) for token in (first, second, other)] == ["anna", "anna", "bea"]
    third = new_token(file, "anna", revoke=True)
    found = [let_in(file, token) for token in (first, second, third, other)]
    assert found == [None, None, "anna", "bea"]


def test_tokens_made_at_the_same_time_are_all_there(tmp_path):
    file = tmp_path / "people"
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda n: new_token(file, f"user{n}"), range(16)))
    assert [let_in(file, token) for token in tokens] == [f"user{n}" for n in range(16)]


@pytest.mark.parametrize("user", ["", "Anna", "an na", "anna\n", "a" * 41, "../x"])
def test_token_for_a_user_without_buckets_is_refused(tmp_path, user):
    with pytest.raises(UsageError, match="make a token"):
        new_token(tmp_path / "people", user)
    assert not (tmp_path / "people").exists()


def test_damaged_list_is_not_overwritten_by_a_new_token(tmp_path):
    file = tmp_path / "people"
    file.write_text("anna\n")
    file.chmod(0o600)
    with pytest.raises(UsageError, match="line 1"):
        new_token(file, "bea")
    assert file.read_text() == "anna\n"


def test_files_named_by_variables_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = new_token(tmp_path / "people", "anna")
    monkeypatch.setenv("KIT_FORWARDER_PEOPLE", "~/people")
    (tmp_path / ".env").write_text("".join(f"{name}=x\n" for name in LOGIN_NAMES))
    (tmp_path / ".env").chmod(0o600)
    settings = load("sandbox", {"KIT_ENV_FILE": str(tmp_path / ".env")})
    assert [person.name for person in people_of(settings).values()] == ["anna"]
    for name, text in (("redis", "redis://:secret@localhost/0"), ("login", "me:secret")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("KIT_FORWARDER_REDIS", "~/redis")
    monkeypatch.setenv("KIT_FLOWER_LOGIN", "~/login")
    assert redis_url().reveal() == "redis://:secret@localhost/0"
    assert secret_of("KIT_FLOWER_LOGIN", "USER:PASSWORD").reveal() == "me:secret"
    assert token not in (tmp_path / "people").read_text()
