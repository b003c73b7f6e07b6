"""The fence's own scripts, run by bash on this machine with an sbatch that only counts."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.base import CommandFailed, LocalHost
from kit.base.settings import Hpc
from kit.slurm import fence
from kit.slurm.job_output import log
from kit.slurm.script import argv

T = "0123456789ab"
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
    tries = f"{project}/kit/tries"

    def ask(body, *arguments, tokens=(T,)):
        done = host.run(["bash", "-s"], fence.wrap(body, tries, *arguments))
        return fence.read_answer(done.out, done.err, tokens)

    return ask


def submit(ask, project, token=T):
    folder = f"{project}/kit/tries/{token}"
    return ask(fence.SUBMIT, token, "5", JOB, *argv(folder), tokens=(token,)).tries[token]


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_a_submission_hands_the_script_to_sbatch_and_keeps_its_reply(ask, project):
    found = submit(ask, project)
    assert (found.job_id, found.owner, found.commit) == ("7", "", "")
    assert lines(project.parent / "calls") == [" ".join(argv(f"{project}/kit/tries/{T}")[1:])]
    assert (project.parent / "script").read_text() == JOB
    assert found.asked <= found.replied
    folder = project / "kit" / "tries" / T
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.lstat().st_mode & 0o077 == 0 for path in folder.iterdir() if path.is_file())


def test_eight_callers_at_once_call_sbatch_once(ask, project):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: submit(ask, project), range(8)))
    assert {one.job_id for one in found} == {"7"}
    assert len({one.submit for one in found}) == 1
    assert len(lines(project.parent / "calls")) == 1


def test_a_script_that_was_cut_on_the_way_does_nothing(ask, project):
    body = fence.wrap(fence.SUBMIT, f"{project}/kit/tries", T, "5", JOB, *argv("/x"))
    for share in (0.3, 0.6, 0.9, 0.99):
        LocalHost().run(["bash", "-s"], body[: int(len(body) * share)], check=False)
    assert not (project / "kit").exists()


@pytest.mark.parametrize("mode", ["fence", "settle", "cancel"])
def test_a_closed_try_is_never_submitted(ask, project, mode):
    closed = ask(fence.CLOSE, T, mode).tries[T]
    word, end = ("cancelled", "cancelled") if mode == "cancel" else ("fenced", "closed")
    assert (closed.owner, closed.commit) == (word, end)
    assert submit(ask, project).given_up
    assert lines(project.parent / "calls") == []


@pytest.mark.parametrize(
    ("mode", "commit", "cancels"),
    [("fence", "", 0), ("settle", "closed", 0), ("cancel", "cancelled", 2)],
)
def test_closing_what_a_job_owns_keeps_the_owner(ask, project, mode, commit, cancels):
    submit(ask, project)
    (project / "kit" / "tries" / T / "owner").symlink_to("7.0")
    found = ask(fence.CLOSE, T, mode).tries[T]
    assert (found.owner, found.commit, found.worked, found.life) == ("7.0", commit, True, 0)
    assert len(lines(project.parent / "cancelled")) == cancels


def test_what_is_committed_is_neither_closed_nor_cancelled(ask, project):
    submit(ask, project)
    folder = project / "kit" / "tries" / T
    (folder / "owner").symlink_to("7.0")
    (folder / "commit").symlink_to(f"manifest-{'0' * 64}")
    for mode in ("fence", "settle", "cancel"):
        assert ask(fence.CLOSE, T, mode).tries[T].manifest == f"manifest-{'0' * 64}"
    assert lines(project.parent / "cancelled") == []


def test_one_question_about_many_tries_tells_them_apart(ask, project):
    other = "ba9876543210"
    submit(ask, project)
    ask(fence.CLOSE, other, "fence", tokens=(other,))
    answer = ask(fence.QUEUE, T, other, "ffffffffffff", tokens=(T, other, "ffffffffffff"))
    assert answer.tries[T].job_id == "7"
    assert answer.tries[other].given_up
    assert answer.tries["ffffffffffff"] == fence.Try("ffffffffffff")
    assert answer.listing("queue")[0][0] == 0


def test_a_project_folder_that_is_not_there_is_an_error_and_not_made(ask, project):
    project.rmdir()
    for body, arguments in ((fence.QUEUE, (T,)), (fence.CLOSE, (T, "fence"))):
        with pytest.raises(CommandFailed, match="cannot use the folder"):
            ask(body, *arguments)
    assert not project.exists()


def test_a_log_is_read_on_from_where_it_was_left(project):
    folder = project / "kit" / "tries" / T
    folder.mkdir(parents=True)
    (folder / "owner").symlink_to("7.0")
    hpc = Hpc(ssh_host="", project_dir=str(project))
    assert log(LocalHost(), hpc, T) == (b"", 0)  # a job that has written nothing yet
    (folder / "job-7.log").write_bytes("erste Zäile\n".encode())
    text, offset = log(LocalHost(), hpc, T)
    with (folder / "job-7.log").open("ab") as file:
        file.write(b"second\n")
    assert text == "erste Zäile\n".encode()
    assert log(LocalHost(), hpc, T, offset) == (b"second\n", offset + 7)
    (folder / "driver.log").write_bytes(b"x" * 1_500_000)
    assert len(log(LocalHost(), hpc, T, name="driver.log")[0]) == 1_000_000
