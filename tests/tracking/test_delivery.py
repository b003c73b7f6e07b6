"""MLflow tracking against a real embedded store and a real `mlflow server`."""

import contextlib
import dataclasses
import http.server
import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from mlflow_store import empty_store

from kit.base import Busy, CredentialRefused, DataError, Unreachable, UsageError
from kit.base.settings import Cloud, Settings, Site, load
from kit.tracking import delivery as tracking
from kit.tracking import mlflow_client, runlog
from kit.tracking.delivery import Tracking, destinations, tracking_for
from kit.tracking.runlog import RunLog

START_MS = 1_700_000_000_000


def a_run(folder: Path, run_id: str = "cloud-0123456789ab-1", points: int = 250) -> RunLog:
    """A run with more points than one call takes, two artifacts and a model."""
    folder.mkdir(exist_ok=True)
    for name in ("predictions.npy", "labels.json", "model.safetensors"):
        (folder / name).write_bytes(name.encode())
    return RunLog(
        experiment="cloud-fmnist-pipeline",
        run_name="cloud run",
        run_id=run_id,
        start_ms=START_MS,
        end_ms=START_MS + 1500,
        params={"hp-epochs": "5", "hp-learning-rate": "0.001"},
        metrics=(
            ("accuracy", 0.75, 0, START_MS + 1400),
            *(("loss", 1 / (n + 1), n, START_MS + n) for n in range(points)),
        ),
        tags={"kit.target": "cloud", "mlflow.source.git.commit": "c0ffee"},
        artifacts=(
            (str(folder / "predictions.npy"), "predicted_qualities"),
            (str(folder / "labels.json"), ""),
        ),
        model=("CLOUD-FMNIST-CNN", str(folder / "model.safetensors")),
    )


def content(place: Tracking, run_id: str = "cloud-0123456789ab-1") -> dict[str, Any]:
    """All that MLflow has of a run, as plain values; points sorted."""
    with mlflow_client.connect(place.uri, place.env_file) as client:
        experiment = client.get_experiment_by_name("cloud-fmnist-pipeline")
        runs = client.search_runs([experiment.experiment_id], f"tags.`kit.run_id` = '{run_id}'")
        run = runs[0]
        points = [
            (m.key, m.value, m.step, m.timestamp)
            for key in run.data.metrics
            for m in client.get_metric_history(run.info.run_id, key)
        ]
        versions = client.search_model_versions("name = 'CLOUD-FMNIST-CNN'")
        return {
            "runs": len(runs),
            "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
            "params": dict(run.data.params),
            "tags": {k: v for k, v in run.data.tags.items() if k != "mlflow.user"},
            "points": sorted(points),
            "artifacts": mlflow_client.read_run(client, "cloud-fmnist-pipeline", run_id)[1],
            "versions": [v.tags["kit.run_id"] for v in versions],
        }


def expected(run: RunLog) -> dict[str, Any]:
    """What MLflow must have after any number of syncs of one run."""
    return {
        "runs": 1,
        "info": ("cloud run", "FINISHED", run.start_ms, run.end_ms),
        "params": dict(run.params),
        "tags": {**run.tags, "kit.run_id": run.run_id, "mlflow.runName": "cloud run"},
        "points": sorted(run.metrics),
        "artifacts": [
            "labels.json",
            "model/model.safetensors",
            "predicted_qualities/predictions.npy",
        ],
        "versions": [run.run_id],
    }


@pytest.fixture
def embedded(tmp_path: Path) -> Tracking:
    """A store of this test's own."""
    empty_store(tmp_path / "mlflow.db")
    return Tracking(
        f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "spool", tmp_path / "artifacts"
    )


def put_back(place: Tracking, run: RunLog) -> None:
    """Make the spool look as after a crash between sending and clearing it."""
    runlog.write_entry(place.spool_dir, run, time.time_ns())


