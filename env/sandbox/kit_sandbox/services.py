"""The services of a sandbox while it runs: the supervisor over them, their health checks."""

import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base.errors import Busy, KitError
from kit.base.settings import ROOT, Settings
from kit_sandbox import files as sandbox_files
from kit_sandbox import processes as sandbox_processes
from kit_sandbox.files import PASSWORDS, PLACES, PROGRAMS, SOURCE
from kit_sandbox.processes import Process
from kit_sandbox.supervisor import control

Say = Callable[[str], None]
READY_S = 150.0  # longer than any first start that was seen, on a busy machine
CHECK_S = 15.0


@dataclass(frozen=True)
class Service:
    """One service as it is now: `up` is the answer of its health check."""

    name: str
    up: bool
    health_s: float
    answer: str
    state: str
    pid: int | None = None
    since: float | None = None
    address: str = ""
    port: int | None = None
    rss: int = 0


def status(loaded: Settings) -> list[Service]:
    """Ask every service its health question, all at the same time."""
    folder = loaded.sandbox_dir.absolute()
    rows = {row["name"]: row for row in programs(folder)} if supervisor(folder) else {}

    def _one(name: str) -> Service:
        row = rows.get(name, {"statename": "STOPPED", "pid": 0})
        good, took, answer = check(folder, name) if row["pid"] else (False, 0.0, "not running")
        address, port = ("", None)
        if name in PLACES:
            address, port = sandbox_files.place_of(loaded, PLACES[name])
        found = sandbox_processes.process(row["pid"]) if row["pid"] else None
        family = [found, *sandbox_processes.descendants(found.pid)] if found else []
        return Service(
            name=name,
            up=good,
            health_s=round(took, 3),
            answer=answer,
            state=row["statename"].lower(),
            pid=row["pid"] or None,
            since=sandbox_processes.started_at(found) if found else None,
            address=address,
            port=port,
            rss=sandbox_processes.resident(family),
        )

    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        return list(pool.map(_one, PROGRAMS))


def files(folder: Path) -> dict[str, str]:
    """Name the files a client needs: ssh, Slurm, credentials, the CA."""
    names = {"env_file": ".env", "ca_file": "ca.crt", "mlflow_env": "mlflow.env"}
    names |= {"redis_env": "redis.env", "prometheus_env": "prometheus.env"}
    names |= {name: name for name in ("ssh_config", "known_hosts")}
    names |= {"slurm_conf": "slurm.conf", "user_ca": "ssh/user_ca", "user_key": "ssh/id"}
    return {key: str(folder / "etc" / name) for key, name in names.items()}


def supervisor(folder: Path) -> Process | None:
    """Find the supervisor of this folder, if it runs."""
    ours = [one.process for one in sandbox_processes.supervisors() if one.folder == folder]
    return ours[0] if ours else None


def environment(folder: Path) -> dict[str, str]:
    """What the daemons may see of our environment: nothing of it."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "SBX": str(folder), "TZ": "UTC", "LANG": "C.UTF-8", "HOME": str(folder)}


def start(folder: Path) -> None:
    """Start the supervisor in the background; it starts all programs at once."""
    config = str(folder / "etc" / "supervisord.conf")
    argv = [sys.executable, "-m", "kit_sandbox.supervisor", "--configuration", config]
    environ = environment(folder) | {"PYTHONPATH": f"{ROOT}:{ROOT}/env/sandbox"}
    with open(folder / "log" / "supervisord.out", "ab") as log:
        subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ,
            cwd=folder, start_new_session=True,
        )  # fmt: skip


def programs(folder: Path) -> list[dict[str, Any]]:
    """Ask the supervisor for its programs; empty while it does not answer."""
    try:
        rows: list[dict[str, Any]] = control(folder).getAllProcessInfo()
    except (OSError, xmlrpc.client.Error):
        return []
    return rows


def refuse_another_kit(folder: Path) -> None:
    """Raise Busy when the sandbox that is up lacks what this version of the kit starts."""
    names, made = {row["name"] for row in programs(folder)}, folder / "etc" / "sandbox.env"
    text = made.read_text() if made.exists() else ""
    lacks = [name for name in PROGRAMS if name not in names]
    wanted = [f"{name}_PASSWORD" for name in PASSWORDS] + [f"ADDR_{n}" for n in PLACES.values()]
    found = {line.partition("=")[0] for line in text.splitlines()}
    named = [each.upper().replace("-", "_") for each in wanted]
    lacks += [name for name in named if name not in found]
    if not names:  # it is only just starting
        return
    if lacks:
        raise Busy(
            f"the sandbox in {folder} was started by another version of the kit",
            f"it has no {', '.join(lacks)}",
            "kit sandbox down, then kit sandbox up",
        )


def start_stopped(folder: Path, say: Say) -> None:
    """Start the programs that were stopped by hand under a supervisor that runs."""
    for row in programs(folder):
        if not row["pid"]:
            say(f"starting {row['name']} again")
            control(folder).startProcess(row["name"], False)


def orphans(folder: Path, top: Process) -> list[Process]:
    """Name what came to the supervisor because its parent ended: the batch jobs' processes."""
    ours = {row["pid"] for row in programs(folder)}
    strays = [one for one in sandbox_processes.children(top.pid) if one.pid not in ours]
    return [*strays, *(low for one in strays for low in sandbox_processes.descendants(one.pid))]


def stop_programs(folder: Path, say: Say) -> None:
    """Stop all programs, each with the time it needs to end well."""
    running = [row["name"] for row in programs(folder) if row["pid"]]
    try:
        if "slurmctld" in running:  # while slurmdbd is there to take what it still has to say
            control(folder).stopProcess("slurmctld", True)
        control(folder).stopAllProcesses(True)
    except (OSError, xmlrpc.client.Error) as err:
        say(f"the supervisor does not answer ({err}); its programs are ended one by one")


def check(folder: Path, name: str) -> tuple[bool, float, str]:
    """Ask one service: (good, seconds, its short answer)."""
    begin = time.monotonic()
    argv = ["bash", str(SOURCE / "svc"), "check", name]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=CHECK_S, env=environment(folder)
        )
    except subprocess.TimeoutExpired:
        return False, time.monotonic() - begin, f"no answer in {CHECK_S:g} s"
    text = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    return done.returncode == 0, time.monotonic() - begin, text.splitlines()[-1] if text else ""


def wait(folder: Path, say: Say) -> None:
    """Wait until all health checks are good, naming each service as it becomes so.

    Raises KitError with the last answers when that takes longer than READY_S.
    """
    begin = time.monotonic()

    def _until_good(name: str) -> str:
        while True:
            good, _, answer = check(folder, name)
            took = time.monotonic() - begin
            if good:
                say(f"{took:5.1f} s  {name}")
                return ""
            if took > READY_S:
                return f"{name}: {answer or 'no answer'}"
            time.sleep(0.3)

    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        late = [answer for answer in pool.map(_until_good, PROGRAMS) if answer]
    if late:
        raise KitError(
            f"{len(late)} services are not healthy after {READY_S:g} s",
            "; ".join(late),
            f"kit sandbox logs {late[0].split(':')[0]}",
        )
