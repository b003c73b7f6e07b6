"""The services of a sandbox while it runs: the supervisor over them, their health checks."""

import os
import re
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kit.base import ROOT, Busy, KitError
from kit.base.settings import Settings
from kit_sandbox import machine, processes, roots
from kit_sandbox.files import PASSWORDS, PLACES, SOURCE, folder_of, place_of, programs_of
from kit_sandbox.supervisor import control

Report = Callable[[str], None]
READY_S = 150.0  # longer than any first start seen on a busy machine
CHECK_S = 15.0


@dataclass(frozen=True)
class Service:
    """One service and its state; `up` is the result of its health check."""

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


@dataclass(frozen=True)
class HealthAnswer:
    """The answer of a health check and its time in seconds."""

    healthy: bool
    seconds: float
    text: str


def status(settings: Settings) -> list[Service]:
    """Run the health checks of all running services at the same time."""
    folder, names = folder_of(settings), programs_of(settings)
    rows = {row["name"]: row for row in programs(folder)} if supervisor(folder) else {}
    running = [name for name in names if name in rows and rows[name]["pid"]]
    answers = check_health(folder, *running) if running else {}
    return [_service(settings, name, rows.get(name), answers.get(name)) for name in names]


def _service(
    settings: Settings, name: str, row: dict[str, Any] | None, answer: HealthAnswer | None
) -> Service:
    row = row or {"statename": "STOPPED", "pid": 0}
    answer = answer or HealthAnswer(False, 0.0, "not running")
    address, port = place_of(settings, PLACES[name]) if name in PLACES else ("", None)
    process = processes.live_process(row["pid"]) if row["pid"] else None
    family = [process, *processes.descendants(process)] if process else []
    return Service(
        name=name,
        up=answer.healthy,
        health_s=round(answer.seconds, 3),
        answer=answer.text,
        state=row["statename"].lower(),
        pid=row["pid"] or None,
        since=process.create_time() if process else None,
        address=address,
        port=port,
        rss=processes.resident_bytes(family),
    )


def files(folder: Path) -> dict[str, str]:
    """List the files that a client needs: ssh, Slurm, credentials, the CA."""
    names = {"env_file": ".env", "ca_file": "ca.crt", "mlflow_env": "mlflow.env"}
    names |= {"redis_env": "redis.env", "prometheus_env": "prometheus.env"}
    names |= {name: name for name in ("ssh_config", "known_hosts")}
    names |= {"slurm_conf": "slurm.conf", "user_ca": "ssh/user_ca", "user_key": "ssh/id"}
    return {key: str(folder / "etc" / name) for key, name in names.items()}


def supervisor(folder: Path) -> psutil.Process | None:
    """Return the supervisor of this folder if it runs."""
    rows = [row.process for row in processes.supervisors() if row.folder == folder]
    return rows[0] if rows else None


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of the daemons, which has nothing of our own."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "SBX": str(folder), "TZ": "UTC", "LANG": "C.UTF-8", "HOME": str(folder)}


def administrator(folder: Path) -> dict[str, str]:
    """Return the environment of the Slurm site's administrator."""
    return environment(folder) | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}


