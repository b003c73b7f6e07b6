"""`kit doctor`: each step of a profile's set-up as a check with its cause and its next step.

The checks run side by side, each under a time limit of its own, on a machine with nothing set up
as well. Nothing is changed but one small object, which is put, read and removed.
"""

import importlib.util
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kit import credentials, link_race, mlflow_client, settings, store, tracking
from kit.errors import CommandFailed, KitError, UsageError
from kit.login import read_login
from kit.profiles import Hpc
from kit.settings import Settings
from kit.slurm import Slurm
from kit.ssh import SSHHost
from kit.store_answers import Patience

LIMIT_S = 30.0
RACE_LIMIT_S = 180.0
PROBE = "doctor/probe"
# As in the batch script: a shell that is no login shell has no `module` of its own.
LOAD = """\
[ -z "$1" ] || source "$1"
[ -z "$2" ] || module use "$2"
shift 2
module load "$@"
"""
Check = Callable[[Settings], str]


@dataclass(frozen=True)
class Finding:
    """What one check found: `state` is ok, warning or failed; `answer` says what was seen."""

    name: str
    state: str
    answer: str
    next_step: str = ""
    seconds: float = 0.0


class Warned(KitError):
    """A check that passed, with something that the person should know."""


def examine(profile: str | None, race: bool = False) -> list[Finding]:
    """Run every check of a profile; a profile that cannot be read is the only finding."""
    try:
        loaded = settings.load(profile)
    except KitError as err:
        return [_failed("profile", err, 0.0)]
    return look(loaded, RACE_LIMIT_S if race else LIMIT_S, race)


def look(loaded: Settings, limit_s: float = LIMIT_S, race: bool = False) -> list[Finding]:
    """Run every check these settings have something for, side by side; `race` costs a job."""
    found = [_profile(loaded)]
    checks = list(_checks(loaded))
    if race and loaded.hpc is not None and not loaded.site.closed:
        checks.append(("link primitive", lambda _: link_race.check(Slurm(*_host(loaded)))))
    results: dict[str, Finding] = {}
    threads = [
        threading.Thread(target=_run, args=(name, check, loaded, results), daemon=True)
        for name, check in checks
    ]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, begin + limit_s - time.monotonic()))
    for name, _ in checks:
        late = Finding(name, "failed", f"no answer in {limit_s:g} s", "look at that service")
        found.append(results.get(name, late))
    return found


def _profile(loaded: Settings) -> Finding:
    site = loaded.site
    if site.closed:
        return Finding("profile", "failed", site.closed, "choose another profile")
    return Finding("profile", "ok", f"{loaded.profile}: {site.title}")


def _checks(loaded: Settings) -> Iterable[tuple[str, Check]]:
    """Name the checks that this profile has something for."""
    if loaded.store is not None:
        if loaded.store.auth_url:
            yield ".env", _env_file
            yield "token", _token
        yield "store", _store
    if loaded.cloud is not None:
        if loaded.cloud.mlflow_url:
            yield "MLflow", _mlflow
        yield "pipeline runner", _runner
    if loaded.hpc is not None:
        if loaded.hpc.certificate:
            yield "ssh certificate", _certificate
        yield "ssh", _ssh
        yield "Slurm account and partition", _slurm
        yield "modules", _modules
        yield "seff", _seff


def _run(name: str, check: Check, loaded: Settings, results: dict[str, Finding]) -> None:
    begin = time.monotonic()
    try:
        answer = check(loaded)
    except Warned as err:
        seconds = time.monotonic() - begin
        results[name] = Finding(name, "warning", err.tried, err.next_step, seconds)
    except KitError as err:
        results[name] = _failed(name, err, time.monotonic() - begin)
    else:
        results[name] = Finding(name, "ok", answer, seconds=time.monotonic() - begin)


def _failed(name: str, err: KitError, seconds: float) -> Finding:
    answer = "; ".join(part for part in (err.tried, err.got) if part)
    return Finding(name, "failed", " ".join(answer.split()), err.next_step, seconds)


def _env_file(loaded: Settings) -> str:
    login = read_login(loaded)
    file = Path(login.source)  # not a file where the environment has the names
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0
    if mode & 0o077:
        raise Warned(
            f"{login.source} can be read by others (mode {mode:o})",
            next_step=f"chmod 600 {login.source}",
        )
    return f"{login.username} in {login.project}, from {login.source}"


def _token(loaded: Settings) -> str:
    left = credentials.keystone_for(loaded).valid_until() - time.time()
    return f"obtained, good for {left / 3600:.1f} h"


