"""Bring files from mirrors: checksum, resume after a cut, one process at a time."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import Busy, DataError, Unreachable

if TYPE_CHECKING:
    import urllib3

TRIES_PER_MIRROR = 4
BACK_OFF_S = 0.2  # before the second try; twice as long each time
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, LOCK_TIMEOUT_S = 3.0, 30.0, 900.0


def bring(files: Mapping[str, str], folder: Path, mirrors: Sequence[str]) -> None:
    """Have every file of `files` (name -> MD5) in `folder`; what is there and right is kept.

    Raises Unreachable when no mirror answers, DataError when they answer without the right
    bytes (wrong ones are kept as `<name>.bad-checksum`, and are not used), Busy when another
    process has been downloading into the folder for more than LOCK_TIMEOUT_S.
    """
    if all(_is_right(folder / name, md5) for name, md5 in files.items()):
        return  # the usual case: no lock, no network, works on a read-only cache
    import filelock  # late, as requests below: a run on files on disk needs neither

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=LOCK_TIMEOUT_S):
            for name, md5 in files.items():
                if not _right_or_aside(folder / name, md5):
                    _fetch(folder / name, md5, mirrors)
    except filelock.Timeout as err:
        raise Busy(f"downloading into {folder}", "another process is at it", "wait for it") from err
    except OSError as err:
        next_step = "make room, or set KIT_CACHE_DIR to a folder that can be written"
        raise DataError(f"downloading into {folder}", str(err), next_step) from err


def _is_right(path: Path, md5: str) -> bool:
    # MD5 because that is what the publisher gives.
    return (
        path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5
    )


def _right_or_aside(path: Path, md5: str) -> bool:
    """Check the file; a wrong one is put aside under another name. Call it under the lock."""
    right = _is_right(path, md5)
    if not right and path.is_file():
        path.replace(path.with_name(f"{path.name}.bad-checksum"))
    return right


def _fetch(path: Path, md5: str, mirrors: Sequence[str]) -> None:
    """Try the mirrors in order; after a cut ask for the rest only."""
    seen: list[str] = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{path.name}"
        for attempt in range(TRIES_PER_MIRROR):
            part = path.with_name(f"{path.name}.part")
            before = part.stat().st_size if part.exists() else 0
            problem, again = _request(url, part, before)
            if not problem:
                part.replace(path)
                if _right_or_aside(path, md5):
                    return
                # Bytes of some other copy in front? Then a fresh start may do.
                problem, again = "wrong checksum", before > 0
            seen.append(f"{url}: {problem}")
            if not again:
                break
            time.sleep(BACK_OFF_S * 2**attempt)
    got = "; ".join(dict.fromkeys(seen))
    kind = DataError if "HTTP 404" in got or "wrong checksum" in got else Unreachable
    next_step = "run again later, or set KIT_DATA_DIR to a folder with the four files"
    raise kind(f"downloading {path.name}", got, next_step)


def _request(url: str, part: Path, have: int) -> tuple[str, bool]:
    """Append what is missing to `part`; give the problem ("" when whole) and "try again"."""
    import requests
    import urllib3

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    try:
        with requests.get(url, headers=headers, timeout=timeout, stream=True) as answer:
            if answer.status_code == 416 and have:
                return "", False  # nothing behind what we have: the checksum decides
            if answer.status_code not in (200, 206):
                return f"HTTP {answer.status_code}", answer.status_code >= 500
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0  # the whole file is coming, whatever was asked for
            _store(answer.raw, part, have, int(answer.headers.get("Content-Length", 0)))
    except requests.ConnectionError as err:
        return f"no connection ({type(err).__name__})", False
    except (requests.RequestException, urllib3.exceptions.HTTPError) as err:
        return f"cut off ({type(err).__name__})", True
    return "", False


def _store(raw: "urllib3.BaseHTTPResponse", part: Path, have: int, length: int) -> None:
    """Write the answer's bytes as they come (a server may call `.gz` an encoding), with a bar."""
    from tqdm import tqdm

    total = have + length if length else None
    with (
        tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, leave=False,
             mininterval=1) as bar,
        part.open("ab" if have else "wb") as file,
    ):  # fmt: skip
        for piece in raw.stream(1 << 16, decode_content=False):
            bar.update(file.write(piece))
