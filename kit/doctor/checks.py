"""`kit doctor`: each step of a profile's set-up as a check with its cause and its next step.

The checks run side by side, each under a time limit of its own, on a machine with nothing set up
as well. Nothing is changed but small objects and files, which are made, read and removed.
"""

import threading
import time
from collections.abc import Callable, Iterable

from kit.base import KitError
from kit.base.settings import Settings, load
from kit.doctor import hpc as doctor_site
from kit.doctor import link_race
from kit.doctor import store as doctor_store
from kit.doctor import vm as doctor_vm
from kit.doctor.context import Check, Ground
from kit.doctor.findings import Finding, Found, Known, failure
from kit.slurm.client import Slurm

LIMIT_S = 30.0
RACE_LIMIT_S = 180.0


def examine(profile: str | None, race: bool = False) -> list[Finding]:
    """Run every check of a profile; a profile that cannot be read is the only finding."""
    try:
        loaded = load(profile)
    except KitError as err:
        words = {"there is no profile": "profile-unknown", "not filled in": "profile-unfilled"}
        named = [diagnosis for text, diagnosis in words.items() if text in err.tried]
        known: Known = {KitError: (named or ["profile-wrong"])[0]}
        return [failure("profile", err, known)]
    return look(Ground(loaded), RACE_LIMIT_S if race else LIMIT_S, race)


def look(ground: Ground, limit_s: float = LIMIT_S, race: bool = False) -> list[Finding]:
    """Run every check that the profile has something for, side by side; `race` costs a job."""
    checks = list(_checks(ground.settings, race))
    results: dict[str, Finding] = {}
    threads = [
        threading.Thread(target=_run, args=(check, ground, results), daemon=True)
        for check in checks
    ]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, begin + limit_s - time.monotonic()))
    late = Found("late", f"{limit_s:g} s")
    return [results.get(each.name) or failure(each.name, late, {}, limit_s) for each in checks]


def _profile(ground: Ground) -> str:
    site = ground.settings.site
    if site.closed:
        raise Found("site-closed", site.closed, "choose another profile")
    return f"{ground.settings.profile}: {site.title}"


def _checks(loaded: Settings, race: bool) -> Iterable[Check]:
    """Name the checks that this profile has something for; a closed site has none but one."""
    yield Check("profile", _profile, {})
    if loaded.site.closed:
        return
    yield from doctor_store.checks(loaded)
    yield from doctor_site.checks(loaded)
    yield from doctor_vm.checks(loaded)
    if race and loaded.hpc is not None:
        yield Check("links against a job", _race, RACE)


RACE: Known = {link_race.LinksDisputed: "links-broken", KitError: "race-not-held"}


def _race(ground: Ground) -> str:
    return link_race.check(Slurm(ground.site.needed(), ground.hpc))


def _run(check: Check, ground: Ground, results: dict[str, Finding]) -> None:
    begin = time.monotonic()
    try:
        answer = check.look(ground)
    except KitError as err:
        took = round(time.monotonic() - begin, 3)
        results[check.name] = failure(check.name, err, check.known, took)
    else:
        took = round(time.monotonic() - begin, 3)
        results[check.name] = Finding(check.name, "ok", answer, seconds=took)


def fix(profile: str | None, diagnosis: str, say: Callable[[str], None]) -> None:
    """Do on the VM what mends a diagnosis, if it is there now; say each command first.

    Raises KitError when it is not there, or a command fails.
    """
    doctor_vm.fix(Ground(load(profile)), diagnosis, say)
