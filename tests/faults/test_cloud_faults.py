"""Faults during a run of the cloud pipeline, on the sandbox's real services.

Each run ends with the result of an undisturbed run, or with an error and its next step.
"""

import base64
import os
import secrets
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
from allas_site import SHORT, AllasSite
from cloud_site import IN_CHILD, small_data
from idx_files import as_data
from kit_sandbox.supervisor import control

from kit import tracking
from kit.base import StoreUnavailable, Unreachable, settings
from kit.base.settings import SITES, load
from kit.experiments import Thresholds, load_experiment
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs import stages
from kit.runs.kfp_here import PipelineFailed
from kit.runs.objects import StageStore
from kit.runs.outcome import arguments_of, run_pipeline
from kit.runs.stages import PREPROCESS_TRAIN
from kit.store import open_store
from kit.tracking import delivery

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
HP = Parameters(epochs=8, learning_rate=0.01)
DATA = as_data(small_data())
FASHION = load_experiment("fashion_mnist")


# Moments of a run, by what the notebook sees.
def training(states):
    return states[0].message.startswith("step")


def between(states):
    return states[0].state == "done"


def logging(states):
    return states[1].message.startswith("gates:")


class Cloud:
    """Runs the pipeline on the sandbox and does harm at the moments that a test names."""

    def __init__(self, allas, folder):
        self.allas, self.folder = allas, folder

    def new(self, kind="s3"):
        """A run that was not started: profile, objects, arguments."""
        loaded = load(kind)
        run = f"cloud-{secrets.token_hex(6)}-1"
        store = self.allas.store("s3")
        objects = StageStore(store, run)
        objects.put_data(DATA)
        given = arguments_of(
            loaded,
            run,
            store.bucket,
            DATA.hash,
            FASHION,
            HP.model_dump(),
            Thresholds({"accuracy": 0, "precision": 0, "recall": 0}),
        )
        return SimpleNamespace(loaded=loaded, id=run, objects=objects, given=given)

    def start(self, run, **harms):
        """Run the pipeline; `harms` are what to do at `training`, `between` or `logging`."""
        moments = {"training": training, "between": between, "logging": logging}

        def look(states):
            for name in [name for name in harms if moments[name](states)]:
                harms.pop(name)()

        try:
            return run_pipeline(run.loaded, run.objects, run.given, self.folder / run.id, look)
        finally:
            assert not harms, f"the run never came to: {', '.join(harms)}"

    def points(self, run):
        """Every point that MLflow has of a run, without its time."""
        found = tracking.read_logged_run(run.loaded, "cloud-fmnist-pipeline", run.id)
        destination = tracking.destination_of(run.loaded, "cloud")
        with delivery.connection(run.loaded, destination) as (client, _, _):
            return sorted(
                (key, point.step, point.value)
                for key in found["metrics"]
                for point in client.get_metric_history(found["mlflow_run_id"], key)
                if key != "training-seconds"
            )


