"""The public names: the list, its types, its page and the notebooks agree."""

import ast
import json
import re

import pytest

import kit
from kit.base import ROOT

PAGE = ROOT / "docs" / "reference" / "api.md"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook):
    """The source of a notebook's code cells, without magics."""
    cells = json.loads(notebook.read_text())["cells"]
    lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


@pytest.mark.parametrize("name", kit.__all__)
def test_a_public_name_is_loaded_when_it_is_used(name):
    value = getattr(kit, name)
    assert value is not None
    assert value is getattr(kit, name)


def test_list_places_types_and_page_have_the_same_names():
    names = set(kit.__all__)
    assert names == set(kit._PLACES)
    source = (ROOT / "kit" / "__init__.py").read_text()
    (block,) = [n for n in ast.parse(source).body if isinstance(n, ast.If)]
    typed = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert typed == names
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)) == names


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'moon'"):
        kit.moon  # noqa: B018


def test_the_public_names_carry_types():
    assert (ROOT / "kit" / "py.typed").exists()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_only_public_names(notebook):
    tree = ast.parse(code(notebook))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "kit"
    }
    assert used <= set(kit.__all__)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_installs_nothing_not_even_in_a_comment(notebook):
    """A running kernel does not see what it installs; a Python other than 3.11 gets an error.

    `make lab` installs first, and the README says that Colab and Binder have another Python.
    """
    cells = json.loads(notebook.read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert not re.search(r"pip\d?\s+install|%pip|Colab|Binder", source)
    assert "| Binder, Colab | no: another Python |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_only_the_kit_and_no_module_of_it(notebook):
    nodes = ast.walk(ast.parse(code(notebook)))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    assert all(isinstance(node, ast.Import) for node in imports)
    assert names == ["kit"]
