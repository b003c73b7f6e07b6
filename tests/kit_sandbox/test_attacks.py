"""What another local user could put in the sandbox's way: not executed, not followed."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from kit_sandbox import files, roots
from sandbox_command import kit_sandbox

from kit.base import UsageError
from kit.base.settings import load


@pytest.fixture
def public():
    """A folder in which everybody may create names, as the system's temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="kit-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def plant(folder: Path, proof: Path) -> None:
    """Put programs that leave a mark where the sandbox looks for its own, with their stamps."""
    shutil.copytree(roots.SOURCE / "roots", folder / "packages")
    for name in ("keystone/bin/python", "roots/bookworm/bin/bash", "roots/bookworm/usr/bin/bash"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\nid >>{proof}\n")
        (folder / name).chmod(0o755)
    stamp = folder / "roots" / "bookworm" / roots.STAMP
    stamp.parent.mkdir(parents=True)
    stamp.write_text(roots._recipe("bookworm"))


def give_away(folder: Path) -> str:
    """Make a folder somebody else's, or writable for everybody where that is not possible."""
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
        return "it belongs to nobody"
    folder.chmod(0o777)
    return "other users can write to it"


def test_software_folder_that_somebody_else_made_first_is_not_executed(public):
    plant(public / "sandbox", public / "proof")
    reason = give_away(public / "sandbox")
    environ = os.environ | {"KIT_CACHE_DIR": str(public), "KIT_SANDBOX_DIR": str(public / "s")}
    done = kit_sandbox("install", env=environ)
    assert done.returncode == 2
    assert f"{public}/sandbox cannot be used by the sandbox" in done.stderr
    assert reason in done.stderr
    assert not (public / "proof").exists()


def test_root_planted_inside_a_good_folder_is_not_entered(public):
    """It is created again only after the folder above was found to be closed to others."""
    cache = public / "sandbox"
    cache.mkdir(mode=0o700)
    plant(cache, public / "proof")
    give_away(cache / "roots")
    environ = os.environ | {"KIT_CACHE_DIR": str(public), "KIT_SANDBOX_DIR": str(public / "s")}
    done = kit_sandbox("install", env=environ)
    assert done.returncode == 2
    assert f"{cache}/roots cannot be used by the sandbox" in done.stderr
    assert not (public / "proof").exists()


@pytest.mark.parametrize("target", ["file", "folder"])
@pytest.mark.parametrize("place", ["home/kit-tunnel/.ssh", "home/kit-tunnel/.ssh/authorized_keys"])
def test_start_follows_no_symlink_of_an_account_of_the_site(public, place, target):
    """The accounts own folders below the state folder, and could replace what is in them."""
    settings = load("sandbox", {"KIT_SANDBOX_DIR": str(public / "s")})
    folder = files.state_folder(settings)
    files.prepare(settings, folder, public / "debian")
    victim = public / "victim"
    if target == "folder":
        victim.mkdir(mode=0o700)
    else:
        victim.write_text("secret")
        victim.chmod(0o600)
    before = victim.stat()
    (folder / place).rename(public / "old")
    (folder / place).symlink_to(victim)
    with pytest.raises(UsageError, match=r"\.ssh"):
        files.prepare(settings, folder, public / "debian")
    after = victim.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert target == "file" or not any(victim.iterdir())


def test_state_is_closed_to_other_users_from_the_first_moment(public):
    settings = load("sandbox", {"KIT_SANDBOX_DIR": str(public / "s")})
    previous = os.umask(0)
    try:
        folder = files.state_folder(settings)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
