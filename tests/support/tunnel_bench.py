"""A bench of submitters whose runs open tunnels, and probes of those tunnels."""

import contextlib
import dataclasses
import json
import secrets
import socket
import urllib.error
import urllib.request
from pathlib import Path

from hpc_bench import Bench, ps
from kit_sandbox import sites

from kit.base.settings import load

LONG = 3000  # epochs: the job runs until the test ends it
ADDRESS = load("sandbox").cloud.tunnel_address
KEYS = Path(load("sandbox").cloud.tunnel_keys)
TUNNEL_USER = "kit-tunnel"
TUNNEL_UID = str(sites.account_uid(TUNNEL_USER))


@contextlib.contextmanager
def own_bench(**hpc):
    profile = load("sandbox")
    store = dataclasses.replace(profile.store, bucket_prefix=f"t{secrets.token_hex(4)}")
    hpc = dataclasses.replace(profile.hpc, **hpc)
    bench = Bench(dataclasses.replace(profile, store=store, hpc=hpc))
    try:
        yield bench
    finally:
        for status in bench.requests.statuses().values():
            if not status.state.finished:
                end(bench, status.run)
        bench.close()


def window(bench, run, **wanted):
    """Wait until the progress of a run has its tunnel: address and port, or why there is none."""

    def there():
        shown = bench.shown(run).get("tunnel") or {}
        return shown if all(key in shown for key in wanted or {"port": 1}) else None

    return bench.passes_until(run, there)


def connects(address, port):
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def taken(port):
    return connects(ADDRESS, port)


def answer(port, token=""):
    """Ask Ray's dashboard through the tunnel for its version. Return 0 without an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{ADDRESS}:{port}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as err:
        return err.code, {}
    except OSError:
        return 0, {}


def answers(port):
    return lambda: answer(port)[0] == 401


def connections():
    """Return the process ids of the VM's sshd that hold a tunnel."""
    rows = [line.split(None, 2) for line in ps("pid=,uid=,args=")]
    return [int(row[0]) for row in rows if row[1] == TUNNEL_UID and row[2].startswith("sshd:")]


def end(bench, run):
    bench.requests.cancel(run)
    bench.finish(run)
