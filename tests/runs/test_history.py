"""Run ids, going on with a broken-off run, publishing."""

import dataclasses
import subprocess
import sys

import pytest

from kit.base import Busy, KitError, UsageError, read_history, read_json
from kit.base.settings import load
from kit.runs import history as runs

FACTS = {"figures": {"accuracy": 0.5}, "data": {"title": "none"}}


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_RESULTS_DIR", str(tmp_path / "results"))
    return load("sandbox")


def start(loaded, parameters=None, fresh=False):
    return runs.start_run(loaded, "local", parameters or {"epochs": 1}, "d" * 64, fresh)


def finish(run, text="result"):
    run.save("result.json", text)
    return run.finish({"local/result.json": "result.json"}, FACTS)


def test_a_run_id_is_target_hash_and_number(loaded):
    run = start(loaded)
    target, digest, number = run.id.rsplit("-", 2)
    assert (target, len(digest), number) == ("local", 12, "1")
    assert run.folder == loaded.profile_dir / "runs" / run.id


def test_an_unfinished_run_goes_on_and_a_finished_one_is_followed_by_a_new_one(loaded):
    first = start(loaded)
    first.lock.release(force=True)
    again = start(loaded)
    assert (again.id, again.resumed, again.started) == (first.id, True, first.started)
    finish(again)
    assert start(loaded).id == first.id[:-1] + "2"


def test_fresh_leaves_an_unfinished_run_alone(loaded):
    first = start(loaded)
    second = start(loaded, fresh=True)
    assert (second.id, second.resumed) == (first.id[:-1] + "2", False)


def test_other_parameters_or_code_are_another_run(loaded, monkeypatch):
    first = start(loaded)
    assert start(loaded, {"epochs": 2}).id != first.id
    monkeypatch.setattr(runs, "code_hash", lambda: "other")
    assert start(loaded).id != first.id


def test_other_results_have_other_run_ids_whatever_is_left_in_the_store(loaded, monkeypatch):
    first = start(loaded)
    other = loaded.profile_dir.parents[1] / "other"
    monkeypatch.setenv("KIT_RESULTS_DIR", str(other))
    assert start(load("sandbox")).id != first.id


def test_the_number_of_a_run_is_counted_and_not_sorted_as_text(loaded):
    for _ in range(11):
        finish(start(loaded))
    assert start(loaded).id.endswith("-12")


def test_an_unknown_target_is_refused(loaded):
    with pytest.raises(UsageError, match="moon"):
        runs.start_run(loaded, "moon", {}, "d", False)


def test_a_finished_run_is_published_with_a_manifest_and_one_line_of_history(loaded):
    run = start(loaded)
    line = finish(run)
    assert (loaded.profile_dir / "local/result.json").read_text() == "result"
    manifest = read_json(loaded.profile_dir / "manifest.json")
    assert manifest["local/result.json"]["run"] == run.id
    history, problems = read_history(loaded.profile_dir / "history.jsonl")
    assert [row["run"] for row in history] == [run.id]
    assert problems == []
    assert line["versions"]["kit"]
    assert history[0]["schema"] == 1


def test_a_run_killed_while_it_finishes_ends_the_same_when_started_again(loaded, monkeypatch):
    run = start(loaded)
    real = run.save

    def killed(name, value):
        if name == "record.json":
            raise KeyboardInterrupt
        return real(name, value)

    object.__setattr__(run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(run)
    run.lock.release(force=True)
    again = start(loaded)
    assert again.id == run.id
    finish(again)
    history, _ = read_history(loaded.profile_dir / "history.jsonl")
    assert [row["run"] for row in history] == [run.id]


def test_two_processes_cannot_execute_the_same_run(loaded):
    code = (
        "import sys; from kit.base import settings\nfrom kit.runs import history as runs\n"
        "loaded = settings.load('sandbox')\n"
        "try:\n"
        "    runs.start_run(loaded, 'local', {'epochs': 1}, 'd' * 64)\n"
        "except runs.Busy as err:\n"
        "    print(err); sys.exit(7)"
    )
    run = start(loaded)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert run.id in done.stdout
    assert "--fresh" in done.stdout
    run.lock.release(force=True)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_that_was_killed_does_not_lock_out_the_next(loaded):
    code = (
        "import os; from kit.base import settings\nfrom kit.runs import history as runs\n"
        "runs.start_run(settings.load('sandbox'), 'local', {'epochs': 1}, 'd' * 64)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert start(loaded).resumed is True


def test_an_unwritable_results_folder_is_named_with_the_setting(loaded, tmp_path):
    (tmp_path / "file").write_text("")
    broken = dataclasses.replace(loaded, results_dir=tmp_path / "file")
    with pytest.raises(KitError, match="KIT_RESULTS_DIR"):
        start(broken)


def test_a_busy_run_is_a_kit_error():
    assert issubclass(Busy, KitError)


def test_runs_that_finish_at_the_same_time_leave_one_whole_set_and_all_their_lines(loaded):
    code = (
        "import sys; from kit.base import settings\nfrom kit.runs import history as runs\n"
        "run = runs.start_run(settings.load('sandbox'), 'local', {'n': sys.argv[1]}, 'd', False)\n"
        "run.save('a.json', run.id); run.save('b.json', run.id)\n"
        "run.finish({'local/a.json': 'a.json', 'local/b.json': 'b.json'}, {'figures': {}})"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(4)]
    assert [process.wait(60) for process in started] == [0, 0, 0, 0]
    history, problems = read_history(loaded.profile_dir / "history.jsonl")
    assert (len({row["run"] for row in history}), problems) == (4, [])
    manifest = read_json(loaded.profile_dir / "manifest.json")
    owners = {(loaded.profile_dir / name).read_text() for name in manifest}
    assert owners == {entry["run"] for entry in manifest.values()}
    assert len(owners) == 1
