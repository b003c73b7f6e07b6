"""One run of the cloud-hpc pipeline seen from the notebook: arguments, seconds, published files."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from cloud_site import make_site
from memory_store import MemoryStore
from mlflow_store import empty_store

from kit.base import DataError, UsageError, time_record
from kit.base.settings import load
from kit.experiments import Thresholds, load_experiment
from kit.experiments.fashion_mnist import published_files
from kit.experiments.fashion_mnist.parameters import Parameters
from kit.runs.kfp_here import DONE, run_local
from kit.runs.objects import StageStore
from kit.runs.outcome import CLOUD_HPC, Outcome, hpc_arguments_of, published_facts, read_outcome
from kit.runs.requests import RunRequest, RunRequests
from kit.runs.stages import (
    HPC_EVALUATE,
    HPC_PREPROCESS,
    HPC_TRAIN,
    OF_THE_JOB,
    cloud_hpc_train,
    evaluate,
)
from kit.store import open_store
from kit.sweeps import Sweep
from kit.tracking import delivery, read_logged_run
from kit.tracking.log import SACCT_METRICS

RUN = "cloud-hpc-0123456789ab-1"
METRICS = published_files.metrics_of(
    {"accuracy": 0.5, "precision": 0.25, "recall": 0.5}
    | {f"class-{kind}": [0.5] * 10 for kind in ("accuracy", "precision", "recall")}
)
FASHION = load_experiment("fashion_mnist")
HPC = '[hpc]\nssh_host = "x"\nproject_dir = "/proj"\n'
SACCT = {"1": {"JobID": "7", "State": "COMPLETED"}}


def stages(start=100.0):
    """Three stages, one after the other, as they are in the store."""
    times = {
        name: time_record(name, start + 10 * n, start + 10 * (n + 1))
        for n, name in enumerate(CLOUD_HPC.components)
    }
    spans = {"preprocess": 9.0}, {"queue": 1.0, "training": 7.0}, {"evaluate": 8.0}
    records = {
        name: {"objects": {}, "time": times[name], "spans": span}
        for name, span in zip(CLOUD_HPC.components, spans, strict=True)
    }
    records[HPC_TRAIN] |= {
        "training": time_record("remote-model-training", 112.0, 119.0, 7.0),
        "ray_job": time_record("train-fmnist-cnn", 111.0, 119.5),
        "configured": True,
        "slurm": {"sacct": SACCT, "seff": {"State": "COMPLETED (exit code 0)"}},
    }
    records[HPC_EVALUATE] |= {"metrics": METRICS}
    return records


@pytest.mark.parametrize(("configured", "n"), [(False, 1), (True, 2)])
def test_the_published_files_have_the_articles_names_and_contents(configured, n):
    outcome = Outcome(CLOUD_HPC, stages(), [], 99.0, 131.0)
    outcome.trained["configured"] = configured
    files = FASHION.published("cloud-hpc", published_facts(outcome))
    assert list(files) == [
        f"cloud-hpc/times/components-{n}.json",
        f"cloud-hpc/times/training-{n}.json",
        f"cloud-hpc/artifacts/cloud-hpc-metrics-{n}.json",
        f"cloud-hpc/artifacts/sacct-{n}.json",
        f"cloud-hpc/artifacts/seff-{n}.json",
    ]
    components, training, metrics, sacct, _ = files.values()
    names = [record["name"] for record in components.values()]
    assert names == [*CLOUD_HPC.components, "cloud-hpc-pipeline"]
    assert list(components) == ["1", "2", "3", "4"]
    assert components["4"]["total-seconds"] == 32
    assert [record["name"] for record in training.values()] == [
        "remote-model-training",
        "train-fmnist-cnn",
    ]
    assert (sacct, metrics) == (SACCT, published_files.performance(METRICS))


def test_a_stage_that_was_killed_while_its_job_ran_makes_the_run_a_resumed_one():
    records = stages()
    assert not Outcome(CLOUD_HPC, records, [], 99.0, 131.0).resumed
    records[HPC_TRAIN]["resumed"] = True
    assert Outcome(CLOUD_HPC, records, [], 99.0, 131.0).resumed


def test_all_seconds_of_the_pipeline_are_accounted_for():
    outcome = Outcome(CLOUD_HPC, stages(), [], 99.0, 131.0)
    assert sum(outcome.seconds().values()) == pytest.approx(outcome.pipeline_s)
    assert outcome.seconds()["starting components"] == pytest.approx(32 - 25)


def test_stages_of_an_earlier_start_keep_their_seconds():
    outcome = Outcome(CLOUD_HPC, stages(), [], 115.0, 131.0)
    assert outcome.kept == [HPC_PREPROCESS]
    assert outcome.pipeline_s == 16 + 10 + 5  # the training, 110 to 120, had begun before


def test_a_pipeline_that_resumed_its_training_is_not_shorter_than_its_stages():
    """Interrupted in its training, started again at 1000: 3 s there, the job's 27 s before."""
    records = stages()
    records[HPC_TRAIN]["time"] = time_record(HPC_TRAIN, 110.0, 1003.0, 30.0)
    records[HPC_EVALUATE]["time"] = time_record(HPC_EVALUATE, 1004.0, 1006.0)
    outcome = Outcome(CLOUD_HPC, records, [], 998.0, 1007.0)
    # this start 9 s, the upload 10 s, of the training 30 - 5 s
    assert outcome.pipeline_s == 9 + 10 + 25
    parts = [stage["time"]["total-seconds"] for stage in records.values()]
    assert outcome.pipeline_s >= sum(parts)
    assert outcome.times()["4"] == time_record("cloud-hpc-pipeline", 100.0, 1007.0, 44.0)


