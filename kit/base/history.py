"""The history of a profile's runs: one line of JSON for each, read with care."""

import json
import os
from pathlib import Path

from kit.base.files import SCHEMA, Json, unwritable


def append_history(path: Path, record: Json) -> None:
    """Add one line to history.jsonl; the caller holds the results lock.

    A last line that was cut (power, disk full) is closed first, so it costs only itself.
    """
    line = json.dumps({"schema": SCHEMA, **record}, allow_nan=False) + "\n"
    try:
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise unwritable(path, err) from err


def read_history(path: Path) -> tuple[list[Json], list[str]]:
    """Read history.jsonl: the records in order, and a sentence for each line left out."""
    from kit.base.record import odd_field

    records: list[Json] = []
    problems: list[str] = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            odd = odd_field(record)
        except (ValueError, RecursionError):
            problems.append(f"{path.name} line {number} is damaged and was left out")
            continue
        if odd:
            problems.append(f"{path.name} line {number} was left out: {odd}")
            continue
        if "figures" in record:  # a figure that was not measured may be null
            record["figures"] = {k: v for k, v in record["figures"].items() if v is not None}
        records.append(record)
    return records, problems
