"""The language of code and documents: plain words, complete names, no formatter exceptions."""

import ast
import json
import re

import pytest

from kit.base import ROOT

# Words of a private dialect, and the construction "it is no X" for "it is not a valid X"; the
# correct "there is no X" is allowed.
DIALECT = re.compile(
    r"\b(told|mends?|mended|anew|whoever|stands?(?!-in)|(?<!there )(is|are) no|came to nothing"
    r"|broken off|goes on|so many)\b",
    re.IGNORECASE,
)
VAGUE_BEGINNING = re.compile(r"(Give|Say|Name|Tell|What|Be)\b")
SOURCES = [
    *sorted((ROOT / "kit").rglob("*.py")),
    *sorted((ROOT / "env" / "sandbox" / "kit_sandbox").rglob("*.py")),
]
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != "test_language.py"]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name_of(path):
    return str(path.relative_to(ROOT))


def lines_with_dialect(text):
    return [line for line in text.splitlines() if DIALECT.search(line)]


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *PAGES], ids=name_of)
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


def test_the_formatter_has_no_exceptions():
    paths = [*SOURCES, *TESTS]
    assert [name_of(path) for path in paths if "# fmt: skip" in path.read_text()] == []


@pytest.mark.parametrize(
    "text", ["it was told", "the box is no file", "made anew", "It stands here"]
)
def test_a_planted_word_is_found(text):
    assert DIALECT.search(text)


@pytest.mark.parametrize("text", ["There is no box", "there are no boxes", "it is not a box"])
def test_correct_english_is_allowed(text):
    assert not DIALECT.search(text)
