"""The packages of an experiment: what it imports, and what its requirements need in their turn."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from kit.base import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRAS = re.compile(r"\[[A-Za-z0-9._,-]*\]")
_PLAIN = re.compile(  # a line for pip, without options and comments
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?([=<>~!]=?[A-Za-z0-9.*+!,<>=~]+)?"
)


def canonical(requirement: str) -> str:
    """Return the name of a package, as indexes write it, from a requirement."""
    found = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else requirement


def requirement_problem(text: str) -> str:
    """Return why a text cannot be an entry of REQUIREMENTS; empty if it can."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as err:
        return str(err).splitlines()[0]
    if requirement.marker is not None:
        return "a marker would be evaluated on this machine and not on the site"
    if requirement.url:
        return "a site takes packages from its index only, not from an address"
    return "" if _PLAIN.fullmatch(text) else "it has a space or another character in it"


def with_dependencies(requirements: Iterable[str]) -> list[str]:
    """Return the requirements, and all packages that these need, as far as they are installed here.

    Extras are expanded: `ray[default]` becomes ray and what its extra needs. The packages after
    the first are names without a version. Other optional dependencies are left out. Raises
    UsageError for an extra that an installed package does not have.
    """
    found = {canonical(text): _EXTRAS.sub("", text) for text in requirements}
    waiting = [(canonical(text), _extras(text)) for text in requirements]
    seen = set()
    while waiting:
        package = waiting.pop()
        if package not in seen:
            seen.add(package)
            needed = dependencies(*package)
            waiting += needed
            for name, _ in needed:
                found.setdefault(name, name)
    return list(found.values())


def dependencies(
    name: str, extras: frozenset[str] = frozenset()
) -> list[tuple[str, frozenset[str]]]:
    """Return the packages, each with its extras, that an installed package needs with some extras.

    Returns none for a package that is not installed.
    """
    from packaging.requirements import Requirement

    try:
        about = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    provided = sorted(map(canonical, about.get_all("Provides-Extra") or []))
    if unknown := extras.difference(provided):
        got = f"it has {', '.join(provided) or 'no extras'}"
        tried = f"find what {name}[{', '.join(sorted(unknown))}] needs"
        raise UsageError(tried, got, "correct this entry of REQUIREMENTS")
    wanted = [Requirement(text) for text in about.get_all("Requires-Dist") or []]
    return [
        (canonical(each.name), frozenset(map(canonical, each.extras)))
        for each in wanted
        if each.marker is None or any(each.marker.evaluate({"extra": x}) for x in ("", *extras))
    ]


def _extras(requirement: str) -> frozenset[str]:
    """Return the extras that a requirement names, as indexes write them."""
    found = _EXTRAS.search(requirement)
    return frozenset(map(canonical, found[0][1:-1].split(","))) if found else frozenset()


def missing_packages(sources: Mapping[str, Path], known: Iterable[str]) -> dict[str, str]:
    """Return the packages that some sources import and that are not known, by module.

    Python's own modules, the kit and the sources themselves are known.
    """
    packages, names = importlib.metadata.packages_distributions(), set(map(canonical, known))
    own = {part for name in sources for part in Path(name).with_suffix("").parts}
    missing = {}
    imported = (imported_modules(path, on_site=True) for path in sources.values())
    for module in sorted(set().union(*imported)):
        if module in sys.stdlib_module_names or module in own or module == "kit":
            continue
        owners = [canonical(name) for name in packages.get(module, [module])]
        if not names & set(owners):
            missing[module] = owners[0]
    return missing


def imported_modules(path: Path, on_site: bool = False) -> set[str]:
    """Return the top-level modules that a source file imports, wherever in it.

    With `on_site` the function `data` of an experiment is left out: it does not run there.
    """
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if on_site and functions.keys() >= {"data", "train", "evaluate"}:
        tree.body.remove(functions["data"])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
