"""Find secrets in files before they are stored or published: known values and known shapes.

The known values come from where the kit reads them: the files and variables that hold a login or
a token, and every `Secret` of this process. Each is searched for as it is and in the encodings
of the files that are kept: JSON, HTML, URL, base64.
"""

import base64
import html
import json
import os
import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, urlsplit

from kit.base.errors import KitError
from kit.base.files import ROOT
from kit.base.secret import login_files, parse_env, secrets_in_use

if TYPE_CHECKING:
    from kit.base.settings import Settings

MIN_LENGTH = 8  # shorter texts occur by chance
HIDDEN = "(a secret)"  # in place of one in a log
MAX_BYTES = 65536  # of a file with secrets
SHAPES = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key id": rb"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{30}",
    "a GitLab token": rb"\bglpat-[\w-]{20}",
    "a bearer token": rb"[Bb]earer [A-Za-z0-9_\-.=]{24,}",
    # The letter after the zeros is that of a time from 2004 to 2106.
    "a Keystone token": rb"\bgAAAAA[BC][A-Za-z0-9_-]{59,}",
    "a password in a URL": rb"\b[a-z]+://[^/\s:@\"']+:[^/\s:@\"'*{$]{6,}@",
}
# Embedded pictures and fonts: `data:` URLs of pages, `image/png` of notebooks. A run of zeros in
# one looks like the start of a token.
_EMBEDDED = re.compile(rb'(?:;base64,|"image/[\w.+-]+": ")((?:[A-Za-z0-9+/=]|\\n)*)')
# Of people it holds names and hashes of tokens; experiments are source files.
_NO_SECRETS = ("KIT_FORWARDER_PEOPLE", "KIT_EXPERIMENTS")
_SECRET_NAME = re.compile(r"PASS|SECRET|TOKEN|COOKIE|_KEY$|REDIS_URL")
VARIABLES = (
    "CSC_PASSWORD",
    "OS_APPLICATION_CREDENTIAL_SECRET",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PROMETHEUS_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "OS_PASSWORD",
    "KUBEFLOW_COOKIES",
)


class SecretFound(KitError):
    """A file holds a secret: it is neither stored nor published."""


def known_secrets(
    settings: "Settings", environ: Mapping[str, str] = os.environ
) -> dict[str, bytes]:
    """Return the secrets that the kit knows: where each is from -> its value.

    Warns of one with fewer than eight characters, which cannot be searched for.
    """
    found: dict[str, bytes] = {}
    for name, value in _known(settings, environ):
        if len(value) >= MIN_LENGTH:
            found.setdefault(name, value.encode())
        elif value:
            text = f"{name} has fewer than {MIN_LENGTH} characters: it is not searched for"
            warnings.warn(text, stacklevel=2)
    for number, secret in enumerate(secrets_in_use(), start=1):
        content = secret.reveal().encode()
        if len(content) >= MIN_LENGTH and content not in found.values():
            found[f"secret {number} of this process"] = content
    return found


