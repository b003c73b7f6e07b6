"""Ray on the nodes of this job: one job step a node, started, checked, ended. Runs on the HPC side.

It never calls `ray stop`: that ends every Ray of the user on the machine. A node's Ray ends when
the stdin of its step is closed, so nothing outlives the main program and all step figures reach
the accounting. Tried with Ray 2.60 and Slurm 22.05.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kit.base import KitError
from kit.onsite.names import NODE_LOST, TOLD_TO_END
from kit.onsite.names import RAY_NOT_STARTED as NOT_STARTED

READY_S = 120.0

# $1 Ray's temporary folder, then `ray start …`: run it until stdin ends. Ray may take half a
# minute to end by itself, and its workers outlive a killed one: after three seconds everything
# that this step has started is found by its session and its mark (Ray's own processes overwrite
# their environment, the driver has another session). A Ray that was lost leaves the folder
# alone: nodes may share it. (`wait -n` of bash 5.2 misses a process that ended before it.)
STEP = r"""
exec 3<&0; tmp=$1 mark=KIT_STEP=$SLURM_JOB_ID.$SLURM_STEP_ID; shift
leader=$(ps -o sid= -p $$ | tr -d ' ')
sweep() {
    local each
    for each in $(grep -lsz "^$mark\$" /proc/[0-9]*/environ | cut -d/ -f3) $(pgrep -s 0); do
        [ "$each" = $$ ] || [ "$each" = "$leader" ] || kill -KILL "$each"
    done 2>/dev/null
}
env "$mark" "$@" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    </dev/null & ray=$!
trap 'sweep; rm -rf "$tmp"; exit 1' TERM
cat <&3 >/dev/null & asked=$!
while kill -0 "$ray" && kill -0 "$asked"; do sleep 0.1; done 2>/dev/null
if kill -0 "$ray" 2>/dev/null; then
    kill -TERM "$ray"
    for turn in {1..30}; do kill -0 "$ray" 2>/dev/null || break; sleep 0.1; done
    sweep; rm -rf "$tmp"; exit 0
fi
kill "$asked"; wait "$ray"; code=$?; sweep; exit $((code ? code : 1))
"""


class RayFailed(KitError):
    """The job cannot go on; `code` becomes its exit code."""

    def __init__(self, code: int, tried: str, got: str = "", next_step: str = "") -> None:
        super().__init__(tried, got, next_step)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the fields."""
        return type(self), (self.code, self.tried, self.got, self.next_step)


class Cluster:
    """Ray on the nodes of this job: one step a node, the first one is the head."""

    def __init__(self, nodes: list[str], ray: Path, folder: Path, job_id: str) -> None:
        self.nodes, self.ray, self.folder = nodes, ray, folder
        self.tmp = f"/tmp/kr-{job_id}"  # noqa: S108 - of this job alone; sockets need a short path
        self.address, self.ports = "", [0, 0, 0]
        self.steps: dict[str, subprocess.Popen[bytes]] = {}
        self.told_to_end = False

    @property
    def dashboard(self) -> str:
        """The address of the Jobs API."""
        return f"http://{self.address}:{self.ports[1]}"

    def start(self) -> None:
        """Start the head, then the others, and wait until all are there. Raises RayFailed."""
        self.address = node_address(self.nodes[0])
        self.ports = free_ports(self.address, 3)
        gcs, dashboard, client = map(str, self.ports)
        head = ["--head", f"--port={gcs}", f"--dashboard-host={self.address}"]
        head += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        self._step(self.nodes[0], *head, f"--temp-dir={self.tmp}")
        self.until("Ray's head", lambda: listens(self.address, self.ports[0]))
        for node in self.nodes[1:]:
            self._step(node, f"--address={self.address}:{gcs}")
        self.until("Ray's dashboard", lambda: listens(self.address, self.ports[1]))
        self.until(f"{len(self.nodes)} nodes of Ray", self._complete)

    def _step(self, node: str, *options: str) -> None:
        address = node_address(node)
        argv = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
        argv += ["--cpus-per-task=" + os.environ.get("SLURM_CPUS_PER_TASK", "1")]
        argv += [f"--output={self.folder}/ray-{node}.log", "bash", "-c", STEP, "ray", self.tmp]
        argv += [str(self.ray), "start", f"--node-ip-address={address}", *options, "--block"]
        argv += ["--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0"]
        argv += ["--metrics-export-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        argv += ["--object-store-memory=100000000", "--disable-usage-stats"]
        self.steps[node] = subprocess.Popen(argv, stdin=subprocess.PIPE)

    def _complete(self) -> bool:
        from ray.util.state import list_nodes
        from ray.util.state.exception import RayStateApiException

        try:
            alive = list_nodes(self.dashboard, filters=[("state", "=", "ALIVE")])
        except (OSError, RuntimeError, RayStateApiException):
            return False  # the dashboard listens before it can answer, and drops connections
        return len(alive) == len(self.nodes)

    def check(self) -> None:
        """Raise RayFailed when a node's Ray has ended or the job was told to end."""
        if self.told_to_end:
            raise RayFailed(
                TOLD_TO_END,
                "the job was told to end",
                "its time limit is near, or somebody cancelled it",
                "give it more time in the profile; it can go on from its last epoch",
            )
        for node, step in self.steps.items():
            if step.poll() is not None:
                got = tail(self.folder / f"ray-{node}.log")
                step_text = "run again; when it happens again ask the site about that node"
                raise RayFailed(NODE_LOST, f"Ray on node {node} has ended", got, step_text)

    def until(self, what: str, ready: Callable[[], bool]) -> None:
        """Wait for something. Raises RayFailed when it does not come or a node is lost."""
        end = time.monotonic() + READY_S
        while not ready():
            self.check()
            if time.monotonic() > end:
                got = tail(self.folder / f"ray-{self.nodes[0]}.log")
                raise RayFailed(NOT_STARTED, f"no {what} after {READY_S:.0f} s", got)
            time.sleep(0.2)
        say(f"{what}: ready")

    def stop(self) -> None:
        """End every step by closing its stdin; a step that does not end is told by Slurm."""
        for step in self.steps.values():
            if step.stdin:
                step.stdin.close()
        for step in self.steps.values():
            try:
                step.wait(20)
            except subprocess.TimeoutExpired:
                step.kill()
        shutil.rmtree(self.tmp, ignore_errors=True)
        say("Ray has ended")


def node_names(listed: str) -> list[str]:
    """Return the names of a job's nodes from Slurm's short form (`c[1-3]`)."""
    argv = ["scontrol", "show", "hostnames", listed]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def node_address(node: str) -> str:
    """Give the address of a node as Slurm knows it."""
    text = subprocess.run(
        ["scontrol", "--oneliner", "show", "node", node], capture_output=True, text=True, check=True
    ).stdout
    words = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return socket.gethostbyname(words.get("NodeAddr", node))


def free_ports(address: str, count: int) -> list[int]:
    """Find ports that nobody uses now at this address of this machine."""
    sockets = [socket.create_server((address, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def listens(address: str, port: int) -> bool:
    """Say whether somebody accepts connections there."""
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex((address, port)) == 0


def say(text: str) -> None:
    """Write a line to the job's log; a full disk costs the line, not the job."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        sys.stdout.flush()


def tail(path: Path) -> str:
    """Give the end of a log, or nothing."""
    return path.read_text(errors="replace")[-3000:] if path.exists() else ""
