"""The history of runs: what is damaged costs its own line."""

import json

import pytest

from kit.base import append_history, read_history


def _line(run: str) -> dict[str, object]:
    return {"run": run, "target": "local", "parameters": {}}


def test_history_costs_only_the_line_that_is_damaged(tmp_path):
    path = tmp_path / "history.jsonl"
    append_history(path, _line("a"))
    with path.open("a") as file:
        file.write('{"schema": 1, "run": "cut of')
    append_history(path, _line("b"))
    with path.open("a") as file:
        file.write('[1, 2]\n{"schema": 2, "run": "of the future"}\n{"schema": 1}\n\xff\n')
    append_history(path, _line("c"))
    found, problems = read_history(path)
    assert [record["run"] for record in found] == ["a", "b", "c"]
    assert len(problems) == 5
    assert "history.jsonl line 2 is damaged" in problems[0]


def test_the_line_of_a_pipeline_with_gates_is_read(tmp_path):
    gates = {"accuracy": 0.8, "precision": 0.8, "recall": 0.8}
    line = _line("a") | {"parameters": {"epochs": 5, "gates": gates, "strict": False}}
    append_history(tmp_path / "history.jsonl", line)
    found, problems = read_history(tmp_path / "history.jsonl")
    assert problems == []
    assert found[0]["parameters"]["gates"] == gates


def test_no_history_is_an_empty_history(tmp_path):
    assert read_history(tmp_path / "history.jsonl") == ([], [])


def test_history_of_another_editor_is_read_and_a_tail_of_zeros_costs_one_line(tmp_path):
    """Saved with CRLF and a byte order mark; zeros are what a power loss leaves of a block."""
    append_history(tmp_path / "history.jsonl", _line("a"))
    line = (tmp_path / "history.jsonl").read_bytes().rstrip(b"\n")
    (tmp_path / "history.jsonl").write_bytes(
        b"\xef\xbb\xbf" + line + b"\r\n" + line.replace(b'"a"', b'"b"') + b"\r\n" + bytes(50)
    )
    append_history(tmp_path / "history.jsonl", _line("c"))
    found, problems = read_history(tmp_path / "history.jsonl")
    assert [record["run"] for record in found] == ["a", "b", "c"]
    assert problems == ["history.jsonl line 3 is damaged and was left out"]


GOOD_LINE = {
    "schema": 1,
    "run": "local-000000000000-1",
    "target": "local",
    "parameters": {"epochs": 1},
    "data": {"title": "own files 720 + 180", "hash": "0"},
    "figures": {"training_s": 1.0, "accuracy": 0.5},
    "host": {"cpu": "CPU"},
}
ODD_FIELDS = {
    "data null": {"data": None},
    "data is a text": {"data": "x"},
    "figures null": {"figures": None},
    "figures is a list": {"figures": [1]},
    "figure is a text": {"figures": {"training_s": "39,1"}},
    "figure is true": {"figures": {"training_s": True}},
    "host null": {"host": None},
    "title is a number": {"data": {"title": 12}},
    "parameters is a list": {"parameters": [1]},
    "run is a number": {"run": 3},
    "run is a path": {"run": "../.."},
    "run is a folder above": {"run": ".."},
    "run is empty": {"run": ""},
    "a parameter is a list": {"parameters": {"threads": [1]}},
    "number of test items is a text": {"data": {"test_items": "180"}},
    "seconds of a part are null": {"pipeline": {"training": None}},
    "pipeline is a text": {"pipeline": "x"},
    "seconds without an end": {"seconds": {"training": float("inf")}},
}


@pytest.mark.parametrize("name", ODD_FIELDS)
def test_one_odd_field_costs_that_line_of_the_history(tmp_path, name):
    path = tmp_path / "history.jsonl"
    lines = [json.dumps(GOOD_LINE | ODD_FIELDS[name]), "[" * 5000, json.dumps(GOOD_LINE)]
    path.write_text("\n".join(lines) + "\n")
    found, problems = read_history(path)
    assert found == [GOOD_LINE]
    assert [text.split(" was")[0].split(" is")[0] for text in problems] == [
        "history.jsonl line 1",
        "history.jsonl line 2",
    ]


def test_figure_that_was_not_measured_is_left_out(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(GOOD_LINE | {"figures": {"training_s": None, "accuracy": 1}}) + "\n")
    found, problems = read_history(path)
    assert (found[0]["figures"], problems) == ({"accuracy": 1}, [])
