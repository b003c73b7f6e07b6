"""A site profile: what `env/sites/<name>.toml` may say, checked key by key.

An unknown key is an error, and so is a text in <angle brackets>: it says what to fill in.
Strings may start with `~` and may name `${KIT_SANDBOX_DIR}` and `${CHECKOUT}`.
"""

import dataclasses
import os
import string
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.base.errors import UsageError


@dataclass(frozen=True)
class Site:
    """What the place is called; `closed` is the sentence a submission is refused with."""

    name: str
    title: str
    closed: str = ""
    alias_of: str = ""
    env_file: str = ""


@dataclass(frozen=True)
class Store:
    """The object store: `kind` is s3, swift or directory (then `url` is a folder)."""

    kind: str
    url: str
    auth_url: str = ""
    region: str = "regionOne"
    bucket_prefix: str = "integration"
    ice_id: str = "s0-c0-u1"
    ca_file: str = ""


@dataclass(frozen=True)
class Hpc:
    """The Slurm site: how to get in, what to ask for, where to write."""

    ssh_host: str
    project_dir: str
    account: str = ""
    user: str = ""
    ssh_config: str = ""
    partition: str = ""
    time: str = "00:20:00"
    nodes: int = 1
    cpus: int = 1
    mem: str = "3G"
    gres: str = ""
    modules: tuple[str, ...] = ()
    module_init: str = ""
    module_path: str = ""
    python: str = "python3"
    env_in: str = "job"
    tunnel: str = "none"
    poll_floor_s: float = 15.0
    timezone: str = "UTC"
    seff: bool = False
    certificate: bool = False
    renew_hint: str = ""
    retries: int = 0
    nat: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cloud:
    """The MLOps platform: `runner` is local (kfp.local) or cluster."""

    runner: str = "local"
    ssh_host: str = ""
    tunnel_address: str = ""
    tunnel_keys: str = "/home/kit-tunnel/.ssh/authorized_keys"
    kfp_url: str = ""
    mlflow_url: str = ""
    mlflow_env_file: str = ""
    forwarder_url: str = ""
    forwarder_token_file: str = ""
    prometheus_url: str = ""
    prometheus_env_file: str = ""
    forward_address: str = "127.0.0.1"
    flavor: str = ""
    image: str = ""


@dataclass(frozen=True)
class Port:
    """One service of the platform: behind Kubernetes (`svc`, `namespace`) or an `address`.

    `port` is where it is reached here; `target` is the service's own, where that is another.
    `password` is the command that shows the password of `user`.
    """

    port: int
    svc: str = ""
    namespace: str = ""
    address: str = ""
    target: int = 0
    user: str = ""
    password: str = ""


@dataclass(frozen=True)
class Partition:
    """What one job may have of a partition: `time` and `nodes`, and what one node has."""

    time: str
    nodes: int
    cores: int
    gib: int
    gpus: int = 0


@dataclass(frozen=True)
class Rate:
    """A price in `unit` of a `kind`: `rate` (1 if empty) per `per`, and the `plus` terms an hour.

    With `max` the price an hour is `rate` times the largest of its terms. A term is a factor of
    cores, gib, gpus or disk_gib; `"/8"` counts started eights.
    """

    per: str
    unit: str
    kind: str
    source: str
    checked: str
    rate: str = ""
    max: Mapping[str, str] = field(default_factory=dict)
    plus: Mapping[str, str] = field(default_factory=dict)


def read(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """Read a profile: section name -> dataclass (or mapping of them); `names` fill `${NAME}`.

    Raises UsageError with the file and the key for a syntax error, an unknown or missing key
    and a value of the wrong type. An alias gives the sections of the profile it stands for.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as err:
        raise UsageError(f"{path} is not valid TOML", str(err), "mend that line") from err
    return _sections(path, _expand(table, names))


def _expand(value: Any, names: Mapping[str, str]) -> Any:
    """Replace `~` and `${NAME}` in every string below `value`."""
    if isinstance(value, dict):
        return {key: _expand(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, names) for item in value]
    if isinstance(value, str):
        text = string.Template(value).safe_substitute(names)
        return os.path.expanduser(text) if text.startswith("~") else text
    return value


def _sections(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    single = {"site": Site, "store": Store, "hpc": Hpc, "cloud": Cloud}
    named = {"ports": Port, "partitions": Partition, "rates": Rate}
    _refuse_unknown(path, "", table, [*single, *named, "budget"])
    if "site" not in table:
        raise UsageError(f"{path}: the section [site] is missing", next_step="add name and title")
    sections: dict[str, Any] = {
        key: _typed(path, key, cls, table[key]) for key, cls in single.items() if key in table
    }
    for key, cls in named.items():
        rows = table.get(key, {})
        sections[key] = {name: _typed(path, f"{key}.{name}", cls, rows[name]) for name in rows}
    sections["budget"] = {kind: str(value) for kind, value in table.get("budget", {}).items()}
    return sections


def _typed(path: Path, section: str, cls: type, table: Any) -> Any:
    """Build the dataclass of one section, with every key and type checked."""
    if not isinstance(table, dict):
        raise UsageError(
            f"{path}: [{section}] is {table!r}", next_step=f"write a table [{section}]"
        )
    hints = typing.get_type_hints(cls)
    _refuse_unknown(path, section, table, list(hints))
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [key for key in required if key not in table]
    if missing:
        raise UsageError(f"{path}: [{section}] lacks {', '.join(missing)}", next_step="add it")
    return cls(**{key: _value(path, section, key, hints[key], table[key]) for key in table})


def _refuse_unknown(path: Path, section: str, table: dict[str, Any], known: list[str]) -> None:
    unknown = [key for key in table if key not in known]
    if unknown:
        where = f"[{section}]" if section else "top level"
        raise UsageError(
            f"{path}: unknown key {unknown[0]!r} at {where}",
            next_step=f"allowed there: {', '.join(sorted(known))}",
        )


def _value(path: Path, section: str, key: str, hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint) or hint
    if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        raise UsageError(
            f"{path}: [{section}] {key} is not filled in",
            next_step=(f"{value[1:-1]}; fill it in, in a copy of the file below KIT_SITES_DIR"),
        )
    if origin is tuple and isinstance(value, list):
        return tuple(str(item) for item in value)
    if origin is float and type(value) is int:
        return float(value)
    wanted = dict if origin not in (str, int, float, bool) else origin
    if type(value) is not wanted or isinstance(hint, types.UnionType):
        raise UsageError(
            f"{path}: [{section}] {key} = {value!r} is a {type(value).__name__}",
            next_step=f"write a {getattr(origin, '__name__', hint)}",
        )
    return value
