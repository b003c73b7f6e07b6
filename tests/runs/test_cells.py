"""The line that shows how far a notebook is."""

import io
import json

import pytest

from kit.base.settings import load
from kit.runs import cells
from kit.runs.cells import CellProgress

NOTEBOOK = [
    {"cell_type": "markdown", "id": "m1", "source": ["# Title\n", "More."]},
    {"cell_type": "code", "id": "c1", "source": ["a = 1"]},
    {"cell_type": "markdown", "id": "m2", "source": ["## Training"]},
    {"cell_type": "code", "id": "c2", "source": ["b"]},
    {"cell_type": "markdown", "id": "m3", "source": ["A sentence, no heading."]},
    {"cell_type": "code", "id": "c3", "source": ["c"]},
    {"cell_type": "markdown", "id": "m4", "source": []},
]
TITLES = {"c1": "Title", "c2": "Training", "c3": "Training"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_cells(screen, usual_s=None, ids=("c1", "added", "c2", "c3")):
    """Start one cell after another, 40 seconds apart."""
    seconds = iter(range(0, 4000, 40))
    with CellProgress("local", TITLES, usual_s, screen, lambda: next(seconds)) as progress:
        for index, cell_id in enumerate(ids):
            progress.start_cell({"id": cell_id}, index)
    return screen.getvalue()


def test_a_code_cell_belongs_to_the_heading_above_it():
    assert cells.cell_headings(NOTEBOOK) == TITLES
    assert cells.cell_headings([]) == {}
    assert cells.cell_headings(NOTEBOOK[1:2]) == {"c1": ""}


def test_without_a_terminal_each_section_has_a_line():
    assert run_cells(io.StringIO(), 95.5).splitlines() == [
        "local: cell 1 of 3, Title, 0:40 of usually 1:35",
        "local: cell 2 of 3, Training, 1:20 of usually 1:35",
    ]


def test_without_an_earlier_run_no_usual_time_is_shown():
    assert run_cells(io.StringIO()).splitlines()[0] == "local: cell 1 of 3, Title, 0:40"


def test_on_a_terminal_one_line_is_rewritten_and_removed_at_the_end(monkeypatch):
    monkeypatch.setattr(cells, "REDRAW_INTERVAL_S", 60)
    shown = run_cells(Terminal())
    assert "\n" not in shown
    assert [part.split(",")[0] for part in shown.split(cells.CLEAR_LINE)] == [
        "",
        "local: cell 1 of 3",
        "local: cell 2 of 3",
        "local: cell 3 of 3",
        "",
    ]


def test_a_line_is_cut_to_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setattr(cells, "REDRAW_INTERVAL_S", 60)
    monkeypatch.setenv("COLUMNS", "20")
    parts = run_cells(Terminal(), 95).split(cells.CLEAR_LINE)
    assert {len(part) for part in parts if part} == {19}


def test_the_notebooks_own_output_takes_the_place_of_the_line(monkeypatch):
    monkeypatch.setattr(cells, "REDRAW_INTERVAL_S", 60)
    screen = Terminal()
    with CellProgress("local", TITLES, None, screen, lambda: 0.0) as progress:
        progress.start_cell({"id": "c1"}, 0)
        stream = progress.around(screen)
        stream.write("a warning\n")
        stream.flush()
        assert screen.getvalue().endswith(f"0:00{cells.CLEAR_LINE}a warning\n")


def test_the_notebooks_own_output_is_shown_without_secrets():
    screen = Terminal()
    hide = {"the password": "(a secret)"}.get
    with CellProgress("local", TITLES, None, screen, hide=hide) as progress:
        progress.around(screen).write("the password")
    assert "(a secret)" in screen.getvalue()
    assert "password" not in screen.getvalue()


def live(text, *lines):
    """A cell with an output that the terminal shows too, beside one that it does not."""
    plain = {"data": {"text/plain": "no"}, "metadata": {}}
    shown = {"data": {"text/plain": text}, "metadata": {cells.LIVE: list(lines)}}
    return {"id": "c1", "outputs": [{"output_type": "stream", "text": "no"}, plain, shown]}


def test_live_output_is_above_the_line_and_both_are_rewritten(monkeypatch):
    monkeypatch.setattr(cells, "REDRAW_INTERVAL_S", 60)
    screen, cell = Terminal(), live("one\ntwo")
    with CellProgress("local", TITLES, None, screen, lambda: 0.0) as progress:
        progress.start_cell(cell, 0)
        cell["outputs"][2]["data"]["text/plain"] = "three"
        progress._draw()
    first, second = "one\ntwo\nlocal: cell 1", "three\nlocal: cell 1"
    above = cells.LINE_ABOVE + cells.CLEAR_LINE
    line = " of 3, Title, 0:00" + cells.CLEAR_LINE
    shown = f"{cells.CLEAR_LINE}{first}{line}{above * 2}{second}{line}{above}"
    assert screen.getvalue() == shown


def test_without_a_terminal_each_live_line_is_written_once(monkeypatch):
    monkeypatch.setattr(cells, "REDRAW_INTERVAL_S", 60)
    screen, cell = io.StringIO(), live("table", "trial 1")
    with CellProgress("local", TITLES, None, screen, lambda: 0.0) as progress:
        progress.start_cell(cell, 0)
        progress._write_live()
        cell["outputs"][2]["metadata"][cells.LIVE] = ["trial 1", "trial 2"]
        progress.start_cell({"id": "c2"}, 1)
        progress.start_cell(live("table", "trial 3"), 2)
    assert screen.getvalue().splitlines() == [
        "local: cell 1 of 3, Title, 0:00",
        "trial 1",
        "trial 2",
        "local: cell 2 of 3, Training, 0:00",
        "local: cell 1 of 3, Title, 0:00",
        "trial 3",
    ]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path))
    loaded = load("sandbox")
    loaded.profile_dir.mkdir(parents=True)
    return loaded


