"""The batch script is compared with golden files; a value that could add a line is refused."""

import dataclasses
import subprocess
from pathlib import Path

import pytest

from kit.base import UsageError
from kit.base.settings import Hpc
from kit.slurm import JobSpec, build_script, job_for, module_lines, node_hours, sbatch_argv

GOLDEN = Path(__file__).parents[1] / "golden"
LEAST = JobSpec(name="kit-0123456789ab", commands=("true",))
EVERY_FIELD = JobSpec(
    name="kit-0123456789ab",
    commands=('srun python train.py --epochs "$KIT_EPOCHS" || exit', "commit manifest.json"),
    account="project_2000000",
    partition="gpumedium",
    qos="long",
    clusters="roihu",
    constraint="gh200&nvme",
    licenses="matlab:1",
    nodes=2,
    tasks_per_node=2,
    cpus=72,
    memory="200G",
    gres="gpu:gh200:2",
    time="1-02:30:00",
    warning_s=60,
    module_init="/appl/lmod/init/bash",
    module_path="/appl/local/csc/modulefiles",
    modules=("python-pytorch/2.7", "git"),
    environment={"KIT_EPOCHS": "5", "KIT_TITLE": "it's $HOME\nand `more`"},
    chdir="/scratch/project 1",
    comment="five-epochs",
    reservation="course",
    mail_type="END,FAIL",
    mail_user="a.person@example.org",
)
WHOLE_NODES = JobSpec(  # the fields that take the place of others of EVERY_FIELD
    name="kit-0123456789ab",
    commands=("true",),
    nodes=3,
    tasks_per_node=1,
    cpus=7,
    mem_per_cpu="2G",
    gpus_per_node="mi250:8",
    gres="nvme:100",
    nodelist="c1,g[2-4,7]",
    exclude="c9",
    burst_buffer="#BB_LUA SBF storagesize=100G path=/run/sbb/me",
    exclusive=True,
)
FOLDER = "/projappl/project_2000000/a person's/kit/tries/0123456789ab"


def test_golden_scripts_set_every_field():
    default = {f.name: getattr(LEAST, f.name) for f in dataclasses.fields(JobSpec)}
    same = [
        name
        for name, value in default.items()
        if getattr(EVERY_FIELD, name) == value == getattr(WHOLE_NODES, name)
    ]
    assert same == ["name"]


@pytest.mark.parametrize(
    ("spec", "folder", "name"),
    [
        (EVERY_FIELD, FOLDER, "every-field.sh"),
        (LEAST, "/home/u/kit/tries/0123456789ab", "least.sh"),
        (WHOLE_NODES, "/home/u/kit/tries/0123456789ab", "whole-nodes.sh"),
    ],
)
def test_script_equals_the_golden_file(spec, folder, name):
    assert build_script(spec, folder) == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["every-field.sh", "least.sh", "whole-nodes.sh"])
def test_bash_accepts_the_golden_script(name):
    subprocess.run(["bash", "-n", GOLDEN / name], check=True)


def test_sbatch_passes_no_environment():
    assert sbatch_argv("/a") == ["sbatch", "--parsable", "--export=NIL", "--chdir=/a", "/a/job.sh"]


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
        ("cpus", 0),
        ("memory", "lots"),
        ("gres", "gpu:1\n"),
        ("time", "an hour"),
        ("time", "00:20:00\n#SBATCH --account=other"),
        ("time", "UNLIMITED"),
        ("time", "0"),
        ("memory", "3GB 4"),
        ("memory", "-1"),
        ("qos", "long --wrap=id"),
        ("clusters", "a,b"),
        ("constraint", "[a"),
        ("licenses", "a b"),
        ("modules", ("gcc; id",)),
        ("reservation", "course\n"),
        ("reservation", "--wrap=id"),
        ("nodelist", "/etc/passwd"),
        ("nodelist", "c[1-3"),
        ("nodelist", "c1\n#SBATCH --wrap=id"),
        ("exclude", "-x"),
        ("exclude", "c1 c2"),
        ("mem_per_cpu", "lots"),
        ("mem_per_cpu", "0"),
        ("mem_per_cpu", "1G\n2G"),
        ("gpus_per_node", "0"),
        ("gpus_per_node", "-1"),
        ("gpus_per_node", "a100"),
        ("gpus_per_node", "1 --wrap"),
        ("burst_buffer", '#BB" --wrap="id'),
        ("burst_buffer", "#BB\n#SBATCH --wrap=id"),
        ("burst_buffer", "--bbf=/etc/passwd"),
        ("burst_buffer", "$(id)"),
        ("mail_user", "a b@c"),
        ("mail_type", "END FAIL"),
        ("module_init", "$(id)"),
        ("module_path", "relative"),
        ("environment", {"A=B": "1"}),
        ("environment", {"A": "zero\0byte"}),
        ("commands", ("zero\0byte",)),
    ],
)
def test_value_of_another_form_is_refused(field, value):
    with pytest.raises(UsageError, match=field):
        build_script(dataclasses.replace(LEAST, **{field: value}), "/a")


