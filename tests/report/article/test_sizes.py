"""Rows of notebooks and lines of the kit."""

import json
from pathlib import Path

import pytest

from kit.base import DataError
from kit.report import table as report
from kit.report.article import sizes


def _notebook(path: Path, *sources: str) -> Path:
    cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
    cells.insert(0, {"cell_type": "markdown", "source": ["# no code\n", "at all"]})
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_rows_are_the_lines_of_all_code_cells(tmp_path):
    notebook = _notebook(tmp_path / "n.ipynb", "a = 1\n\n# comment\nb = 2", "", "c")
    assert report.notebook_rows(notebook) == 5


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": 3}', '{"cells": [{}]}'])
def test_error_names_the_file_that_is_not_a_notebook(tmp_path, content):
    path = tmp_path / "odd.ipynb"
    path.write_text(content)
    with pytest.raises(DataError, match="odd.ipynb"):
        report.notebook_rows(path)


def test_lines_of_a_room_are_code_without_docstrings_comments_and_blank_lines(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('"""Doc\nstring."""\n\n# comment\ndef f():\n    """Doc."""\n    return 1\n')
    assert sizes._code_lines(path) == 2


def test_every_room_of_a_target_exists():
    assert {room for rooms in sizes.ROOMS.values() for room in rooms} <= set(sizes.room_lines())


def test_the_size_table_has_the_articles_rows_and_ours():
    table = sizes.table()
    assert table.loc["local", "article rows"] == 363
    assert table.loc["local", "our rows"] == report.notebook_rows(report.NOTEBOOKS / "local.ipynb")
    assert sizes.details().loc["together", "local"] == table.loc["local", "lines of kit/"]
    assert len(sizes.chart().axes) == 1
