"""cloud-hpc.ipynb against the sandbox's real Slurm, Ray, store and MLflow: what each run leaves."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hpc_bench import ended_jobs
from idx_files import real_or_striped_images, write_folder
from notebook_runs import (
    KINDS,
    NO_GATES,
    PERFORMANCE,
    TIME,
    Arguments,
    history,
    kit,
    planted,
    published,
    shape,
)

from kit import store, tracking
from kit.base import ROOT, SSHHost, read_json
from kit.base.settings import Settings, load
from kit.experiments.fashion_mnist.images import LABELS
from kit.runs.requests import RunRequests, attempt_id
from kit.slurm import PUBLISHED

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]
SEFF = (
    "Job ID",
    "Cluster",
    "User/Group",
    "State",
    "Nodes",
    "Cores per node",
    "CPU Utilized",
    "CPU Efficiency",
    "Job Wall-clock time",
    "Memory Utilized",
    "Memory Efficiency",
    "Billed project",
    "Non-Interactive BUs",
)
SACCT = ("elapsed", "cpu-time", "total-cpu", "total-submit-start", "total-start-end")
EFFICIENCY = (
    "cpu-utilized-seconds",
    "cpu-efficiency-percentage",
    "job-wall-clock-time-seconds",
    "memory-efficiency-percentage",
    "billing-units",
)


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud-hpc")
    return {
        **os.environ,
        "KIT_DATA_DIR": str(write_folder(folder / "data", real_or_striped_images())),
        "KIT_RESULTS_DIR": str(folder / "results"),
    }


@pytest.fixture(scope="module")
def done(sandbox, environ):
    """Both runs: folder of results, their lines by suffix, output, arguments of all processes.

    The first from the root, the second from the notebooks' folder.
    """
    output = ""
    with Arguments() as watch:
        for configured, folder in (("False", "."), ("True", "notebooks")):
            values = ("-p", "configured", configured, *NO_GATES)
            ended = kit(environ, "run", "cloud-hpc", *values, cwd=ROOT / folder)
            assert ended.returncode == 0, ended.stderr[-4000:]
            output += ended.stdout + ended.stderr
    base = Path(environ["KIT_RESULTS_DIR"]) / "sandbox"
    return base, dict(zip((1, 2), history(environ), strict=True)), output, watch.seen


def loaded(environ) -> Settings:
    return load("sandbox", environ)


@pytest.mark.parametrize("suffix", [1, 2])
@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("artifacts/cloud-hpc-metrics", PERFORMANCE),
        ("times/components", dict.fromkeys("1234", TIME)),
        ("times/training", dict.fromkeys("12", TIME)),
    ],
)
def test_a_published_file_has_the_published_keys_and_types(done, file, wanted, suffix):
    ours = read_json(done[0] / f"cloud-hpc/{file}-{suffix}.json")
    assert shape(ours) == wanted
    if theirs := published(f"cloud-hpc/{file}-1.json"):
        assert shape(ours) == shape(theirs)
        assert [*ours] == [*theirs]


@pytest.mark.parametrize("suffix", [1, 2])
def test_the_accounting_has_the_published_columns_each_a_text_or_null(done, suffix):
    ours = read_json(done[0] / f"cloud-hpc/artifacts/sacct-{suffix}.json")
    assert [*ours] == [str(number) for number in range(1, len(ours) + 1)]
    assert len(ours) >= 3  # the job, its batch step, a step that starts Ray
    for row in ours.values():
        assert tuple(row) == PUBLISHED
        assert {type(value) for value in row.values()} <= {str, type(None)}
        assert row["State"] == "COMPLETED"
    if theirs := published("cloud-hpc/artifacts/sacct-1.json"):
        assert [*theirs["1"]] == [*ours["1"]]


@pytest.mark.parametrize("suffix", [1, 2])
def test_the_efficiency_has_the_published_keys_and_says_that_it_was_computed(done, suffix):
    ours = read_json(done[0] / f"cloud-hpc/artifacts/seff-{suffix}.json")
    assert [*ours] == [*SEFF, "Source"]
    assert {type(value) for value in ours.values()} == {str}
    if theirs := published("cloud-hpc/artifacts/seff-1.json"):
        assert [*theirs] == [*SEFF]


@pytest.mark.parametrize("suffix", [1, 2])
def test_the_times_have_the_published_names_in_order_and_fit_into_each_other(done, suffix):
    folder = done[0] / "cloud-hpc" / "times"
    times = read_json(folder / f"components-{suffix}.json")
    *parts, whole = times.values()
    names = ("preprocess", "train", "evaluate", "pipeline")
    assert [t["name"] for t in times.values()] == [f"cloud-hpc-{name}" for name in names]
    for before, after in pairwise(parts):
        assert before["start-time"] <= before["end-time"] <= after["start-time"]
    assert whole["start-time"] <= parts[0]["start-time"]
    assert parts[-1]["end-time"] <= whole["end-time"]
    training, job = read_json(folder / f"training-{suffix}.json").values()
    assert (training["name"], job["name"]) == ("remote-model-training", "train-fmnist-cnn")
    assert training["total-seconds"] < job["total-seconds"] < parts[1]["total-seconds"]


def test_the_record_says_what_was_used_and_where_the_seconds_went(done):
    for suffix, line in done[1].items():
        assert line["parameters"]["configured"] is (suffix == 2)
        assert line["slurm"]["nodes"] == 2
        assert line["slurm"]["job"]["state"] == "COMPLETED"
        assert sum(line["pipeline"].values()) == pytest.approx(line["figures"]["pipeline_s"])
        kept = {path.name for path in (done[0] / "runs" / line["run"]).iterdir()}
        wanted = {"job.sh", "job.log", "sacct.txt", "seff.txt", "submitter.log", "pipeline.log"}
        assert wanted <= kept
        logs = {
            name: (done[0] / "runs" / line["run"] / f"{name}.log").read_text()
            for name in ("submitter", "pipeline")
        }
        assert logs["submitter"].endswith("another submitter is at work here: standing by\n")
        assert "requested by the forwarder at http://127.0.0.1:6500" in logs["pipeline"]
    assert done[1][1]["pipeline"]["environment"] > done[1][2]["pipeline"]["environment"]


def test_the_notebook_shows_every_step_and_no_warning(done):
    text = (done[0] / "runs" / done[1][2]["run"] / "cloud-hpc.ipynb").read_text()
    shown = (
        "ssh certificate for hpc",
        "#SBATCH --nodes=2",
        ">done ",
        " COMPLETED; gates",
        "image/png",
        "core-walltime",
        "http://127.0.0.1:5000",
    )
    assert [words for words in shown if words not in text] == []
    assert "Warning" not in text


def test_mlflow_has_every_name_that_the_article_logged(done, environ):
    for suffix, line in done[1].items():
        found = tracking.read_logged_run(loaded(environ), "cloud-hpc-fmnist-pipeline", line["run"])
        wanted = {*KINDS, *(f"{label}-{kind}" for label in LABELS for kind in KINDS)}
        rows = range(1, len(line["slurm"]["sacct"]) + 1)
        wanted |= {f"{row}-{name}-seconds" for row in rows for name in SACCT}
        wanted |= {"2-ave-cpu-seconds", *EFFICIENCY}
        wanted |= {f"{kind}-billing-units" for kind in ("cpu", "cloud", "storage")}
        assert wanted - set(found["metrics"]) == set()
        assert found["metrics"]["1-total-submit-start-seconds"] >= 0
        assert {"hp-epochs", "billed-project", "cluster", "status"} <= set(found["params"])
        assert "predicted_qualities/predictions.npy" in found["artifacts"]
        tags = {"kit.run_id": line["run"], "kit.target": "cloud-hpc", "kit.profile": "sandbox"}
        tags |= {"kit.configured": str(suffix == 2), "kit.try": "1"}
        assert found["tags"] | tags == found["tags"]
        assert found["tags"]["mlflow.source.git.commit"]


def test_the_figures_are_those_of_the_target_local_to_the_last_digit(done, environ):
    """That the target cloud has those of `local` too is tested with its notebook."""
    ended = kit(environ, "run", "local")
    assert ended.returncode == 0, ended.stderr[-4000:]
    local = history(environ)[-1]
    assert local["target"] == "local"
    assert [line["metrics"] for line in done[1].values()] == [local["metrics"]] * 2


def test_no_secret_is_in_anything_that_the_runs_left(done, environ):
    base, lines, output, arguments = done
    site = loaded(environ)
    project = Path(site.hpc.project_dir)
    folders = [base, site.sandbox_dir / "home", project / "kit/tries", project / "kit/inputs"]
    places = {str(p): p.read_bytes() for f in folders for p in f.rglob("*") if p.is_file()}
    assert any(name.endswith("job.sh") for name in places)
    for which in ("submitter", "pipeline"):
        bucket = store.open_store(site, store.bucket_name(site, which))
        for line in lines.values():
            stored = [each.key for each in bucket.list(f"runs/{line['run']}")]
            assert stored
            places |= {f"object {key}": bucket.get(key) for key in stored}
    places |= {"output": output.encode(), "arguments": b"\n".join(arguments)}
    assert any(b"kit.onsite.driver" in each for each in arguments)
    hidden = planted(site)
    assert [name for name, text in places.items() if any(s in text for s in hidden)] == []


def test_a_training_that_fails_shows_its_own_traceback_in_the_notebook(done, environ, tmp_path):
    other = {**environ, "KIT_RESULTS_DIR": str(tmp_path)}
    ended = kit(other, "run", "cloud-hpc", "-p", "learning_rate", "10.0")
    assert ended.returncode == 1
    (notebook,) = tmp_path.rglob("cloud-hpc-failed.ipynb")
    for text in (ended.stderr, notebook.read_text()):
        assert "the training diverged" in text
        assert "training.py" in text
        assert "Traceback (most recent call last)" in text


def test_killed_run_resumes_and_its_job_is_executed_once(done, environ, tmp_path, no_submitter):
    other = {**environ, "KIT_RESULTS_DIR": str(tmp_path)}
    arguments = ("run", "cloud-hpc", "-p", "epochs", "60")
    argv = [sys.executable, "-m", "kit", *arguments]
    first = subprocess.Popen(
        argv, env=other, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    site = loaded(environ)
    jobs = RunRequests(store.open_store(site, store.bucket_name(site, "submitter")))
    while not _trains(jobs, tmp_path):
        assert first.poll() is None, "it ended before it trained"
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    ended = kit(other, *arguments)
    while "is being executed by another process" in ended.stderr:  # its kernel notices soon
        ended = kit(other, *arguments)
    assert ended.returncode == 0, ended.stderr[-4000:]
    (line,) = history(other)
    assert line["resumed"] is True
    log = (tmp_path / "sandbox/runs" / line["run"] / "submitter.log").read_text()
    assert "no other submitter is at work here" in log
    host = SSHHost(site.hpc.ssh_host, site.hpc.ssh_config, site.hpc.user)
    assert ended_jobs(host, line["run"]) == [(line["slurm"]["job"]["id"], "COMPLETED")]


def _trains(jobs: RunRequests, results: Path) -> bool:
    """Whether the one run there is has been seen to train."""
    runs = list(results.glob("sandbox/runs/cloud-hpc-*"))
    progress = jobs.read(runs[0].name, "progress") if runs else None
    return bool(progress and progress.get("training"))


def test_finished_runs_can_be_tidied_away_and_nothing_else_is(done, environ):
    site, run = loaded(environ), done[1][2]["run"]
    left = Path(site.hpc.project_dir) / "kit"
    attempt = left / "tries" / attempt_id(run, 1)
    environments = set((left / "venvs").iterdir())
    assert attempt.is_dir()
    ended = kit(environ, "tidy", "--older-than", "0", "--remove")
    assert ended.returncode == 0, ended.stderr[-4000:]
    removed = ended.stdout.splitlines()
    assert f"removed site tries/{attempt.name}" in removed
    assert f"removed store runs/{run}/" in removed
    assert not attempt.exists()
    assert {path for path in environments if path.is_symlink()} <= set((left / "venvs").iterdir())
    for which in ("submitter", "pipeline"):
        bucket = store.open_store(site, store.bucket_name(site, which))
        assert list(bucket.list(f"runs/{run}/")) == []
