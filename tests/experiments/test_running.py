"""The functions of an experiment are carried out and what they leave is checked."""

import os

import pytest
from own_experiments import GOOD, changed, write

from kit.base import DataError, Timeline, UsageError
from kit.experiments import running
from kit.experiments.contract import Context
from kit.experiments.loader import load_experiment


def carry_out(folder, text=GOOD):
    experiment = load_experiment(str(write(folder, text)))
    data = running.make_data(experiment, folder / "cache", None)
    ctx = Context(data.folder, folder, experiment.parameters())
    trained = running.train(experiment, ctx)
    return data, ctx, trained, running.evaluate(experiment, ctx)


def test_data_are_made_trained_on_and_measured(tmp_path):
    data, ctx, trained, metrics = carry_out(tmp_path)
    assert data.info.facts(data.hash)["title"] == "three numbers"
    assert metrics == {"error": 0.0}
    assert [step for step, _ in ctx.losses] == [1, 2, 3]
    assert trained.end >= trained.start
    assert list((tmp_path / "cache").iterdir()) == [data.folder]


def test_data_changed_in_the_cache_are_made_again(tmp_path):
    data = carry_out(tmp_path)[0]
    (data.folder / "numbers.json").write_text("[4]")
    again = carry_out(tmp_path)[0]
    assert again == data
    assert (data.folder / "numbers.json").read_text() == "[1, 2, 3]"


BEGINS = """\
    import time
    time.sleep(0.02)
    ctx.record_time(time.time(), time.time() + 1, 1.0)
"""


@pytest.mark.parametrize(
    ("first_lines", "names"), [(BEGINS, ["loading", "training"]), ("", ["training"])]
)
def test_seconds_before_the_training_itself_are_loading(tmp_path, first_lines, names):
    text = changed("def train(ctx):\n", f"def train(ctx):\n{first_lines}")
    experiment, timeline = load_experiment(str(write(tmp_path, text))), Timeline()
    data = running.make_data(experiment, tmp_path / "cache", None)
    ctx = Context(data.folder, tmp_path, experiment.parameters())
    running.train_timed(timeline, experiment, ctx)
    assert list(timeline.seconds()) == names


TRAIN, EVALUATE = (
    '(ctx.out / "model.json").write_text(json.dumps(sum(numbers) / len(numbers)))',
    'return {"error": abs(json.loads((ctx.out / "model.json").read_text()) - 2)}',
)
BAD = {
    "no data": (
        changed('(folder / "numbers.json").write_text("[1, 2, 3]")', "pass"),
        DataError,
        "wrote no file",
    ),
    "data without information": (
        changed('return kit.DataInfo(title="three numbers", test_items=3)', "return 3"),
        UsageError,
        "returned int",
    ),
    "data raises": (
        changed(
            'return kit.DataInfo(title="three numbers", test_items=3)', "raise OSError('gone')"
        ),
        OSError,
        "gone",
    ),
    "train writes nothing": (changed(TRAIN, "pass"), DataError, "wrote no file"),
    "train writes a link": (
        changed(TRAIN, "(ctx.out / 'm').symlink_to('/etc/passwd')"),
        DataError,
        "symbolic link",
    ),
    "train raises": (changed(TRAIN, "raise ValueError('in train')"), ValueError, "in train"),
    "metrics are nothing": (changed(EVALUATE, "pass"), UsageError, "returned None"),
    "metrics are a text": (changed(EVALUATE, "return 'good'"), UsageError, "returned 'good'"),
    "metric is not a number": (
        changed(EVALUATE, "return {'error': float('nan')}"),
        UsageError,
        "error is nan",
    ),
    "metric is a text": (changed(EVALUATE, "return {'error': '1'}"), UsageError, "error is '1'"),
    "metrics are nested": (
        changed(EVALUATE, "return {'error': {'a': 1}}"),
        UsageError,
        "error is {'a': 1}",
    ),
    "metric has an illegal name": (
        changed(EVALUATE, "return {'the error!': 1}"),
        UsageError,
        "not the name of a metric",
    ),
    "primary metric is not measured": (
        changed(EVALUATE, "return {'other': 1}"),
        UsageError,
        "PRIMARY is 'error'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_result_is_refused_and_own_errors_pass(tmp_path, case):
    text, kind, wanted = BAD[case]
    with pytest.raises(kind, match=wanted):
        carry_out(tmp_path, text)


def test_too_large_results_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "MAX_OUT_BYTES", 1)
    with pytest.raises(DataError, match="at most"):
        carry_out(tmp_path)


def test_working_directory_is_the_same_afterwards(tmp_path):
    before = os.getcwd()
    carry_out(tmp_path, changed(TRAIN, TRAIN + "; __import__('os').chdir('/')"))
    assert os.getcwd() == before


@pytest.mark.parametrize(
    ("names", "model"),
    [(["a", "model.npy"], "model.npy"), (["a"], ""), (["x/model.pt"], "x/model.pt")],
)
def test_model_is_the_file_of_that_name(names, model):
    assert running.model_file(names) == model
