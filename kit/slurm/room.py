"""The room that is left in a folder of the site: free space and quotas, by size and by files. Pure.

Forms: `df -P` of coreutils, `lfs quota` of Lustre (kbytes; a long path has a line of its own),
`quota --raw-grace` of Linux' quota tools (blocks of 1 KiB). Limits of 0 are none.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kit.slurm.script import shell

_COUNT = r"\[?(\d+)\]?\*?"  # in brackets where a server did not answer, * above the limit
_QUOTA = re.compile(rf"{_COUNT}\s+(\d+)\s+(\d+)\s+\S+\s+{_COUNT}\s+(\d+)\s+(\d+)\s+\S+\s*$")
_FREE = re.compile(r"\s(\d+)\s+-?\d+\s+(-?\d+)\s+(?:\d+%|-)\s")


@dataclass(frozen=True)
class Room:
    """The size and number of files that fit; infinite where nothing limits them, or nobody says."""

    kib: float = math.inf
    files: float = math.inf

    @property
    def gib(self) -> float:
        """The size in GiB."""
        return self.kib / 2**20

    def holds(self, needed: "Room") -> bool:
        """Report whether both the size and the number of files fit."""
        return self.kib >= needed.kib and self.files >= needed.files

    def __str__(self) -> str:
        """Return it in words."""
        size = "any size" if math.isinf(self.kib) else f"{max(0.0, self.gib):.2f} GiB"
        files = "any number of" if math.isinf(self.files) else f"{max(0.0, self.files):,.0f}"
        return f"{size} in {files} files"


def room_argv(folder: str, path: str = "") -> list[str]:
    """Return the command that asks for the room of a folder; `read_room` reads its output.

    The output begins with `@there` if the path exists.
    """
    return ["bash", "-c", shell("room"), "bash", folder, path]


def read_room(text: str) -> Room:
    """Read the least room that any of the tools left. Lines of another form are left out."""
    kib, files = [math.inf], [math.inf]
    for part, line in _lines(text):
        if part == "quota" and (row := _QUOTA.search(line)):
            used, soft, hard, count, soft_count, hard_count = map(int, row.groups())
            kib += [(hard or soft) - used] if hard or soft else []
            files += [(hard_count or soft_count) - count] if hard_count or soft_count else []
        elif part != "quota" and (row := _FREE.search(line)) and int(row[1]):
            (kib if part == "blocks" else files).append(int(row[2]))
    return Room(min(kib), min(files))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield the lines with the name of their part, `@NAME` before them."""
    part = ""
    for line in text.splitlines():
        if line.startswith("@"):
            part = line[1:]
        elif part:
            yield part, line
