"""Ray on the nodes of this job: one job step a node, started, checked, ended. Runs on the site.

It never calls `ray stop`: that ends every Ray of the user on the machine. A node's Ray ends when
the stdin of its step is closed, so nothing outlives the main program and all figures of steps reach
the accounting. Tried with Ray 2.60 and Slurm 22.05.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from kit.base import KitError
from kit.onsite.names import END_REQUESTED, KILLED, NODE_LOST, RAY_NOT_STARTED

READY_S = 120.0
STEP_END_S = 20
START_ATTEMPTS = 3
LOG_END_BYTES = 3000
# How Slurm's and Ray's logs name a step that was killed for its memory, with and without cgroups.
_OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out[ -]of[ -]memory|exceeded .*memory limit", re.I)
_PORT_TAKEN = re.compile(r"address already in use|already occupied", re.I)
# Ray gives its own processes 30 s to start, which no option changes (ray/_private/node.py, 2.60).
_NODE_BUSY = re.compile(r"timed out during startup|no node info found for head node", re.I)
_RAY_OPTIONS = (
    "--block",
    "--dashboard-agent-listen-port=0",
    "--dashboard-agent-grpc-port=0",
    "--metrics-export-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--object-store-memory=100000000",
    "--disable-usage-stats",
)


class RayFailed(KitError):
    """The job cannot go on; `code` becomes its exit code."""

    def __init__(self, code: int, tried: str, got: str = "", next_step: str = "") -> None:
        super().__init__(tried, got, next_step)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the fields."""
        return type(self), (self.code, self.tried, self.got, self.next_step)