def _known(settings: "Settings", environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    cloud = settings.cloud
    env_files = login_files(settings)
    env_files += (ROOT / "env" / "platform" / "secrets").glob("*.env")
    token_files = [settings.cache_dir / "face-token"]
    token_files += [
        Path(value)
        for key, value in environ.items()
        if key.startswith("KIT_") and key not in _NO_SECRETS
    ]
    if cloud is not None:
        env_files += [Path(n) for n in (cloud.mlflow_env_file, cloud.prometheus_env_file) if n]
        token_files += [Path(cloud.forwarder_token_file)] if cloud.forwarder_token_file else []
    for port in settings.ports.values():  # their commands end with the file of the password
        words = shlex.split(port.password)
        (env_files if words[:1] == ["grep"] else token_files).extend(map(Path, words[-1:]))
    for path in dict.fromkeys(path.expanduser() for path in env_files):
        for name, value in parse_env(_text(path))[0].items():
            if _SECRET_NAME.search(name):
                yield f"{name} of {path.name}", value
            if "://" in value and (password := urlsplit(value).password):
                yield f"the password in {name} of {path.name}", password
    yield from _keys(settings)
    for path in dict.fromkeys(path.expanduser() for path in token_files):
        yield from _tokens(path.name, _text(path))
    for name in VARIABLES:
        yield f"the variable {name}", environ.get(name, "")


def _keys(settings: "Settings") -> Iterator[tuple[str, str]]:
    """Yield the secret halves of the S3 keys in the profile's own file."""
    if settings.store is None or not settings.store.credentials_file:
        return
    path = Path(settings.store.credentials_file).expanduser()
    for name, value in re.findall(r"^\s*(\w+)\s*[=:]\s*(\S+)\s*$", _text(path), re.MULTILINE):
        if _SECRET_NAME.search(name.upper()):
            yield f"{name} of {path.name}", value


def _text(path: Path) -> str:
    """Return the text of a file that may hold secrets; "" if it is not there."""
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""
    return ""


def _tokens(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the secrets of a token file: a token, a URL with a password, user:password, JSON."""
    if text.lstrip().startswith("{"):
        for key, value in re.findall(r'"(\w+)"\s*:\s*("(?:[^"\\]|\\.)*")', text):
            if _SECRET_NAME.search(key) and not key.endswith("_KEY"):
                yield f"{key} of {name}", str(json.loads(value))
        return
    for number, line in enumerate(text.split(), start=1):
        place = name if number == 1 else f"{name}, word {number}"
        if len(line) < MIN_LENGTH:
            continue
        yield place, line
        if "://" in line and (password := urlsplit(line).password):
            yield f"the password of {place}", password
        elif ":" in line and len(line.partition(":")[2]) >= MIN_LENGTH:
            yield f"the password of {place}", line.partition(":")[2]


def _encodings(value: bytes) -> set[bytes]:
    """Return the forms in which a value may occur in a notebook, a page, a log or a URL."""
    text = value.decode(errors="replace")
    forms = {text, quote(text, safe=""), quote_plus(text), html.escape(text)}
    forms |= {html.escape(text, quote=False), *_base64(value)}
    for _ in range(2):  # a notebook is JSON, and may show JSON
        forms |= {json.dumps(f, ensure_ascii=a)[1:-1] for f in set(forms) for a in (True, False)}
    return {form.encode() for form in forms}


def _base64(value: bytes) -> Iterator[str]:
    """Yield the characters that are the same in base64 of any text that has `value` in it."""
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + value).decode()
        inner = text[-(-8 * offset // 6) : 8 * (offset + len(value)) // 6]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _decoded(embedded: re.Match[bytes]) -> bytes:
    """Return the bytes of an embedded file; the text itself if it is not base64."""
    try:
        return base64.b64decode(embedded[1].replace(b"\\n", b""), validate=True)
    except ValueError:
        return embedded[0]


def find_secrets(content: bytes, values: Mapping[str, bytes]) -> list[str]:
    """Return the names of the secrets that some bytes hold, never a secret."""
    text = re.sub(rb"\\+[nrt]", b"\n", _EMBEDDED.sub(_decoded, content))  # lines within JSON
    shapes = [name for name, shape in SHAPES.items() if re.search(shape, text)]
    known = [name for name, value in values.items() if any(f in content for f in _encodings(value))]
    return known + shapes


def hide_secrets(
    settings: "Settings", environ: Mapping[str, str] = os.environ
) -> Callable[[str], str]:
    """Return a function that takes the known secrets out of a line of a log, or of an output."""
    forms = set().union(*map(_encodings, known_secrets(settings, environ).values()))
    longest_first = sorted((form.decode() for form in forms), key=len, reverse=True)
    found = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    return partial(found.sub, HIDDEN)


def refuse_secrets(settings: "Settings", paths: Iterable[Path]) -> None:
    """Raise SecretFound that names the file and the kind of the first secret in these files."""
    values = known_secrets(settings)
    for path in paths:
        found = find_secrets(path.read_bytes(), values)
        if found:
            step = "take it out of the cell or log that shows it, change that secret, run again"
            raise SecretFound(f"keep {path.name}", f"it holds {', '.join(found)}", step)
