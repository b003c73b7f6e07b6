"""`compose-secrets.json`: which platforms the submitter stack uses, as the article's stack had it.

Sixteen flat keys; several platforms in one value are separated by `|`, with the same count in all
keys of a prefix; `none` and `empty` mean absent. Lines that begin with `#`, and ` #` to the end of
a line outside quotes, are comments. `ENVIROMENT` is the original's spelling; `ENVIRONMENT` is
taken as well.
"""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kit.base import (
    LOGIN_NAMES,
    DataError,
    Secret,
    UsageError,
    read_login,
    read_private,
    write_text,
)
from kit.base.settings import Settings

# prefix and key -> what it is for, shown with the error when it is wrong or missing
MEANING = {
    "CLOUD_ENVIROMENT": "profile of the cloud that the forwarder runs in",
    "CLOUD_ADDRESS": "address of the cloud VM",
    "CLOUD_USER": "user on the cloud VM",
    "CLOUD_KEY": "private key for the cloud VM, a path inside the container",
    "CLOUD_PASSWORD": "pass phrase of that key, or none",
    "STORAGE_ENVIROMENT": "profile of the object store",
    "STORAGE_USER": "user of the object store, or none: the login is in KIT_ENV_FILE",
    "STORAGE_PASSWORD": "password of that user, or none",
    "HPC_ENVIROMENT": "profile of the HPC site",
    "HPC_ADDRESS": "address of its login node",
    "HPC_USER": "user there",
    "HPC_KEY": "private key for it, a path inside the container; with a certificate below "
    "/home/kit/.ssh, KEY-cert.pub beside it",
    "HPC_PASSWORD": "pass phrase of that key, or none",
    "INTEGRATION_ENVIROMENT": "profile whose jobs are submitted",
    "INTEGRATION_KEY": "file with the token of the submitter's API, or none: one is made",
    "INTEGRATION_PASSWORD": "that token itself, 16 characters or more, or none",
}
ABSENT = ("", "none", "empty")
_COMMENT = re.compile(r'("(?:[^"\\\n]|\\.)*")|(?:^|(?<=\s))#[^\n]*', re.MULTILINE)


@dataclass(frozen=True)
class Platform:
    """One platform of a prefix: `values` by the key's last word; None where it is absent."""

    prefix: str
    values: dict[str, Secret | None]

    def text(self, key: str) -> str:
        """Return a value that is not a secret; "" where it is absent."""
        value = self.values.get(key)
        return value.reveal() if value else ""


def read_platforms(path: Path) -> dict[str, list[Platform]]:
    """Read the file: prefix -> its platforms.

    Raises UsageError for a file that git tracks, that others may read, that is not JSON, or has a
    key missing, unknown, empty where it may not be, or with another count than its prefix; never
    shows a value.
    """
    step = "make it from the template"
    text = read_private(path, f"cannot read {path}", step, encoding="utf-8")
    return parse_platforms(text, str(path))


def parse_platforms(text: str, name: str = "compose-secrets.json") -> dict[str, list[Platform]]:
    """Read the text of the file; see `read_platforms`."""
    try:
        table = json.loads(_COMMENT.sub(lambda match: match[1] or "", text))
    except (ValueError, RecursionError) as err:
        where = f"line {err.lineno}" if isinstance(err, json.JSONDecodeError) else "too deep"
        raise UsageError(f"{name} is not a JSON document", where, "correct that line") from err
    if not isinstance(table, dict):
        raise UsageError(f"{name} is not a JSON object", next_step='write { "KEY": "value", … }')
    values = {key.replace("_ENVIRONMENT", "_ENVIROMENT"): value for key, value in table.items()}
    for key in values.keys() - MEANING.keys():
        raise UsageError(f"{name}: unknown key {key!r:.80}", next_step="see the template")
    for key, meaning in MEANING.items():
        if not isinstance(values.get(key), str):
            got = "it is not a text" if key in values else "it is missing"
            raise UsageError(f"{name}: {key}", got, f"give the {meaning}, or none")
    prefixes = dict.fromkeys(key.partition("_")[0] for key in MEANING)
    return {prefix: _platforms(name, prefix, values) for prefix in prefixes}


def find(platforms: list[Platform], profile: str) -> Platform | None:
    """Return the platform of a profile, None when there is none."""
    return next((row for row in platforms if row.text("ENVIROMENT") == profile), None)


def ssh_config(platforms: list[Platform], profile: str, name: str, agent: str = "") -> str:
    """Return an ssh config with one Host, called `name`, for the HPC platform of a profile.

    Raises UsageError when no platform is of that profile.
    """
    platform = find(platforms, profile)
    if platform is None:
        names = ", ".join(platform.text("ENVIROMENT") for platform in platforms) or "none"
        step = "add it to the HPC_ keys, or use another profile"
        raise UsageError(f"compose-secrets.json has no platform {profile!r}", names, step)
    return host_block(platform, name, agent)


def host_block(platform: Platform, name: str, agent: str = "") -> str:
    """Return the Host block of a platform under `name`; `agent` is the socket that has its key.

    Raises UsageError for values that are not one word.
    """
    options = [f"Host {name}"]
    for option, key in (("HostName", "ADDRESS"), ("User", "USER"), ("IdentityFile", "KEY")):
        word, full = platform.text(key), f"{platform.prefix}_{key}"
        if not re.fullmatch(r"[\w./@:~+-]+", word):
            raise UsageError(f"{full} is not a single word", next_step=f"give the {MEANING[full]}")
        options.append(f"    {option} {word}")
    if agent and platform.values["PASSWORD"]:
        options.append(f"    IdentityAgent {agent}")
    return "\n".join([*options, "    IdentitiesOnly yes", ""])