@pytest.mark.parametrize("folder", ["kit/tries/x", "~/kit", "", "/a\n/b"])
def test_relative_folder_is_refused(folder):
    with pytest.raises(UsageError, match="absolute"):
        build_script(LEAST, folder)


@pytest.fixture
def start(tmp_path):
    """Run a job's script as Slurm would start it: job id and restart count in the environment."""

    def start(job_id, restart=0, commands=("echo body >>bodies", "echo {} >m", "commit m")):
        text = build_script(dataclasses.replace(LEAST, commands=commands), str(tmp_path))
        environment = {"SLURM_JOB_ID": str(job_id), "SLURM_RESTART_COUNT": str(restart)}
        return subprocess.run(["bash"], input=text, env=environment, text=True, check=False)

    return start


def bodies(folder):
    path = folder / "bodies"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_first_start_works_and_every_other_ends_before_any_work(start, tmp_path):
    assert start(7).returncode == 0
    assert start(8).returncode == 99
    assert start(7, restart=1).returncode == 99
    assert bodies(tmp_path) == 1
    assert (tmp_path / "owner").readlink() == Path("7.0")
    manifest = (tmp_path / "commit").readlink()
    assert (tmp_path / manifest).read_text() == "{}\n"


def test_fenced_attempt_does_no_work(start, tmp_path):
    (tmp_path / "owner").symlink_to("fenced")
    assert start(7).returncode == 99
    assert bodies(tmp_path) == 0


def test_no_work_where_the_symlink_cannot_be_made(start, tmp_path):
    (tmp_path / "owner").write_text("a file in its place")
    assert start(7).returncode == 98
    assert bodies(tmp_path) == 0


def test_orphan_cannot_publish_after_the_close(start, tmp_path):
    (tmp_path / "commit").symlink_to("closed")
    assert start(7).returncode == 97
    assert (tmp_path / "commit").readlink() == Path("closed")


@pytest.mark.parametrize("command", ["commit missing", ": >m; commit m"])
def test_missing_or_empty_manifest_is_not_published(start, tmp_path, command):
    assert start(7, commands=(command,)).returncode == 97
    assert not (tmp_path / "commit").is_symlink()


def test_folder_with_a_percent_sign_is_refused():
    with pytest.raises(UsageError, match="log") as caught:
        build_script(LEAST, "/scratch/pct%j%u/kit/tries/0123456789ab")
    assert "project_dir" in caught.value.next_step


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("time", "30", "--time=00:30:00"),
        ("time", "30:00", "--time=00:30:00"),
        ("time", "1-00", "--time=1-00:00:00"),
        ("time", "26:30:00", "--time=1-02:30:00"),
        ("memory", "3GB", "--mem=3G"),
        ("memory", "3g", "--mem=3G"),
        ("memory", "3000", "--mem=3000"),
        ("memory", "0", "--mem=0"),
    ],
)
def test_short_forms_that_sbatch_accepts_are_written_in_full(field, value, line):
    job = dataclasses.replace(LEAST, **{field: value})
    assert f"#SBATCH {line}\n" in build_script(job, "/a")


@pytest.mark.parametrize(("time", "seconds"), [("00:20:00", 60), ("00:02:00", 12), ("00:00:05", 1)])
def test_warning_leaves_time_for_the_work_of_a_short_job(time, seconds):
    job = dataclasses.replace(LEAST, time=time, warning_s=60)
    assert f"#SBATCH --signal=B:TERM@{seconds}\n" in build_script(job, "/a")


def test_job_for_a_profile_requests_what_the_profile_says():
    hpc = Hpc(ssh_host="x", project_dir="/p", account="p1", partition="small", nodes=2, cpus=4)
    job = job_for(hpc, "kit-0123456789ab", ["true"], warning_s=60)
    assert (job.account, job.partition, job.nodes, job.cpus) == ("p1", "small", 2, 4)
    assert (job.memory, job.time, job.tasks_per_node, job.warning_s) == ("3G", "00:20:00", 1, 60)
    more = {"qos": "low", "clusters": "c1", "constraint": "a100", "licenses": "matlab:1"}
    job = job_for(dataclasses.replace(hpc, **more), "kit-0123456789ab", ["true"])
    assert {name: getattr(job, name) for name in more} == more


