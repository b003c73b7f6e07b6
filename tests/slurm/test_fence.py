"""The fence's own scripts, run by bash on this machine with an sbatch that only counts."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import captured
import pytest

from kit.base import CommandFailed, LocalHost
from kit.base.settings import Hpc
from kit.slurm import Slurm, fence
from kit.slurm import sbatch_argv as argv
from kit.slurm.text import LIMIT_PATTERN, NO_ANSWER_PATTERN, QUEUE_FORMAT

A = "0123456789ab"
JOB = "#!/bin/bash\necho 'a job' \"$HOME\"\n"


@pytest.fixture
def project(tmp_path):
    """A project folder, and an sbatch that writes down its calls and gives the id 7."""
    (tmp_path / "bin").mkdir()
    for name, text in {
        "sbatch": f'echo "$@" >>{tmp_path}/calls; cat "${{!#}}" >{tmp_path}/script; echo 7',
        "squeue": 'echo "7|PENDING|5|N/A||kit-0123456789ab|Priority"',
        "scancel": f'echo "$@" >>{tmp_path}/cancelled',
    }.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.fixture
def ask(project):
    """Run a script of the fence and give its answer."""
    host = LocalHost(prefix=("env", f"PATH={project.parent}/bin:{os.environ['PATH']}"))
    attempts = f"{project}/kit/tries"

    def ask(script, *arguments, ids=(A,)):
        done = host.run(["bash", "-s"], fence.wrap(script, attempts, *arguments))
        return fence.read_answer(done.out, done.err, ids)

    return ask


def submit(ask, project, attempt_id=A):
    patterns, folder = (LIMIT_PATTERN, NO_ANSWER_PATTERN), f"{project}/kit/tries/{attempt_id}"
    words = attempt_id, "5", *patterns, JOB, *argv(folder)
    return ask("submit", *words, ids=(attempt_id,)).attempts[attempt_id]


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_submission_hands_the_script_to_sbatch_and_keeps_its_reply(ask, project):
    found = submit(ask, project)
    assert (found.job_id, found.owner, found.commit) == ("7", "", "")
    assert lines(project.parent / "calls") == [" ".join(argv(f"{project}/kit/tries/{A}")[1:])]
    assert (project.parent / "script").read_text() == JOB
    assert found.submitted_at <= found.replied_at
    folder = project / "kit" / "tries" / A
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.lstat().st_mode & 0o077 == 0 for path in folder.iterdir() if path.is_file())


def test_reply_of_sbatch_ends_the_wait_at_once(ask, project):
    """The caller that submits is woken; it does not look for the reply by turns."""
    sleep = project.parent / "bin" / "sleep"
    sleep.write_text(f"#!/bin/bash\necho x >>{project.parent}/turns\nexec /bin/sleep $1\n")
    sleep.chmod(0o755)
    assert submit(ask, project).job_id == "7"
    assert lines(project.parent / "turns") == []


def test_reply_is_the_same_whether_one_attempt_is_asked_for_or_several(ask, project):
    sbatch = project.parent / "bin" / "sbatch"
    sbatch.write_text(
        "#!/bin/bash\nprintf 'a  b\\n\\n*\\tend %%s\\n7\\n'; printf 'no end' >&2; exit 1\n"
    )
    submit(ask, project)
    other = "ba9876543210"
    one = ask("queue", QUEUE_FORMAT, "", A).attempts[A]
    both = ask("queue", QUEUE_FORMAT, "", A, other, ids=(A, other)).attempts[A]
    assert one == both
    assert one.reply is not None


def test_caller_is_let_go_when_sbatch_hangs_and_its_reply_is_found_later(ask, project):
    sbatch = project.parent / "bin" / "sbatch"
    go = project.parent / "go"
    sbatch.write_text(f"#!/bin/bash\nuntil [ -e {go} ]; do sleep 0.1; done; echo 7\n")
    words = A, "0", LIMIT_PATTERN, NO_ANSWER_PATTERN, JOB, *argv(f"{project}/kit/tries/{A}")
    assert ask("submit", *words).attempts[A].reply is None
    go.touch()
    assert submit(ask, project).job_id == "7"


def test_eight_callers_at_once_call_sbatch_once(ask, project):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: submit(ask, project), range(8)))
    assert {attempt.job_id for attempt in found} == {"7"}
    assert len({attempt.submit for attempt in found}) == 1
    assert len(lines(project.parent / "calls")) == 1


def test_script_cut_on_the_way_does_nothing(ask, project):
    body = fence.wrap("submit", f"{project}/kit/tries", A, "5", "x", "y", JOB, *argv("/x"))
    for share in (0.3, 0.6, 0.9, 0.99):
        LocalHost().run(["bash", "-s"], body[: int(len(body) * share)], check=False)
    assert not (project / "kit").exists()


@pytest.mark.parametrize("mode", ["fence", "settle", "cancel"])
def test_closed_attempt_is_never_submitted(ask, project, mode):
    closed = ask("close", A, mode, "").attempts[A]
    word, end = ("cancelled", "cancelled") if mode == "cancel" else ("fenced", "closed")
    assert (closed.owner, closed.commit) == (word, end)
    assert submit(ask, project).abandoned
    assert lines(project.parent / "calls") == []


@pytest.mark.parametrize(
    ("mode", "commit", "cancels"),
    [("fence", "", 0), ("settle", "closed", 0), ("cancel", "cancelled", 2)],
)
def test_closing_an_owned_attempt_keeps_the_owner(ask, project, mode, commit, cancels):
    submit(ask, project)
    (project / "kit" / "tries" / A / "owner").symlink_to("7.0")
    found = ask("close", A, mode, "").attempts[A]
    assert (found.owner, found.commit, found.started, found.restart_count) == (
        "7.0",
        commit,
        True,
        0,
    )
    assert len(lines(project.parent / "cancelled")) == cancels


@pytest.mark.parametrize(("mode", "left"), [("fence", True), ("settle", False), ("cancel", False)])
def test_what_a_killed_job_leaves_is_removed_when_its_attempt_is_closed(ask, project, mode, left):
    folder = project / "kit" / "tries" / A
    folder.mkdir(parents=True)
    for name in ("ray.token", "tunnel key", "metrics.json"):
        (folder / name).touch()
    ask("close", A, mode, "", "ray.token", "tunnel key")
    assert {path.name for path in folder.iterdir() if not path.is_symlink()} == (
        {"ray.token", "tunnel key", "metrics.json"} if left else {"metrics.json"}
    )


def test_cluster_of_a_federation_is_named_in_every_question(ask, project):
    for name in ("squeue", "sacct", "scancel"):
        path = project.parent / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{project.parent}/asked\necho "JobID|x"\n')
        path.chmod(0o755)
    ask("queue", QUEUE_FORMAT, "c1", A)
    ask("account", "JobID", "c1", "7", f"kit-{A}", A)
    ask("close", A, "cancel", "c1")
    asked = lines(project.parent / "asked")
    assert [line.split()[0] for line in asked] == ["squeue", "sacct", "sacct", "scancel"]
    assert all("--clusters=c1" in line for line in asked)
    assert all("--allocations" in line for line in asked[1:3]), (
        "the steps of jobs are not asked for"
    )


def test_sacct_of_a_site_without_accounting_is_recognised(project):
    (project.parent / "text").write_text(captured.read("made/sacct-disabled.txt"))
    sacct = project.parent / "bin" / "sacct"
    sacct.write_text(f"#!/bin/bash\ncat {project.parent}/text >&2; exit 1\n")
    sacct.chmod(0o755)
    host = LocalHost(prefix=("env", f"PATH={project.parent}/bin:{os.environ['PATH']}"))
    slurm = Slurm(host, Hpc(ssh_host="", project_dir=str(project)))
    found = slurm.usage(A, "7")
    assert (found.usage, found.available) == (None, False)
    assert "accounting storage is disabled" in found.missing[0]


def test_committed_attempt_is_neither_closed_nor_cancelled(ask, project):
    submit(ask, project)
    folder = project / "kit" / "tries" / A
    (folder / "owner").symlink_to("7.0")
    (folder / "commit").symlink_to(f"manifest-{'0' * 64}")
    for mode in ("fence", "settle", "cancel"):
        assert ask("close", A, mode, "").attempts[A].manifest == f"manifest-{'0' * 64}"
    assert lines(project.parent / "cancelled") == []


def test_one_query_keeps_many_attempts_apart(ask, project):
    other = "ba9876543210"
    submit(ask, project)
    ask("close", other, "fence", "", ids=(other,))
    answer = ask(
        "queue", QUEUE_FORMAT, "", A, other, "ffffffffffff", ids=(A, other, "ffffffffffff")
    )
    assert answer.attempts[A].job_id == "7"
    assert answer.attempts[other].abandoned
    assert answer.attempts["ffffffffffff"] == fence.Attempt("ffffffffffff")
    assert answer.listing("queue")[0][0] == 0


def test_missing_project_folder_is_an_error_and_not_created(ask, project):
    project.rmdir()
    for script, arguments in (("queue", (QUEUE_FORMAT, "", A)), ("close", (A, "fence", ""))):
        with pytest.raises(CommandFailed, match="cannot use the folder"):
            ask(script, *arguments)
    assert not project.exists()


def test_disk_that_is_away_for_a_while_never_leads_to_a_second_submission(ask, project):
    """Staging comes first: it must not create the folder in which the attempt is then not seen."""
    submit(ask, project)
    away = project.rename(project.with_name("away"))
    with pytest.raises(CommandFailed, match="no folder"):
        LocalHost().put(b"data", f"{project}/kit/inputs/x")
    with pytest.raises(CommandFailed, match="cannot use the folder"):
        submit(ask, project)
    assert not project.exists()
    away.rename(project)
    submit(ask, project)
    assert len(lines(project.parent / "calls")) == 1


def test_log_is_read_from_the_last_offset(project):
    folder = project / "kit" / "tries" / A
    folder.mkdir(parents=True)
    (folder / "owner").symlink_to("7.0")
    slurm = Slurm(LocalHost(), Hpc(ssh_host="", project_dir=str(project)))
    assert slurm.logs(A) == (b"", 0)  # a job that has written nothing yet
    (folder / "job-7.log").write_bytes("erste Zäile\n".encode())
    text, offset = slurm.logs(A)
    with (folder / "job-7.log").open("ab") as file:
        file.write(b"second\n")
    assert text == "erste Zäile\n".encode()
    assert slurm.logs(A, offset) == (b"second\n", offset + 7)
    (folder / "driver.log").write_bytes(b"x" * 1_500_000)
    assert len(slurm.logs(A, name="driver.log")[0]) == 1_000_000


def test_end_of_a_long_log_is_the_end_of_the_file(project):
    folder = project / "kit" / "tries" / A
    folder.mkdir(parents=True)
    (folder / "owner").symlink_to("7.0")
    (folder / "job-7.log").write_bytes(b"x" * 2_100_000 + b"\nTHE CAUSE\n")
    slurm = Slurm(LocalHost(), Hpc(ssh_host="", project_dir=str(project)))
    end = slurm.log_end(A)
    assert (len(end), end[-11:]) == (4000, b"\nTHE CAUSE\n")


LIMITED = """if [ -e {0}/lifted ]; then echo 8; exit; fi
echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
exit 1
"""


def test_attempt_refused_by_a_limit_is_submitted_again(ask, project):
    sbatch = project.parent / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/bash\n{LIMITED.format(project.parent)}")
    assert submit(ask, project).reply.limited
    (project.parent / "lifted").touch()
    with ThreadPoolExecutor(4) as pool:
        attempts = list(pool.map(lambda _: submit(ask, project), range(4)))
    assert {attempt.job_id for attempt in attempts} == {"8"}
    assert len({attempt.submit for attempt in attempts}) == 1


@pytest.mark.parametrize(
    "answer",
    [
        'echo "sbatch: AssocMaxSubmitJobLimit is near" >&2; echo 7',
        'echo 7; echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1',
        'echo "sbatch: error: AssocMaxSubmitJobLimit" >&2',
        'echo "AssocMaxSubmitJobLimit, again; Socket timed out on send/recv operation" >&2; exit 1',
        'echo "AssocMaxSubmitJobLimit, retrying" >&2; exit 124',
        *(
            f'echo "AssocMaxSubmitJobLimit, {words} x" >&2; exit 1'
            for words in NO_ANSWER_PATTERN.replace("(receive|send)", "send").upper().split("|")
        ),
    ],
)
def test_limit_named_beside_a_possible_job_is_never_submitted_again(ask, project, answer):
    sbatch = project.parent / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/bash\necho x >>{project.parent}/calls\n{answer}\n")
    for _ in range(3):
        submit(ask, project)
    assert lines(project.parent / "calls") == ["x"]


def test_attempt_refused_for_another_reason_stays_refused(ask, project):
    sbatch = project.parent / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/bash\necho x >>{project.parent}/calls; echo nope >&2; exit 1\n")
    for _ in range(2):
        assert submit(ask, project).reply.refused
    assert lines(project.parent / "calls") == ["x"]


@pytest.mark.parametrize(
    "name", ["a person's folder", "Größe 漢字", "a$b`c", "-dash", "two\tcolumns"]
)
def test_project_folder_with_an_odd_name_is_used_as_it_is(tmp_path, project, name):
    odd = project / name
    odd.mkdir()
    host = LocalHost(prefix=("env", f"PATH={tmp_path}/bin:{os.environ['PATH']}"))
    slurm = Slurm(host, Hpc(ssh_host="", project_dir=str(odd)))
    assert slurm.give_up(A).done
    assert (odd / "kit" / "tries" / A / "owner").readlink() == Path("fenced")


SHELLS = ["bash", "dash", "csh", "tcsh", *filter(shutil.which, ["fish", "zsh"])]


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_cross_any_login_shell(tmp_path, project, shell):
    """sshd runs the command as an argument of the login shell: `SHELL -c 'bash -s'`."""
    body = fence.wrap("close", f"{project}/kit/tries", A, "fence", "")
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    argv = [shell, "-c", "bash -s"]
    done = subprocess.run(argv, input=body, env=environment, capture_output=True, check=True)
    attempt = fence.read_answer(done.stdout.decode(), done.stderr.decode(), [A]).attempts[A]
    assert (attempt.owner, attempt.commit) == ("fenced", "closed")


SCRIPTS = sorted((files("kit.slurm") / "scripts").iterdir())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path):
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "--shell=bash", path], check=True)