def test_a_stage_that_was_retried_by_its_pipeline_counts_once():
    records = stages()
    records[HPC_TRAIN]["time"] = time_record(HPC_TRAIN, 110.0, 120.0, 8.0)
    assert Outcome(CLOUD_HPC, records, [], 99.0, 131.0).pipeline_s == 32


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return make_site(tmp_path, monkeypatch, more=HPC)


def test_the_arguments_are_those_of_the_pipeline_and_plain_data(site):
    request = RunRequest(
        run=RUN,
        data_hash="a" * 64,
        configured=False,
        hyperparameters=Parameters(epochs=3).model_dump(),
        workers=2,
    )
    given = hpc_arguments_of(
        site, request, FASHION, gates=Thresholds({"accuracy": 0.5, "precision": 0.5, "recall": 0.5})
    )
    assert json.loads(json.dumps(given)) == given
    assert (given["workers"], given["configured"], given["hyperparameters"]["epochs"]) == (
        2,
        False,
        3,
    )
    assert given["jobs_bucket"] != given["bucket"]
    asked = set(inspect.signature(cloud_hpc_train).parameters) - {"given"}
    assert asked <= set(given)


def test_a_profile_without_a_site_is_refused():
    request = RunRequest(run=RUN, data_hash="a" * 64)
    none = dataclasses.replace(load("sandbox"), hpc=None)
    with pytest.raises(UsageError, match=r"\[hpc\]"):
        hpc_arguments_of(
            none,
            request,
            FASHION,
            gates=Thresholds({"accuracy": 0.5, "precision": 0.5, "recall": 0.5}),
        )


def test_an_outcome_is_read_from_the_records_and_a_missing_one_is_named():
    objects = StageStore(MemoryStore(), RUN)
    losses = objects.keep("try-1/losses.json", b"[[1, 2.5]]")
    records = stages()
    records[HPC_TRAIN]["objects"] = {"losses.json": losses}
    for name in CLOUD_HPC.components[:-1]:
        objects.commit(name, records[name])
    with pytest.raises(DataError, match=HPC_EVALUATE):
        read_outcome(objects, 99.0, 131.0, CLOUD_HPC)
    objects.commit(HPC_EVALUATE, records[HPC_EVALUATE])
    outcome = read_outcome(objects, 99.0, 131.0, CLOUD_HPC)
    assert outcome.losses == [[1, 2.5]]
    assert published_facts(outcome)["sacct"] == SACCT