def test_a_logged_run_can_be_read_back_whole(tmp_path: Path, embedded: Tracking) -> None:
    run = a_run(tmp_path / "files")
    logged = embedded.log(run)
    assert (logged.state, logged.reason) == ("logged", "")
    assert content(embedded) == expected(run)
    back = embedded.read(run.experiment, run.run_id)
    assert back["mlflow_run_id"] == logged.mlflow_run_id
    assert back["link"] == logged.link == f"run {logged.mlflow_run_id} in {embedded.uri}"
    assert back["metrics"]["accuracy"] == 0.75
    stored = tmp_path / "artifacts" / run.experiment / str(logged.mlflow_run_id) / "artifacts"
    assert (stored / "model/model.safetensors").read_bytes() == b"model.safetensors"
    assert runlog.waiting(embedded.spool_dir) == []


def test_three_sends_leave_what_one_leaves(tmp_path: Path, embedded: Tracking) -> None:
    run = a_run(tmp_path / "files")
    embedded.log(run)
    once = content(embedded)
    for _ in range(2):
        put_back(embedded, run)
        assert [result.state for result in embedded.sync()] == ["logged"]
    assert content(embedded) == once == expected(run)
    assert embedded.sync() == []


@pytest.mark.slow
@pytest.mark.parametrize("call", ["log_batch", "log_artifact", "create_model_version", "discard"])
def test_a_process_killed_while_sending_leaves_a_run_that_sync_completes(
    tmp_path: Path, embedded: Tracking, call: str
) -> None:
    run = a_run(tmp_path / "files")
    put_back(embedded, run)
    owner = "kit.tracking.delivery" if call == "discard" else "mlflow.MlflowClient"
    killed = textwrap.dedent(f"""
        import os, pathlib, signal, pkgutil
        from kit.tracking.delivery import Tracking
        owner = pkgutil.resolve_name({owner!r})
        real, calls = getattr(owner, {call!r}), []
        def dies(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2 or {call!r} in ("create_model_version", "discard"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(owner, {call!r}, dies)
        Tracking({embedded.uri!r}, pathlib.Path({str(embedded.spool_dir)!r}),
                 pathlib.Path({str(embedded.artifact_root)!r})).sync()
    """)
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -signal.SIGKILL
    assert [result.state for result in embedded.sync()] == ["logged"]
    assert content(embedded) == expected(run)


def test_a_run_that_was_created_twice_by_a_resent_request_becomes_one(
    tmp_path: Path, embedded: Tracking
) -> None:
    run = a_run(tmp_path / "files")
    with mlflow_client.connect(embedded.uri) as client:
        experiment = client.create_experiment(run.experiment, (tmp_path / "a").as_uri())
        for _ in range(2):
            client.create_run(experiment, START_MS, {"kit.run_id": run.run_id}, run.run_name)
    assert embedded.log(run).state == "logged"
    assert content(embedded) == expected(run)


@pytest.mark.slow
def test_a_database_that_another_process_holds_delays_the_run_and_loses_nothing(
    tmp_path: Path, embedded: Tracking
) -> None:
    run = a_run(tmp_path / "files")
    hold = f"import sqlite3, sys; c = sqlite3.connect({str(tmp_path / 'mlflow.db')!r}); "
    hold += "c.execute('begin exclusive'); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        began = time.monotonic()
        logged = embedded.log(run)
        assert time.monotonic() - began < 30
        holder.communicate()
    assert logged.state == "spooled"
    assert "locked" in logged.reason
    assert [result.state for result in embedded.sync()] == ["logged"]
    assert content(embedded) == expected(run)


