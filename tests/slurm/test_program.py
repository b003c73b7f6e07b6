"""A person's own program as a job: its identity, its `#SBATCH` lines, its exit code."""

import dataclasses
import os
import signal
import subprocess
import time

import pytest

from kit.base import UsageError
from kit.slurm import JobSpec, build_script, read_directives, resolve_tasks, script_commands
from kit.slurm.program import committing, identity, numbered_attempt_id

JOB = JobSpec("sweep", ("python3 sweep.py",), partition="small", environment={"A": "1"})
OTHERS = [
    {"name": "sweep-2"},
    {"commands": ("python3 sweep.py ",)},
    {"cpus": 2},
    {"time": "01:00:00"},
    {"environment": {"A": "2"}},
    {"modules": ("pytorch",)},
    {"chdir": "/scratch/p"},
]


@pytest.mark.parametrize("change", OTHERS)
def test_any_other_text_name_or_resource_is_another_job(change):
    first = identity("site", "/p", JOB)
    assert first == identity("site", "/p", dataclasses.replace(JOB))
    assert first != identity("site", "/p", dataclasses.replace(JOB, **change))


def test_profile_and_project_folder_are_part_of_the_identity():
    keys = {identity(profile, folder, JOB) for profile in "ab" for folder in ("/p", "/q")}
    assert len(keys) == 4
    assert len({numbered_attempt_id(key, n) for key in keys for n in (1, 2, 3)}) == 12


