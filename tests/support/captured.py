"""Captured outputs of real tools: each file says by which command, version and when."""

from pathlib import Path

HERE = Path(__file__).parents[1] / "outputs"
HEADER = ("# command: ", "# version: ", "# taken: ", "# edited: ")


def read(name: str) -> str:
    """Return a captured text without its header; a file without the four header lines fails."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, start in enumerate(HEADER):
        assert lines[number].startswith(start), f"{name} lacks the line {start!r}"
    body = lines[len(HEADER) :]
    return "".join(body[1:] if body and body[0].startswith("# stream: ") else body)