def swept_on_the_site(site, arguments, folder):
    """Store the result of a sweep of the digits as its submitter does; return its metrics."""
    bucket = open_store(site, arguments["bucket"])
    bucket.ensure_bucket()
    objects = StageStore(bucket, RUN)
    objects.store.put(f"data/{arguments['data_hash']}.json", b'{"source": "made"}')
    (folder / "model.npy").write_bytes(b"weights")
    metrics = {"accuracy": 0.75, "class-accuracy-0": 0.5}
    times = {
        "training": time_record("remote-model-training", 112.0, 119.0, 7.0),
        "job": time_record("train-digits", 111.0, 119.5),
        "best": {"seed": 3},
        **{"workers": 2, "resumed_step": 0, "spans": {}, "host": {}, "nodes": [], "versions": {}},
    }
    files = {"metrics.json": {"metrics": metrics}, "times.json": times, "losses.json": []}
    stored = {name: objects.keep(name, json.dumps(text).encode()) for name, text in files.items()}
    stored |= objects.keep_out({"model.npy": folder / "model.npy"})
    row = dict.fromkeys([*SACCT_METRICS.values(), "Submit", "Start", "End"], "")
    job = {"job": {"state": "COMPLETED"}, "sacct": {"1": row}, "seff": {}, "files": stored}
    requests = RunRequests(open_store(site, arguments["jobs_bucket"]))
    requests.store.ensure_bucket()
    requests.write(RUN, "result", dict.fromkeys(OF_THE_JOB, 1) | job)
    return metrics


@pytest.mark.parametrize(("bound", "versions"), [(0.7, 1), (0.8, 0)])
def test_the_best_model_of_a_sweep_is_registered_only_if_it_passes_the_gates(
    site, tmp_path, bound, versions
):
    empty_store(site.profile_dir / "mlflow.db")
    digits = load_experiment("digits")
    sweep = Sweep(trials=[{"seed": 2}, {"seed": 3}])
    request = RunRequest(run=RUN, data_hash="a" * 64, experiment="digits", sweep=sweep)
    gates = Thresholds({"accuracy": bound})
    arguments = hpc_arguments_of(site, request, digits, gates=gates)
    metrics = swept_on_the_site(site, arguments, tmp_path)
    names = inspect.signature(cloud_hpc_train).parameters
    trained = cloud_hpc_train(**{name: arguments[name] for name in names})
    where = arguments["profile"], RUN, arguments["bucket"], trained
    assert evaluate(*where, gates, experiment="digits")[1] == metrics
    with delivery.connection(site, "embedded") as (client, _, _):
        found = client.search_model_versions("name = 'CLOUD-HPC-DIGITS'")
    assert len(found) == versions
    logged = read_logged_run(site, "cloud-hpc-digits-pipeline", RUN)
    assert logged["tags"]["kit.gates"] == ("passed" if versions else "not passed")
    assert logged["params"]["hp-seed"] == "3"
    assert logged["artifacts"] == ["model/model.npy"]  # kept in either case


def test_both_names_of_the_evaluation_reach_the_stage_of_their_target(site, tmp_path):
    """The two pipelines share the component; here every stage was finished by an earlier start."""
    arguments = hpc_arguments_of(
        site, RunRequest(run=RUN, data_hash="a" * 64), FASHION, gates=Thresholds({"accuracy": 0.5})
    )
    bucket = open_store(site, arguments["bucket"])
    bucket.ensure_bucket()
    objects, records = StageStore(bucket, RUN), stages()
    objects.commit(HPC_PREPROCESS, records[HPC_PREPROCESS])
    trained = objects.commit(HPC_TRAIN, records[HPC_TRAIN])
    judged = {"passed": True, "missed": [], "thresholds": {"accuracy": 0.5}}
    figures = {"accuracy": 0.5, "precision": 0.5, "recall": 0.5}
    more = {"trained": trained, "gates": judged, "metrics": figures}
    objects.commit(HPC_EVALUATE, records[HPC_EVALUATE] | more)
    states = run_local(
        CLOUD_HPC.pipeline + "fmnist", CLOUD_HPC.components, arguments, tmp_path / "run"
    )
    assert [(state.name, state.state) for state in states] == [
        (name, DONE) for name in CLOUD_HPC.components
    ]
