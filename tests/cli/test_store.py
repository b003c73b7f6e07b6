"""`kit store` and `kit credentials`: tables, and where a download may be written."""

import os

import pytest
from click.testing import CliRunner
from cloud_site import make_site

from kit import store
from kit.cli.main import cli
from kit.store import Credential


@pytest.fixture
def site(tmp_path, monkeypatch):
    make_site(tmp_path, monkeypatch)
    (tmp_path / "notes.txt").write_text("hello")
    assert call("put", str(tmp_path / "notes.txt"), "notes.txt").exit_code == 0
    return tmp_path


def call(*words):
    return CliRunner().invoke(cli, ["store", *words])


def test_objects_are_listed_with_a_header_in_100_columns(site):
    head, row = call("ls").output.splitlines()
    assert head.split() == ["BYTES", "MODIFIED", "(UTC)", "KEY"]
    assert row.split()[0] == "5"
    assert row.endswith("notes.txt")
    assert len(row) <= 100


def test_a_download_replaces_a_regular_file(site):
    target = site / "copy.txt"
    target.write_text("old")
    assert call("get", "notes.txt", str(target)).exit_code == 0
    assert target.read_text() == "hello"


def test_a_download_does_not_replace_a_symlink_a_pipe_or_a_folder(site):
    precious = site / "precious"
    precious.write_text("kept")
    (site / "link").symlink_to(precious)
    (site / "broken").symlink_to(site / "nowhere")
    os.mkfifo(site / "pipe")
    (site / "folder").mkdir()
    for name, words in [
        ("link", "is a symlink"),
        ("broken", "is a symlink"),
        ("pipe", "is not a regular file"),
        ("folder", f"name a file, such as {site}/folder/notes.txt"),
    ]:
        done = call("get", "notes.txt", str(site / name))
        assert done.exception.exit_code == 2, name
        assert words in str(done.exception)
    assert precious.read_text() == "kept"
    assert (site / "link").is_symlink()
    assert not (site / "nowhere").exists()
    assert (site / "pipe").is_fifo()


def test_credentials_are_a_table_with_the_problem_below(monkeypatch):
    rows = [
        Credential("login of anna", None, None, "change the password in MyCSC"),
        Credential("ssh certificate", 0.0, 0.0, "sign it again", "it has expired"),
    ]
    monkeypatch.setattr(store, "list_credentials", lambda _settings: rows)
    done = CliRunner().invoke(cli, ["credentials"])
    lines = done.output.splitlines()
    assert lines[0].split("  ")[0] == "CREDENTIAL"
    assert all(name in lines[0] for name in ("EXPIRES", "LEFT", "HOW TO RENEW"))
    assert lines[-1] == "problem with ssh certificate: it has expired"
    assert max(map(len, lines)) <= 100
    assert done.exit_code == 1
