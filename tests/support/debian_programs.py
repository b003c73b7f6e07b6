"""Programs that tests call and this machine may lack, lent from the sandbox's Debian root.

Each is a small script that sees the root's /usr in place of the machine's, and nothing else of it.
"""

import os
import shutil
from pathlib import Path

from kit.base.settings import load

NAMES = ("csh", "curl", "dash", "promtool", "prometheus", "ss", "ssh", "ssh-keygen", "sshd", "tcsh")
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SCRIPT = """\
#!/bin/sh
[ ! -x {program} ] || exec {program} "$@" # called inside another one
user=
[ "$(id -u)" = 0 ] || user='--user --map-current-user --keep-caps'
exec unshare --mount $user sh -c 'mount --bind "$1" /etc/passwd && mount --bind "$2" /usr &&
    shift 2 && exec "$@"' - {passwd} {root}/usr {program} "$@"
"""


def lend(folder: Path) -> list[str]:
    """Put the missing ones into a folder on PATH; return their names."""
    root = load("sandbox").cache_dir / "sandbox" / "roots" / "bookworm"
    lent = []
    text = Path("/etc/passwd").read_text()
    if "\nsshd:" not in text:  # the daemon wants an account to be separated from
        text += "sshd:*:102:65534::/run/sshd:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(text)
    for name in NAMES:
        program = shutil.which(name, path=":".join(f"{root}{part}" for part in SYSTEM.split(":")))
        if program and not shutil.which(name, path=f"{os.environ['PATH']}:{SYSTEM}"):
            inside = program.removeprefix(str(root))
            values = {"root": root, "passwd": folder / "passwd", "program": inside}
            (folder / name).write_text(SCRIPT.format(**values))
            (folder / name).chmod(0o755)
            lent.append(name)
    os.environ["PATH"] += f":{folder}:/usr/sbin"
    return lent
