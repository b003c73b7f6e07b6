"""Folders in places that other users can write to: created safely, never followed by a symlink.

The sandbox keeps its state and its software below a folder in which everybody may create names,
and root runs it. Nothing that somebody else could have put there is executed, followed or given
to another owner.
"""

import contextlib
import os
import stat
from pathlib import Path

from kit.base import UsageError
from kit_sandbox.processes import user_name


def own_folder(folder: Path, mode: int, next_step: str) -> Path:
    """Create a folder of this user with this mode, or set the mode of the one that is there.

    It is created first and looked at afterwards, so that nobody can come between; missing folders
    above it likewise. Raises UsageError if one of them is a symlink, not a folder, another user's,
    or writable by others, or cannot be created.
    """
    try:
        _create(folder, mode, next_step)
        folder.chmod(mode)
    except OSError as err:
        tried = f"{folder} cannot be used by the sandbox"
        raise UsageError(tried, str(err), next_step) from err
    return folder


def _create(folder: Path, mode: int, next_step: str) -> None:
    if not os.path.exists(folder.parent):
        _create(folder.parent, 0o755, next_step)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
    check_owner(folder, os.getuid(), next_step)


def check_owner(folder: Path, uid: int, next_step: str) -> None:
    """Raise UsageError unless this is a folder of that user which only that user can write to."""
    try:
        status = folder.lstat()
    except OSError as err:
        raise UsageError(f"use the folder {folder}", str(err), next_step) from err
    owner, mode = user_name(status.st_uid), stat.S_IMODE(status.st_mode)
    got = ""
    if stat.S_ISLNK(status.st_mode):
        got = f"it is a symlink of {owner}"
    elif not stat.S_ISDIR(status.st_mode):
        got = "it is not a folder"
    elif status.st_uid != uid:
        got = f"it belongs to {owner}"
    elif mode & 0o022:
        got = f"other users can write to it (mode {mode:o})"
    if got:
        raise UsageError(f"{folder} cannot be used by the sandbox", got, next_step)


def give(base: Path, relative: str, uid: int, mode: int, file: bool = False) -> None:
    """Create a folder or an empty file below `base` if it is missing; set its owner and mode.

    Another account may own the folders on the way and put a symlink in place of any of them, so
    each is opened without following symlinks and changed through its descriptor. Raises
    UsageError that names the path if there is a symlink, a hard link or something else.
    """
    *parents, name = Path(relative).parts
    try:
        with contextlib.ExitStack() as handles:
            handle = _open(handles, base, os.O_DIRECTORY)
            for part in parents:
                handle = _open(handles, part, os.O_DIRECTORY, handle)
            with contextlib.suppress(FileExistsError):
                if file:
                    _open(handles, name, os.O_CREAT | os.O_EXCL, handle)
                else:
                    os.mkdir(name, 0o700, dir_fd=handle)
            kind = os.O_NONBLOCK if file else os.O_DIRECTORY
            _change(_open(handles, name, kind, handle), uid, mode, file)
    except OSError as err:
        step = "remove it, then start the sandbox again"
        raise UsageError(f"{base / relative} cannot be used", str(err), step) from err


def _open(
    handles: contextlib.ExitStack, name: str | Path, flags: int, folder: int | None = None
) -> int:
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, 0o600, dir_fd=folder)
    handles.callback(os.close, handle)
    return handle


def _change(target: int, uid: int, mode: int, file: bool) -> None:
    status = os.fstat(target)
    if file and not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1):
        raise OSError("it is not a regular file with one name")
    if os.getuid() == 0:
        os.fchown(target, uid, uid)
    os.fchmod(target, mode)
