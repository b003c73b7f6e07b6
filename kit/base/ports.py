"""TCP ports: who holds one of this machine, and those of the tunnels."""

import contextlib
import os
from collections.abc import Iterable

Address = tuple[str, int]
ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, nothing listens here

# Where the reverse tunnels of jobs may listen on the cloud VM.
TUNNEL_PORTS = range(8280, 8290)
SUBMITTER_PORT = 6600  # of its HTTP API


def port_holders(addresses: Iterable[Address]) -> dict[Address, str]:
    """Return who listens at each of these addresses; free addresses are left out.

    A listener on all addresses holds the port of each. Root sees every holder, so a socket without
    one is being closed and is left out. Where the system shows no sockets (macOS), nothing is
    returned.
    """
    import psutil  # late: `import kit.base` stays light

    listeners: list[tuple[str, int, int | None]] = []
    with contextlib.suppress(psutil.AccessDenied):
        listeners = [
            (*row.laddr, row.pid)
            for row in psutil.net_connections("tcp")
            if row.status == psutil.CONN_LISTEN
        ]
    holders: dict[Address, str] = {}
    for address, port in addresses:
        for ip, number, pid in listeners:
            if number == port and ip in (address, *ANY):
                holder = _program(pid)
                if holder:
                    holders[address, port] = holder
                    break
    return holders


def _program(pid: int | None) -> str:
    import psutil

    if pid is None:
        return "" if os.getuid() == 0 else "a process of another user"
    try:
        return f"pid {pid} ({psutil.Process(pid).name()})"
    except psutil.NoSuchProcess:
        return ""
