"""Settings of one profile: the TOML file of a site, the `KIT_*` variables, the `.env` file.

Every setting has one place; the README's table has a row for each.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kit.base import profiles
from kit.base.errors import UsageError
from kit.base.profiles import Cloud, Hpc, Partition, Port, Rate, Site, Store

ROOT = Path(__file__).resolve().parents[2]
SITES = ROOT / "env" / "sites"
DEFAULT_PROFILE = "sandbox"


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
    sections = profiles.read(_site_file(name, own), names)
    if sections["site"].alias_of:
        name = sections["site"].alias_of
        sections = profiles.read(_site_file(name, own), names)
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
