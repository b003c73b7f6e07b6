"""MLflow tracking that loses nothing: every run goes to a spool on disk first, then out.

A crash between sending and clearing the spool does no harm, because sending may be repeated
(`mlflow_client`): three syncs in a row leave what one leaves.
"""

import os
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.base import Busy, DataError, KitError, Unreachable, UsageError
from kit.base.settings import Settings
from kit.tracking import mlflow_client
from kit.tracking.runlog import (
    RunLog,
    discard,
    read_entry,
    run_id_of,
    set_aside,
    waiting,
    write_entry,
)

if TYPE_CHECKING:
    import pandas

LOCK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Logged:
    """What became of a run: `state` is logged, spooled or damaged; `reason` says why."""

    run_id: str
    state: str
    link: str = ""
    mlflow_run_id: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Tracking:
    """One MLflow destination with its spool. The constructor only stores.

    `artifact_root` is where an embedded store keeps files; `env_file` holds the server's
    MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN, read at each call and never kept.
    """

    uri: str
    spool_dir: Path
    artifact_root: Path | None = None
    env_file: Path | None = None
    clock_ns: Callable[[], int] = time.time_ns

    def log(self, run: RunLog) -> Logged:
        """Keep the run in the spool, then try to send it.

        Raises DataError when the spool cannot be written or a file of the run cannot be read.
        A server that is away or refuses is no error: the result says `spooled` and why.
        """
        entry = write_entry(self.spool_dir, run, self.clock_ns())
        try:
            return self._send([entry])[0]
        except KitError as err:
            return Logged(run.run_id, "spooled", reason=str(err))

    def sync(self) -> list[Logged]:
        """Send all that waits in the spool, oldest first; one result for each entry.

        Raises Unreachable when MLflow is away, CredentialRefused when its credential file is
        not there, Busy when another process is sending.
        """
        return self._send(waiting(self.spool_dir))

    def read(self, experiment: str, run_id: str) -> dict[str, Any]:
        """Read back what MLflow has of a run: id, link, status, params, metrics, tags, artifacts.

        Raises Unreachable when MLflow is away, DataError when it has no such run.
        """
        with mlflow_client.connect(self.uri, self.env_file) as client:
            run, artifacts = mlflow_client.read_run(client, experiment, run_id)
        return {
            "mlflow_run_id": run.info.run_id,
            "link": self._link(run.info),
            "status": run.info.status,
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "tags": dict(run.data.tags),
            "artifacts": artifacts,
        }

    def _send(self, entries: Sequence[Path]) -> list[Logged]:
        if not entries:
            return []
        import filelock

        try:
            with (
                filelock.FileLock(self.spool_dir / ".lock", LOCK_TIMEOUT_S),
                mlflow_client.connect(self.uri, self.env_file) as client,
            ):
                return [self._send_entry(client, entry) for entry in entries if entry.exists()]
        except filelock.Timeout as err:
            raise Busy(
                f"another process is sending the runs in {self.spool_dir}",
                next_step="run `kit sync` when it has ended",
            ) from err

    def _send_entry(self, client: Any, entry: Path) -> Logged:
        """Send one entry; it leaves the spool when MLflow has all of it, or when damaged."""
        run_id = run_id_of(entry)
        try:
            run = read_entry(entry)
        except DataError as err:
            aside = set_aside(entry, str(err))
            return Logged(run_id, "damaged", reason=f"{err}\n  set aside in {aside}")
        except OSError as err:
            return Logged(run_id, "spooled", reason=f"{entry} cannot be read: {err}")
        try:
            with mlflow_client.kit_errors(self.uri, self.env_file):
                info = mlflow_client.deliver(client, run, self.artifact_root)
        except KitError as err:
            return Logged(run_id, "spooled", reason=str(err))
        discard(entry)
        return Logged(run_id, "logged", self._link(info), info.run_id)

    def _link(self, info: Any) -> str:
        if self.uri.startswith("http"):
            return f"{self.uri}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        return f"run {info.run_id} in {self.uri}"


def tracking_for(settings: Settings, target: str = "local") -> Tracking:
    """Choose where a target's runs go.

    The platform's server when the profile has one; for `local` the server that
    `MLFLOW_TRACKING_URI` names, if any. Otherwise SQLite in the profile's results folder.
    Raises UsageError when the address carries a password.
    """
    cloud, home = settings.cloud, settings.profile_dir
    server = os.environ.get("MLFLOW_TRACKING_URI", "") if target == "local" else ""
    env_file = None
    if target != "local" and cloud is not None and cloud.mlflow_url:
        server = cloud.mlflow_url
        env_file = Path(cloud.mlflow_env_file) if cloud.mlflow_env_file else None
    if not server:
        uri = f"sqlite:///{home / 'mlflow.db'}"
        return Tracking(uri, home / "mlflow-spool" / "embedded", home / "mlflow-artifacts")
    if urllib.parse.urlsplit(server).password:
        raise UsageError(
            "the MLflow address carries a password",
            next_step="put MLFLOW_TRACKING_USERNAME and _PASSWORD into cloud.mlflow_env_file",
        )
    return Tracking(server.rstrip("/"), home / "mlflow-spool" / "server", env_file=env_file)


def destinations(settings: Settings) -> list[Tracking]:
    """Name every place where runs of this profile go (what `kit sync` goes through)."""
    by_spool = {
        found.spool_dir: found
        for found in (tracking_for(settings, target) for target in ("local", "cloud"))
    }
    return list(by_spool.values())


def table(
    loaded: Settings, experiment: str, run_id: str, logged: Mapping[str, Any]
) -> "pandas.DataFrame":
    """Read back from MLflow what a run logged, less the figures by class and by row of sacct.

    `attrs["link"]` is the link to it. A server that is away is said in the table, no error: the
    run does not depend on it.
    """
    import pandas

    title = "MLflow is away: kit sync later"
    if logged["state"] == "logged":
        try:
            found = tracking_for(loaded, "cloud").read(experiment, run_id)
        except Unreachable as err:
            title, logged = "it is in MLflow, which is away", {**logged, "reason": str(err)}
        else:
            kinds = ("params", "metrics", "tags")
            rows = [(kind, *pair) for kind in kinds for pair in sorted(found[kind].items())]
            parts = ("-accuracy", "-precision", "-recall")
            rows = [r for r in rows if not (r[1].endswith(parts) or r[1][0].isdigit())]
            rows += [("artifact", name, "") for name in found["artifacts"]]
            frame = pandas.DataFrame(rows, columns=["kind", "name", "value"])
            frame.attrs["link"] = found["link"]
            return frame
    return pandas.DataFrame([logged]).T.rename(columns={0: title})
