"""A client process that submits and follows, and ends by kill -9 at a call that the test names."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from slurm_follow import follow

from kit.base import SSHHost
from kit.base.settings import load
from kit.slurm import JobSpec, Slurm
from kit.slurm.script import shell

SCRIPTS = ("submit", "queue", "account", "close")


def main(profile, config, control, attempt_id, spec, moment, script):
    """Die `before` or `after` the first call of a script of the fence."""
    host = SSHHost("site", config=config, folder=Path(control))
    run = host.run

    def dying(argv, given=b"", **options):
        text = given.decode()
        name = next((name for name in SCRIPTS if shell(name) in text), "")
        if name == script and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = run(argv, given, **options)
        if name == script:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    host.run = dying
    hpc = replace(load(profile).hpc, poll_floor_s=1.0)
    slurm = Slurm(host, hpc)
    slurm.submit(JobSpec(**{**spec, "commands": tuple(spec["commands"])}), attempt_id)
    follow(slurm, attempt_id)


if __name__ == "__main__":
    main(*sys.argv[1:5], json.loads(sys.argv[5]), *sys.argv[6:8])
