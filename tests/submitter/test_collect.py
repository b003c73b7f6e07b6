"""The files of an attempt are copied to the store whole, checked and reproducibly."""

import hashlib
import json

import pytest
from submitter_world import RUN, World

from kit.base import DataError
from kit.runs.objects import StageStore
from kit.runs.requests import attempt_id
from kit.submitter.collect import Collector

NAME = attempt_id(RUN, 1)
FOLDER = f"/proj/kit/tries/{NAME}"


@pytest.fixture
def world(tmp_path):
    """A world with one attempt that committed and ended."""
    world = World(tmp_path)
    world.ask()
    world.submitter().once()
    world.play()
    world.play()
    return world


def collector(world):
    slurm = world.submitter().slurm
    status = slurm.status([NAME])[NAME]
    return Collector(slurm, StageStore(world.data, RUN), 1, NAME), status


def test_result_has_all_manifest_files_and_accounting_texts(world):
    one, status = collector(world)
    result = one.result(status)
    assert {"job.sh", "job.log", "sacct.txt", "seff.txt", "times.json"} <= set(result["files"])
    assert (result["try"], result["token"], result["job"]["state"]) == (1, NAME, "COMPLETED")
    another, status = collector(world)
    assert another.result(status) == result


def test_removed_log_does_not_prevent_the_result(world):
    (log,) = [name for name in world.files if name.startswith(f"{FOLDER}/job-")]
    del world.files[log]
    one, status = collector(world)
    assert "job.log" not in one.result(status)["files"]


def test_changed_manifest_file_is_reported(world):
    one, status = collector(world)
    world.files[f"{FOLDER}/losses.json"] = b"[]"
    with pytest.raises(DataError, match="it was changed"):
        one.result(status)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/shadow", "a/../../b", "a//b"])
def test_manifest_with_a_path_outside_the_folder_is_refused(world, name):
    one, status = collector(world)
    text = json.dumps({"schema": 1, "files": {name: hashlib.sha256(b"x").hexdigest()}}).encode()
    manifest = f"manifest-{hashlib.sha256(text).hexdigest()}"
    world.files[f"{FOLDER}/{manifest}"] = text
    before = dict(world.data.objects)
    with pytest.raises(DataError, match="leads out of its folder"):
        one._files(type(status)(**{**vars(status), "manifest": manifest}))
    assert world.data.objects == before


def test_failure_that_is_not_json_is_stored_unchanged(world):
    world.files[f"{FOLDER}/failure.json"] = b"\xff no json"
    one, status = collector(world)
    left = one.failure(status)
    assert "no json" in left["failure"]["got"]
    assert left["token"] == NAME
