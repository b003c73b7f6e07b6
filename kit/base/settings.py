"""Settings of one profile: the TOML file of a site and the `KIT_*` variables.

`load` reports every wrong key of a profile at once. The sections and their keys are described in
`kit.base.sections`; callers import them from here.
"""

import dataclasses
import os
import string
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kit.base.errors import ProfileMissing, ProfileUnfilled, UsageError
from kit.base.files import ROOT, work_dir
from kit.base.sections import (
    SECTIONS,
    TABLES,
    Cloud,
    Hpc,
    Partition,
    Port,
    Rate,
    Site,
    Store,
    exact,
    profile_template,
    reference,
)
from kit.base.settings_file import REFUSED_KEYS, RIVAL_KEYS, ProfileFile, read_file

__all__ = [
    "Cloud",
    "Hpc",
    "Partition",
    "Port",
    "Rate",
    "Settings",
    "Site",
    "Store",
    "load",
    "profile_names",
    "profile_template",
    "reference",
]

SITES = ROOT / "env" / "sites"
DEFAULT_PROFILE = "sandbox"


def _platform_port(port: int, svc: str, namespace: str, key: str = "", **more: Any) -> Port:
    secrets = ROOT / "env" / "platform" / "secrets" / "platform.env"
    password = f"grep {key} '{secrets}'" if key else ""
    return Port(port, svc=svc, namespace=namespace, password=password, **more)


