"""What ssh itself can say of a host: the keys it would log in with, the tunnels it may open."""

import re
import shutil
import stat
from pathlib import Path

from kit.base import Host, LocalHost, SSHHost, run_process
from kit.doctor.findings import Found


def here() -> None:
    """Raise Found where there is no ssh on this machine."""
    if not (shutil.which("ssh") and shutil.which("ssh-keygen")):
        raise Found("ssh-missing")


def ssh_settings(host: SSHHost) -> dict[str, list[str]]:
    """Ask ssh what it would do for a host (`ssh -G`): keyword in lower case -> its values.

    Raises Found when it is not there or cannot read its config.
    """
    here()
    config = ["-F", host.config] if host.config else []
    code, out, err, _ = run_process(["ssh", *config, "-G", host.name], b"", 20)
    if code:
        raise Found("ssh-settings", err.decode(errors="replace").strip()[-300:])
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\S+) (.+)$", out.decode(errors="replace"), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def usable(host: SSHHost) -> str:
    """Name a key that ssh can use without asking. Raises Found when there is none.

    One in an agent counts: it may be anywhere.
    """
    asked = ssh_settings(host)
    named = [Path(name).expanduser() for name in asked.get("identityfile", [])]
    keys = [key for key in dict.fromkeys(named) if key.is_file()]
    here = LocalHost()
    agent = asked.get("identityagent") != ["none"]
    if agent and here.run(["ssh-add", "-l"], timeout=10, check=False).code == 0:
        return "a key in the agent"
    if not keys:
        looked = ", ".join(sorted({str(key.parent) for key in named})) or "nowhere"
        raise Found("key-missing", f"for {host.name}; looked in {looked}")
    problem: Found | None = None
    for key in keys:
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & 0o077:
            problem = Found("key-mode", f"{key} has mode {mode:o}", f"chmod 600 {key}")
            continue
        opened = here.run(["ssh-keygen", "-y", "-P", "", "-f", str(key)], timeout=10, check=False)
        if opened.code == 0:
            return str(key)
        if "passphrase" in opened.err:
            problem = Found("key-passphrase", str(key), f"ssh-add {key}")
        else:
            problem = Found("key-missing", f"{key}: {opened.err.strip()[-200:]}")
    raise problem or Found("key-missing", host.name)


def _through_master(host: SSHHost, *words: str) -> tuple[int, str, str]:
    """Ask the open connection of a host for something: exit code, stdout, stderr."""
    config = ["-F", host.config] if host.config else []
    options = ["-o", f"ControlPath={host.socket}", "-o", "BatchMode=yes"]
    code, out, err, _ = run_process(["ssh", *config, *options, *words, host.name], b"", 10)
    return code, out.decode(errors="replace").strip(), err.decode(errors="replace").strip()


def lets_through(host: SSHHost) -> bool:
    """Whether the sshd of an open host connects its clients further; a closed port is a yes."""
    code, _, err = _through_master(host, "-W", "localhost:22")
    return code == 0 or "administratively prohibited" not in err


def bound(host: SSHHost, address: str, machine: Host) -> tuple[str, str]:
    """Open a tunnel to `address` on an open host for a moment: where it listened, and why not.

    Nothing stands behind it here: port 1 of this machine.
    """
    spec = f"{address}:0:127.0.0.1:1"
    code, port, err = _through_master(host, "-O", "forward", "-R", spec)
    if code or not port.isdigit():
        return "", err or "ssh said nothing"
    try:
        ask = ["ss", "-Hltn", f"sport = :{port}"]
        lines = machine.run(ask, timeout=10, check=False).out.split()
    finally:
        _through_master(host, "-O", "cancel", "-R", spec)
    found = [word.rpartition(":")[0].strip("[]") for word in lines if word.endswith(f":{port}")]
    return (found[0], "") if found else ("", f"nobody listens on port {port} there")