def test_damaged_entries_are_set_aside_and_the_others_are_sent(
    tmp_path: Path, embedded: Tracking
) -> None:
    first, third = a_run(tmp_path / "1", "cloud-0-1"), a_run(tmp_path / "3", "cloud-0-3")
    put_back(embedded, first)
    put_back(embedded, a_run(tmp_path / "2", "cloud-0-2"))
    put_back(embedded, third)
    damaged = runlog.waiting(embedded.spool_dir)[1]
    (damaged / "run.json").write_text('{"schema": 1,')
    results = embedded.sync()
    assert [(r.run_id, r.state) for r in results] == [
        ("cloud-0-1", "logged"),
        ("cloud-0-2", "damaged"),
        ("cloud-0-3", "logged"),
    ]
    assert "run.json is not a spool entry" in results[1].reason
    assert (embedded.spool_dir / "damaged" / damaged.name / "reason.txt").is_file()
    assert content(embedded, "cloud-0-3")["points"] == sorted(third.metrics)


def test_what_mlflow_refuses_stays_in_the_spool_with_its_words(
    tmp_path: Path, embedded: Tracking
) -> None:
    run = a_run(tmp_path / "files")
    embedded.log(run)
    put_back(embedded, dataclasses.replace(run, params={"hp-epochs": "6"}))
    put_back(embedded, a_run(tmp_path / "other", "cloud-0-2"))
    results = embedded.sync()
    assert [result.state for result in results] == ["spooled", "logged"]
    assert "Changing param values is not allowed" in results[0].reason
    assert len(runlog.waiting(embedded.spool_dir)) == 1


