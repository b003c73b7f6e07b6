"""Follow an attempt on a real Slurm to its end, as the submitter does over many passes."""

import dataclasses
import time

from kit.base import Busy, CommandFailed, CredentialRefused, DataError, HostKeyRefused, Unreachable
from kit.slurm import JobStatus


def follow(slurm, attempt_id, report=lambda _: None, timeout_s=300.0):
    """Settle an attempt again and again; lost contact changes no state but its reason.

    Returns the last status after `timeout_s`. Raises HostKeyRefused at once.
    """
    deadline, status = time.monotonic() + timeout_s, JobStatus(attempt_id)
    while True:
        try:
            looked = slurm.settle(attempt_id)
        except HostKeyRefused:
            raise
        except (Busy, CommandFailed, CredentialRefused, DataError, Unreachable) as err:
            looked = None
            status = dataclasses.replace(status, why=f"{err.tried}: {err.got} {err.next_step}")
        if looked and (looked.observed or looked.done or not status.observed):
            status = looked
        elif looked:
            status = dataclasses.replace(status, why=looked.why)
        report(status)
        if status.done or time.monotonic() >= deadline:
            return status
        time.sleep(slurm.hpc.poll_floor_s)
