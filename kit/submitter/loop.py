"""The submitter's loop, its heartbeat and how it is opened."""

import contextlib
import dataclasses
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.base import Host, KitError, NoSuchObject, site_host, temporary_folder, write_text
from kit.base.settings import Settings, load
from kit.onsite import EXIT_MEANINGS, LEFTOVERS
from kit.runs.requests import RunRequests, site_id
from kit.slurm import Slurm
from kit.store import ObjectStore, bucket_name, open_store
from kit.submitter import compose_secrets
from kit.submitter.key_agent import unlocked
from kit.submitter.submitter import Submitter
from kit.submitter.tunnel_key import tunnel_keys

POLL_INTERVAL_S = 1.5  # between two passes: a request is seen within two seconds
HEARTBEAT_S = 5.0
CLOCK_KEY = "asked-for-submitter.json"  # a heartbeat's age is measured by the store's clock
MAX_BACK_OFF_S = 60.0
CERTIFICATE_LOOK_S = 600.0
WARN_HOURS = (4, 2, 1)  # before the end of a certificate, which only a person can renew

log = logging.getLogger(__name__)


def submitter_for(settings: Settings) -> Submitter:
    """Return the submitter of a profile. Raises UsageError when it has no site or no store."""
    hpc = settings.hpc_section()
    bucket = bucket_name(settings, "submitter")
    slurm = Slurm(
        site_host(settings), hpc, say=log.info, exit_meanings=EXIT_MEANINGS, leftovers=LEFTOVERS
    )
    requests = RunRequests(open_store(settings, bucket))
    data = open_store(settings, bucket_name(settings, "pipeline"))
    return Submitter(settings, slurm, requests, data, tunnel_keys(settings, bucket))


class CertificateWarning:
    """Warns of the end of the login's certificate, once for each of WARN_HOURS before it."""

    def __init__(self, host: Host, hint: str, clock: Callable[[], float] = time.time) -> None:
        self.host, self.hint, self.clock = host, hint, clock
        self._next_look = 0.0
        self._warned: tuple[float, int] | None = None

    def look(self) -> None:
        """Read the certificate, at most each CERTIFICATE_LOOK_S; a warning is for the log."""
        now = self.clock()
        if now < self._next_look:
            return
        self._next_look = now + CERTIFICATE_LOOK_S
        end = self.host.valid_until()
        hours = [limit for limit in WARN_HOURS if end is not None and end - now <= limit * 3600]
        if end is None or not hours:
            self._warned = None
            return
        if self._warned != (end, min(hours)):
            left = f"ends in {(end - now) / 3600:.1f} h" if end > now else "has ended"
            log.warning(
                "the ssh certificate for %s %s; then nothing is submitted until it is renewed: %s",
                self.host.name,
                left,
                self.hint or "as the centre's pages say",
            )
        self._warned = end, min(hours)


def run_loop(submitter: Submitter, stop: Callable[[], bool] = lambda: False) -> None:
    """Run passes until `stop` returns true; after a failed pass, wait longer before the next."""
    pause = POLL_INTERVAL_S
    certificate = CertificateWarning(submitter.slurm.host, submitter.slurm.hpc.renew_hint)
    with _heartbeat(submitter.requests.store, heartbeat_key(submitter.settings)) as alive:
        while not stop():
            try:
                certificate.look()
                submitter.once()
            except Exception as err:
                unexpected = None if isinstance(err, KitError) else err
                log.warning("the pass failed: %s", err, exc_info=unexpected)
                alive.clear()
                pause = min(pause * 2, MAX_BACK_OFF_S)
            else:
                alive.set()
                pause = POLL_INTERVAL_S
            time.sleep(pause * (1 + 0.1 * random.random()))  # noqa: S311 - no secret


def heartbeat_key(settings: Settings) -> str:
    """Return the object that says that a submitter of this profile and its site is at work.

    Submitters of several profiles may share a bucket; none works for another one's.
    """
    return f"submitter-{settings.profile}-{site_id(settings)}.json"


