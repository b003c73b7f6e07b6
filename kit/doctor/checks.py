"""Run the checks of a profile side by side, each under one time limit.

Nothing is changed but small objects and files, which are written, read and removed.
"""

import contextlib
import importlib
import threading
import time
from collections.abc import Iterable

from kit.base import KitError, ProfileMissing, ProfileUnfilled
from kit.base.settings import Settings, load
from kit.doctor import hpc, in_job, link_race, local, store, vm
from kit.doctor.context import Check, CheckContext
from kit.doctor.diagnosis import DiagnosisError, Finding, Known, finding_of

LIMIT_S = 30.0
JOB_LIMIT_S = 180.0
ROOMS = ("kit.billing", "kit.store", "kit.runs", "kit.tracking", "kit.submitter")
PROFILE: Known = {
    ProfileMissing: "profile-unknown",
    ProfileUnfilled: "profile-unfilled",
    KitError: "profile-wrong",
}


def examine(profile: str | None, race: bool = False, job: bool = False) -> list[Finding]:
    """Run every check of a profile; one that cannot be read is the only finding.

    `race` and `job` also run a short job each, which costs billing units.
    """
    try:
        settings = load(profile)
    except KitError as err:
        return [finding_of("profile", err, PROFILE)]
    limit_s = JOB_LIMIT_S if race or job else LIMIT_S
    return run_checks(CheckContext(settings), limit_s, race, job)


def run_checks(
    context: CheckContext, limit_s: float = LIMIT_S, race: bool = False, job: bool = False
) -> list[Finding]:
    """Run every check that the profile has something for; one that is late is a finding."""
    checks = list(_checks(context.settings, race, job))
    results: dict[str, Finding] = {}
    threads = [
        threading.Thread(target=_run, args=(check, context, results), daemon=True)
        for check in checks
    ]
    # Threads that import a package and a module of it may wait for each other's lock, which is a
    # _DeadlockError (Python 3.11, https://github.com/python/cpython/issues/83065): one thread
    # imports all rooms first. A package that is missing is the finding of the checks that need it.
    for room in ROOMS:
        with contextlib.suppress(ImportError):
            importlib.import_module(room)
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, begin + limit_s - time.monotonic()))
    late = DiagnosisError("late", f"{limit_s:g} s")
    return [results.get(row.name) or finding_of(row.name, late, {}, limit_s) for row in checks]


def _checks(settings: Settings, race: bool, job: bool) -> Iterable[Check]:
    """Yield the checks that this profile has something for; a closed site has only the first."""
    yield Check("profile", _profile, {})
    if settings.site.closed:
        return
    yield from local.checks(settings)
    yield from store.checks(settings)
    yield from hpc.checks(settings)
    yield from vm.checks(settings)
    if race and settings.hpc is not None:
        yield Check("links against a job", hpc.check_links_against_a_job, link_race.KNOWN)
    if job and settings.hpc is not None:
        yield Check("inside a job", hpc.check_in_a_job, in_job.KNOWN)


def _profile(context: CheckContext) -> str:
    site = context.settings.site
    if site.closed:
        raise DiagnosisError("site-closed", site.closed, "choose another profile")
    return f"{context.settings.profile}: {site.title}"


def _run(check: Check, context: CheckContext, results: dict[str, Finding]) -> None:
    begin = time.monotonic()
    error: KitError | None = None
    try:
        answer = check.run(context)
    except KitError as err:
        error = err
    except ImportError as err:
        error = DiagnosisError("package-missing", str(err))
    except Exception as err:  # noqa: BLE001 - one check's own fault must not hold up the others
        error = KitError("the check itself failed", f"{type(err).__name__}: {err}")
    seconds = round(time.monotonic() - begin, 3)
    if error is None:
        results[check.name] = Finding(check.name, "ok", answer, seconds=seconds)
    else:
        results[check.name] = finding_of(check.name, error, check.known, seconds)
