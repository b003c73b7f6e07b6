"""The centre of the sandbox, over ssh as its user: what sbatch, srun, sacct really do there."""

import re
import subprocess
import time

import pytest

pytestmark = pytest.mark.sandbox
REFUSED_BY_SBATCH = [
    ("-p nope", "invalid partition specified: nope"),
    ("-p test -t 16", "Requested time limit is invalid"),
    ("-p test -N 3", "Node count specification invalid"),
    ("-A project_9999999", "Invalid account or account/partition combination specified"),
    ("-p small --gres=gpu:gh200:1", "Requested node configuration is not available"),
]


@pytest.fixture(scope="module")
def hpc(sandbox):
    """A function: run a script on the login node, give (exit code, stdout, stderr)."""

    def run(script, stdin=None, timeout=60):
        argv = ["ssh", "-F", sandbox["files"]["ssh_config"], "hpc", script]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="module")
def submit(hpc):
    """A function: hand a script to sbatch with some options, give the job's id."""

    def run(options, script):
        code, out, err = hpc(f"sbatch --parsable -t 5 {options}", "#!/bin/bash\n" + script)
        assert code == 0, err
        return out.strip()

    return run


@pytest.fixture(scope="module")
def ended(hpc):
    """A function: wait until sacct knows a job's end, give its rows {JobID: {column: text}}."""

    def wait(
        job, columns="JobID,State,ExitCode,End,ElapsedRaw,AllocTRES", duplicates="", within=40
    ):
        deadline = time.monotonic() + within
        while True:
            _, out, _ = hpc(f"sacct -P {duplicates} -j {job} -o {columns}")
            header, *lines = [line.split("|") for line in out.splitlines()]
            rows = [dict(zip(header, line, strict=True)) for line in lines]
            if rows and all(row["End"] != "Unknown" for row in rows):
                return rows
            assert time.monotonic() < deadline, f"job {job} has not ended: {rows}"
            time.sleep(0.2)

    return wait


def wait_until(question, within=30):
    deadline = time.monotonic() + within
    while not question():
        assert time.monotonic() < deadline, f"not true after {within} s"
        time.sleep(0.2)


def test_a_sleepless_job_is_completed_in_sacct_within_five_seconds(submit, ended):
    begin = time.monotonic()
    job = submit("-p small", "sleep 0\n")
    rows = ended(job)
    assert time.monotonic() - begin < 5
    assert {row["JobID"]: row["State"] for row in rows} == {
        job: "COMPLETED",
        f"{job}.batch": "COMPLETED",
    }


def test_a_job_on_two_nodes_runs_srun_on_hosts_of_those_names(hpc, submit, ended):
    job = submit("-p medium -N 2 -o nodes-%j", "srun hostname | sort\ngetent hosts c2\n")
    rows = ended(job)
    assert rows[0]["State"] == "COMPLETED"
    assert "node=2" in rows[0]["AllocTRES"]
    assert "cpu=256" in rows[0]["AllocTRES"], "a node of `medium` is given whole"
    assert hpc(f"cat nodes-{job}")[1].split() == ["c1", "c2", "127.0.1.2", "c2"]


def test_jobs_are_billed_to_the_first_project_unless_they_name_another(submit, ended):
    jobs = [submit("-p small", "true\n"), submit("-p small -A project_2005678", "true\n")]
    accounts = [ended(job, "JobID,Account,End")[0]["Account"] for job in jobs]
    assert accounts == ["project_2001234", "project_2005678"]


def test_srun_works_from_the_login_node_too(hpc):
    assert hpc("srun -p small -N 2 hostname 2>/dev/null | sort")[1].split() == ["c1", "c2"]


def test_two_small_jobs_share_a_node(hpc, submit, ended):
    jobs = [submit("-p small -w c1 -c 2 --mem 1G", "sleep 3\n") for _ in range(2)]
    wait_until(lambda: hpc("squeue -h -t R -w c1 -p small")[1].count("\n") >= 2, within=5)
    assert [ended(job)[0]["State"] for job in jobs] == ["COMPLETED"] * 2