def test_two_processes_do_not_send_at_once(
    tmp_path: Path, embedded: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LOCK_TIMEOUT_S", 0.1)
    embedded.spool_dir.mkdir()
    with filelock.FileLock(embedded.spool_dir / ".lock"):
        logged = embedded.log(a_run(tmp_path / "files"))
        assert logged.state == "spooled"
        assert "another process is sending" in logged.reason
        with pytest.raises(Busy, match="another process is sending"):
            embedded.sync()
    assert [result.state for result in embedded.sync()] == ["logged"]


def test_a_run_that_mlflow_does_not_have_is_a_clear_error(embedded: Tracking) -> None:
    with pytest.raises(DataError, match="no run cloud-0-9 in cloud-fmnist-pipeline"):
        embedded.read("cloud-fmnist-pipeline", "cloud-0-9")


def test_a_store_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, not at all, by no means")
    place = Tracking(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "spool")
    logged = place.log(a_run(tmp_path / "files"))
    assert logged.state == "spooled"
    assert "not a database" in logged.reason
    assert "mlflow.db" in logged.reason


def test_the_first_start_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = Tracking(f"sqlite:///{tmp_path / 'new.db'}", tmp_path / "spool", tmp_path / "art")
    assert place.log(RunLog("local-fmnist", "n", "local-0-1", 1, 2)).state == "logged"
    assert capfd.readouterr() == ("", "")


def test_mlflow_is_imported_only_when_something_is_sent() -> None:
    heavy = "import sys, kit.tracking.delivery; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0


# -- a server that is away, refuses or is something else ---------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_away_costs_seconds_and_loses_nothing(tmp_path: Path) -> None:
    place = Tracking(f"http://127.0.0.1:{free_port()}", tmp_path / "spool")
    began = time.monotonic()
    logged = place.log(a_run(tmp_path / "files"))
    assert time.monotonic() - began < 3
    assert logged.state == "spooled"
    assert "does not answer" in logged.reason
    with pytest.raises(Unreachable, match="does not answer"):
        place.sync()
    assert len(runlog.waiting(place.spool_dir)) == 1


@contextlib.contextmanager
def answering(status: int, body: bytes, health: int) -> Iterator[str]:
    """A web server that says the same to every API call."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(health if self.path == "/health" else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:  # also after an exception: a thread on a closed socket spins for ever
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "health", "body", "words"),
    [
        (401, 200, b"You are not authenticated", "refused the credential"),
        (403, 403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "refused the cred"),
        (200, 200, b"<html>Welcome to the hotel's network</html>", "MLflow at"),
        (404, 404, b"nothing here", "said no"),
        (200, 503, b"", "HTTP 503"),
    ],
    ids=["401", "403", "a login page", "404", "503"],
)
def test_an_answer_that_is_not_mlflow_s_keeps_the_run_in_the_spool(
    tmp_path: Path, status: int, health: int, body: bytes, words: str
) -> None:
    secret = tmp_path / "mlflow.env"
    secret.write_text("MLFLOW_TRACKING_USERNAME=kit\nMLFLOW_TRACKING_PASSWORD=planted-secret\n")
    secret.chmod(0o600)
    with answering(status, body, health) as url:
        place = Tracking(url, tmp_path / "spool", env_file=secret)
        logged = place.log(a_run(tmp_path / "files"))
    assert logged.state == "spooled"
    assert words in logged.reason
    assert "planted-secret" not in logged.reason + repr(place)
    assert len(runlog.waiting(place.spool_dir)) == 1


def test_a_missing_credential_file_is_named_and_the_run_is_kept(tmp_path: Path) -> None:
    place = Tracking("http://127.0.0.1:1", tmp_path / "spool", env_file=tmp_path / "no.env")
    assert "no.env is not there" in place.log(a_run(tmp_path / "files")).reason
    with pytest.raises(CredentialRefused, match=r"no\.env"):
        place.sync()


def test_the_credential_is_in_the_environment_only_while_sending(tmp_path: Path) -> None:
    secret = tmp_path / "mlflow.env"
    secret.write_text("MLFLOW_TRACKING_PASSWORD=planted-secret\nOTHER_PASSWORD=never-read\n")
    secret.chmod(0o600)
    before = dict(os.environ)
    with mlflow_client.connect(f"sqlite:///{tmp_path / 'mlflow.db'}", secret):
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "planted-secret"
        assert "OTHER_PASSWORD" not in os.environ
    assert dict(os.environ) == before


# -- where the runs of a target go -------------------------------------------------------------


def settings_with(tmp_path: Path, mlflow_url: str) -> Settings:
    cloud = Cloud(mlflow_url=mlflow_url, mlflow_env_file=str(tmp_path / "mlflow.env"))
    site = Site("test", "a test")
    return Settings("test", site, tmp_path, tmp_path, tmp_path, cloud=cloud)


@pytest.mark.parametrize(
    ("target", "profile_url", "variable", "uri"),
    [
        ("local", "http://127.0.0.1:5000", "", "sqlite:///{home}/test/mlflow.db"),
        ("local", "", "http://127.0.0.1:5001/", "http://127.0.0.1:5001"),
        ("cloud", "http://127.0.0.1:5000", "http://other:1", "http://127.0.0.1:5000"),
        ("cloud-hpc", "http://127.0.0.1:5000", "", "http://127.0.0.1:5000"),
        ("cloud", "", "", "sqlite:///{home}/test/mlflow.db"),
    ],
)
def test_each_target_s_runs_go_to_their_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    profile_url: str,
    variable: str,
    uri: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    place = tracking_for(settings_with(tmp_path, profile_url), target)
    assert place.uri == uri.format(home=tmp_path)
    assert (place.env_file is not None) == (place.uri == "http://127.0.0.1:5000")


def test_a_profile_with_a_server_has_two_spools_to_sync(tmp_path: Path) -> None:
    assert [place.uri for place in destinations(settings_with(tmp_path, "http://h:1"))] == [
        f"sqlite:///{tmp_path}/test/mlflow.db",
        "http://h:1",
    ]
    assert len(destinations(settings_with(tmp_path, ""))) == 1


def test_a_password_in_the_server_s_address_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mlflow_env_file") as caught:
        tracking_for(settings_with(tmp_path, "http://kit:planted@h:5000"), "cloud")
    assert "planted" not in str(caught.value)


# -- a real server -----------------------------------------------------------------------------


class Server:
    """`mlflow server` on a loopback port, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        argv += ["--host", "127.0.0.1", "--port", str(self.port)]
        argv += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        argv += ["--artifacts-destination", str(self.folder / "server-artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            argv,
            env={**os.environ, **quiet},
            cwd=self.folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health"):
                return
            time.sleep(0.1)
        raise TimeoutError("mlflow server did not start in 60 s")

    def kill(self) -> None:
        """Kill the whole group: its uvicorn would live on and keep the port."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_killed_while_it_receives_a_run_has_exactly_that_run_after_sync(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    place = Tracking(server.url, tmp_path / "spool")
    before = a_run(tmp_path / "1", "cloud-0-1")
    during, after = a_run(tmp_path / "2", "cloud-0-2"), a_run(tmp_path / "3", "cloud-0-3")
    logged = place.log(before)
    assert logged.link == f"{server.url}/#/experiments/1/runs/{logged.mlflow_run_id}"

    real = MlflowClient.log_artifact

    def server_dies_first(*arguments: Any) -> None:
        server.kill()
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", server_dies_first)
        began = time.monotonic()
        assert place.log(during).state == "spooled"
        assert time.monotonic() - began < 60
    assert place.log(after).state == "spooled"

    server.start()
    for results in (["logged", "logged"], ["logged"], ["logged"]):
        assert [result.state for result in place.sync()] == results
        put_back(place, during)
    for run in (before, during, after):
        wanted = expected(run)
        assert {**content(place, run.run_id), "versions": 0} == {**wanted, "versions": 0}
    assert sorted(content(place, "cloud-0-1")["versions"]) == [
        "cloud-0-1",
        "cloud-0-2",
        "cloud-0-3",
    ]


# -- the sandbox's server ----------------------------------------------------------------------


@pytest.mark.sandbox
def test_the_sandbox_s_mlflow_takes_a_run_with_its_credential_and_refuses_another(
    tmp_path: Path,
) -> None:
    place = dataclasses.replace(
        tracking_for(load("sandbox"), "cloud"), spool_dir=tmp_path / "spool"
    )
    run = a_run(tmp_path / "files", f"cloud-{secrets.token_hex(6)}-1")
    run = dataclasses.replace(run, experiment="tracking-test", model=None)
    wrong = tmp_path / "wrong.env"
    wrong.write_text("MLFLOW_TRACKING_USERNAME=kit\nMLFLOW_TRACKING_PASSWORD=wrong\n")
    wrong.chmod(0o600)
    refused = dataclasses.replace(place, env_file=wrong).log(run)
    assert (refused.state, "refused the credential" in refused.reason) == ("spooled", True)
    assert [result.state for result in place.sync()] == ["logged"]
    assert place.log(run).state == "logged"
    assert place.read("tracking-test", run.run_id)["metrics"]["accuracy"] == 0.75


def test_a_server_that_is_away_when_a_run_is_read_back_is_said_in_the_table(tmp_path: Path) -> None:
    away = load("sandbox", {"KIT_RESULTS_DIR": str(tmp_path)})
    env_file = tmp_path / "mlflow.env"
    env_file.write_text("MLFLOW_TRACKING_USERNAME=a\n")
    env_file.chmod(0o600)
    cloud = dataclasses.replace(
        away.cloud, mlflow_url="http://127.0.0.1:9", mlflow_env_file=str(env_file)
    )
    away = dataclasses.replace(away, cloud=cloud)
    logged = {"state": "logged", "link": "there", "reason": ""}
    shown = tracking.table(away, "cloud-fmnist-pipeline", "r", logged)
    assert list(shown.columns) == ["it is in MLflow, which is away"]
    assert "does not answer" in shown.loc["reason"].item()
    spooled = tracking.table(away, "x", "r", {"state": "spooled", "reason": "why"})
    assert list(spooled.columns) == ["MLflow is away: kit sync later"]
