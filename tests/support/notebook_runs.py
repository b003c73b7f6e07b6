"""Notebooks run as a person would, and what is looked for in all that they leave."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from kit.base import ROOT, read_history
from kit.base.settings import Settings

KINDS = ("accuracy", "precision", "recall")
TIME = {"name": "str", "start-time": "float", "end-time": "float", "total-seconds": "float"}
PERFORMANCE = {"name": "str", **dict.fromkeys(KINDS, "float")}
PERFORMANCE |= {f"class-{kind}": ["float"] * 10 for kind in KINDS}
NO_GATES = [word for kind in KINDS for word in ("-p", f"min_{kind}", "0.01")]


class Arguments(threading.Thread):
    """Look at the arguments of every process of the machine until the block ends."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.enough = threading.Event()

    def __enter__(self) -> "Arguments":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        self.join()

    def run(self) -> None:
        while not self.enough.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


def kit(environ, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "kit", *arguments]
    return subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True)


def history(environ) -> list[dict]:
    """The lines of the runs that were finished."""
    base = Path(environ["KIT_RESULTS_DIR"]) / "sandbox"
    return read_history(base / "history.jsonl")[0]


def shape(value: object) -> object:
    """The keys and types of a JSON value, all the way down."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def published(file: str) -> dict | None:
    """A file as the article published it; None when that is not at hand."""
    folder = os.environ.get("KIT_TEST_DATA")
    path = Path(folder or "/nowhere") / "article" / file
    return json.loads(path.read_text()) if path.exists() else None


def planted(loaded: Settings) -> list[bytes]:
    """Every secret of the sandbox that the kit can come across."""
    etc, values = loaded.sandbox_dir / "etc", []
    for path in [*etc.glob("*.env"), etc / ".env", *(etc / "secrets").glob("*")]:
        for line in path.read_text().splitlines():
            name, _, value = line.rpartition("=")
            if not name or "PASS" in name or "SECRET" in name or "TOKEN" in name:
                values.append(value.strip("\"'").encode())
    for path in (etc / "ssh").rglob("*"):
        lines = path.read_bytes().splitlines() if path.is_file() else []
        if lines and lines[0].startswith(b"-----BEGIN"):
            values.append(lines[len(lines) // 2])
    long = [value for value in values if len(value) >= 12]
    assert len(long) >= 6
    return long
