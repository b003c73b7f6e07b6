"""Bad experiments in the driver of a job, and `Context.map` in several workers of a real Ray."""

import json
import os

import pytest
from misbehaving import MODULE, NAME, WAYS
from own_experiments import write

from kit.base import ROOT, DataError, UsageError
from kit.experiments import load_experiment, running
from kit.onsite import driver
from kit.onsite.names import FAILURE, METRICS, TIMES
from kit.submitter import job as ray_job


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder of the experiment; this process and those that it starts can import it."""
    folder = tmp_path_factory.mktemp("modules")
    write(folder, MODULE, NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{folder}")
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def task(own, tmp_path):
    experiment = load_experiment(str(own / f"{NAME}.py"))
    data = running.make_data(experiment, tmp_path / "cache", None)
    path = tmp_path / "data.zip"
    path.write_bytes(ray_job.data_archive(data.folder))
    fields = {"data": str(path), "data_hash": data.hash, "earlier": [], "workers": 1}
    return fields | {"module": NAME, "hyperparameters": {}}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "try"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_bad_experiment_fails_with_its_own_words_and_leaves_no_result(task, folder, way):
    kinds = (DataError, UsageError, ValueError)
    with pytest.raises(kinds, match=WAYS[way]):
        driver.work({**task, "hyperparameters": {"way": way}}, folder)
    assert not {METRICS, TIMES} & {path.name for path in folder.iterdir()}


def test_experiment_that_behaves_leaves_its_result(task, folder):
    driver.work(task, folder)
    assert json.loads((folder / METRICS).read_text())["metrics"] == {"score": 0.5}


@pytest.fixture(scope="module")
def ray_here(own):
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_map_of_several_workers_runs_at_the_same_time_and_keeps_the_order(ray_here, task, folder):
    call = driver._map({**task, "workers": 2})
    module = load_experiment(str(own_file(task))).module
    meeting = folder / "meeting"
    meeting.mkdir()
    items = [(str(meeting), number) for number in range(2)]
    results = call(module.meet, items)
    assert [number for number, _ in results] == [0, 1]
    pids = {pid for _, pid in results}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "error"), [("fail", "no item 3"), ("vanish", "died|crashed|killed")]
)
def test_map_raises_the_error_of_an_item_and_of_a_lost_worker(ray_here, task, function, error):
    call = driver._map({**task, "workers": 2})
    module = load_experiment(str(own_file(task))).module
    with pytest.raises(ray_here.exceptions.RayError, match=error):
        call(getattr(module, function), [1, 3])


@pytest.mark.slow
def test_failure_of_the_driver_has_cause_and_traceback(ray_here, task, folder, monkeypatch):
    monkeypatch.setattr(ray_here, "init", lambda: None)
    monkeypatch.setenv("KIT_TASK", json.dumps({**task, "hyperparameters": {"way": "raises"}}))
    monkeypatch.setenv("KIT_ATTEMPT", str(folder))
    monkeypatch.setattr(driver.sys, "argv", ["driver", "1"])
    with pytest.raises(ray_here.exceptions.RayError):
        driver.main()
    failure = json.loads((folder / FAILURE).read_text())
    assert failure["cause"] == "the training failed"
    assert failure["got"] == "raised in train"
    assert f"{NAME}.py" in failure["traceback"]


def own_file(task):
    return next(
        os.path.join(place, f"{NAME}.py")
        for place in os.environ["PYTHONPATH"].split(os.pathsep)
        if os.path.exists(os.path.join(place, f"{NAME}.py"))
    )
