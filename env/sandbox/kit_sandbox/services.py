"""The services of a sandbox while it runs: the supervisor over them, their health checks."""

import contextlib
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil

from kit.base import ROOT, Busy, KitError
from kit.base.settings import Settings
from kit_sandbox import machine, processes, roots
from kit_sandbox.files import PASSWORDS, PLACES, SOURCE, folder_of, place_of, programs_of
from kit_sandbox.supervisor import NO_ANSWER, control

Report = Callable[[str], None]
READY_S = 150.0  # longer than any first start seen on a busy machine
CHECK_S = 15.0
LISTEN = "0A"  # a socket's state in /proc/net/tcp
ROUND_S = 0.3  # between two questions to a service that is not healthy yet


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
    except NO_ANSWER:
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
    except NO_ANSWER as err:
        report(f"the supervisor does not answer ({err}); its programs are ended one by one")


class HealthChecks:
    """Health checks in one visit to the root, which costs more than most of them.

    They run at the same time; `answers` yields each answer when it comes.
    """

    def __init__(self, folder: Path) -> None:
        process = subprocess.Popen(
            ["bash", str(SOURCE / "svc"), "check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(folder),
            text=True,
            start_new_session=True,
        )
        self._process = process
        self._input, self._output = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
        self.asked: dict[str, float] = {}  # without an answer yet: name -> when it was asked
        self._lines: queue.Queue[str] = queue.Queue()  # "" is the end of the visit
        self._other = ""  # the last lines of other text: why the root could not be entered
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> "HealthChecks":
        """Return the checks; those that run at the end of the block are killed."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the visit."""
        if self.asked:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._process.wait()
        self._reader.join()
        self._output.close()

    def ask(self, names: Iterable[str]) -> None:
        """Start the checks of services that have none under way."""
        names = [name for name in names if name not in self.asked]
        self.asked |= dict.fromkeys(names, time.monotonic())
        with contextlib.suppress(BrokenPipeError):  # the visit has ended
            self._input.write("".join(f"{name}\n" for name in names))
            self._input.flush()

    def answers(self, seconds: float) -> Iterator[tuple[str, HealthAnswer]]:
        """Yield the answers that come within a time, at most until there is one for each check."""
        end = time.monotonic() + seconds
        while self.asked and (left := end - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                return
            if not line:
                return
            row = line.rstrip("\n").split(" ", 3)
            if len(row) == 4 and row[0] in self.asked:
                del self.asked[row[0]]
                yield row[0], HealthAnswer(row[1] == "0", int(row[2]) / 1e6, row[3])
            else:
                self._other = f"{self._other}{line}"[-200:]

    def missing(self) -> dict[str, HealthAnswer]:
        """Return an unhealthy answer for each check that has none."""
        text = self._other.strip() or f"no answer in {CHECK_S:g} s"
        return dict.fromkeys(self.asked, HealthAnswer(False, CHECK_S, text))

    def over(self) -> bool:
        """Report whether a check takes longer than CHECK_S, or the visit has ended."""
        since = min(self.asked.values(), default=time.monotonic())
        return since + CHECK_S < time.monotonic() or self._process.poll() is not None

    def _read(self) -> None:
        for line in self._output:
            self._lines.put(line)
        self._lines.put("")


def check_health(folder: Path, *names: str) -> dict[str, HealthAnswer]:
    """Run health checks at the same time; return their answers."""
    with HealthChecks(folder) as checks:
        checks.ask(names)
        answers = dict(checks.answers(CHECK_S))
    answers |= checks.missing()
    return {name: answers[name] for name in names}


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
        with HealthChecks(folder) as checks:
            while late and time.monotonic() - begin < READY_S and not checks.over():
                end = time.monotonic() + ROUND_S
                silent = places.keys() & late.keys() - _listening(places)
                for name in silent - checks.asked.keys():
                    late[name] = HealthAnswer(False, 0, f"nothing listens at {places[name]}")
                checks.ask(name for name in late if name not in silent)
                for name, answer in checks.answers(ROUND_S):
                    late[name] = answer
                    if answer.healthy:
                        del late[name]
                        report(f"{time.monotonic() - begin:5.1f} s  {name}")
                if late:
                    machine.check_not_full(folder)
                    time.sleep(max(0.0, end - time.monotonic()))
        late |= checks.missing()
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
    """Return the services that listen; a health check of another one would be work for nothing.

    The kernel's table has them all; psutil would also look up the process of each socket.
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    words = [row[1].split(":") for row in rows if row[3] == LISTEN]
    ports = {
        f"{socket.inet_ntoa(struct.pack('=I', int(address, 16)))}:{int(port, 16)}"
        for address, port in words
    }
    return {name for name, place in places.items() if place in ports}
