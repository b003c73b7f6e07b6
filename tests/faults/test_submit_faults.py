"""`kit submit` and `kit.open_slurm` on the sandbox's Slurm: one job, whatever breaks meanwhile.

The profile has no store, no cloud and no rates but those of jobs; its login node is an sshd of the
test's own, whose sbatch may be slow.
"""

import json
import re
import secrets
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import until

from kit.base import ROOT, Unreachable
from kit.slurm.program import identity, numbered_attempt_id
from kit.submitter import open_slurm

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


@pytest.fixture(scope="module")
def profile(site):
    """Return a function that writes a profile for an sshd, and the variables that find it."""
    folder = site.folder / "sites"
    folder.mkdir()
    text = (ROOT / "env" / "sites" / f"{site.settings.profile}.toml").read_text()
    wanted = r"^\[(?:hpc|partitions|rates\.cpu)\]\n(?:(?!\[).*\n)*"
    sections = "\n".join(re.findall(wanted, text, re.M))
    sections = re.sub(
        r"^(?:modules|needs_certificate|tunnel|medium|gputest).*\n", "", sections, flags=re.M
    )

    def write(name, sshd):
        head = f'[site]\nname = "{name}"\ntitle = "one test"\n'
        hpc = re.sub("ssh_host = .*", 'ssh_host = "site"', sections)
        hpc = hpc.replace("nodes = 2", "nodes = 1")
        hpc = re.sub("ssh_config = .*", f'ssh_config = "{sshd.folder}/config"', hpc)
        (folder / f"{name}.toml").write_text(head + hpc)
        return name

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIT_SITES_DIR", str(folder))
        patch.setenv("KIT_RESULTS_DIR", str(site.folder / "results"))
        yield write


@pytest.fixture
def own(site, profile):
    """A profile with a name of its own: its jobs are those of no other test."""
    return profile(f"own{secrets.token_hex(4)}", site.sshd)


def kit(own, *words):
    argv = [sys.executable, "-m", "kit", words[0], "--profile", own, *words[1:]]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(own, *words):
    """Run a command to its end; return its exit code, its output and its messages."""
    with kit(own, *words) as process:
        out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def job_of(text):
    """Return the id of the job in an output."""
    found = re.search(r"job-[0-9a-f]{12}", text)
    assert found, text
    return found[0]


def watch(site, own, run):
    """Let the site forget a job at the end of the tests; return its attempt."""
    site.attempt_ids.append(run.removeprefix("job-"))
    return site.attempt_ids[-1]


SMALL = ("--time", "00:05:00", "--mem", "20M", "-p", "gputest")


def test_two_processes_at_once_submit_one_job(site, own, seen):
    words = ("submit", *SMALL, "--", "sleep", "1")
    for number in (2, 8):
        named = (*words[:1], "--name", f"n{number}", *words[1:])
        with ThreadPoolExecutor(number) as pool:
            done = list(pool.map(lambda _, named=named: call(own, *named), range(number)))
        assert [code for code, _, _ in done] == [0] * number, done
        (run,) = {job_of(out) for _, out, _ in done}
        attempt = watch(site, own, run)
        assert until(lambda attempt=attempt: site.ends(attempt)) == [("COMPLETED", "0:0")]
        seen(f"kit submit by {number} processes at once", "1 job in sacct")


@pytest.mark.both_sites
def test_client_killed_during_sbatch_and_called_again_submits_one_job(site, own, seen):
    slurm = open_slurm(own)
    for moment in (0.2, 1.0, 2.5):
        job = slurm.job(f"k{moment}", ["exec sleep 1"], memory="20M", time="00:05:00")
        attempt = numbered_attempt_id(identity(own, slurm.hpc.project_dir, job), 1)
        site.attempt_ids.append(attempt)
        (site.folder / "modes" / attempt).write_text("slow")
        words = ("submit", "--name", f"k{moment}", *SMALL[:4], "--", "sleep", "1")
        with kit(own, *words) as process:
            until(lambda attempt=attempt: site.link(attempt, "submit"))
            threading.Event().wait(moment)
            process.kill()
        code, out, err = call(own, *words)
        assert code == 0, err
        assert job_of(out) == f"job-{attempt}"
        assert until(lambda attempt=attempt: site.ends(attempt)) == [("COMPLETED", "0:0")]
    seen("kit submit killed 0.2, 1.0, 2.5 s into sbatch, called again", "1 job each in sacct")


def test_ssh_killed_during_sbatch_costs_nothing(site, profile, seen):
    sshd = site.login("cut-own")
    own = profile(f"own{secrets.token_hex(4)}", sshd)
    slurm = open_slurm(own)
    job = slurm.job("cut", ["sleep 1"], memory="20M", time="00:05:00")
    attempt = numbered_attempt_id(identity(own, slurm.hpc.project_dir, job), 1)
    site.attempt_ids.append(attempt)
    (site.folder / "modes" / attempt).write_text("slow")

    def cut():
        until(lambda: site.link(attempt, "submit"))
        threading.Event().wait(0.5)
        sshd.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(Unreachable):
        slurm.submit(job)
    thread.join()
    assert open_slurm(own).submit(job).attempt_id == attempt
    assert until(lambda: site.ends(attempt)) == [("COMPLETED", "0:0")]
    assert site.link(attempt, "commit").startswith("manifest-")
    seen("ssh killed 0.5 s into sbatch, submitted again in Python", "1 job in sacct")