def run(tmp_path, *commands, background=False, **fields):
    """Run the script of an attempt as job 7 in a folder of this machine."""
    job = committing(JobSpec("x", commands, **fields))
    text = build_script(job, str(tmp_path))
    environ = {"SLURM_JOB_ID": "7", "PATH": os.environ["PATH"]}
    process = subprocess.Popen(
        ["bash", "-c", text], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if background:
        return process
    out = process.communicate(timeout=20)[0].decode()
    return process.returncode, out


def commit_of(tmp_path):
    link = tmp_path / "commit"
    return os.readlink(link) if link.is_symlink() else ""


def test_commands_that_end_well_are_committed_in_a_folder_of_their_own(tmp_path):
    code, out = run(tmp_path, "pwd", "echo x >result", "exit 0", "echo never")
    assert (code, out) == (0, f"{tmp_path}/work\n")
    assert (tmp_path / "work" / "result").read_text() == "x\n"
    manifest = tmp_path / commit_of(tmp_path)
    assert manifest.read_text() == '{"job": "7.0", "exit_code": 0}\n'


@pytest.mark.parametrize(("line", "code"), [("exit 3", 3), ("no-such-program", 127), ("false", 1)])
def test_commands_that_fail_are_the_jobs_exit_code_and_not_committed(tmp_path, line, code):
    assert run(tmp_path, line)[0] == code
    assert commit_of(tmp_path) == ""


def test_closed_attempt_is_not_committed_although_its_commands_ended_well(tmp_path):
    assert run(tmp_path, f"ln -sT closed {tmp_path}/commit")[0] == 97


def test_missing_folder_to_work_in_ends_the_job_before_any_work(tmp_path):
    assert run(tmp_path, "echo never", chdir=f"{tmp_path}/none")[0] == 98


def test_folder_to_work_in_is_that_of_the_person(tmp_path):
    (tmp_path / "own").mkdir()
    assert run(tmp_path, "pwd", chdir=f"{tmp_path}/own") == (0, f"{tmp_path}/own\n")
    with pytest.raises(UsageError, match="chdir"):
        run(tmp_path, "pwd", chdir="own")


@pytest.mark.parametrize(("end", "code"), [("exit 0", 0), ("exit 5", 5)])
def test_warning_before_the_limit_reaches_the_program_and_its_exit_code_counts(tmp_path, end, code):
    script = f"#!/bin/bash\ntrap '{end}' TERM\necho ready >ready\nwhile :; do sleep 0.05; done\n"
    process = run(tmp_path, *script_commands(script), background=True)
    while not (tmp_path / "work" / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == code
    process.stdout.close()
    assert bool(commit_of(tmp_path)) is (code == 0)


SCRIPTS = [
    ("#!/bin/sh\necho \"$#: $1\"\ncat <<'EOF'\n`text` $HOME\nEOF\n", "2: it's\n`text` $HOME\n"),
    ("#!/usr/bin/env python3\nimport sys\nprint(sys.argv[1:], end='|')", "[\"it's\", 'a b']|"),
]


@pytest.mark.parametrize(("text", "printed"), SCRIPTS)
def test_script_is_executed_by_its_own_interpreter_with_its_arguments(tmp_path, text, printed):
    assert run(tmp_path, *script_commands(text, ["it's", "a b"])) == (0, printed)
    assert (tmp_path / "program").read_text().strip() == text.strip()


@pytest.mark.parametrize("text", ["echo hi\n", "", "#!/bin/sh\r\necho hi\r\n", "#!/bin/sh\0"])
def test_script_that_sbatch_would_refuse_is_refused(text):
    with pytest.raises(UsageError):
        script_commands(text)


HEAD = """\
#!/bin/bash
# A comment, then options in every form that sbatch reads.
#SBATCH --time=00:10:00 --nodes 2   # both on one line
#SBATCH -p small -c4

#SBATCH -J "five-epochs"
#SBATCH --gpus-per-node=a100:2
#SBATCH --signal=B:TERM@120
#SBATCH --mail-type=END,FAIL --mail-user=a@example.org
#SBATCH --no-requeue
#SBATCH --exclusive --mem-per-cpu=1G -w c1 -x c2,c3 --reservation=course
"""


def test_sbatch_lines_of_a_script_are_read():
    fields, notes = read_directives(HEAD + "srun ./x\n")
    assert notes == []
    assert fields == {
        "time": "00:10:00",
        "nodes": 2,
        "partition": "small",
        "cpus": 4,
        "name": "five-epochs",
        "gres": "gpu:a100:2",
        "warning_s": 120,
        "mail_type": "END,FAIL",
        "mail_user": "a@example.org",
        "exclusive": True,
        "mem_per_cpu": "1G",
        "nodelist": "c1",
        "exclude": "c2,c3",
        "reservation": "course",
    }
    build_script(JobSpec(commands=(), **fields), "/a")


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--array=1-3", "each task"),
        ("-a 1-3", "each task"),
        ("--dependency=afterok:7", "--wait"),
        ("-d singleton", "--wait"),
        ("--export=ALL", "--env"),
        ("--comment=x", "--name"),
        ("--requeue", "--again"),
        ("--exclusive=user", "sbatch"),
        ("--no-such-option", "sbatch"),
        ("--nodes=1-2", "whole number"),
        ("--signal=USR1@60", "TERM@60"),
        ("--time", "sbatch"),
        ("hetjob", "line"),
        ("--time='1", "sbatch"),
    ],
)
def test_option_that_cannot_be_kept_is_refused_with_the_reason(option, word):
    with pytest.raises(UsageError) as caught:
        read_directives(f"#!/bin/bash\n#SBATCH {option}\n")
    assert word in caught.value.next_step


def test_option_that_is_not_used_is_noted():
    text = "#!/bin/sh\n#SBATCH -o x.log -e y.log\necho\n#SBATCH --time=1\n"
    fields, notes = read_directives(text)
    assert fields == {}
    assert [note[:7] for note in notes] == ["line 2:", "line 2:", "line 4 "]
    assert all(word in " ".join(notes) for word in ("--output", "--error", "first command"))


@pytest.mark.parametrize(
    ("fields", "tasks"), [({"ntasks": 4}, (1, 4)), ({"ntasks": 4, "nodes": 2}, (2, 2))]
)
def test_tasks_of_all_nodes_are_shared_by_the_nodes(fields, tasks):
    found = resolve_tasks(fields)
    assert (found["nodes"], found["tasks_per_node"]) == tasks
    assert "ntasks" not in found


def test_tasks_that_the_nodes_cannot_share_are_refused():
    with pytest.raises(UsageError, match="3 tasks on 2 nodes"):
        resolve_tasks({"ntasks": 3, "nodes": 2})
