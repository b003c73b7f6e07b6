"""The file of a profile, on top of the files that it names as its base. Pure but for reading.

A profile with `[site] base = "NAME"` has everything of that profile, and replaces it key by key:
each key of a section, and each key of a named row such as [partitions.small]. A base may have a
base of its own.
"""

import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base.errors import UsageError
from kit.base.sections import TABLES

Table = dict[str, Any]
OLD_KEYS = {  # accepted until the next release
    "hpc": {
        "nat": "egress_addresses",
        "env_in": "build_env_on",
        "seff": "has_seff",
        "certificate": "needs_certificate",
    },
    "store": {"ice_id": "collector_id"},
}


REFUSED_KEYS = {  # keys that people look for, and what to write in their place
    "hpc": {
        "tasks_per_node": "the kit starts one task on each node, and Ray shares its cores; "
        "write cpus, or `kit submit --ntasks` for a job of your own",
        "ntasks": "write nodes and cpus; the kit starts one task on each node",
        "proxy_jump": "write ProxyJump in ~/.ssh/config, below the host of ssh_host; the kit's ssh "
        "reads that file, or the one in ssh_config",
        "array": "each run is one job; submit runs one by one (kit run --runs)",
    }
}
RIVAL_KEYS = {
    "hpc": (("mem", "mem_per_cpu"),),
    "store": (("auth_url", "credentials_file"),),
}  # only one of them may be written
NOT_INHERITED = ("name", "base", "alias_of")  # keys of [site] that are about one file


@dataclass(frozen=True)
class ProfileFile:
    """A profile's file with its bases applied: `table` as TOML has it.

    `layers` are the files and what each has: the profile's own first, the farthest base last.
    """

    table: Table
    layers: tuple[tuple[Path, Table], ...]

    @property
    def file(self) -> Path:
        """The profile's own file."""
        return self.layers[0][0]

    @property
    def bases(self) -> tuple[Path, ...]:
        """The files of its bases, the nearest first."""
        return tuple(path for path, _ in self.layers[1:])

    def origin(self, heading: str, key: str) -> str:
        """Return words that name the base that a key of [heading] is from; "" for an own key."""
        for path, table in self.layers:
            values: Any = table
            for name in heading.split(".", 1):
                values = values.get(name) if isinstance(values, dict) else None
            if isinstance(values, dict) and key in values:
                return "" if path == self.file else f" (in its base, {path})"
        return ""


def read_file(path: Path, profiles: Mapping[str, Path], shipped: Mapping[str, Path]) -> ProfileFile:
    """Read a profile's file and its bases; `profiles` are all by name, `shipped` the kit's own.

    A profile of a person may have the name of a shipped one and that one as its base. Raises
    UsageError for a file that is not valid TOML, a base that does not exist, one that is an
    alias, and for bases that go round in a circle.
    """
    layers = [(path, _read(path))]
    while base := _site_key(layers[-1][1], "base"):
        child, files = layers[-1][0], [file for file, _ in layers]
        where = f"{child}: [site] base = {base!r}"
        file = shipped.get(base) if profiles.get(base) == child else profiles.get(base)
        if file is None:
            others = ", ".join(sorted(name for name in profiles if profiles[name] != child))
            raise UsageError(where, "this profile does not exist", f"name one of: {others}")
        if file in files:
            circle = " -> ".join(file.stem for file in [*files, file])
            step = "take the line `base` out of one of them"
            raise UsageError(where, f"the bases go round in a circle: {circle}", step)
        layers.append((file, _read(file)))
        if alias := _site_key(layers[-1][1], "alias_of"):
            step = f"name that profile: base = {alias!r}"
            raise UsageError(where, f"it is another name of {alias!r}", step)
    table: Any = {}
    for file, layer in reversed(layers):
        table = _merged(table, layer if file == path else _inherited(layer))
    return ProfileFile(table, tuple(layers))


def _read(path: Path) -> Table:
    """Read one file; keys with an old name get the new one, with a warning."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"{path} is not valid TOML", str(err), "correct that line") from err
    for section, names in OLD_KEYS.items():
        values: Any = table.get(section)
        for old, new in names.items() if isinstance(values, dict) else ():
            if old in values:
                values.setdefault(new, values.pop(old))
                warnings.warn(f"{path}: [{section}] {old} is now named {new}", stacklevel=2)
    return table


def _site_key(table: Table, key: str) -> str:
    """Return a key of [site]; "" if it is missing or of a type that `Site` will refuse."""
    site = table.get("site")
    value = site.get(key) if isinstance(site, dict) else None
    return value if isinstance(value, str) else ""


def _inherited(table: Table) -> Table:
    """Return what a base hands on."""
    site = table.get("site")
    if not isinstance(site, dict):
        return table
    kept = {key: value for key, value in site.items() if key not in NOT_INHERITED}
    return {**table, "site": kept}


def _merged(below: Table, above: Table) -> Table:
    """Return both tables, key by key; in the tables of named rows, the keys of each row."""
    table = dict(below)
    for section, values in above.items():
        depth = 2 if section in TABLES else 1
        table[section] = _on_top(below.get(section), values, depth)
    return table


def _on_top(below: Any, above: Any, depth: int) -> Any:
    if not depth or not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _on_top(below.get(key), above[key], depth - 1) for key in above}
