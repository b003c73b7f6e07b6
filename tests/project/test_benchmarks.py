"""The benchmarks can be started, and their record, its page and its comparison agree."""

import importlib.util
import json

import measured
import pytest

from kit.base import ROOT

FOLDER = ROOT / "tests" / "benchmarks"


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = loaded(FOLDER / "run.py")
SCRIPTS = sorted(run.SCRIPTS.values())
ROW = {"what": "submission", "median": 45.0, "lowest": 40.0, "highest": 52.0}
ROW |= {"samples": 30, "unit": "ms", "aim": 50, "more_is_better": False, "note": ""}
RECORD = {"machine": "2 x a CPU", "commit": "abc", "load": 0.1, "date": "2026-11-28"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_can_be_loaded_and_shows_its_figures_in_the_common_way(path):
    module = loaded(path)
    assert callable(module.main)
    assert "measured" in path.read_text()
    name = path.stem.removeprefix("bench_")
    assert f"make bench NAMES={name}" in module.__doc__


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ({"median": 56.0}, False),  # within the spread of 12 ms
        ({"median": 58.0}, True),
        ({"median": 58.0, "highest": 70.0}, False),
        ({"median": 30.0}, False),
        ({"median": 30.0, "more_is_better": True}, True),
        ({"median": 49.0, "samples": 1, "lowest": 49.0, "highest": 49.0}, False),
    ],
)
def test_a_figure_is_worse_only_by_more_than_its_spread(change, worse):
    assert measured.slower({**ROW, **change}, ROW) is worse
    lines = run.compare({**RECORD, "figures": [{**ROW, **change}]}, {**RECORD, "figures": [ROW]})
    assert ("worse: submission" in lines[0]) is worse


def test_figures_of_another_machine_are_not_compared():
    other = {**RECORD, "machine": "64 x another CPU", "figures": [ROW]}
    (line,) = run.compare({**RECORD, "figures": [{**ROW, "median": 900.0}]}, other)
    assert line.startswith("not compared")


def test_a_figure_is_printed_with_range_and_aim_and_kept(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "figures.jsonl"
    monkeypatch.setenv(measured.KEEP, str(kept))
    measured.show("submission", [40.0, 52.0, 45.0], "ms", 50)
    measured.show("rate", 3, "1/s", 5, more_is_better=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["submission", "45", "ms", "40", "to", "52", "aim", "50", "reached"]
    assert second.endswith("aim 5 MISSED")
    assert len(first) <= 100
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert rows[0] == {**ROW, "samples": 3}


@pytest.fixture
def benches(tmp_path, monkeypatch):
    """Two benchmarks that only show a figure, and a record elsewhere."""
    for name, value in (("one", 3), ("two", 5)):
        text = f"import measured; measured.show('{name}', {value}, 's', 4)"
        (tmp_path / f"bench_{name}.py").write_text(text)
    scripts = {name: tmp_path / f"bench_{name}.py" for name in ("one", "two")}
    monkeypatch.setattr(run, "SCRIPTS", scripts)
    monkeypatch.setattr(run, "RECORD", tmp_path / "speed.json")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support"))
    return scripts


def test_a_whole_run_is_recorded_with_its_page_and_compared(benches, capfd):
    assert run.main(["--record"]) == 0
    assert "| two | 5 s |  | 4, missed |" in run.RECORD.with_suffix(".md").read_text()
    benches["two"].write_text("import measured; measured.show('two', 9, 's', 4)")
    assert run.main(["--record", "one", "two"]) == 0
    assert "worse: two: 9, was 5 s" in capfd.readouterr().out
    assert json.loads(run.RECORD.read_text())["two"]["figures"][0]["median"] == 9


def test_a_run_of_some_leaves_the_record_of_the_others(benches):
    assert run.main(["--record"]) == 0
    benches["two"].write_text("import measured; measured.show('two', 9, 's', 4)")
    assert run.main(["--record", "one"]) == 0
    assert json.loads(run.RECORD.read_text())["two"]["figures"][0]["median"] == 5


def test_nothing_is_recorded_unless_asked(benches):
    assert run.main([]) == 0
    assert not run.RECORD.exists()


def test_a_benchmark_that_fails_is_named_and_keeps_its_last_record(benches, capfd):
    assert run.main(["--record"]) == 0
    benches["one"].write_text("raise SystemExit(1)")
    assert run.main(["--record"]) == 1
    assert "failed: one" in capfd.readouterr().err
    assert json.loads(run.RECORD.read_text())["one"]["figures"][0]["median"] == 3


def test_an_unknown_benchmark_is_refused_with_the_names(benches, capfd):
    with pytest.raises(SystemExit):
        run.main(["three"])
    assert "no benchmark three; there are one, two" in capfd.readouterr().err


def test_the_page_of_the_record_is_made_from_it():
    record = json.loads(run.RECORD.read_text())
    assert run.RECORD.with_suffix(".md").read_text() == run.page(record)
    assert set(record) <= set(run.SCRIPTS)
