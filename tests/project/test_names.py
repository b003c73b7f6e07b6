"""A public name is defined once, so that a search for it finds the one place."""

import ast

import pytest

from kit.base import ROOT

# The reasons are in docs/explanation/architecture.md.
SEVERAL = {
    "Parameters": "an experiment's own, of kit.Parameters",
    "RunStatus": "kept by the submitter, answered by the forwarder",
    "checks": "one list of checks a place of the doctor",
    "cloud_hpc_preprocess": "a component and the stage that it calls",
    "cloud_hpc_train": "a component and the stage that it calls",
    "data": "of the contract",
    "evaluate": "of the contract; a component and the stage that it calls",
    "figures": "of the contract",
    "main": "the entry of a program",
    "preprocess_train": "a component and the stage that it calls",
    "train": "of the contract",
}
DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def modules_by_name():
    """Return the modules that define each public function or class."""
    found = {}
    for room in (ROOT / "kit", ROOT / "env" / "sandbox" / "kit_sandbox"):
        for path in sorted(room.rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, DEFINED) and not node.name.startswith("_"):
                    found.setdefault(node.name, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_only_names_with_a_reason_are_defined_in_several_modules():
    several = {name: places for name, places in modules_by_name().items() if len(places) > 1}
    assert {n: places for n, places in several.items() if n not in SEVERAL} == {}
    assert set(SEVERAL) - set(several) == set(), "defined once now: take it from the list"


@pytest.mark.parametrize("name", SEVERAL)
def test_the_reason_is_on_the_page_for_engineers(name):
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    assert f"`{name}`" in page.partition("## Names in several modules")[2]
