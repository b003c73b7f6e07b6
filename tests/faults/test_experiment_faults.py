"""Bad experiments in real jobs and in a real pipeline; another run on the same nodes continues."""

import dataclasses
import os
import secrets
from pathlib import Path

import pytest
from hpc_bench import Bench, ended_jobs, nothing_runs, processes
from misbehaving import MODULE, NAME, WAYS
from notebook_runs import history, kit, planted
from own_experiments import write
from waiting import until

from kit.base import SSHHost, read_json
from kit.base.settings import load
from kit.experiments import load_experiment, running
from kit.onsite import PROGRESS
from kit.runs.follow import TrainingFailed, follow
from kit.runs.objects import StageStore
from kit.runs.requests import RunRequest, RunState, site_id

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(900)]
SECRET = f"planted-{secrets.token_hex(16)}"  # a variable that the kit takes for a secret


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The experiment's file, which programs started from here find by its name."""
    path = write(tmp_path / "own", MODULE, NAME)
    monkeypatch.setenv("KIT_EXPERIMENTS", str(path))
    monkeypatch.setenv("PROMETHEUS_PASSWORD", SECRET)
    return path


@pytest.fixture
def bench(sandbox, own, tmp_path):
    """A submitter whose jobs are on one node: several of them start at once on this machine."""
    profile = load("sandbox")
    store = dataclasses.replace(profile.store, bucket_prefix=f"t{secrets.token_hex(4)}")
    hpc = dataclasses.replace(profile.hpc, nodes=1, cpus=2)
    made = Bench(dataclasses.replace(profile, store=store, hpc=hpc))
    made.data = running.make_data(load_experiment(NAME, own_files=False), tmp_path / "data", None)
    StageStore(made.submitter.data, "any").put_data(made.data)
    yield made
    made.close()
    until(nothing_runs, 30)


def ask(bench, way, workers=1):
    run = f"cloud-hpc-{secrets.token_hex(6)}-1"
    what = {"experiment": NAME, "hyperparameters": {"way": way}, "workers": workers}
    where = {"profile": bench.profile.profile, "site": site_id(bench.profile)}
    bench.requests.ask(RunRequest(run=run, data_hash=bench.data.hash, **what, **where))
    return run


def texts(bench, run):
    """All that a run has left on the site and in the store, by its place."""
    files = [path for path in bench.folder(run).rglob("*") if path.is_file()]
    found = {str(path): path.read_bytes() for path in files}
    for store in (bench.requests.store, bench.submitter.data):
        found |= {each.key: store.get(each.key) for each in store.list(f"runs/{run}/")}
    return found


def assert_failed(bench, run, way):
    """The person's error says what is wrong; there is one job, no result, no secret."""
    with pytest.raises(TrainingFailed, match=WAYS[way]) as caught:
        follow(bench.requests, run, 0, lambda _: None)
    assert caught.value.next_step
    assert (f"{NAME}.py" in caught.value.traceback) == (way == "raises")
    assert bench.requests.status(run).number == 1
    assert bench.ended(run) == ["FAILED"]
    left = texts(bench, run)
    assert not any(key.endswith(("result.json", "metrics.json")) for key in left)
    log = next(text for place, text in left.items() if place.endswith("driver.log"))
    assert b'environment: {"' in log
    hidden = [SECRET.encode(), *planted(bench.profile)]
    assert [place for place, text in left.items() if any(it in text for it in hidden)] == []


def steps(bench, run):
    path = bench.folder(run) / PROGRESS
    return read_json(path)["step"] if path.exists() else 0


def test_bad_experiments_fail_with_their_own_words_and_harm_no_other_run(bench, seen):
    other = ask(bench, "catches SIGTERM")
    bench.passes_until(other, lambda: steps(bench, other))
    good, *bad = ["", *WAYS]
    for pair in ((good, bad[0]), bad[1:3], bad[3:]):  # two at a time: two CPUs start them
        runs = {ask(bench, way, workers=1 if way else 2): way for way in pair}
        for run, way in runs.items():
            status = bench.finish(run)
            if way:
                assert status.state is RunState.ENDED
                assert_failed(bench, run, way)
            else:
                assert status.state is RunState.DONE, bench.requests.ending(status)
                result = follow(bench.requests, run, 0, lambda _: None)
                assert "out/model.json" in result["files"]
    seen(f"experiments of one's own: {', '.join(WAYS)}", "each FAILED with its own words, one job")
    before = steps(bench, other)
    until(lambda: steps(bench, other) > before, 30)
    bench.requests.cancel(other)
    assert bench.finish(other).state is RunState.CANCELLED
    assert bench.ended(other) == ["CANCELLED"]
    until(lambda: not processes("ray::"), 60)
    seen("a training that ignores SIGTERM is cancelled", "job CANCELLED, no process left")


def test_pipeline_of_a_bad_experiment_ends_with_its_words_and_no_record(
    no_submitter, own, tmp_path, seen
):
    environ = {**os.environ, "KIT_RESULTS_DIR": str(tmp_path / "results")}
    words = ("run", "cloud-hpc", "-p", "experiment", str(own), "-p", "way", "raises")
    ended = kit(environ, *words, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr[-4000:]
    (notebook,) = tmp_path.rglob("cloud-hpc-failed.ipynb")
    for text in (ended.stderr, notebook.read_text()):
        assert WAYS["raises"] in text
        assert f"{NAME}.py" in text
    assert history(environ) == []
    assert list(tmp_path.rglob("artifacts")) == []
    site, run = load("sandbox"), notebook.parent.name
    host = SSHHost(site.hpc.ssh_host, site.hpc.ssh_config, site.hpc.user)
    assert [state for _, state in ended_jobs(host, run)] == ["FAILED"]
    hidden = [SECRET.encode(), *planted(site)]
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    files[Path("output")] = (ended.stdout + ended.stderr).encode()
    assert [path for path, text in files.items() if any(it in text for it in hidden)] == []
    seen("pipeline of an experiment that raises", "its own traceback, no record, one job")
