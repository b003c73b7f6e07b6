"""Secret files: one parser, one rule of who may read them, nothing that git tracks."""

import os
import subprocess
from pathlib import Path

import pytest

from kit.base import Secret, SecretTracked, UsageError, parse_env, read_env, refuse_tracked
from kit.base.secret import secrets_in_use

LINES = {
    "plain": ("NAME=value", "value"),
    "blanks around the equals sign": ("NAME = value", "value"),
    "a comment after the value": ("NAME=value # comment", "value"),
    "export and two blanks": ("export  NAME=value", "value"),
    "a variable is not expanded": ("NAME=ab${c}d", "ab${c}d"),
    "double quotes": ('NAME = "a b"', "a b"),
    "a dollar sign in quotes": ('NAME="$HOME"', "$HOME"),
}


@pytest.mark.parametrize("form", LINES)
def test_every_form_of_a_line_has_one_reading(form):
    line, value = LINES[form]
    assert parse_env(line) == ({"NAME": value}, [])


def test_malformed_lines_are_numbered_and_do_not_hide_the_others():
    assert parse_env("A=1\nis it\nB=2") == ({"A": "1", "B": "2"}, [2])


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604])
def test_file_that_others_may_read_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "mlflow.env"
    path.write_text("A=1")
    path.chmod(mode)
    if mode == 0o600:
        assert read_env(path, "read it", "write it") == {"A": "1"}
        return
    with pytest.raises(UsageError, match="can be read by others") as caught:
        read_env(path, "read it", "write it")
    assert caught.value.got == f"mode {mode:o}"
    assert caught.value.next_step == f"chmod 600 {path}"


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def test_tracked_file_is_refused_and_an_untracked_one_is_not(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("tracked.env", "own.env"):
        (tmp_path / name).write_text("A=1")
    git(tmp_path, "add", "tracked.env")
    refuse_tracked(tmp_path / "own.env")
    with pytest.raises(SecretTracked, match=r"is tracked by git"):
        refuse_tracked(tmp_path / "tracked.env")


def test_tracked_file_is_refused_within_the_hook_of_another_repository(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.env").write_text("A=1")
    git(tmp_path, "add", "a.env")
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    with pytest.raises(SecretTracked, match=r"is tracked by git"):
        refuse_tracked(tmp_path / "a.env")


def test_file_is_refused_if_git_does_not_say_whether_it_is_tracked(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.env").write_text("A=1")
    dubious = tmp_path / "bin" / "git"
    dubious.parent.mkdir()
    dubious.write_text("#!/bin/sh\necho 'fatal: detected dubious ownership' >&2; exit 128\n")
    dubious.chmod(0o755)
    monkeypatch.setenv("PATH", f"{dubious.parent}:{os.environ['PATH']}")
    with pytest.raises(SecretTracked, match="it is not known whether git tracks") as caught:
        refuse_tracked(tmp_path / "a.env")
    assert "dubious ownership" in caught.value.got


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to change the owner of a repository")
def test_tracked_file_in_a_repository_of_another_owner_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    git(tmp_path, "init", "-q")
    path = tmp_path / "a.env"
    path.write_text("A=1")
    git(tmp_path, "add", "a.env")
    for owned in (tmp_path, tmp_path / ".git"):
        os.chown(owned, 65534, 65534)
    with pytest.raises(SecretTracked):
        refuse_tracked(path)


def test_secret_that_nobody_holds_is_forgotten():
    held = Secret("held-by-this-test")
    assert any(secret is held for secret in secrets_in_use())
    del held
    assert "held-by-this-test" not in [secret.reveal() for secret in secrets_in_use()]
