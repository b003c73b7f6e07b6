"""The language of code and documents: plain words, complete names, no formatter exceptions."""

import ast
import json
import re

import pytest

from kit.base import ROOT

# Words of a private dialect, and the constructions "is no X" for "is not a valid X".
DIALECT = re.compile(
    r"\b(told|mends?|mended|anew|whoever|stands?|is no|are no|came to nothing|broken off|goes on"
    r"|so many)\b",
    re.IGNORECASE,
)
VAGUE_BEGINNING = re.compile(r"(Give|Say|Name|Tell|What|Be)\b")
ROOMS = sorted(path for path in (ROOT / "kit").iterdir() if (path / "__init__.py").exists())
CLEAN_ROOMS = {"cli", "report"}
SOURCES = [
    *(path for room in ROOMS if room.name in CLEAN_ROOMS for path in sorted(room.rglob("*.py"))),
    ROOT / "kit" / "__init__.py",
]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name_of(path):
    return str(path.relative_to(ROOT))


def lines_with_dialect(text):
    return [line for line in text.splitlines() if DIALECT.search(line)]


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=name_of)
def test_no_word_of_the_dialect(path):
    assert lines_with_dialect(path.read_text()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_no_word_of_the_dialect_in_a_notebook(path):
    cells = json.loads(path.read_text())["cells"]
    assert lines_with_dialect("\n".join("".join(cell["source"]) for cell in cells)) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_docstrings_begin_with_what_the_function_does(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    texts = [ast.get_docstring(node) or "" for node in nodes]
    assert [text for text in texts if VAGUE_BEGINNING.match(text)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_formatter_has_no_exceptions(path):
    assert "fmt: skip" not in path.read_text()


@pytest.mark.parametrize("text", ["it was told", "there is no box", "made anew", "It stands here"])
def test_a_planted_word_is_found(text):
    assert DIALECT.search(text)
