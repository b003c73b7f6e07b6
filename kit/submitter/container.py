"""The image in which a job's Python runs ([hpc] container), as lines for `scripts/container.sh`."""

import re
import shlex

from kit.base import UsageError
from kit.base.settings import Hpc
from kit.slurm import SitePaths, count_gpus
from kit.submitter.scripts import script

_GPU_OPTIONS = ("--nv", "--nvccli", "--rocm")
# A value of a variable would be in the command line, which everybody on the node can read.
_OPTION = re.compile(r"--(?!env)[a-z][a-z-]*(=[\w./:,+-]+)?")


def image_lines(hpc: Hpc) -> list[str]:
    """Return the bash lines that say what `become` runs a program in; without an image in nothing.

    Raises UsageError for a path or an option that the runtime would take for something else.
    """
    image = SitePaths(hpc).image
    for path in (image, hpc.project_dir) if image else ():
        if not path.startswith("/") or re.search(r"[:,\s]", path):
            got = f"{path!r} is not the path of a file or folder, or has a colon, comma or blank"
            step = "pull the image on the site first, and write its path"
            raise UsageError(f"use [hpc] container = {hpc.container!r}", got, step)
    for word in hpc.container_options:
        if not _OPTION.fullmatch(word):
            got = f"{word!r} is not an option in one word, or sets a variable"
            step = 'write such as "--nv" or "--bind=/data"'
            raise UsageError("use [hpc] container_options", got, step)
    if image and count_gpus(hpc) and not {*hpc.container_options} & {*_GPU_OPTIONS}:
        got = "the jobs have GPUs, and Python in the image would not see them"
        step = 'write [hpc] container_options = ["--nv"] for NVIDIA, ["--rocm"] for AMD'
        raise UsageError(f"use [hpc] container = {hpc.container!r}", got, step)
    names = {"image": image, "project": hpc.project_dir if image else ""}
    lines = [f"{name}={shlex.quote(value) if value else ''}" for name, value in names.items()]
    return [*lines, f"image_options=({shlex.join(hpc.container_options)})"]


def python_lines(hpc: Hpc) -> list[str]:
    """Return the bash lines that define `become` and `inside` for a profile."""
    return [*image_lines(hpc), script("container")]