@pytest.mark.parametrize(
    ("options", "billing"),
    [
        ("-p small -c 4 --mem 2G", 3),  # 4 cores · 0.75
        ("-p small -c 1 --mem 40G", 15),  # 40 GiB · 0.375: memory is dearer than the core
        ("-p gputest -c 2 --gres=gpu:gh200:2", 400),
        ("-p medium", 288),  # a whole node
    ],
)
def test_billing_is_that_of_the_dearest_resource(submit, ended, options, billing):
    rows = ended(submit(options, "true\n"))
    assert f"billing={billing}," in rows[0]["AllocTRES"]


def test_a_gpu_job_sees_its_pretended_devices(hpc, submit, ended):
    job = submit(
        "-p gputest --gres=gpu:gh200:2 -o gpu-%j", "echo $CUDA_VISIBLE_DEVICES $(hostname)\n"
    )
    assert "gres/gpu=2" in ended(job)[0]["AllocTRES"]
    assert hpc(f"cat gpu-{job}")[1].split() == ["0,1", "g1"]


@pytest.mark.parametrize(("options", "text"), REFUSED_BY_SBATCH)
def test_sbatch_refuses_at_once_what_can_never_run(hpc, options, text):
    code, out, err = hpc(f"sbatch --parsable {options}", "#!/bin/bash\ntrue\n")
    assert (code, out) == (1, "")
    assert text in err


def test_a_job_over_its_memory_is_killed_and_failed_with_signal_nine(hpc, submit, ended):
    script = "python3 -c 'import time; held = bytearray(300 << 20); time.sleep(30)'\n"
    job = submit("-p small --mem 100M -o memory-%j", script)
    rows = ended(job)
    assert (rows[0]["State"], rows[0]["ExitCode"]) == ("FAILED", "0:9")
    assert "exceeded memory limit" in hpc(f"cat memory-{job}")[1]


def test_a_cancelled_job_says_by_whom(hpc, submit, ended):
    job = submit("-p small", "sleep 60\n")
    wait_until(lambda: hpc(f"squeue -h -j {job} -t R")[1], within=5)
    assert hpc(f"scancel {job}")[0] == 0
    uid = hpc("id -u")[1].strip()
    assert ended(job)[0]["State"] == f"CANCELLED by {uid}"


def test_an_urgent_job_preempts_a_low_one_which_is_requeued(hpc, submit, ended):
    low = submit("-p low -N 2", "sleep 60\n")
    gone = submit("-p low -N 2 --no-requeue", "sleep 60\n")
    wait_until(lambda: hpc(f"squeue -h -j {low} -t R")[1], within=10)
    urgent = submit("-p urgent -N 2", "sleep 1\n")
    assert ended(urgent)[0]["State"] == "COMPLETED"
    lives = f"sacct -P -n -X -D -j {low} -o State"
    wait_until(lambda: hpc(lives)[1].split() == ["PREEMPTED", "PENDING"])  # the second one waits
    assert "BeginTime" in hpc(f"squeue -h -j {low} -o %r")[1]
    assert hpc(f"scancel {low} {gone}")[0] == 0


def test_the_pytorch_module_gives_torch_to_the_systems_python(hpc):
    setup = ". /usr/share/lmod/lmod/init/bash; module use $(dirname $SLURM_CONF)/modules; set -e; "
    python = (
        "/usr/bin/python3 -c 'import torch, numpy; print(torch.__version__, numpy.ones(2).sum())'"
    )
    code, out, err = hpc(f"{setup} module load pytorch; {python}")
    assert code == 0, err
    assert re.match(r"2\.13\.0(\+cpu)? 2\.0", out)
    code, _, err = hpc(f"{setup} module load no-such-module")
    assert code != 0
    assert "no-such-module" in err


def test_the_project_folder_belongs_to_the_hpc_user_and_is_private(hpc, sandbox):
    folder = sandbox["files"]["slurm_conf"].removesuffix("etc/slurm.conf") + "projappl"
    _, out, _ = hpc(f"stat -c '%U %a' {folder}/project_2001234 {folder}/project_2005678; id -un")
    first, second, user = out.splitlines()
    assert first == second == f"{user} 700"
