"""Python in a container image: how it is entered, and how its calls for Slurm come out."""

import dataclasses
import os
import subprocess

import pytest

from kit.base import UsageError
from kit.base.settings import Hpc
from kit.onsite.names import ENVIRONMENT_FAILED
from kit.submitter import container
from kit.submitter.scripts import script

# Prints its words and its environment, as `apptainer` would get them.
RUNTIME = '#!/bin/bash\nprintf "%s\\n" "$@"; env | grep ENV_ | sort\n'


@pytest.fixture
def hpc(tmp_path):
    (tmp_path / "image.sif").touch()
    return Hpc(ssh_host="x", project_dir=str(tmp_path), container="image.sif")


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def bash(hpc, *lines, **environ):
    text = "\n".join([*container.python_lines(hpc), *lines])
    return subprocess.run(["/bin/bash"], input=text, capture_output=True, text=True, env=environ)


@pytest.mark.parametrize("runtime", ["apptainer", "singularity"])
def test_program_is_run_in_the_image_with_what_it_may_see(hpc, tmp_path, runtime):
    program(tmp_path / "bin" / runtime, RUNTIME)
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": "/me", "KIT_TASK": "a b"}
    environ |= {"AWS_SECRET_ACCESS_KEY": "hush", "https_proxy": "http://me:hush@proxy"}
    done = bash(hpc, "inside python3 -c 'a b'; echo back", **environ)
    prefix = f"{runtime.upper()}ENV_"
    assert done.stdout.splitlines() == [
        *("--quiet", "exec", "--cleanenv", "--no-home", "--pwd", str(tmp_path)),
        *("--bind", str(tmp_path), "--bind", "/tmp", f"{tmp_path}/image.sif"),
        *("python3", "-c", "a b"),
        f"{prefix}KIT_TASK=a b",
        f"{prefix}https_proxy=http://me:hush@proxy",  # not in the command, which all can read
        "back",
    ]


def test_without_an_image_the_program_runs_as_it_is(tmp_path):
    done = bash(Hpc(ssh_host="x", project_dir="/p"), "inside echo out", PATH="/usr/bin:/bin")
    assert (done.stdout, done.stderr) == ("out\n", "")


def test_runtime_or_image_that_is_missing_is_named(hpc, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("id", "cut", "getent"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    done = bash(hpc, "become true", PATH=f"{tmp_path}/bin")
    assert (done.returncode, "neither apptainer" in done.stderr) == (ENVIRONMENT_FAILED, True)
    program(tmp_path / "bin" / "apptainer", RUNTIME)
    (tmp_path / "image.sif").unlink()
    done = bash(hpc, "become true", PATH=f"{tmp_path}/bin")
    assert (done.returncode, done.stdout) == (ENVIRONMENT_FAILED, "")
    assert done.stderr == f"the image {tmp_path}/image.sif does not exist\n"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"container": "docker://ubuntu"}, "is not the path"),
        ({"container": "a,b.sif"}, "is not the path"),
        ({"project_dir": "/a:b"}, "is not the path"),
        ({"project_dir": "proj"}, "is not the path"),
        ({"container_options": ("--env=TOKEN=hush",)}, "sets a variable"),
        ({"container_options": ("--env-file=/x",)}, "sets a variable"),
        ({"container_options": ("--nv --rocm",)}, "not an option in one word"),
        ({"container_options": ("nv",)}, "not an option in one word"),
        ({"container_options": ("--bind=$(id)",)}, "not an option in one word"),
    ],
)
def test_path_or_option_that_would_be_misread_is_refused(keys, words):
    hpc = Hpc(**{"ssh_host": "x", "project_dir": "/p", "container": "image.sif", **keys})
    with pytest.raises(UsageError, match=words):
        container.image_lines(hpc)