def _store(loaded: Settings) -> str:
    patience = Patience(timeout_s=LIMIT_S / 3, patience_s=LIMIT_S / 3)
    bucket = store.open_store(loaded, store.bucket_name(loaded, "pipeline"), patience=patience)
    bucket.ensure_bucket()
    content = str(time.time_ns()).encode()
    bucket.put(PROBE, content)
    same = bucket.get(PROBE) == content
    bucket.delete(PROBE)
    if not same:
        raise KitError(
            "the store gave back other bytes than were put", next_step="tell its operator"
        )
    return f"put, read and removed an object in {store.bucket_name(loaded, 'pipeline')}"


def _mlflow(loaded: Settings) -> str:
    place = tracking.tracking_for(loaded, "cloud")
    with mlflow_client.connect(place.uri, place.env_file) as client:
        return f"{len(client.search_experiments())} experiment(s) listed at {place.uri}"


def _runner(loaded: Settings) -> str:
    cloud = loaded.cloud
    if cloud is not None and cloud.runner == "cluster":
        from kit import kfp_cluster

        kfp_cluster.greet(cloud.kfp_url, loaded.env_file)
        return f"the pipeline service at {cloud.kfp_url} answers"
    if importlib.util.find_spec("kfp") is None:
        raise UsageError(
            "pipelines run here by kfp.local, and kfp is not installed",
            next_step="make setup, or pip install -e '.[cloud]'",
        )
    return "kfp.local on this machine"


def _host(loaded: Settings) -> tuple[SSHHost, Hpc]:
    hpc = loaded.hpc
    if hpc is None:
        raise UsageError(f"profile {loaded.profile} has no [hpc]")
    return SSHHost(hpc.ssh_host, hpc.ssh_config, hpc.user, hpc.renew_hint), hpc


def _certificate(loaded: Settings) -> str:
    host, hpc = _host(loaded)
    end = host.valid_until()
    if end is None:
        raise UsageError(f"no ssh certificate for {hpc.ssh_host}", next_step=hpc.renew_hint)
    left = end - time.time()
    if left <= 0:
        raise UsageError(f"the ssh certificate ended {-left:.0f} s ago", next_step=hpc.renew_hint)
    if left < 3600:
        raise Warned(f"the ssh certificate ends in {left / 60:.0f} min", next_step=hpc.renew_hint)
    return f"good for {left / 3600:.1f} h"


def _ssh(loaded: Settings) -> str:
    host, hpc = _host(loaded)
    done = host.run(["hostname"], timeout=20)
    return f"{hpc.ssh_host} is {done.out.strip()}, {done.seconds * 1000:.0f} ms"


def _slurm(loaded: Settings) -> str:
    host, hpc = _host(loaded)
    partition = host.run(["sinfo", "-h", "-p", hpc.partition, "-o", "%R %a %l %D"], timeout=20).out
    if not partition.strip():
        known = host.run(["sinfo", "-h", "-o", "%R"], timeout=20).out.split()
        raise UsageError(
            f"there is no partition {hpc.partition!r} on {hpc.ssh_host}",
            next_step=f"set [hpc] partition to one of: {', '.join(sorted(set(known)))}",
        )
    user = host.run(["id", "-un"], timeout=20).out.strip()
    ask = ["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Account"]
    accounts = set(host.run(ask, timeout=20).out.split())
    if hpc.account not in accounts:
        raise UsageError(
            f"{user} has no Slurm account {hpc.account!r} on {hpc.ssh_host}",
            next_step=f"set [hpc] account to one of: {', '.join(sorted(accounts)) or 'none'}",
        )
    return f"{hpc.account}; {' '.join(partition.split())}"


def _modules(loaded: Settings) -> str:
    host, hpc = _host(loaded)
    if not hpc.modules:
        return "none asked for"
    argv = ["bash", "-c", LOAD, "modules", hpc.module_init, hpc.module_path, *hpc.modules]
    try:
        host.run(argv, timeout=30)
    except CommandFailed as err:
        raise UsageError(
            f"`module load {' '.join(hpc.modules)}` does not work on {hpc.ssh_host}",
            (err.err or err.out).strip()[-300:],
            "look with `module avail` there and mend [hpc] modules",
        ) from err
    return f"{', '.join(hpc.modules)} can be loaded"


def _seff(loaded: Settings) -> str:
    host, hpc = _host(loaded)
    there = host.run(["bash", "-c", "command -v seff"], timeout=20, check=False).code == 0
    if hpc.seff and not there:
        raise UsageError(f"{hpc.ssh_host} has no seff", next_step="set [hpc] seff = false")
    return "there" if there else "not there: the kit computes its figures from sacct"