@pytest.mark.both_sites
def test_failing_script_gives_its_exit_code_log_state_and_bill(site, own, tmp_path, seen):
    script = tmp_path / "fails.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH -J fails -p small --mem=100M\n#SBATCH --time=00:05:00\n"
        'echo "hello $1 in $(basename "$PWD") as $SLURM_JOB_NAME"\nsleep 2\nexit 3\n'
    )
    code, out, err = call(own, "submit", "--wait", str(script), "there")
    run = job_of(err)
    attempt = watch(site, own, run)
    assert (code, out) == (3, f"hello there in work as kit-{attempt}\n"), err
    assert site.ends(attempt) == [("FAILED", "3:0")]
    comment = site.admin("sacct", "-n", "-X", "-P", f"--name=kit-{attempt}", "-o", "Comment")
    code, out, err = call(own, "submit", "--wait", str(script), "there")
    assert (code, "--again" in err) == (3, True)
    assert call(own, "logs", run)[:2] == (3, f"hello there in work as kit-{attempt}\n")
    (row,) = json.loads(call(own, "runs", run, "--json")[1])
    assert (row["state"], row["slurm"], row["number"]) == ("ENDED", "FAILED", 1)
    assert "fails" in row["why"]
    code, out, err = call(own, "bill", run)
    assert (code, "CPU BU" in out) == (0, True), err
    code, out, err = call(own, "submit", "--again", "--wait", str(script), "there")
    assert code == 3
    second = watch(site, own, job_of(err))
    assert second != attempt
    listed = json.loads(call(own, "bill", "--json")[1])
    assert {row["run"] for row in listed} == {run, f"job-{second}"}
    seen("script with exit 3", f"kit submit --wait exits 3; the comment is {comment.strip()!r}")


@pytest.mark.both_sites
def test_running_job_is_cancelled_and_cannot_succeed(site, own, seen):
    code, out, err = call(own, "submit", *SMALL, "--", "sleep", "300")
    assert code == 0, err
    run = job_of(out)
    attempt = watch(site, own, run)
    until(lambda: site.link(attempt, "owner"))
    assert call(own, "submit", "--again", *SMALL, "--", "sleep", "300")[0] == 1
    code, out, err = call(own, "cancel", run)
    assert (code, "CANCELLED" in out) == (0, True), err
    assert site.link(attempt, "commit") == "cancelled"
    assert [state for state, _ in site.ends(attempt)] == ["CANCELLED"]
    assert json.loads(call(own, "runs", run, "--json")[1])[0]["state"] == "CANCELLED"
    code, out, err = call(own, "submit", *SMALL, "--", "sleep", "300")
    assert (code, "CANCELLED" in out) == (1, True)
    seen("kit cancel of a running kit submit", "CANCELLED, no result, not submitted again")


def test_array_is_refused_and_its_tasks_run_one_by_one(site, own, tmp_path, seen):
    script = tmp_path / "array.sh"
    script.write_text("#!/bin/bash\n#SBATCH --array=1-3\necho $SLURM_ARRAY_TASK_ID\n")
    code, _, err = call(own, "submit", *SMALL, str(script))
    assert (code, "one task alone would work" in err) == (2, True)
    script.write_text('#!/bin/bash\necho "task $1"\n')
    runs = [job_of(call(own, "submit", *SMALL, str(script), str(n))[1]) for n in (1, 2, 3)]
    attempts = [watch(site, own, run) for run in runs]
    assert len(set(attempts)) == 3
    for number, attempt in enumerate(attempts, start=1):
        assert until(lambda attempt=attempt: site.ends(attempt)) == [("COMPLETED", "0:0")]
        assert call(own, "logs", f"job-{attempt}")[:2] == (0, f"task {number}\n")
    seen("--array", "refused; three submissions: three jobs")


def test_example_of_the_python_page_runs(site, own, seen):
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    changed = example.replace('open_slurm("slurm")', f'open_slurm("{own}")')
    changed = changed.replace("srun ./simulate --seed 1", "echo simulated").replace(
        "cpus=4", "cpus=1"
    )
    assert changed.count(own) == 1
    argv = [sys.executable, "-c", changed + "\nprint(status.attempt_id)"]
    done = [subprocess.run(argv, capture_output=True, text=True, timeout=120) for _ in range(2)]
    assert [process.stderr for process in done] == ["", ""]
    assert done[0].stdout == done[1].stdout
    first, _, attempt = done[0].stdout.split("\n")[:3]
    watch(site, own, f"job-{attempt}")
    assert first.endswith("simulated")
    assert until(lambda: site.ends(attempt)) == [("COMPLETED", "0:0")]
    assert f"job-{attempt}" in call(own, "runs")[1]
    seen("the example in Python, twice", "1 job in sacct, listed by kit runs")
