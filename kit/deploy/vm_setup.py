"""What the platform's VM needs: `env/vm/setup.sh` at its first boot, or over ssh at any time."""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from string import Template

from kit.base import ROOT, CommandFailed, Host, UsageError

FOLDER = ROOT / "env" / "vm"
REMOTE = ".cache/kit/vm-setup"  # in the home of the user there: nobody else can have put it
STEP_S = 1800.0
KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-\S+) (AAAA[A-Za-z0-9+/]+={0,2})( .*)?")


def public_key(path: Path) -> str:
    """Read one public ssh key. Raises UsageError for anything else; never shows its text."""
    try:
        text = path.expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"read the public key {path}", str(err), "name the .pub file") from err
    found = KEY.fullmatch(text)
    if found is None:
        got = "a private key" if "PRIVATE KEY" in text else "no line of the form TYPE BASE64 NAME"
        raise UsageError(f"{path} is no public ssh key", got, "name the .pub file")
    try:
        inside = base64.b64decode(found[3], validate=True)
    except ValueError:
        inside = b""
    size = int.from_bytes(inside[:4], "big")
    if inside[4 : 4 + size] != found[1].encode() or len(inside) < 40:
        step = "copy it again, whole"
        raise UsageError(f"{path} is no public ssh key", "it is cut off or mixed up", step)
    return text


def cloud_init(key: str) -> str:
    """Give the user data of a new VM: the key's owner may log in, the script has run."""
    script = base64.b64encode((FOLDER / "setup.sh").read_bytes()).decode()
    form = Template((FOLDER / "cloud-init.yaml.in").read_text())
    return form.substitute(KEY=f'"{key}"' if '"' not in key else key.split('"')[0], SETUP=script)


def bootstrap(host: Host, say: Callable[[str], None], dry: bool = False) -> list[str]:
    """Do over ssh what is not in order yet, step by step; give the steps that are left.

    Each step is asked before and after it is done. A dry run only asks. Raises UsageError when
    the user there is not root and has no sudo, CommandFailed when a step fails.
    """
    host.put((FOLDER / "setup.sh").read_bytes(), REMOTE, 0o700)
    root = [] if dry else _root(host)
    left = []
    for step in host.run(["bash", REMOTE, "list"]).out.split():
        if _in_order(host, step):
            say(f"{step}: in order")
        elif dry:
            say(f"{step}: not in order; a dry run changes nothing")
            left.append(step)
        else:
            say(f"{step}: being done …")
            done = host.run([*root, "bash", REMOTE, "do", step], timeout=STEP_S)
            if not _in_order(host, step):
                argv = ["setup.sh", "check", step]
                raise CommandFailed(argv, 1, done.out, done.err, "run it again")
            say(f"{step}: done")
    return left


def _in_order(host: Host, step: str) -> bool:
    return host.run(["bash", REMOTE, "check", step], check=False).code == 0


def _root(host: Host) -> list[str]:
    if host.run(["id", "-u"]).out.strip() == "0":
        return []
    if host.run(["sudo", "-n", "true"], check=False).code != 0:
        step = "log in as a user with sudo (Ubuntu's own is `ubuntu`), or look with --dry-run"
        raise UsageError("set up the VM", "the user there is not root and may not use sudo", step)
    return ["sudo", "-n"]
