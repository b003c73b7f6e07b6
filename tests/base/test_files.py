"""Shapes and atomic writes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from kit.base import (
    DataError,
    KitError,
    Timeline,
    copy_whole,
    git_state,
    host_facts,
    read_json,
    temporary_folder,
    time_file,
    time_record,
    versions,
    write_json,
    write_text,
)


def test_time_record_has_the_published_keys_and_a_total_of_five_digits():
    record = time_record("pipeline", 1723100777.195106, 1723102086.9456024)
    assert record == {
        "name": "pipeline",
        "start-time": 1723100777.195106,
        "end-time": 1723102086.9456024,
        "total-seconds": 1309.7505,
    }


def test_time_file_numbers_its_records_from_one():
    assert time_file([{"name": "a"}, {"name": "b"}]) == {
        "1": {"name": "a"},
        "2": {"name": "b"},
    }


def test_timeline_sums_by_name_and_keeps_a_span_that_failed():
    timeline = Timeline()
    with timeline.span("data"):
        pass
    with pytest.raises(ValueError, match="broken"), timeline.span("training"):
        raise ValueError("broken")
    with timeline.span("data"):
        pass
    assert list(timeline.seconds()) == ["data", "training"]
    assert len(timeline.spans) == 3


@pytest.mark.parametrize(
    ("at", "parts"),
    [
        (12.0, {"loading": 2.0, "training": 3.0}),
        (10.0, {"training": 5.0}),
        (15.0, {"training": 5.0}),
        (3.0, {"training": 5.0}),  # of an earlier start
    ],
)
def test_span_is_divided_at_a_time_within_it(at, parts):
    timeline = Timeline([time_record("training", 10.0, 15.0)])
    timeline.split("loading", at)
    assert timeline.seconds() == parts


def test_start_of_a_process_is_before_its_first_line():
    code = "import time; now = time.time()\n"
    code += "from kit.base import process_began; print(now - process_began())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert -0.02 <= float(done.stdout) <= time.time() - before + 0.02  # a clock tick is 0.01 s


def test_json_has_indent_four_and_refuses_not_a_number(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "a.json").read_text() == '{\n    "x": 1\n}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize("content", ["", "{", '{"a": 1', "\x00\x01"])
def test_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "damaged.json"
    path.write_text(content)
    with pytest.raises(DataError, match="damaged.json"):
        read_json(path)


def test_missing_json_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nothing.json"):
        read_json(tmp_path / "nothing.json")


def test_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"old": True})

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KitError, match="No space left on device") as caught:
        write_json(path, {"new": True})
    assert "KIT_RESULTS_DIR" in caught.value.next_step
    assert read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KitError, match="cannot write .*file/result.json"):
        write_json(tmp_path / "file" / "result.json", {})


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_written_file_has_the_mode_that_the_umask_allows_and_a_secret_600(tmp_path, umask):
    before = os.umask(umask)
    try:
        for _ in range(2):  # a new file, then one that replaces it
            write_text(tmp_path / "result.json", "{}")
            write_text(tmp_path / "token", "secret", 0o600)
            modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("result.json", "token")]
            assert modes == [0o666 & ~umask, 0o600]
    finally:
        os.umask(before)


def test_kill_9_during_a_write_leaves_the_old_result_whole(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"old": True})
    code = (
        "import os, sys, pathlib; from kit.base import files\n"
        "os.replace = lambda a, b: os.kill(os.getpid(), 9)\n"
        "files.write_json(pathlib.Path(sys.argv[1]), {'new': True})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -9
    assert read_json(path) == {"old": True}


def test_the_git_state_of_a_folder_outside_git_is_unknown(tmp_path):
    assert git_state(tmp_path) == {"commit": None, "clean": None}


def test_the_git_state_tells_a_clean_tree_from_a_changed_one(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["clean"] is True
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["clean"] is False


def test_the_git_state_of_a_worktree_is_its_own(tmp_path):
    main, other = tmp_path / "main", tmp_path / "other"
    git = ["git", "-C", str(main), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", main], check=True)
    subprocess.run([*git, "commit", "-qm", "one", "--allow-empty"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", other], check=True)
    subprocess.run([*git, "commit", "-qm", "two", "--allow-empty"], check=True)
    (main / "changed").touch()
    state = git_state(other)
    assert state["clean"] is True
    assert state["commit"] != git_state(main)["commit"]
    assert git_state(main)["clean"] is False


def test_host_facts_and_versions_can_be_written_as_json():
    facts = host_facts()
    assert set(facts) == {"cpu", "cores", "system", "python"}
    assert facts["cores"] >= 1
    assert versions(["kit", "no-such-package"]) == {"kit": "0.1.0"}
    json.dumps(facts)


HOLD = """
import kit.base.files as files
files.MAX_TEMPDIR_CHARACTERS = 1000
with files.temporary_folder() as folder:
    print(folder, flush=True)
    input()
"""


def test_the_folder_of_a_killed_run_is_removed_by_the_next(tmp_path, monkeypatch):
    """A live one is kept, also by a process that sees other process ids, as in a container."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("kit.base.files.MAX_TEMPDIR_CHARACTERS", 1000)
    foreign = tmp_path / "kit-things"
    foreign.mkdir()
    argv = [sys.executable, "-c", HOLD]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as child:
        live = tmp_path / child.stdout.readline().strip()
        os.utime(live, (1, 1))
        with temporary_folder() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert sorted(tmp_path.iterdir()) == sorted([folder, live, foreign])
        child.kill()
    with temporary_folder() as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, foreign])
    assert sorted(tmp_path.iterdir()) == [foreign]


def test_new_folder_that_its_process_has_not_locked_yet_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("kit.base.files.MAX_TEMPDIR_CHARACTERS", 1000)
    new = tmp_path / "kit-tmp-abcdefgh"
    new.mkdir()
    with temporary_folder():
        assert new.exists()


def test_sockets_have_a_short_path_whatever_the_temporary_folder_is(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with temporary_folder() as folder:
        assert len(str(folder / "kernel-5")) < 107


def test_copy_of_a_checkpoint_that_was_killed_is_not_taken_for_one(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "checkpoint"
    source.mkdir()
    (source / "a").write_text("1")
    (source / "b").write_text("2")
    copy = shutil.copy2

    def killed(path, *rest):
        if str(path).endswith("b"):
            raise KeyboardInterrupt
        return copy(path, *rest)

    whole = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", lambda a, b: whole(a, b, copy_function=killed))
    with pytest.raises(KeyboardInterrupt):
        copy_whole(source, target)
    assert not target.exists()
    monkeypatch.setattr(shutil, "copytree", whole)
    copy_whole(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "source"]
