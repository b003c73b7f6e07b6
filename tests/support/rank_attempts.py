"""Attempts of a training by two ranks, each a process of this machine, without Slurm and Ray."""

import json
import subprocess
import sys
from pathlib import Path

from idx_files import as_data

from kit.experiments.fashion_mnist.parameters import Parameters
from kit.onsite import driver
from kit.submitter import job as ray_job


class Attempts:
    """Attempts of one training by two ranks, each with a folder of its own."""

    def __init__(self, folder, images, **hyperparameters):
        self.folder = folder
        data, archive = as_data(images), folder / "data.zip"
        archive.write_bytes(ray_job.data_archive(data.folder))
        self.task = {
            "data": str(archive),
            "data_hash": data.hash,
            "hyperparameters": Parameters(**hyperparameters).model_dump(),
            "workers": 2,
            "module": "kit.experiments.fashion_mnist",
        }

    def start(self, name, previous=""):
        """The folder of a new attempt, and its ranks."""
        folder, task = self.folder / name, self.folder / f"{name}.json"
        folder.mkdir()
        task.write_text(json.dumps({**self.task, "earlier": [str(previous)] if previous else []}))
        argv = [sys.executable, __file__, task, folder]
        with (self.folder / f"{name}.log").open("w") as log:
            ranks = [
                subprocess.Popen([*argv, str(rank)], stdout=log, stderr=log) for rank in range(2)
            ]
        return folder, ranks

    def run(self, name, previous=""):
        """The folder of an attempt that has come to its end."""
        folder, ranks = self.start(name, previous)
        codes = [rank.wait(120) for rank in ranks]
        assert codes == [0, 0], (self.folder / f"{name}.log").read_text()
        return folder


if __name__ == "__main__":  # one rank: TASK-FILE FOLDER RANK
    task, folder, rank = sys.argv[1:]
    driver.work(json.loads(Path(task).read_text(encoding="utf-8")), Path(folder), int(rank))
