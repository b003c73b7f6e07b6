"""What runs left on the site and in the buckets is listed; what no open run needs is removed."""

import dataclasses
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from memory_store import MemoryStore

from kit.base import LocalHost
from kit.base.settings import Hpc, load
from kit.cli import runs as runs_commands
from kit.cli.leftovers import _month_on_site, tidy_command
from kit.runs.requests import RunRequests, attempt_id
from kit.slurm import SitePaths
from kit.submitter import env
from kit.submitter.tidy import NEEDED, list_leftovers, remove_leftovers

OLD_S = 40 * 86400
DONE, OPEN = "cloud-hpc-0123456789ab-1", "cloud-hpc-0123456789ab-2"
CODE, OTHER_CODE, DATA = "c" * 64, "d" * 64, "e" * 64


@pytest.fixture
def old(tmp_path):
    """A site and two buckets of which everything is 40 days old: one run is done, one is open."""
    project = tmp_path / "proj"
    project.mkdir()
    hpc = Hpc(ssh_host="x", project_dir=str(project))
    settings = load("sandbox", {"KIT_RESULTS_DIR": str(tmp_path / "results")})
    slurm = SimpleNamespace(host=LocalHost(), hpc=hpc, paths=SitePaths(hpc), clock=time.time)
    world = SimpleNamespace(
        settings=dataclasses.replace(settings, hpc=hpc),
        slurm=slurm,
        requests=RunRequests(MemoryStore("requests")),
        data=MemoryStore("data"),
        kit=project / "kit",
    )
    attempt(world, attempt_id(DONE, 1), CODE, ended=True)
    attempt(world, attempt_id(OPEN, 1), OTHER_CODE, ended=False)
    for name in (f"{CODE}.zip", f"{OTHER_CODE}.zip", f"{DATA}.zip"):
        file(world.kit / "inputs" / name)
    for name in ("request", "try-1/submitted"):
        world.requests.write(OPEN, name, {})
    for name in ("request", "try-1/submitted", "result"):
        world.requests.write(DONE, name, {})
    world.data.put(f"runs/{DONE}/try-1/out/model.safetensors", b"x" * 1000)
    age(world)
    return world


def file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def attempt(world, name, code, ended):
    folder = world.kit / "tries" / name
    file(folder / "job.sh").write_text(
        f"export KIT_CODE=/proj/kit/inputs/{code}.zip data=/proj/kit/inputs/{DATA}.zip"
    )
    if ended:
        (folder / "commit").symlink_to("manifest-0")


def age(world, seconds=OLD_S):
    then = time.time() - seconds
    for path in world.kit.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)
    for store in (world.requests.store, world.data):
        store.modified = dict.fromkeys(store.objects, datetime.fromtimestamp(then, UTC))


def results_are_here(world, run):
    file(world.settings.profile_dir / "runs" / run / "record.json")


def kept(world, **options):
    return {row.name: row.kept for row in list_leftovers(world, **options)}


def removed(world):
    return {row.name for row in remove_leftovers(world, list_leftovers(world))}


def test_attempt_and_code_of_a_finished_run_are_removed_and_an_open_one_keeps_its_own(old):
    assert removed(old) == {f"tries/{attempt_id(DONE, 1)}", f"inputs/{CODE}.zip"}
    left = {path.relative_to(old.kit).as_posix() for path in old.kit.glob("*/*")}
    assert left == {
        f"tries/{attempt_id(OPEN, 1)}",
        f"inputs/{OTHER_CODE}.zip",
        f"inputs/{DATA}.zip",
    }


def test_what_was_used_lately_is_kept(old):
    results_are_here(old, DONE)
    age(old, 86400)
    assert removed(old) == set()
    assert kept(old, keep_days=0.5)[f"tries/{attempt_id(DONE, 1)}"] == ""


def test_attempt_of_somebody_else_and_its_inputs_are_kept(old):
    """Two people with buckets of their own share a project folder; one of them tidies."""
    for name, ended in (("aaaaaaaaaaaa", True), ("bbbbbbbbbbbb", False)):
        attempt(old, name, "f" * 64, ended)
    file(old.kit / "inputs" / f"{'f' * 64}.zip")
    file(old.kit / "inputs" / f"{'f' * 64}.zip.sha256")
    file(old.kit / "inputs" / f"{'9' * 64}.zip.sha256")
    age(old)
    rows = kept(old)
    assert rows[f"inputs/{'f' * 64}.zip.sha256"] == NEEDED
    assert rows[f"inputs/{'9' * 64}.zip.sha256"] == ""
    assert "no finished run of this profile" in rows["tries/aaaaaaaaaaaa"]
    assert rows["tries/bbbbbbbbbbbb"] == rows[f"inputs/{'f' * 64}.zip"] == NEEDED


