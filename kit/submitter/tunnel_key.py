"""The reverse tunnel's key: made for one try, good for one thing, gone with the try.

The job opens `ssh -R` to the cloud VM as an unprivileged user of the VM. Its key may listen on a
few ports of one address and do nothing else: no command, no other forwarding (`restrict` alone
forbids neither, and Unix sockets are barred by the VM's sshd only; tried with OpenSSH 9.2).
"""

import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from kit.base import DataError, Host, Json, SSHHost, UsageError, run_process, sha256_of
from kit.base.settings import Cloud, Settings
from kit.onsite import TUNNEL_HOSTS, TUNNEL_KEY

PORTS = range(8280, 8290)
ANSWER_S = 20.0
AT_ONCE = 2000  # tokens in one call
QUEUED_S = 7 * 24 * 3600  # a job may wait so long; its key goes with its try, far sooner

# $1 a try's folder, a new key on stdin: gives the key of the try, the first that came.
KEEP = f"""
umask 077; mkdir -p "$1" && cd "$1" && new=$(mktemp {TUNNEL_KEY}.XXXXXX) || exit
cat >"$new" && ln -T "$new" {TUNNEL_KEY} 2>/dev/null
rm -f "$new"; exec cat {TUNNEL_KEY}
"""

# $1 the folder of tries, tokens on stdin: removes their keys.
DROP = f'cd "$1" 2>/dev/null || exit 0; while read -r token; do rm -f "$token/{TUNNEL_KEY}"; done'

# $1 the file of keys, $2 a submitter's mark, $3 its tries whose lines go; new lines on stdin.
# The VM's administrator writes the file directly or, where it is the tunnel user's, by sudo. It
# is replaced whole, under a lock, and only when something changes. Gives the tunnel's user.
EDIT = r"""
folder=${1%/*} user=$(stat -c %U "${1%/*/*}") || exit
[ -w "$folder" ] || [ "$(id -un)" = "$user" ] || exec sudo -n -u "$user" sh -c "$0" "$0" "$@"
umask 022
exec 9<"$folder" && flock -w 10 9 && touch "$1" && new=$(mktemp "$1.XXXXXX") || exit
trap 'rm -f "$new"' EXIT
awk -v mark="$2-" -v gone=" $3 " '
    index($NF, mark) == 1 && index(gone, " " substr($NF, length(mark) + 1) " ") { next }
    { print }' "$1" >"$new" && cat >>"$new" && chmod 644 "$new" || exit
cmp -s "$new" "$1" || mv -f "$new" "$1" && echo "$user"
"""


class TunnelKeys:
    """The cloud VM of a profile, where the tunnels of this submitter's tries end."""

    def __init__(self, host: SSHHost, cloud: Cloud, owner: str) -> None:
        self.host, self.cloud = host, cloud
        self.mark = f"kit-{sha256_of(owner.encode())[:8]}"  # other submitters' keys stay
        self._reach: tuple[Json, bytes] | None = None

    def open(self, site: Host, folder: str, token: str, limit_s: float) -> Json:
        """Give a try its key, in its folder on the site, and authorise it; say what its job needs.

        Once more, or by another submitter, it is the same key. Raises KitError.
        """
        reach, known_hosts = self._reach = self._reach or self._looked_up()
        argv = ["sh", "-c", KEEP, "sh", folder]
        private = site.run(argv, _new_key(), timeout=ANSWER_S, repeat=True).out.encode()
        until = time.strftime("%Y%m%d%H%M", time.gmtime(time.time() + limit_s + QUEUED_S))
        address = self.cloud.tunnel_address
        listen = ",".join(f'permitlisten="{address}:{port}"' for port in PORTS)
        limits = f'restrict,port-forwarding,{listen},permitopen="127.0.0.1:1"'
        limits += f',command="/bin/false",expiry-time="{until}"'
        line = f"{limits} {_public(private)} {self.mark}-{token}\n"
        user = self._edit([token], line).strip()
        site.put(known_hosts, f"{folder}/{TUNNEL_HOSTS}")
        return tunnel_settings(self.cloud, {**reach, "user": user})

    def sweep(self, site: Host, tries: str, tokens: Iterable[str]) -> None:
        """Take the keys of these tries from the VM and from the site. Raises KitError."""
        names = sorted(tokens)
        argv = ["sh", "-c", DROP, "sh", tries]
        site.run(argv, "".join(f"{name}\n" for name in names).encode(), repeat=True)
        for first in range(0, len(names), AT_ONCE):
            self._edit(names[first : first + AT_ONCE])

    def _edit(self, gone: list[str], lines: str = "") -> str:
        argv = ["sh", "-c", EDIT, EDIT, self.cloud.tunnel_keys, self.mark, " ".join(gone)]
        return self.host.run(argv, lines.encode(), timeout=ANSWER_S, repeat=True).out

    def _looked_up(self) -> tuple[Json, bytes]:
        """Say how the VM is reached and by which key it is known, as our own ssh does it.

        The lines of known_hosts get the name `vm`, so that addresses do not matter.
        """
        found = dict(
            line.split(" ", 1) for line in self.host.settings().splitlines() if " " in line
        )
        name = found.get("hostkeyalias", found["hostname"])
        if found["port"] != "22" and "hostkeyalias" not in found:
            name = f"[{name}]:{found['port']}"
        lines = ""
        for file in f"{found['userknownhostsfile']} {found['globalknownhostsfile']}".split():
            argv = ["ssh-keygen", "-F", name, "-f", str(Path(file).expanduser())]
            said = run_process(argv, b"", ANSWER_S)[1].decode(errors="replace")
            said = re.sub(r"^#.*\n", "", said, flags=re.M)
            lines += re.sub(r"^((?:@\S+ )?)\S+", r"\1vm", said, flags=re.M)
        if not lines:
            step = f"log in once: ssh {self.host.name}"
            raise UsageError(f"{name} is in no file of known hosts", next_step=step)
        return {"host": found["hostname"], "port": int(found["port"])}, lines.encode()


def tunnel_settings(cloud: Cloud, reach: Json) -> Json:
    """Give what a job is told of its tunnel: how to reach the VM, and where it may listen there."""
    return {**reach, "alias": "vm", "address": cloud.tunnel_address, "ports": list(PORTS)}


def tunnel_keys(loaded: Settings, owner: str) -> TunnelKeys | None:
    """Give the VM of a profile; None where it names none. `owner` names the submitter's bucket."""
    cloud = loaded.cloud
    if cloud is None or not cloud.ssh_host or not cloud.tunnel_address:
        return None
    config = loaded.hpc.ssh_config if loaded.hpc else ""
    return TunnelKeys(SSHHost(cloud.ssh_host, config, connect_timeout_s=5), cloud, owner)


def _new_key() -> bytes:
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        file = Path(folder) / "key"
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)]
        run_process(argv, b"", ANSWER_S)
        return file.read_bytes()


def _public(private: bytes) -> str:
    """Give the public half of a key. Raises DataError for what is none."""
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        file = Path(folder) / "key"
        file.touch(mode=0o600)
        file.write_bytes(private)
        code, said, _, _ = run_process(["ssh-keygen", "-y", "-f", str(file)], b"", ANSWER_S)
    words = said.decode(errors="replace").split()[:2]
    if code != 0 or len(words) != 2:
        step = f"remove the file {TUNNEL_KEY} from the try's folder"
        raise DataError("read the tunnel's key of a try", "it is no ssh key", step)
    return " ".join(words)