PLATFORM_PORTS: Mapping[str, Port] = {  # the services of env/platform
    "dashboard": _platform_port(
        8080,
        "istio-ingressgateway",
        "istio-system",
        "DEX_PASSWORD",
        target=80,
        user="user@example.com",
    ),
    "minio": _platform_port(
        9000, "minio-service", "kubeflow", "KFP_MINIO_PASSWORD", user="kubeflow"
    ),
    "mlflow": _platform_port(5000, "mlflow", "mlflow"),
    "mlflow-minio": _platform_port(
        9001, "mlflow-minio-service", "mlflow", "MLFLOW_MINIO_PASSWORD", user="mlflow"
    ),
    "prometheus": _platform_port(8090, "prometheus-service", "monitoring", target=8080),
    "grafana": _platform_port(
        5050, "grafana", "monitoring", "GRAFANA_PASSWORD", target=3000, user="admin"
    ),
    "forwarder": _platform_port(6500, "fastapi-service", "forwarder", "FORWARDER_TOKEN"),
    "flower": _platform_port(6501, "flower-service", "forwarder", "FLOWER_PASSWORD", user="flower"),
    "worker": _platform_port(6502, "celery-service", "forwarder", "FORWARDER_GAUGES_TOKEN"),
    "ray": Port(8280),  # on the VM itself, while a job with a tunnel runs
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One profile and the paths that hold for all profiles.

    `file` is the profile's own file, `bases` are those that it builds on, the nearest first.
    """

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
    file: Path = SITES / "sandbox.toml"
    bases: tuple[Path, ...] = ()

    def hpc_section(self, accepts_jobs: bool = False) -> Hpc:
        """Return [hpc]. Raises UsageError if it is missing, or (`accepts_jobs`) the site closed."""
        if accepts_jobs and self.site.closed:
            raise UsageError(
                f"profile {self.profile} accepts no jobs", self.site.closed, "use another profile"
            )
        if self.hpc is None:
            raise self._missing("hpc")
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
            f"profile {self.profile}, file {self.file}",
            f"add [{section}] to that file, or use another profile (--profile)",
        )

    @property
    def profile_dir(self) -> Path:
        """The folder of this profile's runs."""
        return self.results_dir / self.profile


def load(profile: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read a profile (argument, else `KIT_PROFILE`, else sandbox) and the `KIT_*` variables.

    Raises UsageError if the profile does not exist, has a TOML syntax error, an unknown or
    missing key, or a value of the wrong type; the message names the file and every such key.
    """
    _refuse_homeless()
    name = profile or environ.get("KIT_PROFILE") or DEFAULT_PROFILE
    results_dir = _path(environ.get("KIT_RESULTS_DIR")) or work_dir() / "results"
    names = {
        "KIT_SANDBOX_DIR": str(sandbox_dir(environ)),
        "KIT_RESULTS_DIR": str(results_dir),
        "CHECKOUT": str(ROOT),
    }
    own = _path(environ.get("KIT_SITES_DIR"))
    found = read_profile(_site_file(name, own), names, own)
    if found["site"].alias_of:
        name = found["site"].alias_of
        found = read_profile(_site_file(name, own), names, own)
    return Settings(
        profile=name,
        results_dir=results_dir,
        cache_dir=cache_dir(environ),
        sandbox_dir=sandbox_dir(environ),
        data_dir=_path(environ.get("KIT_DATA_DIR")),
        env_file=_path(environ.get("KIT_ENV_FILE") or found["site"].env_file),
        **found,
    )


def _refuse_homeless() -> None:
    """Raise UsageError for a user without a home folder, as containers have them."""
    try:
        Path.home()
    except RuntimeError as err:
        got = f"HOME is not set, and user {os.getuid()} has no line in /etc/passwd"
        raise UsageError("find your home folder", got, "set HOME to a folder of your own") from err


def _path(value: str | None) -> Path | None:
    return Path(value).expanduser().absolute() if value else None


def sandbox_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the sandbox's state. Its owner is checked before it is used."""
    # a short path, for the sockets below it
    return _path(environ.get("KIT_SANDBOX_DIR")) or Path(f"/var/tmp/kit-{os.getuid()}")  # noqa: S108


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what can be fetched or made again. Raises UsageError without a home."""
    _refuse_homeless()
    if folder := _path(environ.get("KIT_CACHE_DIR")):
        return folder
    import platformdirs  # late: `kit --help` works without the extras

    return Path(platformdirs.user_cache_dir("cloud-hpc-kit"))


def profile_names(own: Path | None = None) -> list[str]:
    """List the profiles that exist, those in the person's `own` folder among them."""
    return sorted(_profiles(own))


def _profiles(own: Path | None) -> dict[str, Path]:
    """Find the files; one in `own` has precedence over a shipped one of the same name."""
    return {p.stem: p for folder in (SITES, own) if folder for p in folder.glob("*.toml")}


def _site_file(name: str, own: Path | None) -> Path:
    files = _profiles(own)
    if name not in files:
        raise ProfileMissing(
            f"profile {name!r} does not exist",
            next_step=f"use one of: {', '.join(sorted(files))} (KIT_PROFILE or --profile)",
        )
    return files[name]


def read_profile(path: Path, names: Mapping[str, str], own: Path | None = None) -> dict[str, Any]:
    """Return what a profile's file and its bases say, as fields of `Settings`.

    A section is its dataclass, or a mapping of them. `names` fill in `${NAME}`, `own` is the
    person's folder of profiles, where a base may be. Raises UsageError with the file and every
    wrong key.
    """
    text = read_file(path, _profiles(own), _profiles(None))
    problems: list[str] = []
    sections = _sections(text, _expand(text.table, names), problems)
    error = ProfileUnfilled if any(map(_is_placeholder, _values(text.table))) else UsageError
    if len(problems) == 1:
        raise error(f"{text.file}: {problems[0]}", next_step="correct it in that file")
    if problems:
        raise error(
            f"{text.file} has {len(problems)} mistakes",
            "; ".join(problems),
            "correct them in that file",
        )
    return sections | {"file": text.file, "bases": text.bases}


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


def _sections(text: ProfileFile, table: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    allowed = sorted([*SECTIONS, *TABLES, "budget"])
    unknown = [key for key in table if key not in allowed]
    problems += [f"unknown section [{key}]; allowed: {', '.join(allowed)}" for key in unknown]
    if "site" not in table:
        problems.append("the section [site] is missing; add name and title")
    sections: dict[str, Any] = {}
    for key, cls in SECTIONS.items():
        if key in table:
            sections[key] = _section(text, key, cls, table[key], problems)
    for key, cls in TABLES.items():
        rows = _table(key, table.get(key, {}), problems)
        sections[key] = {
            name: _section(text, f"{key}.{name}", cls, row, problems) for name, row in rows.items()
        }
    budget = _table("budget", table.get("budget", {}), problems)
    sections["budget"] = {kind: str(exact(value)) for kind, value in budget.items()}
    if not problems:
        _join_rates(sections, problems)
        if (cloud := sections.get("cloud")) and cloud.runner == "cluster" and cloud.kfp_url:
            sections["ports"] = {**PLATFORM_PORTS, **sections["ports"]}
    return sections


def _table(section: str, table: Any, problems: list[str]) -> dict[str, Any]:
    if isinstance(table, dict):
        return table
    problems.append(f"[{section}] is {table!r}; write a table [{section}]")
    return {}


def _section(text: ProfileFile, section: str, cls: type, table: Any, problems: list[str]) -> Any:
    """Build the dataclass of one section; append a sentence to `problems` for each wrong key."""
    values = dict(_table(section, table, problems))
    before = len(problems)
    for key, value in list(values.items()):
        if _is_placeholder(value):
            where = text.origin(section, key)
            problems.append(f"[{section}] {key} is not filled in: {value[1:-1]}{where}")
            values[key] = ""
    for one, other in RIVAL_KEYS.get(section, ()):
        if values.get(one) and values.get(other):
            step = f'leave one empty ({one} = "")'
            problems.append(f"[{section}] has both {one} and {other}; {step}")
    try:
        built = cls(**values)
    except ValidationError as err:
        for error in err.errors():
            where = text.origin(section, str(error["loc"][0]) if error["loc"] else "")
            problems.append(_problem(section, cls, error) + where)
        return None
    return built if len(problems) == before else None


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")


def _values(table: dict[str, Any]) -> Iterator[Any]:
    for section in table.values():
        yield from section.values() if isinstance(section, dict) else ()


def _problem(section: str, cls: type, error: Any) -> str:
    """Return the sentence for one error of pydantic."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        allowed = ", ".join(sorted(f.name for f in dataclasses.fields(cls)))
        if reason := REFUSED_KEYS.get(section, {}).get(key):
            return f"[{section}] {key} is not a key: {reason}"
        return f"unknown key {key!r} at [{section}]; allowed: {allowed}"
    if error["type"] == "missing":
        return f"[{section}] lacks {key}"
    reason = error["msg"].removeprefix("Value error, ").replace("Input", "input")
    return f"[{section}] {key} = {error['input']!r}: {reason}"


def _join_rates(sections: dict[str, Any], problems: list[str]) -> None:
    """Assign each partition its rate; keep those partitions in which jobs may run."""
    rates, partitions = dict(sections["rates"]), sections["partitions"]
    for name, row in partitions.items():
        if row.rate and row.rate not in sections["rates"]:
            problems.append(
                f"[partitions.{name}] rate = {row.rate!r} names a missing [rates] table"
            )
        elif row.rate:
            rates[name] = sections["rates"][row.rate]
        elif rates and name not in rates:
            problems.append(f"[partitions.{name}] has no rate; name a [rates] table in its rate")
        if not row.rate and not (row.time and row.nodes and row.cores and row.gib):
            problems.append(f"[partitions.{name}] lacks time, nodes, cores or gib")
    sections["rates"] = rates
    sections["partitions"] = {name: row for name, row in partitions.items() if row.time}
