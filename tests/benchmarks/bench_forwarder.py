"""The forwarder beside its targets: the API's status, a scrape of 1,000 runs, memory, the tunnel.

Usage: make bench NAMES=forwarder (with the sandbox up and its environment made)
"""

import asyncio
import json
import os
import secrets
import signal
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import httpx
import measured
import tunnel_bench as tunnel
from forwarder_buckets import ForwarderBuckets
from sandbox_command import kit_sandbox
from waiting import until

from kit.base import Secret
from kit.base.settings import load
from kit.forwarder.api import metrics_api
from kit.forwarder.serve import serve

Rows = list[tuple[str, float | list[float], float | None, str]]
RATE, SECONDS, RUNS, TUNNELS, KILLS = 200, 10, 1000, 3, 5
TOKEN = secrets.token_urlsafe(24)


async def _status() -> tuple[list[float], float]:
    """Ask for the status of all runs at a steady rate; return the seconds of each and of all."""
    token = load("sandbox").sandbox_dir / "etc" / "secrets" / "face"
    headers, took = {"Authorization": f"Bearer {token.read_text()}"}, []
    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(
        base_url="http://127.0.0.1:6500", headers=headers, limits=limits, timeout=30
    ) as client:

        async def one() -> None:
            begin = time.perf_counter()
            (await client.get("/runs")).raise_for_status()
            took.append(time.perf_counter() - begin)

        await one()
        begin, asked = time.perf_counter(), []
        for number in range(RATE * SECONDS):
            await asyncio.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
            asked.append(asyncio.create_task(one()))
        await asyncio.gather(*asked)
        return took[1:], time.perf_counter() - begin


def status() -> Rows:
    took, seconds = asyncio.run(_status())
    return [
        (f"status requests a second, {RATE} asked for", len(took) / seconds, 0.95 * RATE, "1/s"),
        ("their 99th percentile", 1000 * statistics.quantiles(took, n=100)[98], 100, "ms"),
    ]


def scrape() -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        world = ForwarderBuckets(Path(folder))
        for number in range(RUNS):
            world.done(f"cloud-hpc-{number:012x}-2")
        ours = world.forwarder()
        begin = time.perf_counter()
        assert ours.once() == []
        first, took = time.perf_counter() - begin, []
        with serve(metrics_api(ours, Secret(TOKEN)), "127.0.0.1", 0) as port:
            for _ in range(5):
                begin = time.perf_counter()
                url = f"http://127.0.0.1:{port}/metrics"
                request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
                with urllib.request.urlopen(request) as answer:
                    text = answer.read()
                took.append(time.perf_counter() - begin)
        assert all(f"cloud-hpc-{n:012x}-2".encode() in text for n in (0, RUNS - 1))
    return [
        (f"scrape of {RUNS} runs, {len(text) / 1e6:.1f} MB", took, 1, "s"),
        (f"first pass over {RUNS} runs", first, None, "s"),
    ]


def memory() -> Rows:
    rows = json.loads(kit_sandbox("status", "--json").stdout)["services"]
    face = next(row["rss"] for row in rows if row["name"] == "forwarder")
    return [
        ("all of the sandbox", sum(row["rss"] for row in rows) / 1e9, 1.8, "GB"),
        ("the API", face / 1e6, 150, "MB"),
    ]


def window() -> Rows:
    """From the job's start to the dashboard, and from a killed connection to the dashboard."""
    opened, back = [], []
    for _ in range(TUNNELS):
        with tunnel.own_bench() as bench:
            run = bench.ask(epochs=tunnel.LONG)
            port = tunnel.window(bench, run)["port"]
            until(tunnel.answers(port), 60, 0.05)
            begun = (bench.folder(run) / "owner").lstat().st_mtime  # the job's first own deed
            opened.append(time.time() - begun)
            for _ in range(KILLS if not back else 0):
                for pid in tunnel.connections():
                    os.kill(pid, signal.SIGKILL)
                begin = time.perf_counter()
                until(lambda port=port: not tunnel.taken(port), 10, 0.01)
                until(tunnel.answers(port), 60, 0.02)
                back.append(time.perf_counter() - begin)
    return [
        ("dashboard through the tunnel after the job's start", opened, 8, "s"),
        ("tunnel back after its connection was killed", back, 5, "s"),
    ]


def main() -> None:
    for part in (memory, status, scrape, window):
        for what, value, target, unit in part():
            measured.show(what, value, unit, target, more_is_better=unit == "1/s")


if __name__ == "__main__":
    main()
