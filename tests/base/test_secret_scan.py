"""The secret scan knows what the kit reads, in every encoding of the files that are kept."""

import base64
import dataclasses
import html
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.base import Secret, SecretFound, find_secrets, hide_secrets, known_secrets, refuse_secrets
from kit.base.sections import SECTIONS, TABLES
from kit.base.settings import Cloud, Port, Settings, Store, load

VALUE = 'pa"ss\\wörd+<1>'


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bare = load("sandbox", {"KIT_SANDBOX_DIR": str(tmp_path / "s")})
    return dataclasses.replace(bare, env_file=None, cloud=None, ports={})


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


ENV_LINES = {
    "plain": f"CSC_PASSWORD={VALUE}\n",
    "blanks": f"CSC_PASSWORD = {VALUE}\n",
    "comment": f"CSC_PASSWORD={VALUE} # mine\n",
    "export": f"export  CSC_PASSWORD={VALUE}\n",
    "quotes": "CSC_PASSWORD='{}'\n".format(VALUE.replace("\\", "\\\\")),
}


@pytest.mark.parametrize("form", ENV_LINES)
def test_the_scan_knows_the_password_that_the_login_accepts(form, settings, tmp_path):
    path = private(tmp_path / ".env", ENV_LINES[form])
    known = known_secrets(dataclasses.replace(settings, env_file=path), {})
    assert known["CSC_PASSWORD of .env"] == VALUE.encode()


PROFILE_FILES = {
    "env_file": f"CSC_PASSWORD={VALUE}",
    "cloud.mlflow_env_file": f"MLFLOW_TRACKING_PASSWORD={VALUE}",
    "cloud.prometheus_env_file": f"PROMETHEUS_PASSWORD={VALUE}",
    "cloud.forwarder_token_file": VALUE,
    "store.credentials_file": f"[a]\naccess_key_id = id\nsecret_access_key = {VALUE}",
    "ports: cat": f"kit:{VALUE}",
    "ports: grep NAME_PASSWORD": f"NAME_PASSWORD={VALUE}",
}
VARIABLE_FILES = {
    "KIT_FACE_TOKEN": VALUE,
    "KIT_FORWARDER_TOKEN": f"{VALUE}\n",
    "KIT_FORWARDER_REDIS": "redis://:redispassword@127.0.0.1:6379/0",
    "KIT_COMPOSE_SECRETS": json.dumps({"STORAGE_PASSWORD": VALUE}),
}
ENCODINGS = {
    "a log": lambda text: text,
    "a notebook": lambda text: json.dumps({"outputs": [text]}, ensure_ascii=False),
    "a notebook in ASCII": lambda text: json.dumps({"outputs": [text]}),
    "JSON shown in a notebook": lambda text: json.dumps([json.dumps({"a": text})]),
    "a page": html.escape,
    "a page in a notebook": lambda text: json.dumps([html.escape(text)]),
    "a URL": lambda text: "http://x/?p=" + quote(text, safe=""),
    "base64 after a name": lambda text: base64.b64encode(f"anna:{text}".encode()).decode(),
    "base64 in other text": lambda text: base64.b64encode(f"ab{text}c".encode()).decode(),
}


def with_file(settings: Settings, key: str, path: Path) -> Settings:
    if key == "env_file":
        return dataclasses.replace(settings, env_file=path)
    if key.startswith("ports"):
        command = f"{key.removeprefix('ports: ')} '{path}'"
        return dataclasses.replace(settings, ports={"page": Port(1, password=command)})
    if key.startswith("store."):
        store = Store("s3", "https://s3.example", credentials_file=str(path))
        return dataclasses.replace(settings, store=store)
    return dataclasses.replace(settings, cloud=Cloud(**{key.removeprefix("cloud."): str(path)}))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("key", PROFILE_FILES)
def test_secret_of_the_profile_is_found_in_every_encoding(key, encoding, settings, tmp_path):
    chosen = with_file(settings, key, private(tmp_path / "file", PROFILE_FILES[key]))
    content = f"before {ENCODINGS[encoding](VALUE)} after".encode()
    assert find_secrets(content, known_secrets(chosen, {}))


@pytest.mark.parametrize("name", VARIABLE_FILES)
def test_secret_whose_file_a_variable_names_is_found(name, settings, tmp_path):
    text = VARIABLE_FILES[name]
    known = known_secrets(settings, {name: str(private(tmp_path / "file", text))})
    value = "redispassword" if "REDIS" in name else VALUE
    assert find_secrets(f"before {value} after".encode(), known)


def test_token_that_the_forwarder_made_for_itself_is_found(settings, tmp_path):
    private(tmp_path / "face-token", VALUE)
    known = known_secrets(dataclasses.replace(settings, cache_dir=tmp_path), {})
    assert find_secrets(VALUE.encode(), known)


def test_passwords_of_the_platform_are_found(settings, tmp_path, monkeypatch):
    folder = tmp_path / "env" / "platform" / "secrets"
    folder.mkdir(parents=True)
    private(folder / "platform.env", f"MLFLOW_DB_PASSWORD={VALUE}\n")
    monkeypatch.setattr("kit.base.secret_scan.ROOT", tmp_path)
    assert find_secrets(VALUE.encode(), known_secrets(settings, {}))


