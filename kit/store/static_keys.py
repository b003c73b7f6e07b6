"""Keys for S3 from a file of the person's, where the store has no Keystone (LUMI-O, MinIO, AWS).

The file is that of the AWS tools (~/.aws/credentials) or of rclone (rclone.conf). It is read at
each connection, so a new key is taken without a restart; it is never written.
"""

import configparser
from dataclasses import dataclass
from pathlib import Path

from kit.base import Secret, UsageError, read_private

PAIRS = (  # the names of a key and of its secret: AWS, rclone
    ("aws_access_key_id", "aws_secret_access_key"),
    ("access_key_id", "secret_access_key"),
)
TOKENS = ("aws_session_token", "session_token")


@dataclass(frozen=True)
class Ec2Key:
    """A key for S3."""

    access: str
    secret: Secret


class StaticKeys:
    """The key in one section of a file; `section` "": the only section that has a key."""

    def __init__(self, path: Path, section: str = "") -> None:
        self.path, self.section = path.expanduser(), section

    def ec2_key(self) -> Ec2Key:
        """Return the key. Raises UsageError; its message never shows what the file holds."""
        tried = f"read the S3 key in {self.path}"
        step = (
            "write it as the AWS tools or rclone do, mode 600, or change [store] credentials_file"
        )
        text = read_private(self.path, tried, step, encoding="utf-8-sig")
        if "RCLONE_ENCRYPT_V0" in text:
            step = "write the key alone into a file of mode 600, as ~/.aws/credentials has it"
            raise UsageError(tried, "rclone has encrypted this file", step)
        parser = configparser.ConfigParser(interpolation=None, default_section="", strict=False)
        try:
            parser.read_string(text)
        except configparser.Error as err:  # its message quotes the line
            raise UsageError(tried, f"it is malformed: {type(err).__name__}", step) from None
        return self._key({name: dict(parser[name]) for name in parser.sections()})

    def written(self) -> float:
        """Return when the file was written, in seconds since 1970. Raises OSError."""
        return self.path.stat().st_mtime

    def _key(self, sections: dict[str, dict[str, str]]) -> Ec2Key:
        """Choose the section and read its key."""
        found = {name: key for name, values in sections.items() if (key := _key_of(values))}
        names = ", ".join(sorted(found)) or "none"
        tried = f"read the S3 key in {self.path}"
        if self.section:
            if self.section not in found:
                got = f"no section [{self.section}] has both halves of a key"
                raise UsageError(tried, got, f"name one of: {names} ([store] credentials_section)")
            name = self.section
        elif len(found) == 1:
            name = next(iter(found))
        else:
            got = f"{len(found)} sections have a key: {names}"
            raise UsageError(tried, got, "name one in [store] credentials_section")
        if any(sections[name].get(token) for token in TOKENS):
            step = "write a key that is valid without a session token"
            raise UsageError(tried, f"[{name}] is a temporary key with a session token", step)
        return found[name]


def _key_of(values: dict[str, str]) -> Ec2Key | None:
    """Return the key of a section; None for a section without one."""
    for access, secret in PAIRS:
        if values.get(access) and values.get(secret):
            return Ec2Key(values[access].strip(), Secret(values[secret].strip()))
    return None
