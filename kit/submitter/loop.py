"""The submitter's loop, its heartbeat and how it is opened."""

import contextlib
import dataclasses
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.base import KitError, NoSuchObject, SSHHost, UsageError
from kit.base.settings import Settings, load
from kit.onsite import EXIT_MEANINGS
from kit.runs.requests import RunRequests
from kit.slurm import Slurm
from kit.store import ObjectStore, bucket_name, open_store
from kit.submitter import compose_secrets
from kit.submitter.submitter import Submitter
from kit.submitter.tunnel_key import tunnel_keys

POLL_INTERVAL_S = 1.5  # between two passes: a request is seen within two seconds
HEARTBEAT_KEY, HEARTBEAT_S = (
    "submitter.json",
    5.0,
)  # an object that says that a submitter sees this bucket
CLOCK_KEY = "asked-for-submitter.json"  # what its age is compared with
BACK_OFF_S = 60.0

log = logging.getLogger(__name__)


def submitter_for(profile: Settings, step: Callable[[str], None] = lambda _: None) -> Submitter:
    """Make the submitter of a profile. Raises UsageError when it has no site or no store."""
    if profile.hpc is None:
        step_text = "add [hpc] to the profile, or use another profile"
        raise UsageError(f"profile {profile.profile} has no HPC site", next_step=step_text)
    hpc = profile.hpc
    host = SSHHost(hpc.ssh_host, hpc.ssh_config, hpc.user, hpc.renew_hint)
    bucket = bucket_name(profile, "submitter")
    jobs = RunRequests(open_store(profile, bucket))
    data = open_store(profile, bucket_name(profile, "pipeline"))
    vm = tunnel_keys(profile, bucket)
    return Submitter(
        profile, Slurm(host, hpc, say=log.info, exit_meanings=EXIT_MEANINGS), jobs, data, step, vm
    )


def run_loop(submitter: Submitter, stop: Callable[[], bool] = lambda: False) -> None:
    """Pass after pass until `stop`; what cannot be reached is asked again later and later."""
    pause, signed = POLL_INTERVAL_S, -HEARTBEAT_S
    while not stop():
        try:
            submitter.once()
            if time.monotonic() - signed >= HEARTBEAT_S:
                write_heartbeat(submitter.jobs.store)
                signed = time.monotonic()
            pause = POLL_INTERVAL_S
        except KitError as err:
            log.warning("%s", err)
            pause = min(pause * 2, BACK_OFF_S)
        time.sleep(pause * (1 + 0.1 * random.random()))  # noqa: S311 - no secret


def write_heartbeat(store: ObjectStore, key: str = HEARTBEAT_KEY) -> None:
    """Leave a sign of life in a bucket, which is made where it is not there."""
    store.put(key, b"{}", make_bucket=True)


def other_submitter_active(store: ObjectStore) -> bool:
    """Tell whether a submitter has signed within 3 x HEARTBEAT_S, by the store's clock alone.

    It saves double effort only: two submitters do no harm.
    """
    write_heartbeat(store, CLOCK_KEY)
    try:
        age = store.stat(CLOCK_KEY).modified - store.stat(HEARTBEAT_KEY).modified
    except NoSuchObject:
        return False
    return age.total_seconds() < 3 * HEARTBEAT_S


def wait_for_other_submitter(store: ObjectStore, stop: Callable[[], bool]) -> None:
    """Wait as long as another submitter is at work, or nobody knows; until `stop` at most."""
    told = False
    while not stop():
        try:
            if not other_submitter_active(store):
                log.info("no other submitter is at work here")
                return
            if not told:
                log.info("another submitter is at work here: standing by")
            told = True
        except KitError as err:
            log.warning("%s", err)
        time.sleep(HEARTBEAT_S)


@contextlib.contextmanager
def open_submitter(profile: str | None) -> Iterator[tuple[Settings, Submitter]]:
    """Open the submitter of a profile, with the login of KIT_COMPOSE_SECRETS where that is set."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("kit").setLevel(logging.INFO)
    chosen = load(profile)
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        if (given := os.environ.get("KIT_COMPOSE_SECRETS")) and chosen.hpc:
            config = Path(folder) / "config"
            platforms = compose_secrets.read(Path(given))["HPC"]
            config.write_text(compose_secrets.ssh_config(platforms, chosen.profile))
            hpc = dataclasses.replace(chosen.hpc, ssh_host=chosen.profile, ssh_config=str(config))
            chosen = dataclasses.replace(chosen, hpc=hpc)
        yield chosen, submitter_for(chosen)


def main(profile: str) -> None:
    """Be the submitter of a profile while nobody else is and the starter of this process lives."""
    parent = os.getppid()

    def _orphaned() -> bool:
        return os.getppid() != parent

    with open_submitter(profile) as (_, submitter):
        wait_for_other_submitter(submitter.jobs.store, _orphaned)
        run_loop(submitter, _orphaned)