def run(folder: Path, argv: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command in the root of a sandbox as its administrator; capture what it writes."""
    words, environ = roots.inside(folder, argv), administrator(folder)
    return subprocess.run(words, env=environ, capture_output=True, text=True, **options)


def start_supervisor(folder: Path) -> None:
    """Start the supervisor in the background; it starts all programs at once.

    The services run from the checkout that this module was loaded from.
    """
    config = str(folder / "etc" / "supervisord.conf")
    argv = [sys.executable, *processes.MODULE, "--configuration", config]
    environ = environment(folder) | {"PYTHONPATH": f"{ROOT}:{ROOT}/env/sandbox"}
    log = os.open(folder / "log" / "supervisord.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            cwd=folder,
            start_new_session=True,
        )
    finally:
        os.close(log)


def programs(folder: Path) -> list[dict[str, Any]]:
    """Return the supervisor's rows of its programs; empty while it does not answer."""
    try:
        rows: list[dict[str, Any]] = control(folder).getAllProcessInfo()
    except (OSError, xmlrpc.client.Error):
        return []
    return rows


def refuse_other_version(settings: Settings) -> None:
    """Raise Busy if the running sandbox lacks what this version of the kit starts."""
    folder = folder_of(settings)
    running = {row["name"] for row in programs(folder)}
    if not running:  # it is only just starting
        return
    variables = folder / "etc" / "sandbox.env"
    text = variables.read_text() if variables.exists() else ""
    present = {line.partition("=")[0] for line in text.splitlines()}
    names = [f"{name}_PASSWORD" for name in PASSWORDS] + [f"ADDR_{n}" for n in PLACES.values()]
    expected = [name.upper().replace("-", "_") for name in names]
    missing = [name for name in programs_of(settings) if name not in running]
    missing += [name for name in expected if name not in present]
    if missing:
        raise Busy(
            f"the sandbox in {folder} was started by another version of the kit",
            f"it has no {', '.join(missing)}",
            "kit sandbox down, then kit sandbox up",
        )


def start_stopped(folder: Path, report: Report) -> None:
    """Start the programs that were stopped by hand under a running supervisor."""
    for row in programs(folder):
        if not row["pid"]:
            report(f"starting {row['name']} again")
            control(folder).startProcess(row["name"], False)


def orphans(folder: Path, top: psutil.Process) -> list[psutil.Process]:
    """List what the supervisor adopted when its parent ended: the processes of batch jobs."""
    pids = {row["pid"] for row in programs(folder)}
    strays = [child for child in top.children() if child.pid not in pids]
    return [*strays, *(low for stray in strays for low in processes.descendants(stray))]


def stop_programs(folder: Path, report: Report) -> None:
    """Stop all programs, each with the time it needs to end well."""
    running = [row["name"] for row in programs(folder) if row["pid"]]
    try:
        if "slurmctld" in running:  # while slurmdbd still takes its last records
            control(folder).stopProcess("slurmctld", True)
        control(folder).stopAllProcesses(True)
    except (OSError, xmlrpc.client.Error) as err:
        report(f"the supervisor does not answer ({err}); its programs are ended one by one")


def check_health(folder: Path, *names: str) -> dict[str, HealthAnswer]:
    """Run health checks at the same time, in one visit to the root; return their answers."""
    argv = ["bash", str(SOURCE / "svc"), "check", *names]
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(folder),
        text=True,
        start_new_session=True,
    ) as process:
        try:
            text, _ = process.communicate(timeout=CHECK_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
    rows = [line.split(" ", 3) for line in text.splitlines()]
    answers = {
        row[0]: HealthAnswer(row[1] == "0", int(row[2]) / 1e6, row[3])
        for row in rows
        if len(row) == 4 and row[0] in names
    }
    late = HealthAnswer(
        False, CHECK_S, text.strip()[-200:] if not answers else f"no answer in {CHECK_S:g} s"
    )
    return {name: answers.get(name, late) for name in names}


def wait_until_healthy(folder: Path, report: Report) -> None:
    """Wait until all health checks pass, reporting each service when it does.

    Raises KitError with the last answers if that takes longer than READY_S, or if the disk is
    full.
    """
    begin = time.monotonic()
    text = (folder / "etc" / "supervisord.conf").read_text()
    late = {
        name: HealthAnswer(False, 0, "") for name in re.findall(r"^\[program:(.+)\]", text, re.M)
    }
    places = {name: place for name, place in _places(folder).items() if name in late}
    while late and time.monotonic() - begin < READY_S:
        silent = places.keys() - _listening(places)
        asked = [name for name in late if name not in silent]
        answers = check_health(folder, *asked) if asked else {}
        for name in [name for name in asked if answers[name].healthy]:
            report(f"{time.monotonic() - begin:5.1f} s  {name}")
        late |= answers | {
            name: HealthAnswer(False, 0, f"nothing listens at {places[name]}")
            for name in late.keys() & silent
        }
        late = {name: answer for name, answer in late.items() if not answer.healthy}
        if late:
            machine.check_not_full(folder)
            time.sleep(0.2)
    if late:
        raise KitError(
            f"{len(late)} services are not healthy after {READY_S:g} s",
            "; ".join(f"{name}: {answer.text or 'no answer'}" for name, answer in late.items()),
            f"kit sandbox logs {next(iter(late))}",
        )


def _places(folder: Path) -> dict[str, str]:
    """Return the address and port, as "127.0.0.1:5000", of each service that has one."""
    text = (folder / "etc" / "sandbox.env").read_text()
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    keys = {name: place.upper().replace("-", "_") for name, place in PLACES.items()}
    return {name: f"{values[f'ADDR_{key}']}:{values[f'PORT_{key}']}" for name, key in keys.items()}


def _listening(places: Mapping[str, str]) -> set[str]:
    """Return the services that listen; a health check of another one would be work for nothing."""
    ports = {
        f"{row.laddr.ip}:{row.laddr.port}"
        for row in psutil.net_connections("tcp")
        if row.status == psutil.CONN_LISTEN and row.laddr
    }
    return {name for name, place in places.items() if place in ports}
