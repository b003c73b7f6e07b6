"""A job whose Python runs in a container, on the second site, whose own Python is another one.

The image is a folder: Debian 12 in place of the site's Debian 13. The runtime is the stand-in of
`support/apptainer.sh`, a user namespace without any privilege, as Apptainer's own.
"""

import dataclasses
import secrets
import shutil
from pathlib import Path

import pytest
from doctor_faults import by_name
from hpc_bench import Bench

from kit.base import read_json
from kit.base.settings import load
from kit.doctor import checks as doctor
from kit.doctor.context import CheckContext
from kit.onsite.names import METRICS
from kit.runs.requests import RunState
from kit.submitter import env

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(400)]
RUNTIME = Path(__file__).parents[1] / "support" / "apptainer.sh"
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
OPTIONS = ("/opt/debian12:/usr", "/opt/pytorch", "/etc/pip.conf", "/etc/ssl")
# Debian's Python reads it from /etc
TORCH = "import site\nsite.addsitedir('/opt/pytorch')\n"
FILES = ("losses.json", METRICS, "out/model.safetensors")


@pytest.fixture(scope="module")
def profiles(second_site):
    """The profile of the second site without and with a container, with buckets of their own."""
    profile = load("sandbox-trixie")
    folder = Path(profile.hpc.project_dir, f"container-{secrets.token_hex(4)}")
    image = folder / "image"
    for name in ("usr", "tmp", "etc/python3.11"):
        (image / name).mkdir(parents=True)
    for name, target in LINKS.items():
        (image / name).symlink_to(target)
    (image / "etc/python3.11/sitecustomize.py").write_text(TORCH)
    (folder / "bin").mkdir()
    shutil.copy(RUNTIME, folder / "bin" / "apptainer")
    (folder / "init").write_text(f"PATH={folder}/bin:$PATH\n")
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    hpc = dataclasses.replace(
        profile.hpc,
        container=f"{folder.name}/image",
        container_options=tuple(f"--bind={words}" for words in OPTIONS),
        python="/usr/bin/python3",
        modules=(),
        module_path="",
        module_init=f"{folder}/init",
    )
    prefix = f"t{secrets.token_hex(4)}"
    store = dataclasses.replace(profile.store, bucket_prefix=prefix)
    plain = dataclasses.replace(profile, store=store)
    yield plain, dataclasses.replace(plain, hpc=hpc)
    shutil.rmtree(folder)


def trained(profile):
    """Train the article's network; return the files of the attempt, and its times."""
    bench = Bench(profile)
    try:
        run = bench.ask()
        status = bench.finish(run)
        folder = bench.folder(run)
        logs = [path.read_text()[-3000:] for path in folder.glob("*.log")]
        assert status.state is RunState.DONE, (bench.requests.read(run, "try-1/ended"), logs)
        assert not (folder / "outside").exists()
        return {name: (folder / name).read_bytes() for name in FILES}, read_json(
            folder / "times.json"
        )
    finally:
        bench.close()


def test_job_in_a_container_trains_to_the_same_figures(profiles):
    plain, within = profiles
    without, _ = trained(plain)
    files, times = trained(within)
    assert files == without
    assert times["nodes"] == ["c1", "c2"]
    found = by_name(doctor.run_checks(CheckContext(within)))
    image = f"{within.hpc.project_dir}/{within.hpc.container}"
    assert (found["container"].state, found["container"].answer) == (
        "ok",
        f"Python 3.11.2 runs in {image}",
    )
    assert (found["environment"].state, found["environment"].diagnosis) == ("ok", "")
    assert env.environment_key(within.hpc, env.pins()) in found["environment"].answer
