"""Where the doctor's faults are seeded: files, servers and sshds of the test's own.

The programs of the cloud VM and of a bare login node are shell scripts that answer from recorded
texts and refuse every call that they do not know; the sshd before them is a real one.
"""

import contextlib
import dataclasses
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import captured
from private_sshd import CLIENT, PrivateSshd, keygen

from kit.base.settings import Cloud, Hpc, load
from kit.doctor import checks as doctor
from kit.doctor.context import CheckContext
from kit.doctor.vm import LIST, LISTENERS, LOG, PODS

BARE = dataclasses.replace(load("sandbox"), store=None, hpc=None, cloud=None, ports={})
ENV = """\
CSC_USERNAME=anna
CSC_PASSWORD=it is
CSC_USER_DOMAIN_NAME=Default
CSC_PROJECT_NAME=project_1
"""
TOOLS = (
    *("env", "bash", "sh", "cat", "head", "hostname", "ss", "timeout", "true", "date", "readlink"),
    *("id", "base64", "mktemp", "dd", "ln", "df", "tail", "rm"),
)
KIND = ["kind", "get", "clusters"]
MADE = {
    (*LIST,): "made/docker-ps.txt",
    (*LISTENERS,): "made/ss-docker.txt",
    (*LOG,): "",
    (*KIND,): "made/kind-clusters.txt",
    (*PODS,): "made/pods.json.txt",
}  # what a healthy VM answers


class Bench:
    """The machines and files that a fault is seeded in; everything it started ends with `close`."""

    base = "sandbox"  # the profile of the sandbox's site that the faults are seeded in

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.ends = contextlib.ExitStack()

    def close(self):
        self.ends.close()

    def look(self, limit_s=doctor.LIMIT_S, ahead_s=0.0, **parts):
        """Let the doctor look at a profile that has these parts and nothing else."""
        ground = CheckContext(dataclasses.replace(BARE, **parts), lambda: time.time() + ahead_s)
        return doctor.run_checks(ground, limit_s)

    def loaded(self, env_file=None, **parts):
        """Load the profile of a sandbox's site with some keys changed: part -> key -> value."""
        loaded = load(self.base)
        changed = {
            name: dataclasses.replace(getattr(loaded, name), **keys) for name, keys in parts.items()
        }
        return dataclasses.replace(loaded, env_file=env_file or loaded.env_file, **changed)

    def sandbox(self, **changes):
        """Let the doctor look at the sandbox with a profile that is changed as for `loaded`."""
        return doctor.run_checks(CheckContext(self.loaded(**changes)))

    def profile(self, text):
        """Let the doctor look at a profile of the person's own, by its file."""
        (self.folder / "mine.toml").write_text(text)
        self.monkeypatch.setenv("KIT_SITES_DIR", str(self.folder))
        return doctor.examine("mine")

    def file(self, text, mode=0o600, name="file"):
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def tracked(self, path):
        """Let git track a file."""
        for words in (["init", "-q"], ["add", path.name]):
            subprocess.run(["git", "-C", str(path.parent), *words], check=True)
        return path

    def listening(self):
        """Return the port of a server that takes connections and never answers."""
        server = self.ends.enter_context(socket.create_server(("127.0.0.1", 0)))
        return server.getsockname()[1]

    def key(self, passphrase="", mode=0o600, config=""):
        """Return an ssh config with one key, for a port where nobody listens."""
        keygen("-t", "ed25519", "-N", passphrase, "-f", self.folder / "user_key")
        (self.folder / "user_key").chmod(mode)
        text = config or CLIENT.format(port=9, user="u", folder=self.folder)
        return str(self.file(text, name="config"))

    def sshd(self, start=True, **options):
        """Start an sshd; its clients find it as Host site."""
        server = PrivateSshd(self.folder / "sshd", **options)
        self.ends.callback(server.stop)
        return server.start() if start else server

    def bare(self, *taken, **put):
        """Start an sshd on whose PATH are a few tools, less those `taken`, and scripts `put`."""
        programs = self.folder / "bin"
        programs.mkdir()
        for tool in set(TOOLS) - {*taken, *put}:
            (programs / tool).symlink_to(shutil.which(tool))
        (programs / "python3").symlink_to(Path(sys.executable).resolve())
        for name, text in put.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        return self.sshd(setenv=f"PATH={programs} HOME={self.folder}")  # no ~/.bashrc

    def site(self, server, config="", **hpc):
        """The part [hpc] of a profile whose login node is that sshd."""
        chosen = {"ssh_host": "site", "project_dir": str(self.folder), **hpc}
        return Hpc(ssh_config=config or str(server.folder / "config"), **chosen)

    def login_node(self, server, ahead_s=0.0, **hpc):
        return self.look(ahead_s=ahead_s, hpc=self.site(server, **hpc))

    def vm(self, server, **cloud):
        """Look at a VM that is that sshd, from a site that is the same machine."""
        cloud = Cloud(**{"ssh_host": "site", **cloud})
        return self.look(hpc=self.site(server), cloud=cloud)

    def cluster(self, answers=None, taken=(), **programs):
        """Look at the machine of `docker_vm`."""
        server = self.docker_vm(answers, taken, **programs)
        return self.vm(server, runner="cluster", kfp_url="http://127.0.0.1:9")

    def docker_vm(self, answers=None, taken=(), **programs):
        """Start a VM with Docker and kind, whose programs give other answers than MADE."""
        put = programs_text({**MADE, **(answers or {})})
        put = {name: text for name, text in (put | programs).items() if name not in taken}
        return self.bare(**put)


def programs_text(answers):
    """Make the scripts: each answers the calls it knows with a recorded text, and refuses others.

    A text with the header `# stream: stderr, exit code N` comes on stderr, with that exit code.
    """
    cases: dict[str, str] = {}
    for argv, name in answers.items():
        head = (captured.HERE / name).read_text().splitlines()[4] if name else ""
        stream = re.fullmatch("# stream: stderr, exit code ([0-9]+)", head)
        said = f"printf %s {shlex.quote(captured.read(name) if name else '')}"
        said += f" >&2; exit {stream[1]}" if stream else ""
        cases[argv[0]] = cases.get(argv[0], "") + f"{shlex.quote(' '.join(argv[1:]))}) {said};;\n"
    return {
        name: f'case "$*" in\n{text}*) echo "unknown: {name} $*" >&2; exit 99;;\nesac'
        for name, text in cases.items()
    }
