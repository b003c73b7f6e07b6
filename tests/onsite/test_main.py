"""The main program of a job: what it leaves when it fails."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit import slurm
from kit.base import KitError, time_record
from kit.onsite import EXIT_MEANINGS, main, names
from kit.onsite.names import NODE_LOST
from kit.onsite.ray_cluster import RayFailed


def main_in(folder, monkeypatch, error):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KIT_TASK", "{}")

    def run(*_):
        raise error

    monkeypatch.setattr(main, "run_job", run)
    return main.main(), json.loads((folder / "failure.json").read_text())


def test_failure_file_of_the_driver_is_kept(tmp_path, monkeypatch):
    (tmp_path / "failure.json").write_text('{"cause": "the training failed"}')
    error = RayFailed(3, main.DRIVER_FAILED, "the log")
    code, failure = main_in(tmp_path, monkeypatch, error)
    assert (code, failure["cause"]) == (3, "the training failed")


def test_lost_node_is_reported_rather_than_its_effect_on_the_driver(tmp_path, monkeypatch):
    (tmp_path / "failure.json").write_text('{"cause": "the training failed"}')
    code, failure = main_in(tmp_path, monkeypatch, RayFailed(NODE_LOST, "Ray on c2 has ended"))
    assert (code, failure["cause"]) == (92, "Ray on c2 has ended")


def test_unexpected_error_leaves_its_traceback(tmp_path, monkeypatch):
    code, failure = main_in(tmp_path, monkeypatch, OSError("disk full"))
    assert code == 90
    assert "disk full" in failure["traceback"]


@pytest.mark.parametrize("error", [RayFailed(1, main.DRIVER_FAILED, "no space"), OSError("x")])
def test_failure_that_cannot_be_written_has_its_own_exit_code(tmp_path, monkeypatch, error):
    def full(*_):
        raise KitError("cannot write failure.json", "No space left on device")

    monkeypatch.setattr(main, "write_json", full)
    with pytest.raises(FileNotFoundError):
        main_in(tmp_path, monkeypatch, error)
    assert main.main() == main.NOT_WRITABLE
    assert "full" in EXIT_MEANINGS[names.NOT_WRITABLE]


def test_another_version_of_ray_is_refused_before_the_start(tmp_path):
    with pytest.raises(RayFailed, match=r"needs 2\.9\.0") as error:
        main.run_job({"ray": "2.9.0"}, tmp_path, time.time())
    assert error.value.code == names.WRONG_RAY_VERSION


def test_seconds_of_the_job_are_all_named():
    job = time_record("train-x", 20.0, 40.0)
    spans = main.job_spans({"loading": 3.0, "training": 12.0}, job, 10.0, 19.0, 42.0)
    assert spans == {
        "starting Ray": 9.0,
        "starting the driver": 5.0,
        "loading": 3.0,
        "training": 12.0,
        "ending Ray": 2.0,
    }


def test_driver_that_starts_while_ray_does_is_counted_once():
    job = time_record("train-x", 20.0, 40.0)
    spans = main.job_spans({"training": 12.0}, job, 10.0, 25.0, 42.0)
    assert spans["starting Ray"] == 15.0
    assert spans["starting the driver"] == 3.0
    assert sum(spans.values()) == 32.0


def submission(monkeypatch, listed):
    """A Jobs API that knows the listed jobs; what is submitted to it."""
    submitted = []
    jobs = [SimpleNamespace(submission_id=each) for each in listed]
    client = SimpleNamespace(
        list_jobs=lambda: jobs, submit_job=lambda **options: submitted.append(options)
    )
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: client)
    return submitted


def test_driver_is_submitted_once_and_told_the_number_of_nodes(monkeypatch):
    cluster = SimpleNamespace(dashboard="http://127.0.0.88:7", nodes=["c1", "c2"])
    submitted = submission(monkeypatch, ["another"])
    assert main.submit(cluster, "0123456789ab")
    assert [each["submission_id"] for each in submitted] == ["0123456789ab"]
    assert submitted[0]["entrypoint"].endswith(" -m kit.onsite.driver 2")
    submitted = submission(monkeypatch, ["0123456789ab"])
    assert main.submit(cluster, "0123456789ab")
    assert submitted == []


def test_every_exit_code_has_a_meaning():
    codes = {value for value in vars(names).values() if isinstance(value, int)}
    assert codes - {names.DRIVER_FAILED} == set(EXIT_MEANINGS)
    assert max(codes) < 128


def test_documentation_lists_every_exit_code():
    page = Path(__file__).parents[2] / "docs" / "explanation" / "attempt.md"
    listed = re.findall(
        r"^\| (\d+) \| job \|", page.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert {int(code) for code in listed} == {0, *EXIT_MEANINGS, *slurm.EXIT_MEANINGS}


def test_each_trial_of_a_sweep_that_has_ended_is_a_line_of_the_log(tmp_path, capsys):
    progress, reported = tmp_path / "progress.json", set()
    fields = {"values": "seed 1", "metric": 0.5, "why": "", "seconds": 1.0}
    rows = [{"number": n, "state": s, **fields} for n, s in ((1, "done"), (2, "running"))]
    trials = {"primary": "accuracy", "last": rows}
    damaged = (b"", b"[]", b'{"trials": 1}', b'{"step": 1, "steps": 2, "loss": 0.1}')
    whole = json.dumps({"steps": 2, "trials": trials}).encode()
    main.report_trials(progress, reported)  # there is none yet
    for content in (*damaged, whole, whole):
        progress.write_bytes(content)
        main.report_trials(progress, reported)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(" trial 1 of 2, seed 1: done, accuracy 0.5000, 1.0 s")
