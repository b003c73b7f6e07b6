"""Find secrets in files before they are kept or handed on: known values and known shapes."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base.errors import KitError
from kit.base.files import ROOT

if TYPE_CHECKING:
    from kit.base.settings import Settings

SHAPES = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key id": rb"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{30}",
    "a GitLab token": rb"\bglpat-[\w-]{20}",
    "a bearer token": rb"[Bb]earer [A-Za-z0-9_\-.=]{24,}",
    "a Keystone token": rb"\bgAAAAA[A-Za-z0-9_-]{60,}",
    "a password in a URL": rb"\b[a-z]+://[^/\s:@\"']+:[^/\s:@\"'*{$]{6,}@",
}
_NAMED = re.compile(r"^\s*(?:export )?(\w*(?:PASS|SECRET|TOKEN)\w*)=[\"']?(.+?)[\"']?\s*$", re.M)


class SecretFound(KitError):
    """A file holds a secret: it is not kept and not handed on."""


def known_secrets(settings: "Settings") -> dict[str, bytes]:
    """Read the secrets of the profile's files: name -> value, those of eight letters or more."""
    files = [settings.env_file, Path.home() / ".ssh" / ".env", ROOT / ".env"]
    if settings.cloud is not None:
        names = (settings.cloud.mlflow_env_file, settings.cloud.prometheus_env_file)
        files += [Path(name) for name in names if name]
    found = {}
    for path in files:
        if path is not None and path.is_file():
            for name, value in _NAMED.findall(path.read_text(errors="replace")):
                if len(value) >= 8:
                    found[f"{name} of {path.name}"] = value.encode()
    return found


def find_secrets(content: bytes, values: dict[str, bytes]) -> list[str]:
    """Name what secrets some bytes hold, never showing one."""
    shapes = [name for name, shape in SHAPES.items() if re.search(shape, content)]
    return [name for name, value in values.items() if value in content] + shapes


def refuse_secrets(settings: "Settings", paths: Iterable[Path]) -> None:
    """Raise SecretFound that names the file and the kind of the first secret in these files."""
    values = known_secrets(settings)
    for path in paths:
        found = find_secrets(path.read_bytes(), values)
        if found:
            step = "take it out of the cell or log that shows it, change that secret, run again"
            raise SecretFound(f"keep {path.name}", f"it holds {', '.join(found)}", step)
