"""The one process above all services of a sandbox: supervisord as a subreaper.

Orphans (a batch job's processes, ssh connections) become its children and not those of pid 1, so
that `down` finds every process and no zombies stay. Run as `python -m kit_sandbox.supervisor
--configuration FILE`; it never goes into the background itself.
"""

import ctypes
import http.client
import os
import sys
import xmlrpc.client
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main() -> None:
    """Run supervisord in this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    from supervisor import supervisord

    os.umask(0o077)  # `svc` opens what other accounts need
    supervisord.main(sys.argv[1:])


HEAD = """\
[supervisord]
nodaemon=true
silent=true
user={OWNER_UID}
pidfile={SBX}/run/supervisord.pid
logfile={SBX}/log/supervisord.log
logfile_maxbytes=1MB
logfile_backups=1
childlogdir={SBX}/log
identifier=kit-sandbox
[unix_http_server]
file={SBX}/run/supervisor.sock
chmod=0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
PROGRAM = """\
[program:{name}]
command=/bin/bash {ROOT}/env/sandbox/svc {name}
priority={priority}
startsecs=0
autorestart=true
stopasgroup=true
killasgroup=true
stopwaitsecs={wait}
redirect_stderr=true
stdout_logfile={SBX}/log/{name}.out
stdout_logfile_maxbytes=5MB
stdout_logfile_backups=1
"""


def config(values: Mapping[str, str], programs: Sequence[str]) -> str:
    """Return supervisord.conf: all programs start at once, each waits for what it needs."""
    parts = [HEAD.format(**values)]
    for number, name in enumerate(programs):
        wait = (
            1 if name.startswith("slurmd-") else 5
        )  # slurmd waits for its jobs, also for killed ones
        parts.append(PROGRAM.format(name=name, priority=10 * (number + 1), wait=wait, **values))
    return "".join(parts)


# What a call of it raises where it does not answer, or ends in the middle of an answer.
NO_ANSWER = (OSError, http.client.HTTPException, xmlrpc.client.Error)


def control(folder: Path) -> Any:
    """Return supervisord's XML-RPC interface (http://supervisord.org/api.html) of a sandbox."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(None, None, f"unix://{folder}/run/supervisor.sock")
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor


if __name__ == "__main__":
    main()
