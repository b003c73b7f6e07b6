"""A client process that submits and waits, and ends by kill -9 at a step that the test names."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from kit.base import SSHHost
from kit.base.settings import load
from kit.slurm.client import Slurm
from kit.slurm.script import JobSpec


def main(config, control, token, spec, kill):
    def step(name):
        print(name, flush=True)
        if name == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    hpc = replace(load("sandbox").hpc, poll_floor_s=1.0)
    slurm = Slurm(SSHHost("site", config=config, folder=Path(control)), hpc, step=step)
    slurm.submit(JobSpec(**{**spec, "commands": tuple(spec["commands"])}), token)
    slurm.wait(token)


if __name__ == "__main__":
    main(*sys.argv[1:4], json.loads(sys.argv[4]), sys.argv[5])