def test_job_for_a_profile_has_each_of_its_options():
    hpc = Hpc(ssh_host="x", project_dir="/p", gres="gpu:2", nvme=50, mem_per_cpu="1G")
    job = job_for(hpc, "x", ["true"])
    assert (job.gres, job.mem_per_cpu, job.memory) == ("gpu:2,nvme:50", "1G", "")
    assert job_for(dataclasses.replace(hpc, gres=""), "x", ["true"]).gres == "nvme:50"
    more = {"reservation": "r", "exclusive": True, "nodelist": "c1", "exclude": "c2"}
    more |= {"gpus_per_node": "2", "mail_type": "END", "mail_user": "a@b.c", "burst_buffer": "x"}
    job = job_for(dataclasses.replace(hpc, gres="", nvme=0, **more), "x", ["true"])
    assert {name: getattr(job, name) for name in more} == more


def test_value_of_the_job_replaces_what_means_the_same_in_the_profile():
    hpc = Hpc(ssh_host="x", project_dir="/p", mem_per_cpu="1G", gpus_per_node="2")
    job = job_for(hpc, "x", ["true"], memory="5G", gres="gpu:a100:1")
    assert (job.memory, job.mem_per_cpu) == ("5G", "")
    assert (job.gres, job.gpus_per_node) == ("gpu:a100:1", "")
    hpc = Hpc(ssh_host="x", project_dir="/p", mem="3G", gres="gpu:1")
    job = job_for(hpc, "x", ["true"], mem_per_cpu="1G", gpus_per_node="2")
    assert (job.memory, job.mem_per_cpu, job.gres, job.gpus_per_node) == ("", "1G", "", "2")
    build_script(job, "/a")


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"memory": "1G", "mem_per_cpu": "1G"}, "mem_per_cpu"),
        ({"gres": "gpu:1", "gpus_per_node": "1"}, "gpus_per_node"),
    ],
)
def test_two_values_for_one_thing_are_refused(more, word):
    with pytest.raises(UsageError, match=word) as caught:
        build_script(dataclasses.replace(LEAST, **more), "/a")
    assert "not both" in caught.value.next_step


def test_local_disk_that_is_requested_twice_is_refused():
    hpc = Hpc(ssh_host="x", project_dir="/p", gres="nvme:10", nvme=10)
    with pytest.raises(UsageError, match="nvme = 10"):
        job_for(hpc, "x", ["true"])


# How `module` behaves in Lmod and Modules 5 (a failure exits 1) and in Modules 3.2 (it exits 0).
MODULES = """\
module() {
    case $1:$2 in
        use:*) ;;
        load:git) LOADEDMODULES=git/2.40:$LOADEDMODULES ;;
        load:alias) LOADEDMODULES=real/1:$LOADEDMODULES ;;
        load:loaded/1) ;;
        load:gone) echo "unknown module" >&2; return 1 ;;
        *) echo "ERROR:105: Unable to locate a modulefile for $2" >&2 ;;
    esac
}
LOADEDMODULES=loaded/1
"""


@pytest.mark.parametrize(
    ("module", "code"),
    [("git", 0), ("alias", 0), ("loaded/1", 0), ("gone", 96), ("no-such-module", 96)],
)
def test_module_that_cannot_be_loaded_ends_the_job(tmp_path, module, code):
    init = tmp_path / "init.sh"
    init.write_text(MODULES)
    job = dataclasses.replace(
        LEAST, module_init=str(init), module_path="/appl/modules", modules=(module,)
    )
    text = "\n".join([*module_lines(job), "echo done"])
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (code, "" if code else "done\n")


@pytest.mark.parametrize("fields", [{"modules": ("git",)}, {"module_path": "/appl/modules"}])
def test_site_without_module_init_reads_the_login_profile_where_module_is_missing(fields):
    text = "\n".join(module_lines(dataclasses.replace(LEAST, **fields)))
    assert text.index("/etc/profile") < text.index("module ", text.index("\nfi\n"))
    defined = "module() { LOADEDMODULES=git/1; }\numask 077\n"
    done = subprocess.run(["bash"], input=f"{defined}{text}\numask", text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "0077\n")
    assert "/etc/profile" not in "\n".join(module_lines(LEAST))
