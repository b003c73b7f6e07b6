"""The packages of an experiment: what it imports, and what its requirements need in their turn."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def canonical(requirement: str) -> str:
    """Return the name of a package, as indexes write it, from a requirement."""
    found = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else requirement


def with_dependencies(requirements: Iterable[str]) -> list[str]:
    """Return the requirements, and all packages that these need, as far as they are installed here.

    Those after the first are names without a version. Optional dependencies are left out.
    """
    found = {canonical(text): text for text in requirements}
    waiting = list(found)
    while waiting:
        for name in dependencies(waiting.pop()):
            if name not in found:
                found[name] = name
                waiting.append(name)
    return list(found.values())


def dependencies(name: str) -> list[str]:
    """Return the packages that an installed package needs itself; none for one that is not."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted = [Requirement(text) for text in texts]
    return [
        canonical(each.name)
        for each in wanted
        if each.marker is None or each.marker.evaluate({"extra": ""})
    ]


def missing_packages(sources: Mapping[str, Path], known: Iterable[str]) -> dict[str, str]:
    """Return the packages that some sources import and that are not known, by module.

    Python's own modules, the kit and the sources themselves are known.
    """
    packages, names = importlib.metadata.packages_distributions(), set(map(canonical, known))
    own = {part for name in sources for part in Path(name).with_suffix("").parts}
    missing = {}
    for module in sorted(set().union(*map(imported_modules, sources.values()))):
        if module in sys.stdlib_module_names or module in own or module == "kit":
            continue
        owners = [canonical(name) for name in packages.get(module, [module])]
        if not names & set(owners):
            missing[module] = owners[0]
    return missing


def imported_modules(path: Path) -> set[str]:
    """Return the top-level modules that a source file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
