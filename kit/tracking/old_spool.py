"""The spool of the first edition: what waits there is moved into the folders of the runs.

`mlflow-spool/<embedded or server>/<time>-<run>-<random>/run.json` names the run and the SHA-256
of each file beside it. The server is not named: a cloud run was made for the profile's server, a
local one for what MLFLOW_TRACKING_URI named, so it waits until that variable is set.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import DataError, KitError, sha256_of
from kit.tracking.delivery import EMBEDDED, Logged, destination_of, write_waiting
from kit.tracking.log import RunLog

if TYPE_CHECKING:
    from kit.base.settings import Settings


def adopt(settings: "Settings") -> list[Logged]:
    """Move all entries into the folders of their runs; report those that cannot be."""
    results = []
    for spool in sorted((settings.profile_dir / "mlflow-spool").glob("*")):
        for entry in sorted(path for path in spool.glob("[0-9]*-*") if path.is_dir()):
            run_id = entry.name.partition("-")[2].rpartition("-")[0]
            try:
                run = _read(entry)
                destination = _destination(settings, spool.name, run)
                write_waiting(settings.profile_dir / "runs" / run.run_id, destination, run)
            except DataError as err:
                aside = _set_aside(entry, str(err))
                results.append(Logged(run_id, "damaged", reason=f"{err}\n  kept in {aside}"))
            except (KitError, OSError) as err:
                results.append(Logged(run_id, "waiting", reason=str(err)))
            else:
                shutil.rmtree(entry)
    return results


def _destination(settings: "Settings", spool: str, run: RunLog) -> str:
    if spool == EMBEDDED:
        return EMBEDDED
    destination = destination_of(settings, run.target)
    if destination == EMBEDDED:
        raise KitError(
            f"run {run.run_id} waits for an MLflow server that is not named now",
            next_step="set MLFLOW_TRACKING_URI to that server, then `kit sync`",
        )
    return destination


def _read(entry: Path) -> RunLog:
    """Return an entry's log, its files by absolute paths. Raises DataError if it is not whole."""
    try:
        content = json.loads((entry / "run.json").read_text(encoding="utf-8"))
        run, hashes = RunLog(**content["run"]), dict(content["sha256"])
    except (ValueError, KeyError, TypeError, FileNotFoundError) as err:
        raise DataError(
            f"{entry / 'run.json'} is not a spool entry", f"{type(err).__name__}: {err}"
        ) from err
    named = [path for path, _ in run.artifacts] + ([run.model[1]] if run.model else [])
    for name in {*named, *hashes}:
        path = entry / name
        if not path.is_file() or sha256_of(path) != hashes.get(name):
            raise DataError(f"{path} is missing or not the file that was put there")
    return replace(
        run,
        artifacts=tuple((str(entry / path), folder) for path, folder in run.artifacts),
        model=(run.model[0], str(entry / run.model[1])) if run.model else None,
    )


def _set_aside(entry: Path, reason: str) -> Path:
    aside = entry.parent / "damaged" / entry.name
    aside.parent.mkdir(exist_ok=True)
    entry.rename(aside)
    (aside / "reason.txt").write_text(reason + "\n", encoding="utf-8")
    return aside