def locked_keys(platforms: list[Platform], profile: str) -> list[tuple[str, Secret]]:
    """Return the key of a profile's platform with its pass phrase, if it has one."""
    platform = find(platforms, profile)
    phrase = platform.values["PASSWORD"] if platform else None
    return [(platform.text("KEY"), phrase)] if platform and phrase else []


def check_integration(platforms: list[Platform], profile: str) -> None:
    """Raise UsageError when the file is for the jobs of other profiles."""
    names = [platform.text("ENVIROMENT") for platform in platforms]
    if names and profile not in names:
        step = "add it to INTEGRATION_ENVIROMENT, or use another profile"
        got = f"INTEGRATION_ENVIROMENT names {', '.join(names)}"
        raise UsageError(f"submit the jobs of profile {profile!r}", got, step)


def env_text(platforms: list[Platform], settings: Settings) -> str:
    """Return the store's login as the text of an .env file; "" where the file has no login.

    The project is that of KIT_ENV_FILE or the environment where there is one, else the account of
    the site. Raises UsageError for a user without a password.
    """
    platform = find(platforms, settings.profile)
    if platform is None or not platform.values["USER"]:
        return ""
    password = platform.values["PASSWORD"]
    if password is None:
        step = "give the password of STORAGE_USER"
        raise UsageError("STORAGE_PASSWORD is missing", f"for {settings.profile}", step)
    domain, project = "Default", settings.hpc.account if settings.hpc else ""
    with contextlib.suppress(UsageError):
        login = read_login(settings)
        domain, project = login.domain or domain, login.project
    values = (platform.text("USER"), password.reveal(), domain, project)
    quoted = (value.replace("\\", "\\\\").replace("'", "\\'") for value in values)
    return "".join(f"{key}='{value}'\n" for key, value in zip(LOGIN_NAMES, quoted, strict=True))


def use_api_token(platforms: list[Platform], profile: str, folder: Path) -> None:
    """Set KIT_FACE_TOKEN to the token of the submitter's API, where the file has one.

    The stack of `env/submitter` sets the variable always: what the file says comes first.
    """
    platform = find(platforms, profile)
    if platform is None:
        return
    path = platform.text("KEY")
    if token := platform.values["PASSWORD"]:
        file = folder / "api-token"
        write_text(file, token.reveal(), 0o600)
        path = str(file)
    if path:
        os.environ["KIT_FACE_TOKEN"] = path


def platforms_template(profile: str = "", address: str = "") -> str:
    """Return the text of the file with every key explained, to be filled in.

    Filled in already: the profile, and the login node's `address` unless it is an alias of ssh.
    """
    names = ("STORAGE_ENVIROMENT", "HPC_ENVIROMENT", "INTEGRATION_ENVIROMENT")
    known = {**dict.fromkeys(names, profile), "HPC_ADDRESS": address if "." in address else ""}
    rows = [
        f'    # {meaning}\n    "{key}": {json.dumps(known.get(key) or "none")}'
        for key, meaning in MEANING.items()
    ]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def ssh_template(hpc: str, cloud: str, renew_hint: str = "") -> str:
    """Return the block of ~/.ssh/config for a site and its VM; values in <...> are to be filled in.

    `renew_hint` says how the certificate is got, where the site wants one.
    """
    hint = "# ssh finds the certificate KEY-cert.pub beside KEY; to renew it: "
    text = "# The login node of the site.\n" + (f"{hint}{renew_hint}\n" if renew_hint else "")
    text += _host(hpc, "<your user there>")
    return text + (
        f"\n# The cloud VM, by its floating IP.\n{_host(cloud, 'ubuntu')}" if cloud else ""
    )


def _host(name: str, user: str) -> str:
    lines = [f"Host {name}", *(["    HostName <its address>"] if "." not in name else [])]
    lines += [f"    User {user}", "    IdentityFile <path of your key>"]
    return "\n".join([*lines, "    IdentitiesOnly yes", "    ServerAliveInterval 30", ""])


def write_templates(folder: Path, ssh: str, secrets: str = "") -> list[Path]:
    """Write both files, mode 600, into `folder`; return their paths. Raises UsageError.

    `secrets` is the text of compose-secrets.json; empty: the template without a profile.

    A file that is there is never overwritten: then nothing is written at all.
    """
    texts = {
        folder / "compose-secrets.json": secrets or platforms_template(),
        folder / "ssh-config": ssh,
    }
    for path in texts:
        if path.exists():
            raise UsageError(f"{path} is there already", next_step="move it away, or give --to")
    try:
        for path, text in texts.items():
            write_text(path, text, 0o600)
    except DataError as err:
        raise UsageError(f"write {path}", err.got, "give a folder of yours with --to") from err
    return list(texts)


def _platforms(name: str, prefix: str, values: dict[str, object]) -> list[Platform]:
    first = f"{prefix}_ENVIROMENT"
    columns: dict[str, list[Secret | None]] = {}
    for key in (key for key in MEANING if key.startswith(f"{prefix}_")):
        texts = [part.strip() for part in str(values[key]).split("|")]
        columns[key.partition("_")[2]] = [
            None if text.lower() in ABSENT else Secret(text) for text in texts
        ]
        if len(texts) != (count := len(columns["ENVIROMENT"])):
            got = f"{first} has {count}, {key} has {len(texts)}"
            step = "give every key of a prefix as many values, none where there is none"
            raise UsageError(f"{name}: the {prefix}_ keys differ in their count", got, step)
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [Platform(prefix, row) for row in rows if row["ENVIROMENT"]]