def test_names_in_the_list_of_people_are_not_secrets(settings, tmp_path):
    people = private(tmp_path / "people", f"researcher {'a' * 64}\n")
    known = known_secrets(settings, {"KIT_FORWARDER_PEOPLE": str(people)})
    assert find_secrets(b"run of researcher", known) == []


def test_source_file_of_an_experiment_is_not_read_as_a_token(settings, tmp_path):
    path = private(tmp_path / "my_model.py", "PRIMARY, checkpoint = 'accuracy', None\n")
    known = known_secrets(settings, {"KIT_EXPERIMENTS": str(path)})
    assert find_secrets(b"the checkpoint of the experiment", known) == []


def test_every_key_of_a_profile_that_holds_a_secret_is_read():
    """A new key for a file with a secret needs a row in PROFILE_FILES, and the scan to read it."""
    keys = {
        f"{section}.{item.name}"
        for section, model in {**SECTIONS, **TABLES}.items()
        for item in dataclasses.fields(model)
        if re.search(r"(env|token|password|secret|credentials)_?file$|^password$", item.name)
    }
    places = {"env_file": "site.env_file", "ports: cat": "ports.password"}
    assert keys == {places.get(key, key) for key in PROFILE_FILES} - {"ports: grep NAME_PASSWORD"}


@pytest.mark.parametrize("name", ["CSC_PASSWORD", "MLFLOW_TRACKING_TOKEN", "KUBEFLOW_COOKIES"])
def test_secret_in_the_environment_is_found(name, settings):
    assert find_secrets(VALUE.encode(), known_secrets(settings, {name: VALUE}))


def test_secret_that_is_only_in_memory_is_found(settings, tmp_path):
    key = Secret("0123456789abcdef0123456789abcdef")
    log = private(tmp_path / "job.log", f"key {key.reveal()} shown")
    with pytest.raises(SecretFound, match=r"keep job\.log") as caught:
        refuse_secrets(settings, [log])
    assert key.reveal() not in str(caught.value)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(value=st.text(st.characters(min_codepoint=32, exclude_categories=["C", "Z"]), min_size=8))
def test_any_password_of_eight_characters_is_found(encoding, value):
    assert find_secrets(ENCODINGS[encoding](value).encode(), {"it": value.encode()})


@pytest.mark.parametrize("encoding", [str, quote, html.escape, json.dumps, repr])
def test_known_secret_is_taken_out_of_a_line(encoding, settings):
    value = 'pass word & "more"'
    hide = hide_secrets(settings, {"CSC_PASSWORD": value})
    line = f"environ: {encoding(value)}, epoch 1 of 2"
    assert find_secrets(line.encode(), {"it": value.encode()}) == ["it"]
    assert find_secrets(hide(line).encode(), {"it": value.encode()}) == []
    assert hide(line).endswith(", epoch 1 of 2")
    assert hide("nothing of it") == "nothing of it"


def test_short_password_is_named_in_a_warning_and_not_searched_for(settings, tmp_path):
    path = private(tmp_path / ".env", "CSC_PASSWORD=short12\n")
    with pytest.warns(UserWarning, match=r"CSC_PASSWORD of \.env has fewer than 8") as caught:
        known = known_secrets(dataclasses.replace(settings, env_file=path), {})
    assert b"short12" not in known.values()
    assert "short12" not in str(caught[0].message)


@pytest.mark.parametrize("text", ["http://127.0.0.1:5000/#/x", "user anna", "Bearer token", ""])
def test_ordinary_text_passes(settings, text):
    assert find_secrets(text.encode(), known_secrets(settings, {})) == []


PNG = base64.b64encode(b"\xfe" * 3 + b"\x80" + bytes(90)).decode()  # "gAAAAA…" follows a sign


@pytest.mark.parametrize(
    "text",
    [
        f'<img alt="a" src="data:image/png;base64,/v7+{PNG[4:]}">',
        json.dumps({"image/png": f"/v7+{PNG[4:]}\n"}, indent=1),
        json.dumps({"text/html": f'<img src="data:image/png;base64,/v7+{PNG[4:]}"/>'}),
    ],
    ids=["page", "notebook", "page in a notebook"],
)
def test_zeros_of_a_picture_are_no_token(settings, text):
    assert "+gAAAAAAA" in text
    assert find_secrets(text.encode(), known_secrets(settings, {})) == []


TOKEN = "gAAAAABpK" + "b_" * 60


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        json.dumps({"log": f"before\n{TOKEN}\nafter"}),
        json.dumps(json.dumps(f"before\n{TOKEN}")),
        f"https://example.org/{TOKEN}",
        "data:text/plain;base64," + base64.b64encode(f"token {TOKEN}".encode()).decode(),
        f"data:image/png;base64,={TOKEN}",
        json.dumps({"application/vnd.own": "gAAAAABp" + "b" * 60}),  # base64 as well, no picture
    ],
    ids=["plain", "JSON", "JSON in JSON", "URL", "embedded", "no base64", "other output"],
)
def test_token_is_known_by_its_shape(settings, text):
    assert find_secrets(text.encode(), known_secrets(settings, {})) == ["a Keystone token"]
