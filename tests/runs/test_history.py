"""Run ids, going on with a broken-off run, publishing."""

import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import time

import pytest
from filelock import FileLock, Timeout
from own_experiments import write

from kit.base import ROOT, Busy, KitError, UsageError, read_history, read_json
from kit.base.settings import load
from kit.experiments import load_experiment
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


def test_an_unfinished_run_resumes_and_a_finished_one_is_followed_by_a_new_one(loaded):
    first = start(loaded)
    first.lock.release(force=True)
    again = start(loaded)
    assert (again.id, again.resumed, again.started) == (first.id, True, first.started)
    finish(again)
    assert start(loaded).id == first.id[:-1] + "2"


def sweep_run(loaded, cancelled=(), **options):
    """Start a sweep on a site; `cancelled` are the runs that were cancelled before a result."""
    started = runs.start_run(
        loaded, "cloud-hpc", {"sweep": "{}"}, "d", was_cancelled=cancelled.__contains__, **options
    )
    started.lock.release(force=True)
    return started


def finish_sweep(run, not_run):
    run.more = {"sweep": {"not_run": not_run}}
    return finish(run)


def test_a_cancelled_sweep_is_continued_and_a_complete_one_is_not_reopened(loaded):
    first = sweep_run(loaded)
    assert "continues" not in finish_sweep(first, 3)
    second = sweep_run(loaded)
    assert (second.id[-2:], second.resumed, second.first["continues"]) == ("-2", False, [first.id])
    again = sweep_run(loaded)  # interrupted and resumed: still what it was begun with
    assert (again.id, again.resumed, again.first["continues"]) == (second.id, True, [first.id])
    assert finish_sweep(again, 1)["continues"] == [first.id]
    third = sweep_run(loaded)
    assert third.first["continues"] == [second.id, first.id]
    finish_sweep(third, 0)
    assert "continues" not in sweep_run(loaded).first


def test_a_sweep_that_was_cancelled_before_it_had_a_result_is_continued(loaded):
    first = sweep_run(loaded)
    second = sweep_run(loaded, [first.id])
    assert (second.id[-2:], second.resumed, second.first["continues"]) == ("-2", False, [first.id])
    third = sweep_run(loaded, [first.id, second.id])
    assert third.first["continues"] == [second.id, first.id]
    (third.folder / "run.json").unlink()  # killed before it was written
    assert sweep_run(loaded, [first.id, second.id]).first["continues"] == [second.id, first.id]


def test_a_fresh_sweep_continues_nothing_and_stays_so(loaded):
    finish_sweep(sweep_run(loaded), 3)
    fresh = sweep_run(loaded, fresh=True)
    assert "continues" not in fresh.first
    again = sweep_run(loaded)
    assert (again.id, again.resumed, "continues" in again.first) == (fresh.id, True, False)


def test_fresh_leaves_an_unfinished_run_alone(loaded):
    first = start(loaded)
    second = start(loaded, fresh=True)
    assert (second.id, second.resumed) == (first.id[:-1] + "2", False)


def test_other_parameters_or_another_experiment_are_another_run(loaded, monkeypatch):
    first = start(loaded)
    assert start(loaded, {"epochs": 2}).id != first.id
    monkeypatch.setattr(runs, "load_experiment", lambda _: load_experiment("digits"))
    assert start(loaded).id != first.id


@pytest.mark.parametrize(
    "changed", [{"gates": [0.1] * 3}, {"strict": True}, {"tunnel": "none"}, {"min_accuracy": 0.1}]
)
def test_what_is_judged_after_the_training_does_not_orphan_an_unfinished_run(loaded, changed):
    first = start(loaded, {"epochs": 1, "gates": [0.8] * 3, "strict": False, "tunnel": ""})
    first.lock.release(force=True)
    again = start(
        loaded, {"epochs": 1, "gates": [0.8] * 3, "strict": False, "tunnel": ""} | changed
    )
    assert (again.id, again.resumed) == (first.id, True)


def test_editing_the_experiment_is_another_run_and_its_source_is_kept(loaded, tmp_path):
    path = write(tmp_path / "own")

    def started():
        return runs.start_run(loaded, "local", {}, "d", experiment=load_experiment(str(path)))

    first = started()
    first.lock.release(force=True)
    assert started().id == first.id
    path.write_text(path.read_text() + "\n# edited\n")
    assert started().id != first.id
    assert "edited" not in (first.folder / "source/experiment/mean_model.py").read_text()