@pytest.mark.parametrize("asked", [{"gres": "gpu:gh200:1"}, {"gpus_per_node": "2"}])
def test_image_that_would_not_see_the_gpus_of_its_job_is_refused(asked):
    hpc = Hpc("x", "/p", container="image.sif", container_options=("--bind=/data",), **asked)
    with pytest.raises(UsageError, match="would not see them") as caught:
        container.image_lines(hpc)
    assert '"--nv"' in caught.value.next_step
    assert '"--rocm"' in caught.value.next_step
    for option in ("--nv", "--rocm"):
        options = (option, "--bind=/data")
        lines = container.image_lines(dataclasses.replace(hpc, container_options=options))
        assert lines[-1] == f"image_options=({option} --bind=/data)"
    no_image = dataclasses.replace(hpc, container="", container_options=())
    assert container.image_lines(no_image)[0] == "image="


def test_image_may_be_anywhere_and_options_are_passed_on():
    hpc = Hpc("x", "/p", container="/images/torch.sif", container_options=("--nv", "--bind=/d:/e"))
    assert container.image_lines(hpc) == [
        "image=/images/torch.sif",
        "project=/p",
        "image_options=(--nv --bind=/d:/e)",
    ]


OUTSIDE = """
attempt={0} image=i project=p image_options=()
{1}
{2}
open_outside
PATH={0}/outside:$PATH
{3}
close_outside
"""


@pytest.fixture
def calls(tmp_path):
    """Return a function: run lines as a container would, beside a job that answers its calls."""
    (tmp_path / "attempt").mkdir()

    def run(lines, **programs):
        for name, text in programs.items():
            program(tmp_path / "bin" / name, f"#!/bin/bash\n{text}\n")
        scripts = script("container"), script("outside")
        text = OUTSIDE.format(tmp_path / "attempt", *scripts, lines)
        environ = {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
        options = {"stdout": subprocess.PIPE, "text": True, "env": environ}
        return subprocess.Popen(["bash", "-c", text], stderr=subprocess.PIPE, **options)

    return run


def test_call_has_its_words_streams_and_exit_code(calls, tmp_path):
    srun = 'printf "<%s>" "$@"; echo oh >&2; tr a-z A-Z; exit 7'
    lines = "echo from stdin | srun 'a b' '' $'c\\nd'; echo $?; cat \"$KIT_CONTAINER\" | tail -n 1"
    out, err = calls(lines, srun=srun).communicate(timeout=30)
    assert out == '<a b><><c\nd>FROM STDIN\n7\nbecome "$@"\n'
    assert err == "oh\n"
    assert list((tmp_path / "attempt").iterdir()) == []


def test_program_ends_when_its_stdin_is_closed_or_its_caller_is_killed(calls, tmp_path):
    srun = "cat >/dev/null; echo end"
    ssh = f"echo $$ >{tmp_path}/ssh; exec sleep 300"
    lines = (
        ": | srun x\n"
        "ssh vm </dev/null & caller=$!\n"
        f"until [ -s {tmp_path}/ssh ]; do sleep 0.05; done; kill -KILL $caller\n"
        f"while kill -0 $(<{tmp_path}/ssh) 2>/dev/null; do sleep 0.05; done; echo gone"
    )
    out, _ = calls(lines, srun=srun, ssh=ssh).communicate(timeout=60)
    assert out.split() == ["end", "gone"]


def test_other_programs_of_the_site_are_not_run(calls, tmp_path):
    lines = f'cp "$attempt/outside/srun" "$attempt/outside/touch"; touch {tmp_path}/x; echo $?'
    out, _ = calls(lines, srun="true").communicate(timeout=30)
    assert (out, (tmp_path / "x").exists()) == ("1\n", False)


def test_calls_that_end_at_once_are_answered(calls):
    lines = "for n in {1..30}; do scontrol $n </dev/null & pids+=($!); done; wait ${pids[@]}"
    out, _ = calls(lines, scontrol="echo $1").communicate(timeout=60)
    assert sorted(map(int, out.split())) == list(range(1, 31))