@contextlib.contextmanager
def _heartbeat(store: ObjectStore, key: str) -> Iterator[threading.Event]:
    """Write a heartbeat while the block runs, however long a pass takes.

    The yielded event is cleared while passes fail: then another submitter may take over.
    """
    alive, ended = threading.Event(), threading.Event()
    alive.set()

    def _beat() -> None:
        while not ended.is_set():
            if alive.is_set():
                try:
                    write_heartbeat(store, key)
                except Exception as err:  # noqa: BLE001 - the passes report the same
                    log.debug("no heartbeat: %s", err)
            ended.wait(HEARTBEAT_S)

    thread = threading.Thread(target=_beat, daemon=True)
    thread.start()
    try:
        yield alive
    finally:
        ended.set()
        thread.join(1)


def write_heartbeat(store: ObjectStore, key: str) -> None:
    """Write a heartbeat into a bucket, which is created if it is missing.

    Raises BucketTaken for a bucket of another project.
    """
    store.ensure_bucket()
    store.put(key, b"{}")


def other_submitter_active(store: ObjectStore, key: str) -> bool:
    """Return whether a submitter has written a heartbeat lately, by the store's clock alone.

    This only avoids duplicate work: two submitters do no harm.
    """
    write_heartbeat(store, CLOCK_KEY)
    try:
        age = store.stat(CLOCK_KEY).modified - store.stat(key).modified
    except NoSuchObject:
        return False
    return age.total_seconds() < 3 * HEARTBEAT_S


def wait_for_other_submitter(store: ObjectStore, key: str, stop: Callable[[], bool]) -> None:
    """Wait while another submitter is active or the store cannot be asked, until `stop`."""
    reported = False
    while not stop():
        try:
            if not other_submitter_active(store, key):
                log.info("no other submitter is at work here")
                return
            if not reported:
                log.info("another submitter is at work here: standing by")
            reported = True
        except KitError as err:
            log.warning("%s", err)
        time.sleep(HEARTBEAT_S)


@contextlib.contextmanager
def open_submitter(profile: str | None) -> Iterator[tuple[Settings, Submitter]]:
    """Open the submitter of a profile, with the logins of KIT_COMPOSE_SECRETS where that is set."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("kit").setLevel(logging.INFO)
    settings = load(profile)
    with temporary_folder() as folder, contextlib.ExitStack() as agents:
        if path := os.environ.get("KIT_COMPOSE_SECRETS"):
            settings = _with_secrets(settings, Path(path), folder, agents)
        yield settings, submitter_for(settings)


def _with_secrets(
    settings: Settings, secrets: Path, folder: Path, agents: contextlib.ExitStack
) -> Settings:
    """Return settings whose logins are those of compose-secrets.json; files go into `folder`.

    Keys with a pass phrase are held by an agent that ends with `agents`.
    """
    hpc, platforms = settings.hpc_section(), compose_secrets.read_platforms(secrets)
    profile, cloud = settings.profile, settings.cloud
    compose_secrets.check_integration(platforms["INTEGRATION"], profile)
    config = folder / "config"
    prefixes = ("HPC", "CLOUD") if cloud and cloud.ssh_host else ("HPC",)
    keys = [
        row for name in prefixes for row in compose_secrets.locked_keys(platforms[name], profile)
    ]
    agent = agents.enter_context(unlocked(folder, keys))
    text = compose_secrets.ssh_config(platforms["HPC"], profile, hpc.ssh_host, agent)
    if cloud and cloud.ssh_host and (vm := compose_secrets.find(platforms["CLOUD"], profile)):
        text += compose_secrets.host_block(vm, cloud.ssh_host, agent)
    config.write_text(text)
    if login := compose_secrets.env_text(platforms["STORAGE"], settings):
        env_file = folder / "storage.env"
        write_text(env_file, login, 0o600)
        settings = dataclasses.replace(settings, env_file=env_file)
    compose_secrets.use_api_token(platforms["INTEGRATION"], profile, folder)
    hpc = dataclasses.replace(hpc, user="", ssh_config=str(config))
    return dataclasses.replace(settings, hpc=hpc)


def main(profile: str) -> None:
    """Run the submitter while no other one is active and the process that started it lives."""
    parent = os.getppid()

    def _orphaned() -> bool:
        return os.getppid() != parent

    with open_submitter(profile) as (settings, submitter):
        wait_for_other_submitter(submitter.requests.store, heartbeat_key(settings), _orphaned)
        run_loop(submitter, _orphaned)
