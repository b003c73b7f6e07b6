"""The ssh key and the tunnels of a host, as ssh itself reports them."""

import shutil
import stat
from pathlib import Path

from kit.base import Host, KitError, LocalHost, SSHHost, run_process
from kit.doctor.diagnosis import DiagnosisError


def require_ssh() -> None:
    """Raise DiagnosisError if ssh is not installed."""
    if not (shutil.which("ssh") and shutil.which("ssh-keygen")):
        raise DiagnosisError("ssh-missing")


def ssh_settings(host: SSHHost) -> dict[str, list[str]]:
    """Return what ssh would do for a host (`ssh -G`): keyword in lower case -> its values.

    Raises DiagnosisError if ssh is missing or cannot read its configuration.
    """
    require_ssh()
    try:
        return host.settings()
    except KitError as err:
        raise DiagnosisError("ssh-settings", err.got[-300:]) from err


def usable_key(host: SSHHost) -> str:
    """Return the name of a key that ssh can use without asking.

    A key in an agent counts. Raises DiagnosisError if there is none.
    """
    options = ssh_settings(host)
    paths = [Path(name).expanduser() for name in options.get("identityfile", [])]
    agent = options.get("identityagent") != ["none"]
    if agent and LocalHost().run(["ssh-add", "-l"], timeout=10, check=False).code == 0:
        return "a key in the agent"
    problem: DiagnosisError | None = None
    for key in dict.fromkeys(path for path in paths if path.is_file()):
        problem = _key_problem(key)
        if problem is None:
            return str(key)
    folders = ", ".join(sorted({str(path.parent) for path in paths})) or "nowhere"
    raise problem or DiagnosisError("key-missing", f"for {host.name}; looked in {folders}")


def _key_problem(key: Path) -> DiagnosisError | None:
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        return DiagnosisError("key-mode", f"{key} has mode {mode:o}", f"chmod 600 {key}")
    argv = ["ssh-keygen", "-y", "-P", "", "-f", str(key)]
    done = LocalHost().run(argv, timeout=10, check=False)
    if done.code == 0:
        return None
    if "passphrase" in done.err:
        return DiagnosisError("key-passphrase", str(key), f"ssh-add {key}")
    return DiagnosisError("key-missing", f"{key}: {done.err.strip()[-200:]}")


def _through_master(host: SSHHost, *words: str) -> tuple[int, str, str]:
    """Use the open connection of a host; return exit code, stdout, stderr."""
    options = ["-o", f"ControlPath={host.socket}", "-o", "BatchMode=yes"]
    code, out, err, _ = run_process([*host.argv, *options, *words, host.name], b"", 10)
    return code, out.decode(errors="replace").strip(), err.decode(errors="replace").strip()


def allows_forwarding(host: SSHHost) -> bool:
    """Report whether the sshd of a connected host lets clients connect further.

    A closed port counts as a yes.
    """
    code, _, err = _through_master(host, "-W", "localhost:22")
    return code == 0 or "administratively prohibited" not in err


def tunnel_address(host: SSHHost, address: str, machine: Host) -> tuple[str, str]:
    """Open a reverse tunnel to `address` for a moment; return where it listened, or why not.

    Nothing is behind it: port 1 of this machine.
    """
    spec = f"{address}:0:127.0.0.1:1"
    code, port, err = _through_master(host, "-O", "forward", "-R", spec)
    if code or not port.isdigit():
        return "", err or "ssh gave no reason"
    try:
        argv = ["ss", "-Hltn", f"sport = :{port}"]
        words = machine.run(argv, timeout=10, check=False).out.split()
    finally:
        _through_master(host, "-O", "cancel", "-R", spec)
    rows = [word.rpartition(":")[0].strip("[]") for word in words if word.endswith(f":{port}")]
    return (rows[0], "") if rows else ("", f"nothing listens on port {port} there")
