"""Folders that other users could have created: refused, and symlinks never followed."""

import getpass
import os
import stat
from pathlib import Path

import pytest
from kit_sandbox.folders import check_owner, give, own_folder

from kit.base import UsageError


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_folder_is_created_with_its_mode(tmp_path):
    assert mode(own_folder(tmp_path / "a" / "b", 0o700, "")) == 0o700
    assert mode(own_folder(tmp_path / "a" / "b", 0o711, "")) == 0o711


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.symlink_to(path.parent), "it is a symlink"),
        (lambda path: path.touch(), "it is not a folder"),
        (lambda path: (path.mkdir(), path.chmod(0o775)), r"can write to it \(mode 775\)"),
        (lambda path: (path.mkdir(), path.chmod(0o757)), r"can write to it \(mode 757\)"),
    ],
)
def test_folder_that_others_could_change_is_refused(tmp_path, make, text):
    place = tmp_path / "x"
    make(place)
    with pytest.raises(UsageError, match=text) as caught:
        own_folder(place, 0o700, "choose another one")
    assert caught.value.next_step == "choose another one"


def test_folder_of_another_user_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=f"it belongs to {getpass.getuser()}"):
        check_owner(tmp_path, os.getuid() + 1, "")


@pytest.mark.parametrize("kind", ["symlink", "open to others"])
def test_parent_that_somebody_else_made_in_between_is_refused(tmp_path, monkeypatch, kind):
    """It is missing when it is looked for, and there when it is created."""
    parent = tmp_path / "a"

    def exists(path):
        if path == parent and not os.path.lexists(parent):
            if kind == "symlink":
                (tmp_path / "elsewhere").mkdir()
                parent.symlink_to(tmp_path / "elsewhere")
            else:
                parent.mkdir()
                parent.chmod(0o777)
            return False
        return real(path)

    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", exists)
    with pytest.raises(UsageError, match=f"{parent} cannot be used"):
        own_folder(parent / "b", 0o700, "")
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("place", ["home", "home/x", "home/x/keys"])
@pytest.mark.parametrize("kind", ["folder", "file", "nowhere"])
def test_symlink_on_the_way_is_refused_and_its_target_unchanged(tmp_path, place, kind):
    base, victim = tmp_path / "state", tmp_path / "victim"
    (base / "home" / "x").mkdir(parents=True)
    if kind == "folder":
        victim.mkdir(mode=0o750)
    elif kind == "file":
        victim.write_text("private")
        victim.chmod(0o640)
    before = victim.lstat() if kind != "nowhere" else None
    path = base / place
    path.exists() and path.rename(tmp_path / "old")
    path.symlink_to(victim)
    with pytest.raises(UsageError, match="home/x/keys cannot be used"):
        give(base, "home/x/keys", os.getuid(), 0o644, file=True)
    if before is None:
        assert not victim.exists()
    else:
        after = victim.lstat()
        assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (
            before.st_mode,
            before.st_uid,
            before.st_mtime_ns,
        )


def test_hard_link_to_another_file_is_refused(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("private")
    victim.chmod(0o600)
    os.link(victim, tmp_path / "keys")
    with pytest.raises(UsageError, match="not a regular file with one name"):
        give(tmp_path, "keys", os.getuid(), 0o644, file=True)
    assert mode(victim) == 0o600


def test_missing_folder_and_file_are_created(tmp_path):
    give(tmp_path, "home", os.getuid(), 0o755)
    give(tmp_path, "home/keys", os.getuid(), 0o644, file=True)
    (tmp_path / "home" / "keys").write_text("kept")
    give(tmp_path, "home/keys", os.getuid(), 0o600, file=True)
    assert (mode(tmp_path / "home"), mode(tmp_path / "home" / "keys")) == (0o755, 0o600)
    assert (tmp_path / "home" / "keys").read_text() == "kept"


def test_folder_that_cannot_be_created_is_refused_with_the_way_out():
    """A home folder that does not exist or is not writable, a disk that is read-only."""
    with pytest.raises(UsageError, match="/proc/x/y cannot be used by the sandbox") as caught:
        own_folder(Path("/proc/x/y"), 0o700, "set KIT_CACHE_DIR")
    assert caught.value.next_step == "set KIT_CACHE_DIR"
