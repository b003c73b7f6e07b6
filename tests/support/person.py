"""A person who works with the kit: an ordinary user, also where root runs the tests.

The person has a home folder and the files that a centre and a project give out (login, key and
certificate, ssh config, CA), as copies of the sandbox's; the sandbox's own folder stays closed.
"""

import os
import shutil
import sys
from pathlib import Path

from kit_sandbox import files

from kit.base import ROOT

UID = 59777  # without a line in /etc/passwd, whatever the machine
AS_PERSON = Path(__file__).with_name("as_person.sh")
GIVEN_OUT = (
    *(".env", "ca.crt", "mlflow.env", "prometheus.env", "ssh_config", "known_hosts"),
    *("ssh/id", "ssh/id.pub", "ssh/id-cert.pub", "secrets/face"),
)


class Person:
    """`folder` is new and has a short path; `own` gives to the person what was made in it."""

    def __init__(self, folder: Path):
        self.folder, self.home, self.access = folder, folder / "home", folder / "access"
        self.uid = UID if os.getuid() == 0 else os.getuid()
        folder.mkdir(mode=0o755)
        self.home.mkdir()
        line = f"person:x:{self.uid}:{self.uid}::{self.home}:/bin/bash\n"
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + line)

    def receive(self, site):
        """Copy what a site of the sandbox gives out; return the person's KIT_SANDBOX_DIR."""
        for source in {site.sandbox_dir, files.folder_of(site)}:
            target = self.access / source.relative_to(site.sandbox_dir)
            for name in GIVEN_OUT:
                if (source / "etc" / name).exists():
                    (target / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source / "etc" / name, target / "etc" / name)
            config = target / "etc" / "ssh_config"
            config.write_text(config.read_text().replace(str(source), str(target)))
        return self.access

    def own(self):
        """Give the person all that is in the folder."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def argv(self, *words):
        """Return a command as the person calls it."""
        if os.getuid() != 0:
            return [*words]
        needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
        ways = {folder: closed_above(folder) for folder in needed}
        hidden = [str(folder) for folder, closed in ways.items() if closed]
        closed = sorted({str(folder) for folder in ways.values() if folder})
        run = ["unshare", "--mount", str(AS_PERSON), str(self.folder), *closed, "--", *hidden, "--"]
        return [*run, *words]

    def environ(self, **more):
        """Return the variables of a login of the person's."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"HOME": str(self.home), "USER": "person", "LOGNAME": "person", "PATH": path}
        others = ("KIT_", "XDG_", "SUDO_")
        given = {name: text for name, text in os.environ.items() if not name.startswith(others)}
        return given | own | more

    def close(self):
        """Remove the person's files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.uid != os.getuid():  # sockets of connections that end by themselves
            shutil.rmtree(f"/tmp/kit-ssh-{self.uid}", ignore_errors=True)


def closed_above(folder):
    """Return the highest folder above one that other users may not enter; None if there is none."""
    return next((up for up in reversed(folder.parents) if not up.stat().st_mode & 0o001), None)
