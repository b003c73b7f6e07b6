"""`kit submit`, and the other commands over its jobs: on a model of Slurm, then on a real one."""

import json

import pytest
from click.testing import CliRunner
from own_jobs import own  # noqa: F401 - a fixture

from kit.base import Unreachable
from kit.base.settings import load
from kit.cli.main import cli
from kit.submitter import job_records

SCRIPT = "#!/bin/sh\n#SBATCH -J five --time=00:30:00 -n 2\n#SBATCH --output=x.log\necho hi\n"


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(SCRIPT)
    return str(path)


def kit(*words):
    """Call a command; return its exit code and everything that it printed."""
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    if done.exception:
        return getattr(done.exception, "exit_code", None), str(done.exception)
    return done.return_value, done.output


def test_script_is_submitted_with_its_own_options_and_a_note(own, script):  # noqa: F811
    code, text = kit("submit", "-t", "00:10:00", script, "first")
    assert code == 0
    assert "SUBMITTED: PENDING 1" in text
    assert "--output is replaced" in text
    (record,) = job_records(load())
    job = json.loads((record.folder / "job.json").read_text())["job"]
    assert (record.name, job["time"], job["tasks_per_node"]) == ("five", "00:10:00", 2)
    assert job["partition"] == "small"
    assert "first" in job["commands"][1]
    assert kit("submit", "-t", "00:10:00", script, "first")[0] == 0
    assert len(own.jobs) == 1


def test_message_of_the_site_is_printed_beside_the_job(own, script):  # noqa: F811
    own.message = "Your project has 12 BU left"
    code, text = kit("submit", script)
    assert code == 0
    assert "kit: the site says: Your project has 12 BU left\n" in text


def test_changed_script_argument_name_or_resource_is_a_new_job(own, script, tmp_path):  # noqa: F811
    calls = [[script], [script, "x"], ["--name", "other", script], ["-c", "2", script]]
    for words in calls:
        assert kit("submit", *words)[0] == 0, kit("submit", *words)
    (tmp_path / "job.sh").write_text(SCRIPT + "echo more\n")
    assert kit("submit", script)[0] == 0
    assert len(own.jobs) == 5


def test_words_after_two_dashes_are_a_command(own):  # noqa: F811
    assert kit("submit", "--name", "n", "--env", "A=it's 1", "--", "echo", "a b", "--wait")[0] == 0
    (record,) = job_records(load())
    job = json.loads((record.folder / "job.json").read_text())["job"]
    assert job["commands"] == ["exec echo 'a b' --wait"]
    assert job["environment"] == {"A": "it's 1"}
    assert len(own.jobs) == 1


@pytest.mark.parametrize(("state", "code"), [("COMPLETED", 0), ("FAILED", 3), ("TIMEOUT", 1)])
def test_wait_prints_the_log_and_exits_as_the_job(own, script, state, code):  # noqa: F811
    own.run = lambda: own.play(state, code if state == "FAILED" else 0) if own.live else None
    own.live = True
    exit_code, text = kit("submit", "--wait", script)
    assert exit_code == code
    assert "the log\n" in text
    exit_code, text = kit("submit", script)
    assert (exit_code, len(own.jobs)) == (code, 1)
    assert "--again" in text
    own.run = lambda: None
    assert kit("submit", "--again", script)[0] == 0
    assert len(own.jobs) == 2


def test_jobs_are_listed_followed_billed_and_cancelled_without_a_store(own, script):  # noqa: F811
    kit("submit", script)
    kit("submit", "--", "sleep", "60")
    done, waiting = (f"job-{job.attempt_id}" for job in own.jobs)
    own.jobs.reverse()
    own.play()
    code, text = kit("runs")
    assert code == 0
    lines = [line.split()[:2] for line in text.splitlines() if line.startswith("job-")]
    assert lines == [
        [waiting, "SUBMITTED"],
        [done, "DONE"],
    ]
    assert max(map(len, text.splitlines())) <= 100
    assert kit("logs", done) == (0, "the log\n")
    code, text = kit("bill", done)
    assert code is None
    assert "2.00 CPU BU" in text
    code, text = kit("bill")
    assert done in text
    assert f"{waiting}: its end is not stored yet" in text
    code, text = kit("cancel", waiting)
    assert f"{waiting} CANCELLED" in text
    (row,) = json.loads(kit("runs", waiting, "--json")[1])
    assert (row["state"], row["known"]) == ("CANCELLED", True)
    assert "had ended before" in kit("cancel", done)[1]


def test_job_that_has_not_ended_has_no_bill_yet(own, script):  # noqa: F811
    kit("submit", script)
    code, text = kit("bill", f"job-{own.jobs[0].attempt_id}")
    assert code == 1
    assert "PENDING" in text


def test_jobs_without_contact_are_unknown(own, script, monkeypatch):  # noqa: F811
    from kit.slurm import Slurm

    kit("submit", script)

    def away(*_):
        raise Unreachable("reach x by ssh", "connection refused")

    monkeypatch.setattr(Slurm, "status", away)
    code, text = kit("runs")
    assert code == 3
    assert "connection refused" in text
    assert kit("submit", script)[0] == 3
    assert kit("logs", f"job-{own.jobs[0].attempt_id}")[0] == 3
    assert len(own.jobs) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("no-such-file.sh",), "read the script"),
        (("{array}",), "each task"),
        (("--env", "A", "--", "true"), "NAME=VALUE"),
        (("-n", "3", "-N", "2", "--", "true"), "3 tasks on 2 nodes"),
        (("-t", "soon", "--", "true"), "time = 'soon'"),
        (("--name", "a b", "--", "true"), "name = 'a b'"),
    ],
)
def test_wrong_words_exit_2_and_submit_nothing(own, tmp_path, words, text):  # noqa: F811
    path = tmp_path / "array.sh"
    path.write_text("#!/bin/sh\n#SBATCH --array=1-3\ntrue\n")
    code, said = kit("submit", *(word.replace("{array}", str(path)) for word in words))
    assert (code, text in said) == (2, True), said
    assert own.jobs == []


@pytest.mark.parametrize("command", ["runs", "logs", "cancel", "bill"])
def test_unknown_job_exits_2(own, command):  # noqa: F811
    code, text = kit(command, "job-0123456789ab")
    assert (code, "no job" in text) == (2, True)
    assert own.jobs == []
