"""Settings of one profile: the TOML file of a site, the `KIT_*` variables, the `.env` file.

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
from kit.base.files import ROOT

SITES = ROOT / "env" / "sites"
DEFAULT_PROFILE = "sandbox"


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


def read_profile(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Settings:
    """Everything the kit was told: one profile and the paths that hold for all profiles."""

    profile: str
    site: Site
    results_dir: Path
    cache_dir: Path
    sandbox_dir: Path
    data_dir: Path | None = None
    env_file: Path | None = None
    store: Store | None = None
    hpc: Hpc | None = None
    cloud: Cloud | None = None
    ports: Mapping[str, Port] = field(default_factory=dict)
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    rates: Mapping[str, Rate] = field(default_factory=dict)
    budget: Mapping[str, str] = field(default_factory=dict)

    def hpc_section(self, accepts_jobs: bool = False) -> Hpc:
        """Return [hpc]. Raises UsageError if it is missing, or (`accepts_jobs`) the site closed."""
        if self.hpc is None:
            raise self._missing("hpc")
        if accepts_jobs and self.site.closed:
            raise UsageError(
                f"profile {self.profile} accepts no jobs", self.site.closed, "use another profile"
            )
        return self.hpc

    def store_section(self) -> Store:
        """Return [store]. Raises UsageError if it is missing."""
        if self.store is None:
            raise self._missing("store")
        return self.store

    def cloud_section(self) -> Cloud:
        """Return [cloud]. Raises UsageError if it is missing."""
        if self.cloud is None:
            raise self._missing("cloud")
        return self.cloud

    def _missing(self, section: str) -> UsageError:
        return UsageError(
            f"this profile has no section [{section}]",
            f"profile {self.profile}",
            f"add [{section}] to the profile's file, or use another profile (--profile)",
        )

    @property
    def profile_dir(self) -> Path:
        """Where the runs of this profile are written."""
        return self.results_dir / self.profile


def load(profile: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read a profile (argument, else `KIT_PROFILE`, else sandbox) and the `KIT_*` variables.

    Raises UsageError for a profile that does not exist, a TOML syntax error, an unknown or
    missing key, or a value of the wrong type; the message names the file and the key.
    """
    name = profile or environ.get("KIT_PROFILE") or DEFAULT_PROFILE
    sandbox_dir = Path(environ.get("KIT_SANDBOX_DIR") or f"/var/tmp/kit-{os.getuid()}")  # noqa: S108 - checked for its owner before use; sockets need a short path
    names = {"KIT_SANDBOX_DIR": str(sandbox_dir), "CHECKOUT": str(ROOT)}
    own = _optional_path(environ.get("KIT_SITES_DIR"))
    sections = read_profile(_site_file(name, own), names)
    if sections["site"].alias_of:
        name = sections["site"].alias_of
        sections = read_profile(_site_file(name, own), names)
    given = environ.get("KIT_ENV_FILE") or sections["site"].env_file
    return Settings(
        profile=name,
        results_dir=Path(environ.get("KIT_RESULTS_DIR") or ROOT / "results").absolute(),
        cache_dir=_cache_dir(environ),
        sandbox_dir=sandbox_dir,
        data_dir=_optional_path(environ.get("KIT_DATA_DIR")),
        env_file=_optional_path(given),
        **sections,
    )


def _optional_path(value: str | None) -> Path | None:
    return Path(value).expanduser().absolute() if value else None


def _cache_dir(environ: Mapping[str, str]) -> Path:
    """`KIT_CACHE_DIR`, else the platform's cache folder."""
    if environ.get("KIT_CACHE_DIR"):
        return Path(environ["KIT_CACHE_DIR"]).expanduser().absolute()
    import platformdirs  # late: `kit --help` works without the extras

    return Path(platformdirs.user_cache_dir("cloud-hpc-kit"))


def profile_names(own: Path | None = None) -> list[str]:
    """Name the profiles that exist, those in the person's `own` folder among them."""
    return sorted(_profiles(own))


def _profiles(own: Path | None) -> dict[str, Path]:
    """Find the files; one of the person's goes before one of that name that is shipped."""
    return {p.stem: p for folder in (SITES, own) if folder for p in folder.glob("*.toml")}


def _site_file(name: str, own: Path | None) -> Path:
    files = _profiles(own)
    if name not in files:
        raise UsageError(
            f"there is no profile {name!r}",
            next_step=f"use one of: {', '.join(sorted(files))} (KIT_PROFILE or --profile)",
        )
    return files[name]
