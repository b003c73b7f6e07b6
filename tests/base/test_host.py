"""One contract over every implementation of Host."""

import os
import stat
from pathlib import Path

import pytest
from fake_slurm import FakeHost

from kit.base import (
    CommandFailed,
    DataError,
    KitError,
    LocalHost,
    Unreachable,
)


@pytest.fixture(params=["local", "ssh", "fake"])
def host(request, tmp_path):
    if request.param == "local":
        yield LocalHost()
    elif request.param == "fake":
        yield FakeHost()
    else:
        yield request.getfixturevalue("sshd").host()


# The contract: the same for every implementation.


def test_command_gives_its_output_and_its_exit_code(host):
    done = host.run(["cat"], input=b"one\ntwo")
    assert (done.code, done.out, done.err) == (0, "one\ntwo", "")
    assert done.argv == ("cat",)
    assert done.seconds >= 0


@pytest.mark.parametrize(
    "word",
    ["a b", "it's", '"', "$HOME", "`id`", "*", "a\nb", "", "-n", "ä€", "\\", "!", "a;b|c&d", "~"],
)
def test_every_argument_arrives_as_it_was_given(host, word):
    assert host.run(["printf", "%s|", word, "end"]).out == f"{word}|end|"


def test_command_that_fails_is_an_error_with_its_streams(host):
    with pytest.raises(CommandFailed) as caught:
        host.run(["cat", "/no/such/file"])
    assert caught.value.code == 1
    assert "/no/such/file" in caught.value.err


def test_failure_can_be_an_answer(host):
    assert host.run(["cat", "/no/such/file"], check=False).code == 1


def test_command_that_does_not_exist_is_127(host):
    assert host.run(["no-such-command"], check=False).code == 127


def test_no_answer_in_time_is_unreachable_not_a_failure(host):
    with pytest.raises(Unreachable):
        host.run(["sleep", "30"], timeout=0.3)


def test_file_is_put_and_fetched_with_its_mode(host, tmp_path):
    target, copy = f"{tmp_path}/new/folder/a b", tmp_path / "copy"
    content = bytes(range(256)) * 1000
    host.put(content, target, mode=0o640)
    host.get(target, copy)
    assert copy.read_bytes() == content
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    if not isinstance(host, FakeHost):
        assert stat.S_IMODE(os.stat(target).st_mode) == 0o640
        assert os.listdir(Path(target).parent) == ["a b"]


def test_local_file_can_be_put_in_place_of_an_older_one(host, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"newer\n")
    host.put(b"older, and longer\n", f"{tmp_path}/target")
    host.put(source, f"{tmp_path}/target")
    host.get(f"{tmp_path}/target", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"newer\n"


def test_file_that_is_not_there_cannot_be_fetched(host, tmp_path):
    with pytest.raises(CommandFailed):
        host.get("/no/such/file", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_file_cannot_be_put_where_there_is_no_folder_to_be(host):
    with pytest.raises(CommandFailed):
        host.put(b"x", "/proc/none/file")


def test_unusable_folder_is_named_and_the_script_is_not_shown(request, tmp_path):
    for host in (LocalHost(), request.getfixturevalue("sshd").host()):
        with pytest.raises(CommandFailed) as caught:
            host.put(b"x", "/proc/none/file")
        tried, got, step = caught.value.tried, caught.value.got, caught.value.next_step
        assert tried.startswith("`write /proc/none/file`")
        assert got.startswith("cannot use the folder /proc/none: mkdir: cannot create directory")
        assert "make it writable" in step
        with pytest.raises(CommandFailed) as caught:
            host.run(["sh", "-c", "echo no >&2\nexit 3", "sh", "word"])
        assert caught.value.tried == "`sh -c … sh word` ended with exit code 3"


# What both real hosts do.


def test_project_folder_that_is_missing_is_not_created(request, tmp_path):
    for host in (LocalHost(), request.getfixturevalue("sshd").host()):
        with pytest.raises(CommandFailed, match=f"no folder {tmp_path}/project"):
            host.put(b"x", f"{tmp_path}/project/kit/tries/0123456789ab/file")
        assert not (tmp_path / "project").exists()
    (tmp_path / "project").mkdir()
    LocalHost().put(b"x", f"{tmp_path}/project/kit/tries/0123456789ab/file")


def test_file_that_changes_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "bin").mkdir()
    cat = tmp_path / "bin" / "cat"
    cat.write_text('#!/bin/sh\necho changed\nexec /bin/cat "$@"\n')
    cat.chmod(0o755)
    (tmp_path / "file").write_text("content")
    host = LocalHost(prefix=("env", f"PATH={tmp_path}/bin:{os.environ['PATH']}"))
    with pytest.raises(DataError, match="file"):
        host.get(f"{tmp_path}/file", tmp_path / "copy")


def test_output_excludes_what_start_files_print(sshd, tmp_path, monkeypatch):
    noisy = tmp_path / "noisy"
    noisy.write_text('#!/bin/sh\necho 4711; echo noise >&2; "$@"; r=$?; echo 4712; exit $r\n')
    noisy.chmod(0o755)
    host = sshd.host(name="noisy")
    command = host._command
    # the same as a profile that talks before and after every command
    monkeypatch.setattr(host, "_command", lambda *o: _Noisy(command(*o), str(noisy)))
    done = host.run(["sh", "-c", "printf out; printf err >&2; exit 5"], check=False)
    assert (done.code, done.out, done.err) == (5, "out", "err")


class _Noisy(list):
    """An ssh command whose remote command is run by a noisy profile."""

    def __init__(self, words, noisy):
        super().__init__(words)
        self.noisy = noisy

    def __iter__(self):
        *words, last = list.__iter__(self)
        remote = last.startswith("exec sh")
        yield from [*words, f"{self.noisy} {last.removeprefix('exec ')}" if remote else last]


# Errors of the operating system.


def test_temporary_folder_that_cannot_be_used_is_an_error_of_the_kit(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(KitError, match="make a temporary file"):
        LocalHost().run(["true"])


def test_missing_local_file_is_not_reported_as_a_missing_program(tmp_path):
    gone = tmp_path / "gone"
    for action in (
        lambda: LocalHost().put(gone, f"{tmp_path}/target"),
        lambda: LocalHost().run(["cat"], input=gone, check=False),
    ):
        with pytest.raises(DataError, match=f"cannot read {gone}"):
            action()


def test_fetched_file_needs_a_folder_and_a_disk_with_room(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="its folder does not exist"):
        LocalHost().get("/etc/hostname", tmp_path / "none" / "x")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kit.base.files.os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        LocalHost().get("/etc/hostname", tmp_path / "x")