def test_edit_of_the_kit_outside_the_experiment_leaves_the_id_of_a_run(tmp_path):
    """A copy of the kit is edited: a plot may change while a paid job runs, a model may not."""
    shutil.copytree(ROOT / "kit", tmp_path / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    environ = {**os.environ, "KIT_RESULTS_DIR": str(tmp_path / "results"), "PYTHONPATH": ""}
    environ["KIT_SITES_DIR"] = str(ROOT / "env/sites")
    program = "import kit.runs.history as h; from kit.base.settings import load\n"
    program += "print(h.__file__, h.start_run(load('laptop'), 'local', {}, 'd' * 64).id)"

    def started():
        argv = [sys.executable, "-c", program]
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        file, run = done.stdout.split()
        assert file.startswith(str(tmp_path))
        return run

    first = started()
    for name in ("report/__init__.py", "runs/history.py", "experiments/digits.py"):
        path = tmp_path / "kit" / name
        path.write_text(path.read_text() + "\n# edited\n")
    assert started() == first
    model = tmp_path / "kit/experiments/fashion_mnist/training.py"
    model.write_text(model.read_text() + "\n# edited\n")
    assert started() != first


def test_commit_versions_and_host_of_the_start_are_recorded(loaded, monkeypatch):
    monkeypatch.setattr(runs, "git_state", lambda root: {"commit": "a", "clean": True})
    first = start(loaded)
    first.lock.release(force=True)
    monkeypatch.setattr(runs, "git_state", lambda root: {"commit": "b", "clean": False})
    monkeypatch.setattr(runs, "versions", lambda: {"kit": "another"})
    line = finish(start(loaded))
    assert line["git"] == {"commit": "a", "clean": True}
    assert line["git_at_end"] == {"commit": "b", "clean": False}
    assert line["versions"]["kit"] != "another"


def test_notebook_and_lock_of_the_start_are_copied_into_the_run_folder(loaded):
    run = start(loaded)
    for name, source in (
        ("local.ipynb", ROOT / "notebooks/local.ipynb"),
        ("requirements.lock", ROOT / "requirements.lock"),
    ):
        assert (run.folder / "source" / name).read_bytes() == source.read_bytes()


def test_a_resumed_run_keeps_the_seconds_of_its_earlier_start(loaded, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    first = start(loaded)
    with first.timeline.span("data"):
        now[0] += 2
    with contextlib.suppress(RuntimeError), first.timeline.span("training"):
        now[0] += 5
        raise RuntimeError("interrupted")
    for path in first.folder.rglob("*"):
        os.utime(path, (1007, 1007))
    first.lock.release(force=True)
    now[0] = 90_000.0  # the night in between
    again = start(loaded)
    with again.timeline.span("training"):
        now[0] += 3
    assert again.timeline.seconds() == {"data": 2.0, "training": 8.0}
    now[0] += 4
    assert again.seconds() == {"data": 2.0, "training": 8.0, "other": 4.0}


def test_time_around_the_spans_has_the_name_of_the_background(loaded, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    run = start(loaded)
    for name, background in (("data", "tables"), ("training", "between cells"), ("end", "")):
        with run.timeline.span(name):
            now[0] += 1
        run.timeline.enter(background)
        now[0] += 3
    assert run.seconds() == {
        "data": 1.0,
        "tables": 3.0,
        "training": 1.0,
        "between cells": 3.0,
        "end": 1.0,
        "other": 3.0,
    }
    names = [span["name"] for span in read_json(run.folder / "timeline.json")]
    assert names == ["data", "tables", "training", "between cells", "end"]


def test_run_that_was_removed_is_not_made_again_by_its_timeline(loaded):
    run = start(loaded)
    run.lock.release(force=True)
    shutil.rmtree(run.folder)
    run.timeline.enter("between cells")
    assert not run.folder.exists()


def test_a_span_that_was_cut_by_a_kill_ends_with_the_last_sign_of_the_run(loaded, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    first = start(loaded)
    span = first.timeline.span("training")
    span.__enter__()  # and the process is killed
    for path in first.folder.rglob("*"):
        os.utime(path, (1006, 1006))
    first.lock.release(force=True)
    now[0] = 90_000.0
    assert start(loaded).timeline.seconds() == {"training": 6.0}
    span.gen.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_the_setting(loaded, monkeypatch, number):
    def refuse(self, *_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(KitError, match="KIT_RESULTS_DIR") as error:
        start(loaded)
    assert ".lock" in str(error.value)


def test_a_lock_file_that_nobody_releases_is_named(loaded, monkeypatch):
    def wait_in_vain(self, *_, **__):
        raise Timeout(self.lock_file)

    monkeypatch.setattr(FileLock, "acquire", wait_in_vain)
    with pytest.raises(Busy, match="remove"):
        start(loaded)


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


@pytest.mark.parametrize("damaged", ["[]", "{", "null"])
def test_a_damaged_manifest_does_not_keep_a_finished_run_from_its_result(loaded, damaged):
    run = start(loaded)
    (loaded.profile_dir / "manifest.json").write_text(damaged)
    finish(run)
    assert read_json(loaded.profile_dir / "manifest.json")["local/result.json"]["run"] == run.id


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