@pytest.fixture(scope="module")
def cloud(sandbox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud")
    sites = folder / "sites"
    sites.mkdir()
    text = (SITES / "sandbox.toml").read_text()
    shutil.copy(SITES / "sandbox.toml", sites)
    (sites / "s3.toml").write_text(text)
    (sites / "swift.toml").write_text(text.replace('kind = "s3"', 'kind = "swift"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "SITES", sites)
        for name, value in {
            "KIT_TEST_SITES": sites,
            "KIT_RESULTS_DIR": folder / "results",
            "KIT_CACHE_DIR": folder / "cache",
            "PYTHONPATH": IN_CHILD,
        }.items():
            patch.setenv(name, str(value))
        allas = AllasSite()
        yield Cloud(allas, folder)
        allas.close()


@pytest.fixture(scope="module")
def unbroken(cloud):
    """A run that nothing happened to: what every other must come to."""
    run = cloud.new()
    run.outcome = cloud.start(run)
    assert run.outcome.mlflow["state"] == "logged"
    run.points = cloud.points(run)
    return run


def same(outcome, unbroken):
    return (outcome.losses, outcome.metrics) == (
        unbroken.outcome.losses,
        unbroken.outcome.metrics,
    )


def test_a_gateway_that_goes_away_in_the_training_and_between_the_steps(cloud, unbroken, seen):
    allas, run = cloud.allas, cloud.new()

    def away():
        allas.stop("rgw")
        threading.Timer(8, lambda: control(allas.folder).startProcess("rgw")).start()

    outcome = cloud.start(run, training=away, between=lambda: allas.kill("rgw"))
    assert same(outcome, unbroken)
    assert outcome.mlflow["state"] == "logged"
    seen("pipeline: RGW stopped for 8 s in the training, killed between the steps", "same result")


def test_a_gateway_that_stays_away_ends_the_stage_and_the_training_is_not_lost(
    cloud, unbroken, seen, monkeypatch
):
    allas, run = cloud.allas, cloud.new()
    log_progress = stages._log_progress
    stops = [allas.stop]

    def stop(*progress):
        log_progress(*progress)
        if stops:
            stops.pop()("rgw")

    train = (run.loaded.profile, run.id, run.objects.store.bucket, DATA.hash)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(stages, "_log_progress", stop)
            patch.setattr(stages, "open_store", lambda *words: open_store(*words, retry=SHORT))
            with pytest.raises(StoreUnavailable) as caught:
                stages.preprocess_train(*train, "fashion_mnist", "", HP.model_dump())
    finally:
        allas.start("rgw")
    assert caught.value.next_step
    assert run.objects.record(PREPROCESS_TRAIN) is None
    outcome = cloud.start(run)
    assert same(outcome, unbroken)
    assert outcome.trained["resumed_step"] == HP.epochs * 100
    seen("pipeline: RGW away for longer than anybody waits", "stage fails, next start: same result")


def test_tokens_that_live_five_seconds(cloud, unbroken, seen):
    run = cloud.new("swift")
    with cloud.allas.short_tokens(5):
        outcome = cloud.start(run, between=lambda: time.sleep(5.5))
    assert same(outcome, unbroken)
    seen("pipeline by Swift: tokens live 5 s", "renewed, same result")


def test_tokens_that_are_revoked_in_the_training(cloud, unbroken, seen):
    allas, run = cloud.allas, cloud.new("swift")

    def revoke():
        """Let Keystone know none of its tokens any more, and RGW none that it has seen."""
        allas.stop("keystone")
        for key in (allas.folder / "state" / "keystone" / "fernet-keys").iterdir():
            key.write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
        control(allas.folder).startProcess("keystone")
        allas.wait("keystone")
        allas.kill("rgw")
        allas.wait("rgw")

    outcome = cloud.start(run, training=revoke)
    assert same(outcome, unbroken)
    seen("pipeline by Swift: tokens revoked in the training", "renewed after the 401, same result")


def test_a_keystone_that_is_away_at_the_start_and_later(cloud, unbroken, seen):
    allas, run = cloud.allas, cloud.new()
    with allas.stopped("keystone"), pytest.raises(PipelineFailed) as caught:
        cloud.start(run)
    assert "Keystone at" in str(caught.value)
    assert "kit sandbox status" in str(caught.value)
    assert "run again: it resumes" in caught.value.next_step
    try:
        with pytest.raises(PipelineFailed, match="evaluate failed") as caught:
            cloud.start(run, training=lambda: allas.stop("keystone"))
    finally:
        allas.start("keystone")
    assert "Keystone at" in str(caught.value)
    outcome = cloud.start(run)
    assert outcome.kept[:1] == [PREPROCESS_TRAIN]
    assert same(outcome, unbroken)
    seen(
        "pipeline: Keystone away at the start, and from the training on",
        "fails with the next step; run again: training kept, same result",
    )


def test_mlflow_away_before_the_run(cloud, unbroken, seen):
    run = cloud.new()
    with cloud.allas.stopped("mlflow"):
        outcome = cloud.start(run)
    assert same(outcome, unbroken)
    assert outcome.mlflow["state"] == "waiting"
    assert "kit sync" in tracking.Logged(**outcome.mlflow).sentence()
    results, errors = tracking.sync(run.loaded)
    assert [(sent.run_id, sent.state) for sent in results] == [(run.id, "logged")]
    assert errors == []
    assert tracking.sync(run.loaded) == ([], [])
    assert cloud.points(run) == unbroken.points
    seen("pipeline: MLflow away before", "waiting; after kit sync exactly the same points")


def test_mlflow_stopped_while_the_run_is_logged(cloud, unbroken, seen):
    allas, run = cloud.allas, cloud.new()
    try:
        outcome = cloud.start(run, logging=lambda: allas.stop("mlflow"))
    finally:
        allas.start("mlflow")
    assert same(outcome, unbroken)
    tracking.sync(run.loaded)
    assert cloud.points(run) == unbroken.points
    seen(
        "pipeline: MLflow stopped while it is logged",
        f"{outcome.mlflow['state']}; after kit sync exactly the same points",
    )


def test_mlflow_away_after_the_run_is_said_where_it_is_read_back(cloud, unbroken, seen):
    asked = (unbroken.loaded, "cloud-fmnist-pipeline", unbroken.id)
    with cloud.allas.stopped("mlflow"), pytest.raises(Unreachable, match="does not answer"):
        tracking.read_logged_run(*asked)
    back = tracking.rows(tracking.read_logged_run(*asked))
    assert "accuracy" in {row["name"] for row in back if row["kind"] == "metrics"}
    seen("pipeline: MLflow away after", "said in the table, the run continues")


def test_objects_removed_or_changed_between_the_steps(cloud, unbroken, seen):
    run = cloud.new()
    store, model = run.objects.store, f"runs/{run.id}/out/model.safetensors"

    def other_bytes():
        """Change bytes and leave the recorded hash, as a bad disk would."""
        content = bytearray(store.get(model))
        content[-1] ^= 1
        about = {"Metadata": {"sha256": store.stat(model).sha256}}
        store._client.put_object(Bucket=store.bucket, Key=model, Body=bytes(content), **about)

    for harm, words in [
        (lambda: store.delete(model), "removed or changed"),
        (lambda: store.put(model, b"another model"), "removed or changed"),
        (other_bytes, model),
    ]:
        with pytest.raises(PipelineFailed, match="evaluate failed") as caught:
            cloud.start(run, between=harm)
        assert words in str(caught.value)
        assert "run again" in str(caught.value)
    store.delete(model)
    assert same(cloud.start(run), unbroken)
    seen(
        "pipeline: model removed, replaced, damaged between the steps",
        "never evaluated; fails with the next step, then same result",
    )