class Cluster:
    """Ray on the nodes of this job: one step a node, the first one is the head.

    `private` is a folder of this job alone on each node: Ray's sockets need a short path, and other
    users must neither guess nor enter it.
    """

    def __init__(self, nodes: list[str], python: Path, folder: Path, job_id: str) -> None:
        self.nodes = nodes
        self.python = python
        self.folder = folder
        self.private = f"/tmp/kr-{job_id}-{secrets.token_hex(4)}"  # noqa: S108 - see step.sh
        self.address = ""
        self.ports = [0, 0]
        self.steps: dict[str, subprocess.Popen[bytes]] = {}
        self.end_requested = False

    @property
    def dashboard(self) -> str:
        """The address of the Jobs API."""
        return f"http://{self.address}:{self.ports[1]}"

    def start(self, submit: Callable[[], bool]) -> None:
        """Start the head, then the others, and wait until all are there. Raises RayFailed.

        `submit` hands the driver to the head while the others start and returns that it has; it
        raises OSError or RuntimeError while the head cannot take it, and is called again for
        another head.
        """
        self.address = node_address(self.nodes[0])
        for attempts_left in range(START_ATTEMPTS - 1, -1, -1):
            try:
                return self._start_once(submit)
            except RayFailed as err:  # Ray binds its ports seconds after they were chosen
                taken = _PORT_TAKEN.search(err.got)
                if not attempts_left or not (taken or _NODE_BUSY.search(err.got)):
                    raise
                why = "another program took one of its ports" if taken else "a node is busy"
                say(f"Ray could not be started, {why}: it is started again with other ports")
                self._end_steps()
                self.steps.clear()

    def _start_once(self, submit: Callable[[], bool]) -> None:
        self.ports = free_ports(self.address, 2)
        gcs, dashboard = map(str, self.ports)
        head = ["--head", f"--port={gcs}", f"--dashboard-host={self.address}", "--no-monitor"]
        head += [f"--dashboard-port={dashboard}", f"--temp-dir={self.private}/ray"]
        self._step(self.nodes[0], *head)
        self.until("Ray's head", lambda: listens(self.address, self.ports[0]))
        for node in self.nodes[1:]:
            self._step(node, f"--address={self.address}:{gcs}")
        self.until("Ray's dashboard", lambda: listens(self.address, self.ports[1]))
        self.until("answer to the driver's submission", submit)
        self.until(f"{len(self.nodes)} nodes of Ray", self._all_nodes_alive)

    def check(self) -> None:
        """Raise RayFailed when a node's Ray has ended or the job was asked to end."""
        if self.end_requested:
            raise RayFailed(
                END_REQUESTED,
                "the job was asked to end",
                "its time limit is near, it was cancelled, or Slurm lost one of its nodes",
                "see the job's state; a next attempt continues from the last checkpoint",
            )
        for node, step in self.steps.items():
            if step.poll() is not None:
                raise self._lost(node)

    def _lost(self, node: str) -> RayFailed:
        """Return the error for a node whose Ray has ended."""
        got = tail(self.folder / f"ray-{node}.log")
        if _OUT_OF_MEMORY.search(got):
            tried = f"Ray on node {node} was killed: it used more memory than the job requested"
            return RayFailed(KILLED, tried, got, "request more memory ([hpc] mem) and run again")
        next_step = "run again; if it happens again, ask the site about that node"
        return RayFailed(NODE_LOST, f"Ray on node {node} has ended", got, next_step)

    def until(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait for something. Raises RayFailed when it does not come or a node is lost.

        The dashboard listens before it can answer, and drops connections: OSError and RuntimeError
        of `ready` mean not yet.
        """
        end, error = time.monotonic() + READY_S, ""
        while True:
            try:
                if ready():
                    return say(f"{name}: ready")
            except (OSError, RuntimeError) as err:
                error = f"{err}\n"
            self.check()
            if time.monotonic() > end:
                got = error + tail(self.folder / f"ray-{self.nodes[0]}.log")
                raise RayFailed(RAY_NOT_STARTED, f"no {name} after {READY_S:.0f} s", got)
            time.sleep(0.2)

    def stop(self) -> None:
        """End Ray on every node and remove its folder."""
        self._end_steps()
        shutil.rmtree(self.private, ignore_errors=True)
        say("Ray has ended")

    def _end_steps(self) -> None:
        """End every step by closing its stdin, the head's last; Slurm reports one that does not."""
        for step in reversed(self.steps.values()):
            if step.stdin:
                step.stdin.close()
        for step in self.steps.values():
            try:
                step.wait(STEP_END_S)
            except subprocess.TimeoutExpired:
                step.kill()

    def _step(self, node: str, *options: str) -> None:
        script = (files(__package__) / "step.sh").read_text(encoding="utf-8")
        argv = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
        argv += ["--cpus-per-task=" + os.environ.get("SLURM_CPUS_PER_TASK", "1")]
        argv += [f"--output={self.folder}/ray-{node}.log", "bash", "-c", script, "ray"]
        within = ["bash", container] if (container := os.environ.get("KIT_CONTAINER")) else []
        argv += [self.private, *within, str(self.python), "-m", "kit.onsite.ray_node", "start"]
        argv += [f"--node-ip-address={node_address(node)}"]
        argv += [*options, *_RAY_OPTIONS]
        self.steps[node] = subprocess.Popen(argv, stdin=subprocess.PIPE)

    def _all_nodes_alive(self) -> bool:
        from ray.util.state import list_nodes
        from ray.util.state.exception import RayStateApiException

        try:
            alive = list_nodes(self.dashboard, filters=[("state", "=", "ALIVE")])
        except RayStateApiException as err:
            raise RuntimeError(str(err)) from err
        return len(alive) == len(self.nodes)


def node_names(node_list: str) -> list[str]:
    """Return the names of the nodes in Slurm's short form (`c[1-3]`)."""
    argv = ["scontrol", "show", "hostnames", node_list]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def node_address(node: str) -> str:
    """Return the address of a node as Slurm knows it."""
    argv = ["scontrol", "--oneliner", "show", "node", node]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    words = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return socket.gethostbyname(words.get("NodeAddr", node))


def free_ports(address: str, count: int) -> list[int]:
    """Return ports that are free now at this address of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((address, 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in sockets]


def listens(address: str, port: int) -> bool:
    """Return whether connections are accepted there."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((address, port)) == 0


def say(text: str) -> None:
    """Write a line to the job's log; a full disk costs the line, not the job."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        sys.stdout.flush()


def tail(path: Path) -> str:
    """Return the end of a log, or an empty text."""
    return path.read_text(errors="replace")[-LOG_END_BYTES:] if path.exists() else ""
