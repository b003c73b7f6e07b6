"""MLflow in a process of its own, started ahead: its import and a new database take seconds.

`start_ahead` begins it while this process trains, `deliver_ahead` has it deliver. Its stdin is a
JSON list of the folders of runs, its answer a list of what became of each log; it ends with its
stdin, so it does not outlive this process.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import Json, KitError

if TYPE_CHECKING:
    from kit.base.settings import Settings

DELIVERY_S = 120.0
_processes: dict[str, "subprocess.Popen[bytes]"] = {}  # profile -> the process that waits


def start_ahead(settings: "Settings", target: str) -> None:
    """Start the process for a run of a target, unless MLflow is imported here."""
    cloud = settings.cloud
    server = cloud.mlflow_url if cloud else ""
    if settings.profile in _processes or "mlflow" in sys.modules:
        return
    _processes[settings.profile] = subprocess.Popen(
        [sys.executable, "-m", __package__, settings.profile, target, server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # an interrupt is for the training
    )


def deliver_ahead(settings: "Settings", folders: Sequence[Path]) -> list[Json] | None:
    """Have the process deliver the logs that wait in the folders, and end it.

    Return None if there is none, or it did not answer: sending may be repeated, so the caller
    then delivers by itself, and gets the error.
    """
    process = _processes.pop(settings.profile, None)
    if process is None:
        return None
    wanted = json.dumps([str(folder) for folder in folders]).encode()
    with process:
        try:
            answer, _ = process.communicate(wanted, DELIVERY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
    if process.returncode != 0:
        return None
    rows: list[Json] = json.loads(answer)
    return rows


def main(profile: str, target: str, server: str) -> None:
    """Get ready, wait for the list of folders, deliver."""
    from kit.base.settings import load
    from kit.tracking import delivery

    settings = delivery.with_server(load(profile), server)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what MLflow prints goes to stderr
    with contextlib.suppress(KitError):  # the delivery explains it
        delivery.open_once(settings, target)
    if wanted := sys.stdin.read():
        folders = list(map(Path, json.loads(wanted)))
        with answers:
            json.dump(delivery.deliver_folders(settings, folders), answers)