def test_runs_in_the_buckets_are_removed_only_where_their_results_are(old):
    assert "its results are not in" in kept(old)[f"runs/{DONE}/"]
    for run in (DONE, OPEN):
        results_are_here(old, run)
    assert kept(old)[f"runs/{OPEN}/"] == NEEDED
    assert f"runs/{DONE}/" in removed(old)
    assert list(old.requests.statuses()) == [OPEN]
    assert old.data.objects == {}


def test_half_removed_run_is_never_executed_again(old):
    """The connection breaks after any number of removed objects: no request is left alone."""
    results_are_here(old, DONE)
    store = old.requests.store
    delete, states = store.delete, []

    def watched(key):
        delete(key)
        states.append(f"runs/{DONE}/request.json" in store.objects)

    store.delete = watched
    removed(old)
    assert states == [False] * 3


def test_data_set_in_the_bucket_is_kept_while_a_run_is_open(old):
    old.data.put(f"data/{DATA}.json", b"{}")
    age(old)
    assert kept(old)[f"data/{DATA}"] == NEEDED
    old.requests.write(OPEN, "result", {})
    age(old)
    assert kept(old)[f"data/{DATA}"] == ""


def test_packages_and_environments_that_new_runs_use_are_kept(old):
    hpc = old.slurm.hpc
    pins = env.pins_key(env.pins())
    for name in (f"{pins}.txt", f"{pins}/a.whl", "000000000000.txt", "000000000000/a.whl"):
        file(old.kit / "wheels" / name)
    venvs = old.kit / "venvs"
    published, private = f"{pins}.{'1' * 36}", f"{pins}.{'2' * 36}"
    for name in (published, private):
        file(venvs / name / ".try").write_text(attempt_id(OPEN, 1))
    (venvs / pins).symlink_to(published)
    (venvs / f"attempt-{attempt_id(OPEN, 1)}").symlink_to(private)
    age(old)
    rows = kept(old)
    assert rows[f"wheels/{pins}"] == rows[f"wheels/{pins}.txt"] == "new runs use it"
    assert rows["wheels/000000000000"] == rows[f"venvs/{private}"] == NEEDED
    (old.kit / "tries" / attempt_id(OPEN, 1) / "commit").symlink_to("closed")
    age(old)
    assert {"wheels/000000000000", "wheels/000000000000.txt", f"venvs/{private}"} <= removed(old)
    assert [row.name for row in env.list_environments(LocalHost(), hpc)] == [published]
    assert {path.name for path in venvs.iterdir()} == {pins, published}


def test_file_that_is_not_the_kits_is_neither_listed_nor_removed(old):
    for name in ("inputs/my thesis.pdf", "tries/-rf", "tries/mine/commit"):
        file(old.kit / name)
    age(old)
    assert not any("thesis" in name or "mine" in name or "-rf" in name for name in kept(old))


def test_nothing_is_listed_for_a_site_and_buckets_that_are_new(tmp_path):
    hpc = Hpc(ssh_host="x", project_dir=str(tmp_path))
    slurm = SimpleNamespace(host=LocalHost(), hpc=hpc, paths=SitePaths(hpc), clock=time.time)
    requests = RunRequests(MemoryStore(missing=True))
    new = SimpleNamespace(slurm=slurm, requests=requests, data=MemoryStore(missing=True))
    assert list_leftovers(new) == []


def test_command_lists_and_with_the_option_removes(old, monkeypatch):
    monkeypatch.setattr(runs_commands, "open_site", lambda *_: old)
    listed = CliRunner().invoke(tidy_command, [])
    assert "2 of 7" in listed.stderr
    assert "0.00 GiB on the site: about 0.00 Storage BU in 30 days" in listed.stderr
    assert max(map(len, listed.stdout.splitlines())) <= 100
    done = CliRunner().invoke(tidy_command, ["--remove"])
    assert f"removed site tries/{attempt_id(DONE, 1)}" in done.stdout
    assert not Path(old.kit / "tries" / attempt_id(DONE, 1)).exists()
    again = json.loads(CliRunner().invoke(tidy_command, ["--json"]).stdout)
    assert len(again) == 5
    assert all(row["kept"] for row in again)


def test_price_of_the_files_on_the_site_needs_a_rate(old, monkeypatch):
    other = dataclasses.replace(old.settings, rates={})
    monkeypatch.setattr(runs_commands, "open_site", lambda *_: old)
    old.settings = other
    assert "on the site:" not in CliRunner().invoke(tidy_command, []).stderr
    roihu = load("roihu", {"KIT_RESULTS_DIR": str(old.settings.results_dir)})
    assert (
        _month_on_site(roihu, 2 * 2**30)
        == "2.00 GiB on the site: about 14.06 Storage BU in 30 days"
    )
