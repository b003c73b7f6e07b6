"""The reverse tunnel's key: limited to port forwarding, one for each attempt.

The job opens `ssh -R` to the cloud VM as an unprivileged user of the VM. Its key may listen on a
few ports of one address and do nothing else: no command, no other forwarding (`restrict` alone
forbids neither, and Unix sockets are barred by the VM's sshd only; tried with OpenSSH 9.2). It is
removed when its attempt ends.
"""

import re
import time
from collections.abc import Iterable
from pathlib import Path

from kit.base import (
    DataError,
    Host,
    Json,
    SSHHost,
    UsageError,
    run_process,
    sha256_of,
    temporary_folder,
    vm_host,
    write_bytes,
)
from kit.base.ports import TUNNEL_PORTS
from kit.base.settings import Cloud, Settings
from kit.onsite import TUNNEL_HOSTS, TUNNEL_KEY
from kit.submitter.scripts import script

ANSWER_S = 20.0
MAX_ATTEMPTS_PER_CALL = 2000
# A queued job's key is valid so long; it is removed when its attempt ends.
MAX_QUEUED_S = 7 * 24 * 3600


class TunnelKeys:
    """The keys of this submitter's tunnels, on the cloud VM of a profile and on the site."""

    def __init__(self, host: SSHHost, cloud: Cloud, owner: str) -> None:
        self.host = host
        self.cloud = cloud
        self.mark = f"kit-{sha256_of(owner.encode())[:8]}"  # other submitters' keys stay
        self._reach: tuple[Json, bytes] | None = None

    def open(self, site: Host, folder: str, attempt_id: str, limit_s: float) -> Json:
        """Create an attempt's key in its folder on the site and authorise it on the VM.

        Returns the tunnel's settings for the job. A repeated call, also by another submitter,
        returns the same key. Raises KitError.
        """
        reach, known_hosts = self._reach = self._reach or self._find_vm()
        argv = ["sh", "-c", script("keep_key"), "sh", folder]
        private = site.run(argv, _new_key(), timeout=ANSWER_S, repeat=True).out.encode()
        until = time.strftime("%Y%m%d%H%M", time.gmtime(time.time() + limit_s + MAX_QUEUED_S))
        address = self.cloud.tunnel_address
        listen = ",".join(f'permitlisten="{address}:{port}"' for port in TUNNEL_PORTS)
        limits = f'restrict,port-forwarding,{listen},permitopen="127.0.0.1:1"'
        limits += f',command="/bin/false",expiry-time="{until}"'
        line = f"{limits} {_public(private)} {self.mark}-{attempt_id}\n"
        user = self._edit([attempt_id], line).strip()
        site.put(known_hosts, f"{folder}/{TUNNEL_HOSTS}")
        return tunnel_settings(self.cloud, {**reach, "user": user})

    def sweep(self, site: Host, folder: str, attempts: Iterable[str]) -> None:
        """Remove what ended attempts may have left on the site and on the VM. Raises KitError."""
        names = sorted(attempts)
        argv = ["sh", "-c", script("drop_secrets"), "sh", folder]
        site.run(argv, "".join(f"{name}\n" for name in names).encode(), repeat=True)
        for first in range(0, len(names), MAX_ATTEMPTS_PER_CALL):
            self._edit(names[first : first + MAX_ATTEMPTS_PER_CALL])

    def _edit(self, removed: list[str], lines: str = "") -> str:
        edit = script("edit_keys")
        argv = ["sh", "-c", edit, edit, self.cloud.tunnel_keys, self.mark, " ".join(removed)]
        return self.host.run(argv, lines.encode(), timeout=ANSWER_S, repeat=True).out

    def _find_vm(self) -> tuple[Json, bytes]:
        """Return how the VM is reached, and its known host keys, as our own ssh knows them.

        The lines of known_hosts get the name `vm`, so that addresses do not matter.
        """
        config = {key: values[0] for key, values in self.host.settings().items()}
        name = config.get("hostkeyalias", config["hostname"])
        if config["port"] != "22" and "hostkeyalias" not in config:
            name = f"[{name}]:{config['port']}"
        lines = ""
        for file in f"{config['userknownhostsfile']} {config['globalknownhostsfile']}".split():
            argv = ["ssh-keygen", "-F", name, "-f", str(Path(file).expanduser())]
            text = run_process(argv, b"", ANSWER_S)[1].decode(errors="replace")
            text = re.sub(r"^#.*\n", "", text, flags=re.M)
            lines += re.sub(r"^((?:@\S+ )?)\S+", r"\1vm", text, flags=re.M)
        if not lines:
            step = f"log in once: ssh {self.host.name}"
            raise UsageError(f"{name} is not in a known_hosts file", next_step=step)
        return {"host": config["hostname"], "port": int(config["port"])}, lines.encode()


def tunnel_settings(cloud: Cloud, reach: Json) -> Json:
    """Return the settings of a job's tunnel: how to reach the VM, where it may listen there."""
    return {**reach, "alias": "vm", "address": cloud.tunnel_address, "ports": list(TUNNEL_PORTS)}


def tunnel_keys(loaded: Settings, owner: str) -> TunnelKeys | None:
    """Return the keys on a profile's VM, if it has one. `owner` is the submitter's bucket."""
    cloud = loaded.cloud
    if cloud is None or not cloud.ssh_host or not cloud.tunnel_address:
        return None
    return TunnelKeys(vm_host(loaded, connect_timeout_s=5), cloud, owner)


def _new_key() -> bytes:
    with temporary_folder() as folder:
        file = folder / "key"
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)]
        run_process(argv, b"", ANSWER_S)
        return file.read_bytes()


def _public(private: bytes) -> str:
    """Return the public half of a key. Raises DataError for text that is not an ssh key."""
    with temporary_folder() as folder:
        file = folder / "key"
        write_bytes(file, private, 0o600)
        code, output, _, _ = run_process(["ssh-keygen", "-y", "-f", str(file)], b"", ANSWER_S)
    words = output.decode(errors="replace").split()[:2]
    if code != 0 or len(words) != 2:
        step = f"remove the file {TUNNEL_KEY} from the attempt's folder"
        raise DataError("read the tunnel's key of an attempt", "it is not an ssh key", step)
    return " ".join(words)
