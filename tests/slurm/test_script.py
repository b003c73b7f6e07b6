"""The batch script is compared whole; what could add a line to it is refused."""

import dataclasses
import subprocess
from pathlib import Path

import pytest

from kit.base import UsageError
from kit.slurm.script import JobSpec, argv, node_hours, script

GOLDEN = Path(__file__).parents[1] / "golden"
LEAST = JobSpec(name="kit-0123456789ab", commands=("true",))
EVERY_FIELD = JobSpec(
    name="kit-0123456789ab",
    commands=('srun python train.py --epochs "$KIT_EPOCHS" || exit', "commit manifest.json"),
    account="project_2000000",
    partition="gpumedium",
    nodes=2,
    tasks=4,
    tasks_per_node=2,
    cpus=72,
    memory="200G",
    gres="gpu:gh200:2",
    time="1-02:30:00",
    output="%x-%j.out",
    signal="B:TERM@60",
    singleton=False,
    requeue=True,
    module_init="/appl/lmod/init/bash",
    module_path="/appl/local/csc/modulefiles",
    modules=("python-pytorch/2.7", "git"),
    environment={"KIT_EPOCHS": "5", "KIT_TITLE": "it's $HOME\nand `more`"},
)
FOLDER = "/projappl/project_2000000/a person's/kit/tries/0123456789ab"


def test_the_golden_script_sets_every_field():
    default = {f.name: getattr(LEAST, f.name) for f in dataclasses.fields(JobSpec)}
    same = [name for name, value in default.items() if getattr(EVERY_FIELD, name) == value]
    assert same == ["name"]


@pytest.mark.parametrize(
    ("spec", "folder", "name"),
    [
        (EVERY_FIELD, FOLDER, "every-field.sh"),
        (LEAST, "/home/u/kit/tries/0123456789ab", "least.sh"),
    ],
)
def test_a_script_is_the_golden_one(spec, folder, name):
    assert script(spec, folder) == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["every-field.sh", "least.sh"])
def test_bash_takes_the_golden_script(name):
    subprocess.run(["bash", "-n", GOLDEN / name], check=True)


def test_the_command_passes_no_environment_on():
    assert argv("/a") == ["sbatch", "--parsable", "--export=NIL", "--chdir=/a", "/a/job.sh"]


def test_node_hours_are_nodes_times_the_time_limit():
    assert node_hours(LEAST) == pytest.approx(1 / 3)
    assert node_hours(EVERY_FIELD) == 2 * 26.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a b"),
        ("name", ""),
        ("name", "x\n#SBATCH --mail-type=ALL"),
        ("account", "project_1 --wrap=id"),
        ("partition", "test;id"),
        ("nodes", 0),
        ("nodes", -1),
        ("tasks", -2),
        ("cpus", 0),
        ("memory", "lots"),
        ("gres", "gpu:1\n"),
        ("time", "20"),
        ("time", "an hour"),
        ("time", "00:20:00\n#SBATCH --account=other"),
        ("output", "../../.ssh/authorized_keys"),
        ("signal", "TERM 60"),
        ("modules", ("gcc; id",)),
        ("module_init", "$(id)"),
        ("module_path", "relative"),
        ("environment", {"A=B": "1"}),
        ("environment", {"A": "zero\0byte"}),
        ("commands", ("zero\0byte",)),
    ],
)
def test_a_value_that_could_be_taken_for_something_else_is_refused(field, value):
    with pytest.raises(UsageError, match=field):
        script(dataclasses.replace(LEAST, **{field: value}), "/a")


@pytest.mark.parametrize("folder", ["kit/tries/x", "~/kit", "", "/a\n/b"])
def test_a_folder_that_is_no_absolute_path_is_refused(folder):
    with pytest.raises(UsageError, match="absolute"):
        script(LEAST, folder)


@pytest.fixture
def start(tmp_path):
    """Run a job's script as Slurm would start it: job id and restart count in the environment."""

    def start(job_id, restart=0, commands=("echo body >>bodies", "echo {} >m", "commit m")):
        text = script(dataclasses.replace(LEAST, commands=commands), str(tmp_path))
        environment = {"SLURM_JOB_ID": str(job_id), "SLURM_RESTART_COUNT": str(restart)}
        return subprocess.run(["bash"], input=text, env=environment, text=True, check=False)

    return start


def bodies(folder):
    path = folder / "bodies"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_the_first_start_works_and_every_other_start_ends_before_any_work(start, tmp_path):
    assert start(7).returncode == 0
    assert start(8).returncode == 99
    assert start(7, restart=1).returncode == 99
    assert bodies(tmp_path) == 1
    assert (tmp_path / "owner").readlink() == Path("7.0")
    manifest = (tmp_path / "commit").readlink()
    assert (tmp_path / manifest).read_text() == "{}\n"


def test_a_fenced_try_does_no_work(start, tmp_path):
    (tmp_path / "owner").symlink_to("fenced")
    assert start(7).returncode == 99
    assert bodies(tmp_path) == 0


def test_where_the_link_cannot_be_made_no_work_is_done(start, tmp_path):
    (tmp_path / "owner").write_text("a file in its place")
    assert start(7).returncode == 98
    assert bodies(tmp_path) == 0


def test_an_orphan_cannot_publish_after_the_try_was_closed(start, tmp_path):
    (tmp_path / "commit").symlink_to("closed")
    assert start(7).returncode == 97
    assert (tmp_path / "commit").readlink() == Path("closed")


def test_a_manifest_that_was_not_written_is_not_published(start, tmp_path):
    assert start(7, commands=("commit missing",)).returncode == 97
    assert not (tmp_path / "commit").is_symlink()
