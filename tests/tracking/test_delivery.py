"""MLflow delivery against a real embedded store and a real `mlflow server`."""

import contextlib
import dataclasses
import http.server
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import filelock
import pytest
from mlflow_store import empty_store

from kit.base import DataError, Unreachable, UsageError
from kit.base.settings import Cloud, Settings, Site, load
from kit.tracking import (
    Logged,
    RunLog,
    client,
    delivery,
    destination_of,
    log_run,
    read_logged_run,
    rows,
    sync,
    units_log,
)

HERE = Path(__file__).parent
START_MS = 1_700_000_000_000
RUN = "cloud-0123456789ab-1"


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


def content(site: Settings, run_id: str = RUN, destination: str = "embedded") -> dict[str, Any]:
    """All that MLflow has of a run, as plain values; points sorted."""
    with delivery.connection(site, destination) as (mlflow, _, _):
        experiment = mlflow.get_experiment_by_name("cloud-fmnist-pipeline")
        runs = mlflow.search_runs([experiment.experiment_id], f"tags.`kit.run_id` = '{run_id}'")
        run = runs[0]
        points = [
            (m.key, m.value, m.step, m.timestamp)
            for key in run.data.metrics
            for m in mlflow.get_metric_history(run.info.run_id, key)
        ]
        versions = mlflow.search_model_versions("name = 'CLOUD-FMNIST-CNN'")
        return {
            "runs": len(runs),
            "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
            "params": dict(run.data.params),
            "tags": {k: v for k, v in run.data.tags.items() if k != "mlflow.user"},
            "points": sorted(points),
            "artifacts": client.read_run(mlflow, "cloud-fmnist-pipeline", run_id)[1],
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


def site_of(results: Path, mlflow_url: str = "", env_file: str = "") -> Settings:
    """A profile `test` with its results there."""
    cloud = Cloud(mlflow_url=mlflow_url, mlflow_env_file=env_file)
    return Settings("test", Site("test", "a test"), results, results, results, cloud=cloud)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A profile without a server, its store made already."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    site = site_of(tmp_path / "results")
    empty_store(site.profile_dir / "mlflow.db")
    return site


def folder_of(site: Settings, run_id: str = RUN) -> Path:
    return site.profile_dir / "runs" / run_id


def wait_again(site: Settings, run: RunLog, destination: str = "embedded") -> None:
    """Make the run's folder look as after a crash between sending and noting it."""
    delivery.write_waiting(folder_of(site, run.run_id), destination, run)


def state_of(site: Settings, run_id: str = RUN) -> dict[str, Any]:
    return dict(json.loads((folder_of(site, run_id) / "mlflow.json").read_text()))


def states(site: Settings) -> list[str]:
    return [result.state for result in sync(site)[0]]


def test_a_logged_run_can_be_read_back_whole(tmp_path: Path, site: Settings) -> None:
    run = a_run(tmp_path / "files")
    logged = log_run(site, run)
    assert (logged.state, logged.reason, logged.sentence()) == ("logged", "", "")
    assert content(site) == expected(run)
    back = read_logged_run(site, run.experiment, run.run_id)
    assert back["mlflow_run_id"] == logged.mlflow_run_id
    assert back["link"] == logged.link
    assert logged.link.startswith(f"run {logged.mlflow_run_id} in sqlite:///")
    assert back["metrics"]["accuracy"] == 0.75
    table = rows(back)
    assert {"kind": "metrics", "name": "accuracy", "value": "0.75"} in table
    assert {"kind": "artifact", "name": "labels.json", "value": ""} in table
    artifacts = site.profile_dir / "mlflow-artifacts" / run.experiment
    stored = artifacts / str(logged.mlflow_run_id) / "artifacts"
    assert (stored / "model/model.safetensors").read_bytes() == b"model.safetensors"
    assert [path.name for path in folder_of(site).iterdir()] == ["mlflow.json"]
    assert {"state": "logged", "destination": "embedded"}.items() <= state_of(site).items()


def test_three_sends_leave_what_one_leaves(tmp_path: Path, site: Settings) -> None:
    run = a_run(tmp_path / "files")
    log_run(site, run)
    once = content(site)
    for _ in range(2):
        wait_again(site, run)
        assert states(site) == ["logged"]
    assert content(site) == once == expected(run)
    assert sync(site) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("call", ["log_batch", "log_artifact", "create_model_version", "_note"])
def test_a_process_killed_while_sending_leaves_a_run_that_sync_completes(
    tmp_path: Path, site: Settings, call: str
) -> None:
    run = a_run(tmp_path / "files")
    wait_again(site, run)
    owner = "kit.tracking.delivery" if call == "_note" else "mlflow.MlflowClient"
    killed = textwrap.dedent(f"""
        import os, pathlib, signal, pkgutil
        from kit.base.settings import Settings, Site
        from kit.tracking import sync
        owner = pkgutil.resolve_name({owner!r})
        real, calls = getattr(owner, {call!r}), []
        def dies(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2 or {call!r} in ("create_model_version", "_note"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(owner, {call!r}, dies)
        results = pathlib.Path({str(site.results_dir)!r})
        sync(Settings("test", Site("test", "a test"), results, results, results))
    """)
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -signal.SIGKILL
    assert states(site) == ["logged"]
    assert content(site) == expected(run)


def test_a_run_that_was_created_twice_by_a_resent_request_becomes_one(
    tmp_path: Path, site: Settings
) -> None:
    run = a_run(tmp_path / "files")
    with delivery.connection(site, "embedded") as (mlflow, _, artifacts):
        assert artifacts is not None
        experiment = mlflow.create_experiment(run.experiment, (artifacts / "a").as_uri())
        for _ in range(2):
            mlflow.create_run(experiment, START_MS, {"kit.run_id": run.run_id}, run.run_name)
    assert log_run(site, run).state == "logged"
    assert content(site) == expected(run)


@pytest.mark.slow
def test_a_locked_database_delays_the_run_and_loses_nothing(tmp_path: Path, site: Settings) -> None:
    run = a_run(tmp_path / "files")
    database = str(site.profile_dir / "mlflow.db")
    hold = f"import sqlite3, sys; c = sqlite3.connect({database!r}); "
    hold += "c.execute('begin exclusive'); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        began = time.monotonic()
        logged = log_run(site, run)
        assert time.monotonic() - began < 40
        holder.communicate()
    assert logged.state == "waiting"
    assert "locked" in logged.reason
    assert states(site) == ["logged"]
    assert content(site) == expected(run)


DAMAGE = {
    "mlflow.json empty": lambda folder: (folder / "mlflow.json").write_text(""),
    "mlflow.json cut": lambda folder: (folder / "mlflow.json").write_text('{"state": "waiting",'),
    "mlflow.json a list": lambda folder: (folder / "mlflow.json").write_text("[]"),
    "mlflow.json not text": lambda folder: (folder / "mlflow.json").write_bytes(b"\xff\xfe"),
    "a file missing": lambda folder: next(folder.rglob("predictions.npy")).unlink(),
    "a file changed": lambda folder: next(folder.rglob("model.safetensors")).write_bytes(b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_log_is_kept_aside_and_the_others_are_sent(
    tmp_path: Path, site: Settings, damage: Any
) -> None:
    first, third = a_run(tmp_path / "1", "cloud-0-1"), a_run(tmp_path / "3", "cloud-0-3")
    for run in (first, a_run(tmp_path / "2", "cloud-0-2"), third):
        wait_again(site, run)
    damage(folder_of(site, "cloud-0-2"))
    results, errors = sync(site)
    assert {result.run_id: result.state for result in results} == {
        "cloud-0-1": "logged",
        "cloud-0-2": "damaged",
        "cloud-0-3": "logged",
    }
    assert errors == []
    assert (folder_of(site, "cloud-0-2") / "mlflow-damaged.json").is_file()
    assert sync(site) == ([], [])
    assert content(site, "cloud-0-3")["points"] == sorted(third.metrics)


def test_a_run_that_mlflow_refuses_waits_with_its_words(tmp_path: Path, site: Settings) -> None:
    run = a_run(tmp_path / "files")
    log_run(site, run)
    wait_again(site, dataclasses.replace(run, params={"hp-epochs": "6"}))
    wait_again(site, a_run(tmp_path / "other", "cloud-0-2"))
    results, _ = sync(site)
    assert [result.state for result in results] == ["waiting", "logged"]
    assert "Changing param values is not allowed" in results[0].reason
    assert "Changing param values" in state_of(site)["reason"]
    assert "kit sync" in results[0].sentence()


def test_two_processes_do_not_send_at_once(
    tmp_path: Path, site: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LOCK_TIMEOUT_S", 0.1)
    with filelock.FileLock(site.profile_dir / ".mlflow.lock"):
        logged = log_run(site, a_run(tmp_path / "files"))
        assert logged.state == "waiting"
        assert "another process is sending" in logged.reason
        assert "another process is sending" in str(sync(site)[1][0])
    assert states(site) == ["logged"]


def test_a_run_that_mlflow_does_not_have_is_an_error(site: Settings) -> None:
    with pytest.raises(DataError, match="no run cloud-0-9 in cloud-fmnist-pipeline"):
        read_logged_run(site, "cloud-fmnist-pipeline", "cloud-0-9")


def test_a_file_that_is_not_a_database_is_named(tmp_path: Path, site: Settings) -> None:
    (site.profile_dir / "mlflow.db").write_text("this is not a database, not at all, by no means")
    logged = log_run(site, a_run(tmp_path / "files"))
    assert logged.state == "waiting"
    assert "not a database" in logged.reason
    assert "mlflow.db" in logged.reason
    assert "cannot be used" in logged.reason
    assert "does not answer" not in logged.reason


# Log run `a_run(FILES)` to the results folder as a user whom the modes of files bind, root too.
LOG_IT = """
import sys
from pathlib import Path
import test_delivery as tests
logged = tests.log_run(tests.site_of(Path(sys.argv[1])), tests.a_run(Path(sys.argv[2])))
print(logged.state, logged.sentence(), logged.reason, sep="\\n")
"""
BOUND = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow.db", "."])
def test_a_database_of_another_user_of_the_group_delays_the_run(
    tmp_path: Path, site: Settings, name: str
) -> None:
    run, victim = a_run(tmp_path / "files"), site.profile_dir / name
    for made in (folder_of(site), site.profile_dir / "mlflow-artifacts"):
        made.mkdir(parents=True)
    (site.profile_dir / ".mlflow.lock").touch()
    victim.chmod(victim.stat().st_mode & ~0o222)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    argv = [*BOUND, sys.executable, "-c", LOG_IT, site.results_dir, tmp_path / "files"]
    try:
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    finally:
        victim.chmod(victim.stat().st_mode | 0o200)
    assert (done.returncode, done.stderr) == (0, "")
    state, sentence, *reason = done.stdout.splitlines()
    assert state == "waiting"
    assert "mlflow.db cannot be used" in sentence
    assert sentence.endswith("send it with `kit sync`")
    assert "make it and its folder writable" in reason[-1]
    assert states(site) == ["logged"]
    assert content(site) == expected(run)


def test_a_missing_file_of_the_run_is_named(tmp_path: Path, site: Settings) -> None:
    run = dataclasses.replace(a_run(tmp_path / "files"), artifacts=((str(tmp_path / "gone"), ""),))
    with pytest.raises(DataError, match="gone") as caught:
        log_run(site, run)
    assert "log again" in caught.value.next_step
    assert sync(site) == ([], [])


def test_the_first_start_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunLog("cloud-fmnist-pipeline", "n", "cloud-0-1", 1, 2)
    assert log_run(site_of(tmp_path), run).state == "logged"
    assert capfd.readouterr() == ("", "")


def test_mlflow_is_imported_only_when_something_is_sent() -> None:
    heavy = "import sys, kit.tracking; sys.exit(bool({'mlflow', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_the_bill_comes_to_the_same_mlflow_run_before_or_after_the_rest(
    site: Settings, late: bool
) -> None:
    times = {"start-time": 10.0, "end-time": 50.0}
    units = {"Cloud BU": Decimal("0.25"), "Storage BU": Decimal("0.0005"), "GPU-h": Decimal(2)}
    seff = {"Non-Interactive BUs": "23.17"}
    trained = {"training": times, "time": times, "slurm": {"seff": seff}}
    trained["experiment"] = {"name": "fashion_mnist", "label": "fmnist"}
    bill = units_log(RUN, trained, units)
    rest = RunLog(bill.experiment, RUN, RUN, 10_000, 60_000, params={"hp-epochs": "5"})
    parts = (bill, rest) if late else (rest, bill, bill)
    assert {log_run(site, part).state for part in parts} == {"logged"}
    back = read_logged_run(site, "cloud-fmnist-pipeline", RUN)
    assert back["metrics"] == {
        "cloud-billing-units": 0.25,
        "storage-billing-units": 0.0005,
        "gpu-h": 2.0,
        "billing-units": 23.17,
    }
    assert (back["params"], back["status"]) == ({"hp-epochs": "5"}, "FINISHED")


# Folders with any name, and folders that are moved.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["what? now", "my%20results", "a#b", "100% Työ pöytä"])
def test_the_database_is_inside_a_results_folder_of_any_name(tmp_path: Path, name: str) -> None:
    site = site_of(tmp_path / name)
    empty_store(site.profile_dir / "mlflow.db")
    began = time.monotonic()
    run = a_run(tmp_path / "files", points=1)
    assert log_run(site, run).state == "logged"
    assert time.monotonic() - began < 30
    assert content(site) == expected(run)
    with contextlib.closing(sqlite3.connect(site.profile_dir / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    files = [path for path in tmp_path.rglob("*.db")]
    assert files == [site.profile_dir / "mlflow.db"]
    assert {path.name for path in tmp_path.iterdir()} == {name, "files"}


def test_a_moved_results_folder_keeps_its_artifacts_together(
    tmp_path: Path, site: Settings
) -> None:
    log_run(site, a_run(tmp_path / "files"))
    shutil.move(site.results_dir, tmp_path / "moved here")
    moved = site_of(tmp_path / "moved here")
    later = a_run(tmp_path / "later", "cloud-0123456789ab-2")
    assert log_run(moved, later).state == "logged"
    assert not site.results_dir.exists()
    for run_id in (RUN, later.run_id):
        assert "labels.json" in content(moved, run_id)["artifacts"]


# Every run goes where it was meant to go.


@pytest.mark.parametrize(
    ("target", "profile_url", "variable", "destination"),
    [
        ("local", "http://127.0.0.1:5000", "", "embedded"),
        ("local", "", "http://127.0.0.1:5001/", "http://127.0.0.1:5001"),
        ("local", "", "sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("cloud", "http://127.0.0.1:5000", "http://other:1", "http://127.0.0.1:5000"),
        ("cloud-hpc", "http://127.0.0.1:5000", "", "http://127.0.0.1:5000"),
        ("cloud", "", "", "embedded"),
    ],
)
def test_each_target_has_its_destination(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    profile_url: str,
    variable: str,
    destination: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    assert destination_of(site_of(tmp_path, profile_url), target) == destination


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5000", "./mlruns", "file:///tmp/mlruns", "databricks"]
)
def test_an_address_without_http_is_refused_with_the_right_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not an address") as caught:
        destination_of(site_of(tmp_path), "local")
    assert "http://HOST:PORT" in caught.value.next_step
    assert "sqlite:///" in caught.value.next_step


@pytest.mark.parametrize("address", ["databricks", "http://kit:planted@h:5000"])
def test_a_run_whose_address_cannot_be_one_waits_until_it_is_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The address is looked at after the training: its result must not be lost for it."""
    site, run = site_of(tmp_path), a_run(tmp_path / "files", "local-0123456789ab-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    first = dataclasses.replace(run, params={"hp-a": "1"})
    for part in (first, run):
        logged = log_run(site, part)
        assert logged.state == "waiting"
        assert "MLflow address" in logged.reason or "MLFLOW_TRACKING_URI" in logged.reason
    text = (site.profile_dir / "runs" / run.run_id / "mlflow.json").read_text()
    assert "planted" not in text
    assert [row.state for row in sync(site)[0]] == ["waiting"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [row.state for row in sync(site)[0]] == ["logged"]
    assert read_logged_run(site, run.experiment, run.run_id)["params"]["hp-a"] == "1"


def test_file_system_without_locks_is_named_where_the_runs_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    logged = log_run(site_of(tmp_path), a_run(tmp_path / "files"))
    assert logged.state == "waiting"
    assert "file system with locks" in logged.reason


def test_a_password_in_the_address_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mlflow_env_file") as caught:
        destination_of(site_of(tmp_path, "http://kit:planted@h:5000"), "cloud")
    assert "planted" not in str(caught.value)


def test_a_waiting_run_goes_to_its_own_server_or_nowhere(
    tmp_path: Path, site: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"http://127.0.0.1:{free_port()}"
    run = a_run(tmp_path / "files", "local-0123456789ab-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    assert log_run(site, run).state == "waiting"
    assert state_of(site, run.run_id)["destination"] == own
    with answering(200, b"{}", 200) as platform:
        profile = site_of(site.results_dir, platform)
        for variable in ("", platform, "http://127.0.0.1:1"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
            results, errors = sync(profile)
            assert [(result.run_id, result.state) for result in results] == [
                (run.run_id, "waiting")
            ]
            assert own in str(errors[0])
    assert state_of(site, run.run_id)["destination"] == own


def test_two_destinations_are_served_apart(
    tmp_path: Path, site: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    wait_again(site, a_run(tmp_path / "1", "cloud-0-1"), away)
    wait_again(site, a_run(tmp_path / "2", "cloud-0-2"))
    results, errors = sync(site)
    assert {result.run_id: result.state for result in results} == {
        "cloud-0-1": "waiting",
        "cloud-0-2": "logged",
    }
    assert len(errors) == 1


def test_a_later_part_of_a_log_waits_with_the_first(tmp_path: Path, site: Settings) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    log_run(site_of(site.results_dir, away), a_run(tmp_path / "files"))
    bill = RunLog("cloud-fmnist-pipeline", "cloud run", RUN, 1, 2, metrics=(("bu", 1.0, 0, 2),))
    assert log_run(site, bill).state == "waiting"
    run, destination = delivery.read_waiting(folder_of(site))
    assert destination == away
    assert {name for name, *_ in run.metrics} == {"accuracy", "loss", "bu"}
    assert run.model is not None


# The spool of the first edition.


def old_entry(site: Settings, spool: str, run: RunLog, number: int = 1) -> Path:
    """Write an entry as the first edition did."""
    entry = site.profile_dir / "mlflow-spool" / spool / f"{number:020d}-{run.run_id}-0a1b2c3d"
    table, hashes = json.loads(json.dumps(dataclasses.asdict(run))), {}
    for position, (path, folder) in enumerate(run.artifacts):
        name = f"artifacts/{position}/{Path(path).name}"
        table["artifacts"][position] = [name, folder]
        (entry / name).parent.mkdir(parents=True)
        shutil.copyfile(path, entry / name)
        hashes[name] = delivery.sha256_of(Path(path))
    if run.model:
        table["model"] = [run.model[0], "model/model.safetensors"]
        (entry / "model").mkdir(parents=True)
        shutil.copyfile(run.model[1], entry / "model/model.safetensors")
        hashes["model/model.safetensors"] = delivery.sha256_of(Path(run.model[1]))
    (entry / "run.json").write_text(json.dumps({"schema": 1, "run": table, "sha256": hashes}))
    return entry


def test_the_spool_of_the_first_edition_is_delivered(tmp_path: Path, site: Settings) -> None:
    run = a_run(tmp_path / "files")
    entry = old_entry(site, "embedded", run)
    shutil.rmtree(tmp_path / "files")
    assert states(site) == ["logged"]
    assert content(site) == expected(run)
    assert not entry.exists()
    assert sync(site) == ([], [])


def test_an_old_local_run_for_a_server_waits_until_the_server_is_named(
    tmp_path: Path, site: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = old_entry(site, "server", a_run(tmp_path / "files", "local-0-1"))
    profile = site_of(site.results_dir, "http://127.0.0.1:1")
    (result,), _ = sync(profile)
    assert (result.state, entry.exists()) == ("waiting", True)
    assert "MLFLOW_TRACKING_URI" in result.reason
    own = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    sync(profile)
    assert state_of(site, "local-0-1")["destination"] == own
    assert not entry.exists()


def test_a_damaged_entry_of_the_old_spool_is_moved_aside(tmp_path: Path, site: Settings) -> None:
    entry = old_entry(site, "embedded", a_run(tmp_path / "files"))
    (entry / "run.json").write_text('{"schema": 1,')
    (result,), _ = sync(site)
    assert (result.run_id, result.state) == (RUN, "damaged")
    assert (entry.parent / "damaged" / entry.name / "reason.txt").is_file()


# A server that is away, refuses or is something else.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_server_that_is_away_costs_seconds_and_loses_nothing(tmp_path: Path) -> None:
    site = site_of(tmp_path / "results", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    logged = log_run(site, a_run(tmp_path / "files"))
    assert time.monotonic() - began < 3
    assert logged.state == "waiting"
    assert "does not answer" in logged.reason
    assert RUN in logged.sentence()
    assert "does not answer" in str(sync(site)[1][0])
    with pytest.raises(Unreachable):
        read_logged_run(site, "cloud-fmnist-pipeline", RUN)
    assert [path.name for path in delivery.waiting(site)] == [RUN]


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


HOST = b"Invalid Host header - possible DNS rebinding attack detected"


@pytest.mark.parametrize(
    ("status", "health", "body", "words"),
    [
        (401, 200, b"You are not authenticated", "refused the credential"),
        (403, 403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "refused the cred"),
        (403, 403, HOST, "--allowed-hosts"),
        (403, 200, HOST, "--allowed-hosts"),
        (200, 200, b"<html>Welcome to the hotel's network</html>", "MLflow at"),
        (404, 404, b"nothing here", "refused the request"),
        (200, 503, b"", "HTTP 503"),
    ],
    ids=["401", "403", "host", "host, healthy", "a login page", "404", "503"],
)
def test_an_answer_that_is_not_mlflows_leaves_the_run_waiting(
    tmp_path: Path, status: int, health: int, body: bytes, words: str
) -> None:
    secret = tmp_path / "mlflow.env"
    secret.write_text("MLFLOW_TRACKING_USERNAME=kit\nMLFLOW_TRACKING_PASSWORD=planted-secret\n")
    secret.chmod(0o600)
    with answering(status, body, health) as url:
        site = site_of(tmp_path / "results", url, str(secret))
        logged = log_run(site, a_run(tmp_path / "files"))
    assert logged.state == "waiting"
    assert words in logged.reason
    assert "planted-secret" not in logged.reason + (folder_of(site) / "mlflow.json").read_text()


def test_a_missing_credential_file_is_named_and_the_run_waits(tmp_path: Path) -> None:
    site = site_of(tmp_path / "results", "http://127.0.0.1:1", str(tmp_path / "no.env"))
    assert "no.env is missing" in log_run(site, a_run(tmp_path / "files")).reason
    assert "no.env" in str(sync(site)[1][0])


def test_the_credential_is_in_the_environment_only_while_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "mlflow.env"
    secret.write_text("MLFLOW_TRACKING_PASSWORD=pl${HOME}ed\nOTHER_PASSWORD=never-read\n")
    secret.chmod(0o600)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "for another server")
    before = dict(os.environ)
    with client.connect(f"sqlite:///{tmp_path / 'mlflow.db'}", secret):
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "pl${HOME}ed"
        assert not {"OTHER_PASSWORD", "MLFLOW_TRACKING_TOKEN"} & set(os.environ)
    assert dict(os.environ) == before


def test_a_server_without_artifact_proxy_is_named_as_that() -> None:
    with (
        pytest.raises(DataError, match="does not store artifacts itself") as caught,
        client.kit_errors("http://127.0.0.1:5000"),
    ):
        raise FileNotFoundError("/proc/x")
    assert "--serve-artifacts" in caught.value.next_step


def test_the_sentence_at_the_end_of_a_run_names_cause_and_command() -> None:
    reason = "MLflow at http://h:1 does not answer\n  got:  refused\n  next: try `kit sync`"
    sentence = Logged("cloud-0-1", "waiting", reason=reason).sentence()
    assert "run cloud-0-1" in sentence
    assert "does not answer; got:  refused" in sentence
    assert sentence.endswith("`kit sync`")


# A real server.


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

    site = site_of(tmp_path / "results", server.url)
    before = a_run(tmp_path / "1", "cloud-0-1")
    during, after = a_run(tmp_path / "2", "cloud-0-2"), a_run(tmp_path / "3", "cloud-0-3")
    logged = log_run(site, before)
    assert logged.link == f"{server.url}/#/experiments/1/runs/{logged.mlflow_run_id}"

    real = MlflowClient.log_artifact

    def server_dies_first(*arguments: Any) -> None:
        server.kill()
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", server_dies_first)
        began = time.monotonic()
        assert log_run(site, during).state == "waiting"
        assert time.monotonic() - began < 60
    assert log_run(site, after).state == "waiting"

    server.start()
    for results in (["logged", "logged"], ["logged"], ["logged"]):
        assert states(site) == results
        wait_again(site, during, server.url)
    for run in (before, during, after):
        found = content(site, run.run_id, server.url)
        assert {**found, "versions": 0} == {**expected(run), "versions": 0}
    versions = content(site, "cloud-0-1", server.url)["versions"]
    assert sorted(versions) == ["cloud-0-1", "cloud-0-2", "cloud-0-3"]


@pytest.mark.sandbox
def test_the_sandboxs_mlflow_accepts_its_credential_and_refuses_another(tmp_path: Path) -> None:
    site = load("sandbox", {**os.environ, "KIT_RESULTS_DIR": str(tmp_path / "results")})
    run = a_run(tmp_path / "files", f"cloud-{secrets.token_hex(6)}-1")
    run = dataclasses.replace(run, experiment="tracking-test", model=None)
    wrong = tmp_path / "wrong.env"
    wrong.write_text("MLFLOW_TRACKING_USERNAME=kit\nMLFLOW_TRACKING_PASSWORD=wrong\n")
    wrong.chmod(0o600)
    assert site.cloud is not None
    refused = log_run(site_of(site.results_dir, site.cloud.mlflow_url, str(wrong)), run)
    assert (refused.state, "refused the credential" in refused.reason) == ("waiting", True)
    assert log_run(site, run).state == "logged"
    assert read_logged_run(site, "tracking-test", run.run_id)["metrics"]["accuracy"] == 0.75


def test_the_trials_of_a_sweep_are_nested_runs_each_once(site: Settings) -> None:
    parent = a_run(site.results_dir.parent / "files")
    bare = dataclasses.replace(parent, artifacts=(), model=None, parent=RUN)
    trials = [dataclasses.replace(bare, run_id=f"{RUN}/trials/{n}") for n in (1, 2, 3)]
    early = delivery.log_runs(site, trials[:1])  # before the run that it belongs to
    assert f"MLflow has no run {RUN} yet" in early[0].reason
    assert log_run(site, parent).state == "logged"
    for _ in range(2):
        assert {logged.state for logged in delivery.log_runs(site, trials)} == {"logged"}
        for trial in trials:
            wait_again(site, trial)
    assert sync(site)[1] == []
    with delivery.connection(site, "embedded") as (mlflow, _, _):
        experiment = mlflow.get_experiment_by_name("cloud-fmnist-pipeline")
        runs = mlflow.search_runs([experiment.experiment_id])
    above = {run.data.tags["kit.run_id"]: run.data.tags.get("mlflow.parentRunId") for run in runs}
    ids = {run.data.tags["kit.run_id"]: run.info.run_id for run in runs}
    assert len(runs) == 4
    assert above == {RUN: None} | {trial.run_id: ids[RUN] for trial in trials}
