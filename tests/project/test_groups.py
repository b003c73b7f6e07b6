"""`make test` and `make test-faults` together run every test exactly once."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import product

import pytest

from kit.base import ROOT

MARKS = ("sandbox", "slow", "core")
MAKEFILE = (ROOT / "Makefile").read_text()
SCRIPT = (ROOT / "tests" / "sandbox_and_slow.sh").read_text()
# Prints each test with its marks, instead of running it.
COLLECT = """
import json, sys
import pytest

class Marks:
    def pytest_collection_finish(self, session):
        items = [(i.nodeid, [m.name for m in i.iter_markers()]) for i in session.items]
        open(sys.argv[1], "w").write(json.dumps(items))

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"], plugins=[Marks()]))
"""


def recipe(target):
    """The lines of a target of the Makefile."""
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M).group(1)


def selections(text):
    """The expressions that follow `pytest … -m`, as Python source; the rest of a line is kept."""
    return [
        quoted or bare
        for quoted, bare in re.findall(r"-m pytest[^\n]*? -m (?:\"([^\"]+)\"|(\w+))", text)
    ]


SELECTIONS = [*selections(recipe("test")), *selections(SCRIPT)]


def chosen(marks):
    """The selections that run a test with these marks."""
    values = {name: name in marks for name in MARKS}
    return [text for text in SELECTIONS if eval(text, {}, values)]


def test_both_commands_are_known_and_the_second_runs_the_script():
    assert len(selections(recipe("test"))) == 2
    assert len(selections(SCRIPT)) == 2
    assert "tests/sandbox_and_slow.sh" in recipe("test-faults")
    assert "sandbox_and_slow" not in recipe("test")


@pytest.mark.parametrize("flags", [*product([False, True], repeat=3)])
def test_a_test_is_selected_once_whatever_its_marks(flags):
    marks = [name for name, flag in zip(MARKS, flags, strict=True) if flag]
    assert len(chosen(marks)) == 1, marks


def test_no_command_names_files_or_leaves_tests_out():
    for text in (recipe("test"), recipe("test-faults"), SCRIPT):
        for line in text.splitlines():
            if "-m pytest" in line:
                assert not re.search(r"tests/|--ignore|--deselect| -k ", line)


def test_continuous_integration_runs_both():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make test", "make test-faults"]


@pytest.mark.slow
def test_the_groups_are_a_partition_of_all_tests_that_pytest_collects(tmp_path):
    listing = tmp_path / "items.json"
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, listing], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    items = json.loads(listing.read_text())
    counts = Counter(text for _, marks in items for text in chosen(marks))
    assert set(counts) == set(SELECTIONS), "a group without a test"
    assert [name for name, marks in items if len(chosen(marks)) != 1] == []
    assert counts.total() == len(items)
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert files == {name.partition("::")[0] for name, _ in items}


# An upper limit for seconds that pass on the clock: what else runs on the machine exceeds it.
TIMED = re.compile(r"assert (?:[\d.]+ <=? )?time\.(?:monotonic|time|perf_counter)\(\) - \w+ < \d")


def timed_tests(text):
    """The tests of a file that assert an upper limit, and are neither `slow` nor `sandbox`."""
    tree = ast.parse(text)
    marks = [ast.unparse(n) for n in tree.body if isinstance(n, ast.Assign)]
    if any(m.startswith("pytestmark") and re.search(r"\.(slow|sandbox)", m) for m in marks):
        return []
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and TIMED.search(ast.unparse(node))
        and not any(re.search(r"\.(slow|sandbox)", ast.unparse(d)) for d in node.decorator_list)
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda p: p.stem)
def test_no_unit_test_depends_on_the_load_of_the_machine(path):
    assert timed_tests(path.read_text()) == []


@pytest.mark.parametrize(("mark", "names"), [("", ["test_a"]), ("@pytest.mark.slow\n", [])])
def test_a_timed_unit_test_is_found_unless_it_is_marked(mark, names):
    text = f"{mark}def test_a():\n    x()\n    assert time.monotonic() - begun < 5\n"
    assert timed_tests(text) == names
    assert timed_tests("pytestmark = pytest.mark.slow\n" + text) == []