def add_run(settings, number, duration, resumed=False, exception=None, **parameters):
    run = f"local-0123456789ab-{number}"
    line = {"run": run, "target": "local", "resumed": resumed, "profile": "sandbox"}
    line |= {"figures": {}, "parameters": {}}
    with (settings.profile_dir / "history.jsonl").open("a") as file:
        file.write(json.dumps({"schema": 1, **line}) + "\n")
    folder = settings.profile_dir / "runs" / run
    folder.mkdir(parents=True)
    noted = {"duration": duration, "parameters": parameters, "exception": exception}
    text = json.dumps({"metadata": {"papermill": noted}})
    (folder / "local.ipynb").write_text(text)
    return folder / "local.ipynb"


def test_usual_time_is_the_median_of_runs_with_the_same_parameters(settings):
    for number, duration in enumerate([10.0, 30.0, 20.0]):
        add_run(settings, number, duration, epochs=1, fresh=bool(number))
    add_run(settings, 3, 900.0, epochs=5)
    add_run(settings, 4, 1.0, resumed=True, epochs=1)
    add_run(settings, 5, 2.0, exception=True, epochs=1)
    assert cells.usual_seconds(settings, "local", {"epochs": 1}) == 20.0
    assert cells.usual_seconds(settings, "local", {"epochs": 5, "fresh": True}) == 900.0
    assert cells.usual_seconds(settings, "local", {"epochs": 2}) is None
    assert cells.usual_seconds(settings, "cloud", {"epochs": 1}) is None


def test_only_the_newest_runs_count(settings):
    for number in range(8):
        add_run(settings, number, float(number))
    assert cells.usual_seconds(settings, "local", {}) == 5.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metadata": {"papermill": 3}}'])
def test_a_damaged_or_missing_notebook_does_not_count(settings, text):
    add_run(settings, 1, 7.0)
    add_run(settings, 2, 900.0).write_text(text)
    add_run(settings, 3, 900.0).unlink()
    assert cells.usual_seconds(settings, "local", {}) == 7.0
